"""Many adapters on one base: one process that loads and quantises it once, against one process per adapter.

    python benchmarks/fleet.py                       # six adapters on the embedded base, some minutes
    python benchmarks/fleet.py --adapters 12 --steps 100 --batch 4

All sides train the same adapters from the same specs and rows, interleaved: one process each, one process in turn, and
one process as a fleet chooses it, with the rows of all in one pass over the base where the first steps show that this
is faster. In turn must write the same bytes as one process each; together must end with weights close to these. Time
is CPU seconds of whole processes, interpreter and imports included, so that neighbours on a shared machine do not
count; the best of the rounds counts. The longer a training is beside the loading of its base, the less there is to gain
from loading it once: the ratios are those of these sizes. The last line is JSON:

    ratio_to_separate_processes   CPU seconds of one process per adapter over those of the fleet
    ratio_to_in_turn              CPU seconds of one process in turn over those of the fleet
    seconds_per_adapter           CPU seconds per adapter of each side
    apart_at_the_end              largest relative distance of a fleet's weights from those of a run of its own

`--together` times single steps: CPU seconds of forward and backward for each adapter against those of one pass for all,
on batches as runs draw them. `together_gain` in its JSON: by rows of one adapter's batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from training_throughput import ROOT, rows, spec_of

SIDES = ("apart", "turn", "fleet")
WEIGHTS = "adapter_model.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "base", help="folder of a causal model")
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step of each")
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds; the best of each side counts")
    parser.add_argument(
        "--together", action="store_true", help="time single steps: each adapter's, and one pass for all"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="sizes to time single steps at"
    )
    parser.add_argument("--train", nargs="+", type=int, help=argparse.SUPPRESS)  # these, in this process
    parser.add_argument("--fleet", action="store_true", help=argparse.SUPPRESS)  # as a fleet, not in turn
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        trained(asked)
        return 0
    if asked.together:
        gains = gains_together(asked.base, asked.adapters, asked.batches, asked.rounds)
        print(json.dumps({"adapters": asked.adapters, "together_gain": gains}))
        return 0
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.rounds):
            for side in SIDES:
                spent = timed(asked, side, Path(scratch) / side)
                best[side] = min(best.get(side, spent), spent)
                print(f"round {number + 1}, {side}: {spent:.1f} CPU seconds, load {os.getloadavg()[0]:.1f}", flush=True)
        distances = {side: distance(Path(scratch), side, asked.adapters) for side in SIDES[1:]}
    if distances["turn"]:
        print("the adapters differ in their bytes: these are not the same runs", file=sys.stderr)
        return 1
    figures = {
        "adapters": asked.adapters,
        "steps": asked.steps,
        "batch": asked.batch,
        "ratio_to_separate_processes": round(best["apart"] / best["fleet"], 3),
        "ratio_to_in_turn": round(best["turn"] / best["fleet"], 3),
        "seconds_per_adapter": {side: round(spent / asked.adapters, 2) for side, spent in best.items()},
        "apart_at_the_end": round(distances["fleet"], 5),
    }
    print(json.dumps(figures))
    return 0


def timed(asked: argparse.Namespace, side: str, into: Path) -> float:
    """CPU seconds of the processes that train all on one side."""
    sizes = ["--base", str(asked.base), "--steps", str(asked.steps), "--batch", str(asked.batch), "--into", str(into)]
    command = [sys.executable, __file__, *sizes, *(["--fleet"] if side == "fleet" else [])]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    seeds = [str(seed) for seed in range(asked.adapters)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for group in [[seed] for seed in seeds] if side == "apart" else [seeds]:
        subprocess.run([*command, "--train", *group], check=True, stdout=subprocess.DEVNULL, env=one_thread)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def distance(scratch: Path, side: str, adapters: int) -> float:
    """The largest distance of an adapter's weights from those of its own process, over their norm; 0 for the same
    bytes."""
    import torch
    from safetensors.torch import load_file

    found = 0.0
    for seed in range(adapters):
        own, other = (load_file(scratch / name / str(seed) / WEIGHTS) for name in ("apart", side))
        flat, others = (torch.cat([sides[name].flatten() for name in sorted(own)]) for sides in (own, other))
        found = max(found, float((others - flat).norm() / flat.norm()))
    return found


def trained(asked: argparse.Namespace) -> None:
    """Adapters of their own rows and seeds in this process: in turn, or as a fleet has them."""
    import torch

    from tasks.specs import AdapterSpec
    from tasks.training.base import Base, load_base
    from tasks.training.checkpoint import Checkpoints
    from tasks.training.loop import Trained, steps_of
    from tasks.training.part import Run, alone
    from tasks.training.together import Begin, train_together

    torch.set_num_threads(1)
    spec: AdapterSpec = spec_of(asked.base, 1, "auto")
    how = spec.training.model_copy(update={"steps": asked.steps, "batch_size": asked.batch})
    base = load_base(spec.base, kind="generation")
    with tempfile.TemporaryDirectory() as scratch:

        def begin(seed: int) -> Begin:
            mine = spec.model_copy(update={"seed": seed, "training": how})
            learn, held_out = rows(asked.batch * asked.steps, seed=100 + seed), rows(16, seed=1)

            def run(base: Base, stop: Callable[[], bool]) -> Run[Trained]:
                kept = Checkpoints(Path(scratch) / str(seed), str(seed)) if asked.fleet else None
                return steps_of(base, mine, learn, held_out, asked.into / str(seed), checkpoints=kept, stop=stop)

            return run

        runs = [begin(seed) for seed in asked.train]
        if asked.fleet:
            found = train_together(base, runs)
            print(found.reason, file=sys.stderr, flush=True)
            runs = [run for run, outcome in zip(runs, found.outcomes, strict=True) if isinstance(outcome, Exception)]
        for run in runs:
            alone(run(base, lambda: False))


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
