"""This project's training loop against transformers.Trainer with PEFT and TRL's SFTTrainer: useful tokens per second.

    python benchmarks/training_throughput.py                     # the embedded base, about ten minutes on one core
    python benchmarks/training_throughput.py --base FOLDER --epochs 3 --rounds 5
    python benchmarks/training_throughput.py --dtypes            # only float32 against bfloat16 by hidden size

All train the same LoRA on the same base, rows, batch size, rate schedule and optimiser. Trainer runs as it comes
(batches at random, float32), with its own grouping by length, and with both grouping and bfloat16; SFTTrainer as it
comes and with packing, each in float32 and bfloat16: the fastest that learns as much is the peer.
Lengths of rows are log-normal, as of real messages: most are short, a few are long. A useful token is one that is not
padding. Every run is a fresh process, the sides alternate, and the best of the rounds counts. On a CPU time is CPU
seconds of one thread, so that neighbours on a shared machine do not count; on a GPU it is the clock. Ours includes the
tokenizing of the rows and the writing of the adapter, theirs is `train()` alone. The last line is JSON:

    ratio_to_best_peer   our useful tokens per second over those of the fastest of the others
    ratio_to_trainer     over those of Trainer as it comes
    peak_memory_ratio    our peak memory over that one's (of the process on a CPU, of the card on a GPU)
    bfloat16_speedup     by hidden size: seconds of a run in float32 over those in bfloat16, in our loop

A side whose validation loss is 5 % above ours is no peer; ours 5 % above a peer's ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch

from tasks.data.examples import Example, key_of
from tasks.methods.build import attached, fresh_adapter, write_adapter
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec
from tasks.training.base import Base, compute_dtype_for, load_base
from tasks.training.encoding import encode
from tasks.training.loop import train_adapter
from tasks.training.losses import answer_logits_of, validation_loss
from tasks.training.peak import resident

ROOT = Path(__file__).parents[1]
SIDES = {
    "loop": "auto",
    "trainer": "float32",
    "trainer grouped": "float32",
    "trainer grouped bfloat16": "bfloat16",
    "trl": "float32",
    "trl bfloat16": "bfloat16",
    "trl packed": "float32",
    "trl packed bfloat16": "bfloat16",
}  # side to compute type
HIDDEN_SIZES = (64, 128, 256, 512, 1024)
ROWS, HELD_OUT, BATCH = 480, 96, 16
TOLERANCE = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "base", help="folder of a causal model")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the rows")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds; the best of each side counts")
    parser.add_argument("--no-dtypes", action="store_true", help="leave out float32 against bfloat16 by hidden size")
    parser.add_argument("--dtypes", action="store_true", help="only float32 against bfloat16")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one run, in a process of its own
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.side:
        print(json.dumps(one_run(asked.side, spec_of(asked.base, asked.epochs, SIDES[asked.side]))))
        return 0
    result: dict[str, Any] = {}
    if not asked.no_dtypes:
        speedups = bfloat16_speedups(asked.rounds)
        print(table("hidden size", {str(size): {"float32 / bfloat16": ratio} for size, ratio in speedups.items()}))
        result["bfloat16_speedup"] = {size: round(ratio, 3) for size, ratio in speedups.items()}
    if not asked.dtypes:
        best = best_runs(asked)
        print(table("side", best))
        losses = {side: run["validation loss"] for side, run in best.items()}
        peers = [side for side in best if side != "loop" and losses[side] <= (1 + TOLERANCE) * losses["loop"]]
        if losses["loop"] > (1 + TOLERANCE) * min(losses.values()):
            print("our validation loss is above that of the others: these are not the same runs", file=sys.stderr)
            return 1
        peer = max(peers, key=lambda side: best[side]["tokens/s"])
        result["best_peer"] = peer
        result["ratio_to_best_peer"] = round(best["loop"]["tokens/s"] / best[peer]["tokens/s"], 3)
        result["ratio_to_trainer"] = round(best["loop"]["tokens/s"] / best["trainer"]["tokens/s"], 3)
        result["peak_memory_ratio"] = round(best["loop"]["peak MiB"] / best[peer]["peak MiB"], 3)
        result["padding_share"] = {side: round(run["padding"], 3) for side, run in best.items()}
    print(json.dumps({"device": "cuda" if torch.cuda.is_available() else "cpu", **result}))
    return 0


def best_runs(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The fastest run of each side over alternating rounds."""
    command = [sys.executable, __file__, "--base", str(asked.base), "--epochs", str(asked.epochs)]
    best: dict[str, dict[str, float]] = {}
    for number in range(asked.rounds):
        for side in SIDES:
            if "trl" in side and find_spec("trl") is None:
                print(f"round {number + 1}, {side}: left out, pip install trl", file=sys.stderr)
                continue
            done = subprocess.run([*command, "--side", side], check=True, capture_output=True, text=True)
            run = json.loads(done.stdout.splitlines()[-1])
            print(f"round {number + 1}, {side}: {run['tokens/s']:.0f} useful tokens/s", file=sys.stderr)
            if side not in best or run["tokens/s"] > best[side]["tokens/s"]:
                best[side] = run
    return best


