"""Whether an exported model answers as its adapter on the base does, measured in a process of its own.

    python -m tasks.export.agreement EXPORT BASE ADAPTER < requests.jsonl

prints {"difference": 0.0001, "size": 3.2}: the largest difference of two logits, and the largest change that the
adapter makes to a logit of the base, over all positions of all requests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused
from tasks.export.answer import OFFLINE

TOLERANCE = {"float32": 0.005, "float16": 0.02, "bfloat16": 0.15}
"""Largest difference over the largest change by the adapter. Rounding a weight to 8 bits of mantissa moves it by up to
0.4 %, and an adapter changes weights by a few per cent."""


def agreement_in_fresh_process(
    export: Path,
    base: Path,
    adapter: Path,
    prompts: Sequence[str],
    *,
    quantization: str = "none",
    double_quant: bool = True,
) -> float:
    """The largest difference of a logit between export and adapter on base, over the adapter's largest change.

    Raises:
        ArtifactRefused: the process fails.
    """
    command = [sys.executable, "-m", "tasks.export.agreement", str(export), str(base), str(adapter)]
    command += ["--quantization", quantization, *([] if double_quant else ["--no-double-quant"])]
    home = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(  # noqa: S603 (this interpreter, this module)
        command,
        input="".join(json.dumps({"input": prompt}) + "\n" for prompt in prompts),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **OFFLINE, "PYTHONPATH": paths},
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        wrong = f"cannot be compared in a fresh process: {said[-1][:300] if said else 'no message'}"
        raise ArtifactRefused.one("E-EXPORT-003", export, wrong, "export again, or look at what the command says")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["difference"]) / max(float(found["size"]), 1e-12)


def refuse_unless_agreeing(export: Path, difference: float, dtype: str) -> None:
    """
    Raises:
        ArtifactRefused: the difference is above the type's tolerance.
    """
    if not difference <= TOLERANCE[dtype]:
        wrong = f"differs from the adapter on its base by {difference:.2%} of the adapter's change"
        raise ArtifactRefused.one(
            "E-EXPORT-004", export, wrong, f"{dtype} is allowed {TOLERANCE[dtype]:.1%}; use float32"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on the prompts of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.export.agreement", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("export")
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    parser.add_argument("--no-double-quant", action="store_true")
    asked = parser.parse_args(arguments)
    os.environ |= OFFLINE
    prompts = [json.loads(line)["input"] for line in sys.stdin if line.strip()]
    print(json.dumps(compared(asked, prompts)))
    return 0


def compared(asked: argparse.Namespace, prompts: Sequence[str]) -> dict[str, float]:
    """Largest difference and largest change, in float32."""
    import torch
    import transformers

    from tasks.methods.build import attached
    from tasks.specs import BaseSpec
    from tasks.training.base import load_base

    spec = BaseSpec(
        model=str(Path(asked.base).resolve()),
        revision=None,
        quantization=asked.quantization,
        double_quant=not asked.no_double_quant,
        compute_dtype="float32",
    )
    base = load_base(spec, kind="generation", device="cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.export, dtype=torch.float32).eval()
    difference = size = 0.0

    def logits(of: Any, prompt: str) -> Any:
        return of(**base.tokenizer(prompt, return_tensors="pt")).logits.float()

    with torch.no_grad():
        plain = [logits(base.model, prompt) for prompt in prompts]
        with attached(base, Path(asked.adapter)) as adapted:
            expected = [logits(adapted, prompt) for prompt in prompts]
        for before, wanted, prompt in zip(plain, expected, prompts, strict=True):
            difference = max(difference, float((logits(model, prompt) - wanted).abs().max()))
            size = max(size, float((wanted - before).abs().max()))
    return {"difference": difference, "size": size}


if __name__ == "__main__":
    sys.exit(main())
