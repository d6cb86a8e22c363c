"""Many adapters on one base: one process that loads and quantises it once, against one process per adapter.

    python benchmarks/fleet.py                       # six adapters on the embedded base, a few minutes
    python benchmarks/fleet.py --adapters 12 --steps 100

Both sides train the same adapters from the same specs and rows, interleaved, and must write the same bytes. Time is CPU
seconds of whole processes, interpreter and imports included, so that neighbours on a shared machine do not count; the
best of the rounds counts. The longer a training is beside the loading of its base, the less there is to gain: the
ratio is that of these sizes. The last line is JSON:

    ratio_to_separate_processes   CPU seconds of one process per adapter over those of the fleet
    seconds_per_adapter           CPU seconds of the fleet per adapter, and of one process each
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
from pathlib import Path

from training_throughput import ROOT, rows, spec_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "base", help="folder of a causal model")
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of each")
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds; the best of each side counts")
    parser.add_argument("--train", nargs="+", type=int, help=argparse.SUPPRESS)  # these, in this process
    asked = parser.parse_args()
    if asked.train:
        print(json.dumps({seed: trained(asked.base, asked.steps, seed) for seed in asked.train}))
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


if __name__ == "__main__":
    sys.exit(main())