def one_run(side: str, spec: AdapterSpec) -> dict[str, float]:
    """One training in this process: its speed, peak memory, padding and final validation loss."""
    base = load_base(spec.base, kind="generation")
    train, held_out = rows(ROWS, seed=1), rows(HELD_OUT, seed=2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = our_loop if side == "loop" else partial(field_trainer, side=side)
        run = work(base, spec, train, folder)
        encoded = encode(base, held_out)
        with attached(base, folder) as model:
            answer = answer_logits_of(base, model, encoded[:2])
            run["validation loss"] = validation_loss(base, model, answer, encoded)
    return run


def our_loop(base: Base, spec: AdapterSpec, train: Sequence[Example], folder: Path) -> dict[str, float]:
    """The adapter through `train_adapter`, from text to file."""
    seconds, done = timed(lambda: train_adapter(base, spec, train, [], folder))
    tokens = sum(step.tokens for step in done.curve.steps)
    peak = peak_mebibytes(base)
    figures = {"tokens/s": tokens / seconds, "seconds": seconds, "steps": len(done.curve.steps)}
    return {**figures, "padding": done.padding_share, "peak MiB": peak}


def field_trainer(base: Base, spec: AdapterSpec, train: Sequence[Example], folder: Path, side: str) -> dict[str, float]:
    """The same adapter through transformers.Trainer or TRL's SFTTrainer, in the way that the side's name says."""
    base.model.set_attn_implementation("sdpa")  # as transformers comes
    encoded = encode(base, train)
    data = [
        {"input_ids": [*row.prompt, *row.target], "labels": [-100] * len(row.prompt) + list(row.target)}
        for row in encoded
    ]
    with fresh_adapter(base, spec.method, spec.seed) as model:
        runner, computed = (trl_runner if "trl" in side else trainer_runner)(base, spec, data, folder, model, side)
        seconds, _ = timed(runner.train)
        write_adapter(model, folder, "base")
    useful = int(spec.training.epochs) * sum(row.length for row in encoded)
    peak = peak_mebibytes(base)
    figures = {"tokens/s": useful / seconds, "seconds": seconds, "steps": runner.state.global_step}
    return {**figures, "padding": 1 - useful / computed(), "peak MiB": peak}


def common_arguments(base: Base, spec: AdapterSpec, folder: Path, rows: int, batch: int) -> dict[str, Any]:
    """What both trainers are told; `rows` a pass, `batch` of them a step."""
    steps = int(spec.training.epochs) * -(-rows // batch)
    return {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": spec.training.epochs,
        "per_device_train_batch_size": batch,
        "learning_rate": spec.training.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": max(1, round(spec.training.warmup * steps)),
        "weight_decay": spec.training.weight_decay,
        "max_grad_norm": spec.training.max_grad_norm,
        "optim": "paged_adamw_8bit" if base.device.type == "cuda" else "adamw_torch_fused",
        "bf16": base.compute_dtype == torch.bfloat16,
        "use_cpu": base.device.type == "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": spec.seed,
        "gradient_checkpointing": False,
    }


def trainer_runner(
    base: Base, spec: AdapterSpec, data: list[dict[str, list[int]]], folder: Path, model: Any, side: str
) -> tuple[Any, Callable[[], int]]:
    """transformers.Trainer, batches at random or grouped by length; and how many tokens it computed."""
    import transformers

    computed = 0

    def padded_batch(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        nonlocal computed
        width = max(len(row["input_ids"]) for row in batch)
        computed += width * len(batch)
        fill = {"input_ids": base.pad_id, "labels": -100, "attention_mask": 0}
        return {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in batch])
            for name, value in fill.items()
        }

    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in data]
    sampling = "group_by_length" if "grouped" in side else "random"
    told = common_arguments(base, spec, folder, len(rows), spec.training.batch_size)
    arguments = transformers.TrainingArguments(**told, train_sampling_strategy=sampling)
    runner = transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=padded_batch)
    return runner, lambda: computed


