"""Merges of real adapters: what each rule keeps of each expert's gain, on test rows that chose nothing.

    FACTORY_DATA=/folder FACTORY_MINILM=/folder python benchmarks/real_merges.py --cache /folder [--kind generation]

Adapters are trained once into the cache folder. Per rule the setting with the best mean on validation rows goes to the
test rows; the chosen merge is the rule whose worst task is best on validation rows. Retention = (merged - base) /
(expert - base), per task. `routing` serves each task by its own adapter, so it keeps everything and costs one adapter a
task. Below the line stand means that train: `distilled` (no labels; inputs of training rows), `heads refitted` (class
means of the merged body over training rows). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from real_merges_tasks import Task, tasks_of, trained

from tasks.evaluation.comparison import interval
from tasks.evaluation.scoring import score
from tasks.evaluation.yardstick import untouched
from tasks.merging.apply import applied
from tasks.merging.distillation import distilled
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates
from tasks.merging.overlap import forecast, summary
from tasks.merging.regression import regression_mean
from tasks.methods.build import attached
from tasks.training.encoding import encode
from tasks.training.head import start_head_from_class_means

LESSON_ROWS = 800
SCALES = {"low": (0.3, 0.5, 0.7, 1.0), "high": (0.7, 1.0, 1.5)}
GRID: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("average", (1.0,), (1.0,)),
    ("task_arithmetic", (1.0,), (0.2, 0.3, 0.4, 0.6)),
    ("ties", (0.2, 0.5), (0.7, 1.0, 1.5)),
    ("knots_ties", (0.2, 0.5), (0.7, 1.0, 1.5)),
    ("core_ties", (0.2,), (0.7, 1.0, 1.5)),
    ("iso_c", (1.0,), (0.5, 0.8, 1.2)),
    ("tsv", (1.0,), (0.6, 0.9, 1.2)),
)
Updates = dict[str, torch.Tensor]
Scores = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the trained adapters")
    parser.add_argument("--kind", choices=("classification", "generation"), default="classification")
    parser.add_argument("--steps", type=int, default=350, help="steps of the distillation; 0 leaves it out")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tasks = tasks_of(asked.kind)
    folders = {task.name: trained(task, asked.cache) for task in tasks}
    plan = check_parents([Parent(f"{name}:1", name, folder, "one") for name, folder in folders.items()])
    print(summary(forecast(plan)), flush=True)
    alone = {side: before_and_alone(tasks, folders, side) for side in ("validation", "test")}
    best = {rule: best_setting(tasks, plan, alone["validation"], found) for rule, found in candidates(plan)}
    regmean = measured(tasks, plan)
    best["regmean"] = best_setting(tasks, plan, alone["validation"], [("scale 1", regmean, 1.0)])
    chosen = max(best, key=lambda rule: (round(min(best[rule][0].values()), 2), mean(best[rule][0])))
    if asked.steps:
        taught = alignment(tasks, plan, regmean, asked.steps)
        best["distilled"] = best_setting(tasks, plan, alone["validation"], [("from regmean", taught, 1.0)])
    rows = {"base": alone["test"]["base"], "routing": alone["test"]["experts"]}
    rows |= {
        f"{rule} ({how})": scored(tasks, plan, updates, scale, "test")
        for rule, (_, how, updates, scale) in best.items()
    }
    if asked.kind == "classification":
        for rule in (chosen, "distilled") if asked.steps else (chosen,):
            _, how, updates, scale = best[rule]
            rows[f"{rule} ({how}), heads refitted"] = scored(tasks, plan, updates, scale, "test", refit=True)
    kept = {name: retentions(found, alone["test"]) for name, found in rows.items()}
    say_table(tasks, rows, kept)
    print(f"chosen on validation rows: {chosen}", flush=True)
    print(json.dumps({"kind": asked.kind, "chosen": chosen, "kept": {n: rounded(k) for n, k in kept.items()}}))
    return 0


def before_and_alone(tasks: list[Task], folders: Mapping[str, Path], side: str) -> dict[str, Scores]:
    """The untouched base (classes from the means of its own features) and each expert, per task."""
    found: dict[str, Scores] = {"base": {}, "experts": {}}
    for task in tasks:
        with untouched(task.base, task.rows["train"]) as model:
            found["base"][task.name] = score(task.base, model, task.rows[side], task.spec.metric)
        with attached(task.base, folders[task.name]) as model:
            found["experts"][task.name] = score(task.base, model, task.rows[side], task.spec.metric)
    for who, by_task in found.items():
        print(f"{side} {who}: " + ", ".join(f"{name} {s.mean:.3f}" for name, s in by_task.items()), flush=True)
    return found


def candidates(plan: MergePlan) -> Iterator[tuple[str, list[tuple[str, Updates, float]]]]:
    """Each rule with its settings: how it reads, the unscaled update, the scale."""
    for rule, densities, scales in GRID:
        settings = []
        for density in densities:
            updates = dict(merged_updates(plan, rule, density=density))
            note = f"density {density:g}, " if len(densities) > 1 or density < 1 else ""
            settings += [(f"{note}scale {scale:g}", updates, scale) for scale in scales]
        yield rule, settings


def best_setting(
    tasks: list[Task], plan: MergePlan, alone: dict[str, Scores], settings: list[tuple[str, Updates, float]]
) -> tuple[dict[str, float], str, Updates, float]:
    """The setting with the best mean retention on validation rows."""
    tried = []
    for how, updates, scale in settings:
        kept = retentions(scored(tasks, plan, updates, scale, "validation"), alone)
        tried.append((kept, how, updates, scale))
        print(f"  {how}: mean {mean(kept):.3f}, worst {min(kept.values()):.3f}", flush=True)
    return max(tried, key=lambda one: mean(one[0]))


def measured(tasks: list[Task], plan: MergePlan) -> Updates:
    rows = {task.name: encode(task.base, task.rows["validation"]) for task in tasks}
    return regression_mean(tasks[0].base, plan, rows)


def alignment(tasks: list[Task], plan: MergePlan, start: Updates, steps: int) -> Updates:
    """A few hundred steps of distillation on inputs of training rows."""
    began = time.monotonic()
    rows = {task.name: encode(task.base, task.rows["train"][:LESSON_ROWS]) for task in tasks}

    def show(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0:
            print(
                f"  distillation step {step} of {steps}, loss {loss:.4f}, {time.monotonic() - began:.0f} s", flush=True
            )

    return distilled(tasks[0].base, plan, rows, start, steps=steps, on_step=show)


def scored(
    tasks: list[Task], plan: MergePlan, updates: Updates, scale: float, side: str, *, refit: bool = False
) -> Scores:
    found = {}
    for task in tasks:
        head = plan.heads.get(task.name)
        with applied(task.base.model, updates, scale=scale, head=head) as model:
            if refit:
                start_head_from_class_means(task.base, model, encode(task.base, task.rows["train"]))
            found[task.name] = score(task.base, model, task.rows[side], task.spec.metric)
    return found


def retentions(scores: Scores, alone: Mapping[str, Scores]) -> dict[str, float]:
    base, experts = alone["base"], alone["experts"]
    return {
        name: (found.mean - base[name].mean) / (experts[name].mean - base[name].mean) for name, found in scores.items()
    }


def say_table(tasks: list[Task], rows: Mapping[str, Scores], kept: Mapping[str, Mapping[str, float]]) -> None:
    names = [task.name for task in tasks]
    print(f"| model | {' | '.join(names)} | mean kept | worst kept |\n|---|{'---|' * (len(names) + 2)}")
    for model, found in rows.items():
        cells = []
        for name in names:
            interval_of = interval(found[name].outcomes)
            cells.append(
                f"{found[name].mean:.3f} ({kept[model][name]:.0%}) ±{(interval_of.high - interval_of.low) / 2:.3f}"
            )
        print(
            f"| {model} | {' | '.join(cells)} | {mean(kept[model]):.0%} | {min(kept[model].values()):.0%} |", flush=True
        )
    print("n: " + ", ".join(f"{task.name} {len(task.rows['test'])}" for task in tasks), flush=True)


def mean(kept: Mapping[str, float]) -> float:
    return sum(kept.values()) / len(kept)


def rounded(kept: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in kept.items()}


if __name__ == "__main__":
    raise SystemExit(main())
