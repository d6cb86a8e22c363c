"""A model answers in a process of its own, from its files alone: the last check before it is served.

    python -m tasks.export.answer MODEL_FOLDER [--adapter DIR] [--head TASK] < requests.jsonl > answers.jsonl

A request is {"input": "..."}, an answer {"output": "...", "seconds": 0.01}. Decoding is greedy, weights are
safetensors, the network stays closed, and no code from a model folder runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused, DataRefused, FactoryError

LATER = "--later"  # the arguments come as a JSON list on the first line of standard input
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}


def answer_in_fresh_process(
    model_folder: Path,
    prompts: Sequence[str],
    *,
    kind: str = "generation",
    adapter: Path | None = None,
    head: str | None = None,
    quantization: str = "none",
    double_quant: bool = True,
    compute_dtype: str = "auto",
    max_new_tokens: int = 48,
    timeout_seconds: float = 300.0,
) -> tuple[str, ...]:
    """What the model in a folder says to each prompt, in a Python process that has seen nothing else.

    Args:
        adapter: a PEFT folder to attach.
        head: classification export: the task whose head answers.
        quantization: "nf4" loads the folder's weights in 4 bits, as an adapter of an NF4 base expects.

    Raises:
        ArtifactRefused: the process fails (with the last line it said), takes too long, or leaves a prompt unanswered.
    """
    arguments = [str(model_folder), "--kind", kind, "--quantization", quantization, "--compute-dtype", compute_dtype]
    arguments += ["--max-new-tokens", str(max_new_tokens)]
    arguments += ["--adapter", str(adapter)] if adapter else []
    arguments += ["--head", head] if head else []
    arguments += [] if double_quant else ["--no-double-quant"]
    lines = [json.dumps(arguments), *(json.dumps({"input": prompt}) for prompt in prompts)]
    remedy = "do not serve it; export again, or look at what the same command says"
    process = _started()
    try:
        written, complaints = process.communicate("\n".join(lines) + "\n", timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        wrong = f"gave no answer within {timeout_seconds:g} s"
        raise ArtifactRefused.one("E-MERGE-038", model_folder, wrong, remedy) from error
    if process.returncode:
        said = [line for line in complaints.strip().splitlines() if line.strip()]
        last = said[-1][:300] if said else "no message"
        wrong = f"does not answer in a fresh process (exit {process.returncode}): {last}"
        raise ArtifactRefused.one("E-MERGE-038", model_folder, wrong, remedy)
    answers = tuple(json.loads(line)["output"] for line in written.splitlines())
    if len(answers) != len(prompts):
        wrong = f"answered {len(answers)} of {len(prompts)} prompts"
        raise ArtifactRefused.one("E-MERGE-038", model_folder, wrong, remedy)
    return answers


def expect_a_question() -> None:
    """Start the process that will answer next, so that it loads its libraries beside other work.

    It knows nothing of any model until it is asked, and ends with this process if it never is.
    """
    if not _waiting:
        _waiting.append(_start())


_waiting: list[subprocess.Popen[str]] = []


def _started() -> subprocess.Popen[str]:
    """The process that waits, if it still does, or a new one."""
    while _waiting:
        process = _waiting.pop()
        if process.poll() is None:
            return process
    return _start()


def _start() -> subprocess.Popen[str]:
    home = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(  # noqa: S603 (this interpreter, this module)
        [sys.executable, "-m", "tasks.export.answer", LATER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **OFFLINE, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
    )


def _told_later() -> list[str]:
    """The arguments, from the first line of standard input; the libraries are loaded while it is waited for."""
    from tasks.training.base import load_libraries

    load_libraries()
    line = sys.stdin.readline()
    return list(json.loads(line)) if line else sys.exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer standard input; the exit code is that of the error contract."""
    os.environ |= OFFLINE
    words = sys.argv[1:] if arguments is None else list(arguments)
    asked = _parser().parse_args(_told_later() if words == [LATER] else words)
    try:
        with _answering(asked) as answer:
            for number, line in enumerate(sys.stdin, 1):
                if not line.strip():
                    continue
                prompt = _prompt(number, line)
                began = time.perf_counter()
                said = {"output": answer(prompt), "seconds": round(time.perf_counter() - began, 6)}
                print(json.dumps(said, ensure_ascii=False), flush=True)
    except FactoryError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


