"""Many adapters on one base: one process that loads and quantises it once, against one process per adapter.

    python benchmarks/fleet.py                       # six adapters on the embedded base, a few minutes
    python benchmarks/fleet.py --adapters 12 --steps 100

Both sides train the same adapters from the same specs and rows, interleaved, and must write the same bytes. Time is CPU
seconds of whole processes, interpreter and imports included, so that neighbours on a shared machine do not count; the
best of the rounds counts. The longer a training is beside the loading of its base, the less there is to gain: the
ratio is that of these sizes. The last line is JSON:

    ratio_to_separate_processes   CPU seconds of one process per adapter over those of the fleet
    seconds_per_adapter           CPU seconds of the fleet per adapter, and of one process each

`--together` asks what one step on the rows of several adapters at once could gain: CPU seconds of forward and backward
on k b rows of one length against k times b of them, with one LoRA adapter on all. A step that sends each row through
its own A and B costs no less, so this is a bound. `together_gain` in its JSON: k steps over the joint one, by b.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from training_throughput import ROOT, rows, spec_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "base", help="folder of a causal model")
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of each")
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds; the best of each side counts")
    parser.add_argument("--together", action="store_true", help="bound what a joint step of several adapters gains")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="rows of one adapter's step")
    parser.add_argument("--train", nargs="+", type=int, help=argparse.SUPPRESS)  # these, in this process
    asked = parser.parse_args()
    if asked.train:
        print(json.dumps({seed: trained(asked.base, asked.steps, seed) for seed in asked.train}))
        return 0
    if asked.together:
        gains = gains_together(asked.base, asked.adapters, asked.batches, asked.rounds)
        print(json.dumps({"adapters": asked.adapters, "together_gain": gains}))
        return 0
    seeds = range(asked.adapters)
    best: dict[str, float] = {}
    for number in range(asked.rounds):
        seconds, together = timed(asked, list(seeds))
        apart_seconds, apart = 0.0, {}
        for seed in seeds:
            spent, made = timed(asked, [seed])
            apart_seconds, apart = apart_seconds + spent, {**apart, **made}
        if together != apart:
            print("the adapters differ in their bytes: these are not the same runs", file=sys.stderr)
            return 1
        print(f"round {number + 1}: {seconds:.1f} s in one process, {apart_seconds:.1f} s in {len(seeds)}", flush=True)
        best["fleet"] = min(best.get("fleet", seconds), seconds)
        best["apart"] = min(best.get("apart", apart_seconds), apart_seconds)
    each = {side: round(spent / asked.adapters, 2) for side, spent in best.items()}
    ratio = round(best["apart"] / best["fleet"], 3)
    sizes = {"adapters": asked.adapters, "steps": asked.steps}
    print(json.dumps({**sizes, "ratio_to_separate_processes": ratio, "seconds_per_adapter": each}))
    return 0


def timed(asked: argparse.Namespace, seeds: list[int]) -> tuple[float, dict[str, str]]:
    """(CPU seconds of a process that trains these, SHA-256 of each adapter)."""
    command = [sys.executable, __file__, "--base", str(asked.base), "--steps", str(asked.steps), "--train"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, seeds)], check=True, capture_output=True, text=True, env=one_thread)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, json.loads(done.stdout.splitlines()[-1])


def trained(folder: Path, steps: int, seed: int) -> str:
    """One adapter of its own rows and seed; the hash of its weights. The base is loaded by whoever comes first."""
    import torch

    from tasks.training.base import load_base
    from tasks.training.loop import train_adapter

    torch.set_num_threads(1)
    spec = spec_of(folder, 1, "auto")
    spec = spec.model_copy(update={"seed": seed, "training": spec.training.model_copy(update={"steps": steps})})
    base = load_base(spec.base, kind="generation")
    with tempfile.TemporaryDirectory() as scratch:
        train_adapter(base, spec, rows(16 * steps, seed=100 + seed), rows(16, seed=1), Path(scratch))
        return hashlib.sha256((Path(scratch) / "adapter_model.safetensors").read_bytes()).hexdigest()


def gains_together(folder: Path, adapters: int, batches: list[int], rounds: int) -> dict[int, float]:
    """Batch size to the CPU seconds of a step for each adapter over those of one for all; medians, the two sides one
    after the other, each adapter with the rows of its own run's batch."""
    from contextlib import ExitStack

    import torch

    from tasks.methods.build import fresh_adapter
    from tasks.training.base import load_base
    from tasks.training.encoding import encode, length_grouped
    from tasks.training.losses import answer_logits_of
    from tasks.training.lowrank import compute_in_few_passes
    from tasks.training.part import Part, backward
    from tasks.training.several import Several, twin_of
    from tasks.training.state import RunState

    torch.set_num_threads(1)
    spec = spec_of(folder, 1, "auto")
    base = load_base(spec.base, kind="generation")
    found, gains = encode(base, rows(64 * 16, seed=7)), {}
    with ExitStack() as stack:
        wholes = []
        for seed in range(adapters):
            twin = twin_of(base)
            model = stack.enter_context(fresh_adapter(twin, spec.method, seed))
            compute_in_few_passes(model)
            wholes.append(Part.of(twin, model.train(), answer_logits_of(twin, model, found[:2]), found, RunState()))
        several = Several(base, wholes)
        chances = [torch.Generator().manual_seed(seed) for seed in range(adapters)]

        def seconds(parts: list[Part], *, together: bool) -> float:
            began = time.process_time()
            if together:
                several.backward(parts, chances)
            else:
                for part in parts:
                    backward(part)
            return time.process_time() - began

        print(f"{'rows of each':>14}{'k steps, s':>12}{'one step, s':>13}{'gain':>8}")
        for size in batches:
            orders = [torch.Generator().manual_seed(seed) for seed in range(adapters)]
            steps = list(
                zip(*(length_grouped([row.length for row in found], size, order) for order in orders), strict=True)
            )
            sides = []
            for number in range(rounds + 1):
                parts = [
                    Part.of(whole.base, whole.model, whole.answer, [found[i] for i in places], whole.state)
                    for whole, places in zip(wholes, steps[number], strict=True)
                ]
                sides.append((seconds(parts, together=False), seconds(parts, together=True)))
                if not number:
                    sides.clear()  # the first is slower, whatever it is
            apart, joint = median(one for one, _ in sides), median(other for _, other in sides)
            gains[size] = round(median(one / other for one, other in sides), 3)
            print(f"{size:>14}{apart:>12.4f}{joint:>13.4f}{gains[size]:>8.2f}", flush=True)
    return gains


if __name__ == "__main__":
    sys.exit(main())
