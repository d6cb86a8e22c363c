"""What the memory plan is worth: predicted and measured peak of real trainings on models that it has not seen.

    python benchmarks/memory_plan.py
    python benchmarks/memory_plan.py --only float32      # cases whose name holds this

Each case is a training of a few steps in a process of its own, on a base with random weights that exists for this
alone: decoders and encoders, float32, bfloat16 and NF4, LoRA of several ranks, DoRA, full fine-tuning, recomputed
activations, micro-batches, long rows, a large vocabulary, capped scores and logits, a base that two processes share.
Both sides count what the run holds above the loaded base: on a CPU the process's peak above its start, on a GPU the
card's. The plan sees the base's files and the longest row, as it does before a real run; nothing is learned from the
other cases. The last line is JSON:

    worst_error   the largest |predicted - measured| / measured
    mean_error    their mean
    n             cases
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from tasks.data.examples import Example, key_of
from tasks.memory import plan_memory, read_shapes
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, ResourceSpec, TrainingSpec
from tasks.training.base import load_base, load_libraries
from tasks.training.encoding import encode
from tasks.training.loop import train_adapter
from tasks.training.parallel import train_in_processes

ROOT = Path(__file__).parents[1]
GOAL = 0.15
LABELS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Case:
    """A base, a recipe and rows. `width` in hidden, `inner` in the feed-forward part, `words` in a row."""

    kind: str = "generation"
    family: str = "llama"
    width: int = 384
    inner: int = 1024
    layers: int = 4
    heads: int = 6
    keys: int = 6
    vocabulary: int = 0
    words: int = 60
    quantization: str = "none"
    dtype: str = "float32"
    method: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)


SHARED = {"processes": 2, "shard_base": True, "threads": 1}
CASES: dict[str, Case] = {
    "decoder float32": Case(),
    "decoder bfloat16": Case(dtype="bfloat16"),
    "decoder NF4": Case(quantization="nf4"),
    "decoder NF4 bfloat16": Case(quantization="nf4", dtype="bfloat16", width=512, inner=1536, heads=8, keys=8),
    "deep narrow float32": Case(width=128, inner=512, layers=12, heads=4, keys=4),
    "grouped keys float32": Case(width=512, inner=1408, heads=8, keys=2, layers=3),
    "long rows float32": Case(words=220, training={"batch_size": 8}),
    "micro-batches float32": Case(training={"batch_size": 24, "micro_batch": 12}),
    "recomputed float32": Case(layers=6, training={"gradient_checkpointing": True}),
    "large vocabulary float32": Case(vocabulary=16000),
    "rank 64 float32": Case(method={"rank": 64, "dropout": 0.0}),
    "DoRA float32": Case(method={"name": "dora"}),
    "full float32": Case(method={"name": "full"}, layers=3),
    "capped scores float32": Case(family="gemma2", words=150, training={"batch_size": 4}),
    "capped logits float32": Case(
        family="gemma2", width=192, layers=2, vocabulary=16000, words=40, training={"batch_size": 8}
    ),
    "encoder float32": Case(kind="classification", training={"batch_size": 32}),
    "encoder NF4": Case(kind="classification", quantization="nf4", layers=6, training={"batch_size": 32}),
    "shared by two float32": Case(layers=6, resources=SHARED),
    "shared by two NF4": Case(
        quantization="nf4", layers=6, training={"gradient_checkpointing": True}, resources=SHARED
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    asked = parser.parse_args()
    load_libraries()  # once: a case is a fork of this process, which has computed nothing
    chosen = {name: case for name, case in CASES.items() if asked.only in name}
    errors = {}
    print(f"{'case':28}{'predicted MiB':>14}{'measured MiB':>14}{'error':>8}   largest causes")
    for name, case in chosen.items():
        fork = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        with fork.Pool(1) as alone:
            causes, measured = alone.apply(one_run, (case,))
        predicted = sum(causes.values())
        errors[name] = predicted / measured - 1
        largest = ", ".join(f"{c} {causes[c] / 2**20:.0f}" for c in sorted(causes, key=lambda c: -causes[c])[:4])
        print(f"{name:28}{predicted / 2**20:14.0f}{measured / 2**20:14.0f}{errors[name]:8.1%}   {largest}", flush=True)
    sizes = [abs(error) for error in errors.values()]
    result = {"worst_error": round(max(sizes), 4), "mean_error": round(sum(sizes) / len(sizes), 4), "n": len(sizes)}
    print(json.dumps({"device": "cuda" if torch.cuda.is_available() else "cpu", **result}))
    return 0 if max(sizes) <= GOAL else 1


def one_run(case: Case) -> tuple[dict[str, int], int]:
    """(predicted bytes above the base by cause, measured bytes) of one training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_base(Path(scratch) / "base", case)
        spec = spec_of(case, folder)
        base = load_base(spec.base, kind=case.kind, labels=spec.data.labels)
        rows = rows_of(case, 3 * spec.training.batch_size)
        encoded = encode(base, rows)
        plan = plan_memory(
            spec,
            read_shapes(folder),
            available_bytes=1 << 50,
            longest_tokens=max(len(row.prompt) if case.kind == "classification" else row.length for row in encoded),
            longest_answer=max(len(row.target) for row in encoded),
            on_gpu=base.device.type == "cuda",
            half=base.compute_dtype == torch.bfloat16,
        )
        train = partial(train_adapter, base) if spec.resources.team_size == 1 else train_in_processes
        done = train(spec, rows, rows[: spec.training.batch_size], Path(scratch) / "adapter")
    return dict(plan.above_base), done.peak_above_start_bytes


def spec_of(case: Case, folder: Path) -> AdapterSpec:
    data: dict[str, Any] = {"labels": LABELS}
    if case.kind == "generation":
        data = {"prompt": "{prompt}", "completion": "{completion}"}
    return AdapterSpec(
        task="memory",
        kind=case.kind,  # type: ignore[arg-type]
        base=BaseSpec(model=str(folder), quantization=case.quantization, compute_dtype=case.dtype),  # type: ignore[arg-type]
        data=DataSpec(source="generated", max_tokens=1024, **data),
        method=MethodSpec(**case.method),
        training=TrainingSpec(**{"steps": 3, "batch_size": 16, "validations": 1, **case.training}),
        resources=ResourceSpec(**case.resources),
    )


def rows_of(case: Case, count: int) -> list[Example]:
    """Rows of nearly one length; a fourth of a generation's row is its answer."""
    draw, made = Random(0), []
    for number in range(count):
        words = ["".join(draw.choices("abdeiklmnoprstu", k=4)) for _ in range(case.words)]
        cut = case.words * 3 // 4
        text, target = " ".join(words), draw.choice(LABELS)
        if case.kind == "generation":
            text, target = " ".join(words[:cut]), " " + " ".join(words[cut:])
        made.append(Example(key_of(text), text, target, number + 1))
    return made


def random_base(folder: Path, case: Case) -> Path:
    """A model of these sizes with random weights and the embedded base's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "base")
    sizes: dict[str, Any] = {
        "vocab_size": case.vocabulary or len(tokenizer),
        "hidden_size": case.width,
        "intermediate_size": case.inner,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "max_position_embeddings": 1024,
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if case.kind == "classification":
        model: Any = BertModel(BertConfig(**sizes, pad_token_id=ids["pad_token_id"]))
    else:
        shared = {"num_key_value_heads": case.keys, "head_dim": case.width // case.heads, "tie_word_embeddings": True}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.family, **sizes, **ids, **shared))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