@contextmanager
def _answering(asked: argparse.Namespace) -> Iterator[Any]:
    """A function from a prompt to the answer, with the model loaded."""
    from tasks.evaluation.scoring import answers
    from tasks.methods.build import attached
    from tasks.specs import BaseSpec
    from tasks.training.base import load_base

    folder = Path(asked.model).resolve()
    labels = _labels(asked, folder) if asked.kind == "classification" else ()
    spec = BaseSpec(
        model=str(folder),
        revision=None,
        quantization=asked.quantization,
        double_quant=not asked.no_double_quant,
        compute_dtype=asked.compute_dtype,
    )
    base = load_base(spec, kind=asked.kind, labels=labels)
    if asked.head:
        _put_on_head(base.model, folder, asked.head)
    if asked.adapter is None:
        yield lambda prompt: answers(base, base.model, [prompt], max_new_tokens=asked.max_new_tokens)[0].text
        return
    with attached(base, Path(asked.adapter)) as model:
        yield lambda prompt: answers(base, model, [prompt], max_new_tokens=asked.max_new_tokens)[0].text


def _prompt(number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["input"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        where = f"stdin:{number}"
        raise DataRefused.one("E-DATA-090", where, "is no request", 'write {"input": "..."} on one line')
    return prompt


def _labels(asked: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """Class names in the order of the head's outputs: of the export, of the adapter's folder, or of the model's
    config; by number where none of them says.

    Raises:
        ArtifactRefused: the asked head is not there.
    """
    if asked.head:
        listed = _json(folder / "labels.json")
        if not isinstance(listed, dict) or asked.head not in listed:
            have = ", ".join(listed) if isinstance(listed, dict) else "none"
            raise ArtifactRefused.one("E-MERGE-039", folder, f"has no head of '{asked.head}'", f"it has: {have}")
        return tuple(map(str, listed[asked.head]))
    outputs = _outputs(Path(asked.adapter)) if asked.adapter else None
    for place in filter(None, (asked.adapter, folder)):
        listed = _json(Path(place) / "labels.json")
        named = (_json(Path(place) / "config.json") or {}).get("id2label", {})
        found = listed if isinstance(listed, list) else [named[key] for key in sorted(named, key=int)]
        if found and outputs in (None, len(found)):
            return tuple(map(str, found))
    return tuple(str(number) for number in range(outputs or 2))


def _outputs(adapter: Path) -> int:
    """Rows of the last weight of an adapter's head."""
    from tasks.merging.adapter_file import read_adapter_file

    weights = [tensor for name, tensor in read_adapter_file(adapter).head.items() if name.endswith("weight")]
    if not weights:
        raise ArtifactRefused.one("E-MERGE-039", adapter, "has no head", "train the head with the adapter")
    return len(weights[-1])


def _put_on_head(model: Any, folder: Path, task: str) -> None:
    from safetensors.torch import load_file

    from tasks.merging.apply import replace_head

    replace_head(model, load_file(folder / "heads" / f"{task}.safetensors"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.export.answer", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model", help="folder of a transformers model")
    parser.add_argument("--adapter", help="PEFT folder to attach")
    parser.add_argument("--head", help="classification export: the task whose head answers")
    parser.add_argument("--kind", choices=("generation", "classification"), default="generation")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none", help="load the weights in 4 bits")
    parser.add_argument("--no-double-quant", action="store_true", help="NF4 without quantised scales")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    return parser


if __name__ == "__main__":
    sys.exit(main())
