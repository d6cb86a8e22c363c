"""Merging against PEFT and against the dense textbook form: ratios of one interleaved run, with equal results verified.

    python benchmarks/merge_speed.py            # modules of 1024 x 1024, about a minute
    python benchmarks/merge_speed.py --full     # the sizes that docs/merging.md quotes

Random adapters of rank 16, which is the worst case for a truncation. Each timing is the best of a few rounds in which
the two sides alternate, in CPU seconds of one thread, so that neighbours on a shared machine do not count; a side that
is done in less runs for a fifth of a second each round, so that neither is timed with empty caches alone. The last line
is JSON:

    ties_svd_ratio    TIES of 3 parents, density 0.2, reduced to rank 16        against PEFT's ties_svd
    linear_svd_ratio  weighted sum of 8 parents, reduced to rank 16             against PEFT's svd
    knots_ratio       KnOTS-TIES of 8 parents on the factors                    against the SVD of the dense stack
    ties_cost_per_parent, ties_cost_per_entry   growth of our TIES's cost: 1 is linear
    full_ratio_mergekit, peak_memory_ratio      TIES of 3 parents into a whole bf16 model, processes from start to end
    bandwidth_share   bytes of that model read and written a second by the streaming merge itself, from open files to a
                      finished folder (thresholds, merge, digest, flush), a module on each core, over those of a copy of
                      the model's file beside it; elapsed, so that neighbours count
    bandwidth_share_one_core   the same with one module at a time
    memory_share      as bandwidth_share, over a copy from memory to memory, which opens no file and makes no page

A result that differs ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merge_speed_model import full_model
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.merging.adapter_file import PREFIX
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates, reduced_updates

RANK, DENSITY, NAME = 16, 0.2, "layer"
SHORT = 0.2  # CPU seconds that a timed side runs for at least
MEMORY = Path("/dev/shm")  # files in memory, so that no disk is measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full", action="store_true", help="2048 x 2048 for ties_svd and linear_svd (PEFT alone takes minutes)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds; the best of each side counts")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = 2048 if asked.full else 1024
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        results = {
            "ties_svd_ratio": ties_svd(Path(scratch) / "ties", size, 3, asked.rounds),
            "linear_svd_ratio": linear_svd(Path(scratch) / "linear", size, 8, asked.rounds),
            "knots_ratio": knots(Path(scratch) / "knots", 1024 if asked.full else 512, 8, asked.rounds),
            **growth(Path(scratch) / "growth", asked.rounds),
            **full_model(Path(scratch) / "model", hidden=2048 if asked.full else 512, layers=4),
        }
    print(json.dumps({"size": size, **{key: round(value, 3) for key, value in results.items()}}))
    return 0


def ties_svd(folder: Path, size: int, parents: int, rounds: int) -> float:
    """Judged by the excess over the best rank-16 error, which a full SVD gives."""
    plan, model = written(folder, size, parents)
    ours, theirs, ratio = raced(
        lambda: dict(reduced_updates(plan, "ties_peft", rank=RANK, density=DENSITY))[NAME],
        lambda: merged_by_peft(model, parents, "ties_svd", density=DENSITY),
        rounds,
    )
    dense = dict(merged_updates(plan, "ties_peft", density=DENSITY))[NAME]
    values = torch.linalg.svdvals(dense)
    optimum = float(values[RANK:].norm() / values.norm())
    excess = {who: error(found, dense) / optimum - 1 for who, found in (("ours", ours.B @ ours.A), ("PEFT", theirs))}
    say(f"TIES -> rank {RANK}, {size} x {size}, {parents} parents", ratio, f"excess error {excess}")
    refuse_if(excess["ours"] > 1e-3, "the reduced TIES is more than 0.1 % above the best error")
    return ratio["x"]


def linear_svd(folder: Path, size: int, parents: int, rounds: int) -> float:
    plan, model = written(folder, size, parents)
    ours, theirs, ratio = raced(
        lambda: dict(reduced_updates(plan, "task_arithmetic", rank=RANK))[NAME],
        lambda: merged_by_peft(model, parents, "svd"),
        rounds,
    )
    dense = dict(merged_updates(plan, "task_arithmetic"))[NAME]
    errors = error(ours.B @ ours.A, dense), error(theirs, dense)
    say(f"linear -> rank {RANK}, {size} x {size}, {parents} parents", ratio, f"errors {errors[0]:.7f}, {errors[1]:.7f}")
    refuse_if(errors[0] > errors[1] + 1e-6, "the reduced sum is further from the exact sum than PEFT's")
    return ratio["x"]


def knots(folder: Path, size: int, parents: int, rounds: int) -> float:
    plan, _ = written(folder, size, parents)
    deltas = [update.factors(NAME) for update in plan.updates]
    dense = [(pair[0] @ pair[1]).numpy() for pair in deltas if pair is not None]
    ours, theirs, ratio = raced(
        lambda: dict(reduced_updates(plan, "knots_ties", rank=size, density=DENSITY))[NAME],
        lambda: dense_knots(dense),
        rounds,
    )
    difference = error(ours.B @ ours.A, torch.from_numpy(theirs))
    say(f"KnOTS-TIES, {size} x {size}, {parents} parents", ratio, f"relative difference {difference:.1e}")
    refuse_if(difference > 1e-4, "KnOTS in factors is not KnOTS on the dense SVD")
    return ratio["x"]


def growth(folder: Path, rounds: int) -> dict[str, float]:
    """Cost of our full-rank TIES with twice the parents and with four times the entries, over that of linear growth."""
    seconds = {}
    for size, parents in ((1024, 3), (1024, 6), (2048, 3)):
        plan, _ = written(folder / f"{size}-{parents}", size, parents)
        seconds[size, parents] = min(
            timed(lambda plan=plan: dict(merged_updates(plan, "ties", density=DENSITY)))[1] for _ in range(rounds)
        )
    few, many, large = seconds.values()
    return {"ties_cost_per_parent": many / few / 2, "ties_cost_per_entry": large / few / 4}


def written(folder: Path, size: int, parents: int) -> tuple[MergePlan, Any]:
    """Random adapters of one square linear module: as our plan, and loaded in a PEFT model."""
    import peft

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(size, size, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    generator = torch.Generator().manual_seed(0)
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": [NAME]}
    model = None
    plan = []
    for place in range(parents):
        name, path = f"p{place}", folder / f"p{place}"
        path.mkdir(parents=True)
        factors = {
            f"{PREFIX}{NAME}.lora_A.weight": torch.randn(RANK, size, generator=generator) / size**0.5,
            f"{PREFIX}{NAME}.lora_B.weight": torch.randn(size, RANK, generator=generator),
        }
        save_file(factors, path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", **settings}
        (path / "adapter_config.json").write_text(json.dumps(config))
        plan.append(Parent(f"{name}:1", name, path, "base"))
        if model is None:
            model = peft.get_peft_model(Base(), peft.LoraConfig(**settings), adapter_name=name)
        else:
            model.add_adapter(name, peft.LoraConfig(**settings))
        layer = model.base_model.model.layer
        layer.lora_A[name].weight.data = factors[f"{PREFIX}{NAME}.lora_A.weight"]
        layer.lora_B[name].weight.data = factors[f"{PREFIX}{NAME}.lora_B.weight"]
    return check_parents(plan), model


def merged_by_peft(model: Any, parents: int, how: str, **settings: Any) -> Tensor:
    names = [f"p{place}" for place in range(parents)]
    model.add_weighted_adapter(names, [1.0] * parents, "merged", combination_type=how, svd_rank=RANK, **settings)
    layer = model.base_model.model.layer
    found = layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight * layer.scaling["merged"]
    model.delete_adapter("merged")
    return found.detach()


def dense_knots(deltas: list[np.ndarray]) -> np.ndarray:
    """KnOTS-TIES as its paper writes it: one SVD of the concatenation, in float64."""
    U, values, Vt = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    parts = np.split(values[:rank, None] * Vt[:rank], len(deltas), axis=1)
    counts = int(np.ceil(parts[0].size * DENSITY))
    kept = np.stack([np.where(np.abs(p) >= np.partition(np.abs(p).ravel(), -counts)[-counts], p, 0) for p in parts])
    agreeing = np.where(np.sign(kept) == np.sign(kept.sum(0)), kept, 0)
    return U[:, :rank] @ (agreeing.sum(0) / np.maximum((agreeing != 0).sum(0), 1))


def raced(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[Any, Any, dict[str, float]]:
    """Both results, and the best times of alternating rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for _ in range(rounds):
        for side, run in enumerate((ours, theirs)):
            results[side], seconds = timed(run)
            times[side].append(seconds)
    best = min(times[0]), min(times[1])
    return results[0], results[1], {"ours": best[0], "theirs": best[1], "x": best[1] / best[0]}


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the CPU seconds of the quickest run."""
    best, first = float("inf"), time.process_time()
    while (began := time.process_time()) - first < SHORT:
        result = run()
        best = min(best, time.process_time() - began)
    return result, best


def error(found: Tensor, dense: Tensor) -> float:
    return float((found.double() - dense.double()).norm() / dense.double().norm())


def say(what: str, ratio: dict[str, float], verified: str) -> None:
    times = f"{ratio['ours'] * 1000:9.1f} ms against {ratio['theirs'] * 1000:9.1f} ms = {ratio['x']:7.1f} x"
    print(f"{what:50s} {times}   {verified}", flush=True)


def refuse_if(wrong: bool, what: str) -> None:
    if wrong:
        sys.exit(f"results differ: {what}")


if __name__ == "__main__":
    sys.exit(main())