def trl_runner(
    base: Base, spec: AdapterSpec, data: list[dict[str, list[int]]], folder: Path, model: Any, side: str
) -> tuple[Any, Callable[[], int]]:
    """TRL's SFTTrainer, a row a place or rows packed; as many optimiser steps as the others. It truncates nothing."""
    import trl
    from datasets import Dataset

    lengths = [len(row["input_ids"]) for row in data]
    packed, batch, width = "packed" in side, spec.training.batch_size, max(lengths)
    if packed:  # packs so long that a step of them has as many tokens as a step of rows
        a_step = batch * sum(lengths) / len(data)
        batch = max(1, int(a_step / width))
        width = max(width, round(a_step / batch))
    told = common_arguments(base, spec, folder, len(data), spec.training.batch_size)
    told |= {"per_device_train_batch_size": batch, "max_length": width, "packing": packed}
    runner = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**told),
        train_dataset=Dataset.from_list(data),
        processing_class=base.tokenizer,
    )
    computed, collate = 0, runner.data_collator

    def counted(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        nonlocal computed
        made = collate(rows)
        computed += made["input_ids"].numel()
        return made

    runner.data_collator = counted
    return runner, lambda: computed


def peak_mebibytes(base: Base) -> float:
    """The most that this process (or the card) has held so far."""
    if base.device.type == "cuda":
        return torch.cuda.max_memory_allocated(base.device) / 2**20
    return resident("VmHWM") / 2**20


def bfloat16_speedups(rounds: int) -> dict[int, float]:
    """Seconds of a training step in float32 over those in bfloat16, by hidden size, on random two-layer bases."""
    found = {}
    for hidden in HIDDEN_SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = random_base(Path(scratch) / "base", hidden)
            seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
            train = rows(4 * BATCH, seed=3)
            for _ in range(rounds + 1):  # the first is a warm-up
                for dtype, taken in seconds.items():
                    spec = spec_of(folder, 1, dtype)
                    base = load_base(spec.base, kind="generation")
                    taken.append(our_loop(base, spec, train, Path(scratch) / "out")["seconds"])
            found[hidden] = min(seconds["float32"][1:]) / min(seconds["bfloat16"][1:])
        chosen, _ = compute_dtype_for("auto", base.device, hidden)
        right = "float32" if found[hidden] < 1 else "bfloat16"
        print(f"hidden {hidden}: {found[hidden]:.2f}, {right} is faster, auto takes {chosen}", file=sys.stderr)
    return found


def random_base(folder: Path, hidden: int) -> Path:
    """A two-layer Llama of a hidden size with random weights, and the embedded base's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "base")
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec_of(folder: Path, epochs: int, dtype: Any) -> AdapterSpec:
    return AdapterSpec(
        task="throughput",
        kind="generation",
        base=BaseSpec(model=str(folder.resolve()), compute_dtype=dtype),
        data=DataSpec(source="generated", prompt="{prompt}", completion="{completion}"),
        method=MethodSpec(),
        training=TrainingSpec(epochs=epochs, batch_size=BATCH, learning_rate=1e-3, validations=1),
    )


def rows(count: int, seed: int) -> list[Example]:
    """Rows of log-normal length (median 14 words, one in a hundred above 50); the answer is the first and last word."""
    draw, made = Random(seed), []
    for number in range(count):
        length = min(60, max(3, round(draw.lognormvariate(2.65, 0.55))))
        words = ["".join(draw.choices("abdeiklmnoprstu", k=draw.randint(2, 5))) for _ in range(length)]
        prompt, completion = f"{' '.join(words)} ->", f" {words[0]} {words[-1]}"
        made.append(Example(key_of(prompt), prompt, completion, number + 1))
    return made


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU time (of the clock on a GPU) and what the work returned."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    done = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began, done


def table(corner: str, lines: dict[str, dict[str, float]]) -> str:
    """Numbers in columns, a line per name."""
    columns = list(next(iter(lines.values())))
    head = f"{corner:26}" + "".join(f"{column:>20}" for column in columns)
    body = [f"{name:26}" + "".join(f"{line[column]:20.3f}" for column in columns) for name, line in lines.items()]
    return "\n".join([head, *body])


if __name__ == "__main__":
    sys.exit(main())
