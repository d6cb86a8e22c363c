"""Merges of real adapters: what each rule keeps of each expert's gain, on test rows that chose nothing.

    FACTORY_DATA=/folder FACTORY_MINILM=/folder python benchmarks/real_merges.py --cache /folder [--kind generation]

Adapters are trained once into the cache folder. Per rule the setting with the best mean on validation rows goes to the
test rows; the chosen merge is the rule whose worst task is best on validation rows. Retention = (merged - base) /
(expert - base), per task; in means, what a task gains beyond its expert does not pay for another's loss. `routing`
serves each task by its own adapter, so it keeps everything and costs one adapter a task. `regmean` reads inputs of
training rows; `distilled` trains on them without labels; `heads refitted` are class means of the merged body over
training rows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from real_merges_tasks import Task, remembered, tasks_of, trained

from tasks.data.examples import Example
from tasks.evaluation.comparison import interval
from tasks.evaluation.scoring import Scores, score
from tasks.evaluation.yardstick import untouched
from tasks.merging.apply import applied
from tasks.merging.base import open_base
from tasks.merging.distillation import distilled
from tasks.merging.forecast import foretold
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates
from tasks.merging.regression import regression_mean
from tasks.methods.build import attached
from tasks.training.encoding import encode
from tasks.training.head import start_head_from_class_means

SIDES = ("validation", "test")
PAIR_ROWS = 200  # validation rows per task on which the forecast is checked
GRID: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("average", (1.0,), (1.0,)),
    ("task_arithmetic", (1.0,), (0.3, 0.5)),
    ("ties", (0.2, 0.5), (1.0, 1.5)),
    ("knots_ties", (0.2,), (1.0, 1.5)),
    ("core_ties", (0.2,), (1.0, 1.5)),
    ("iso_c", (1.0,), (0.8,)),
    ("tsv", (1.0,), (0.8,)),
)
CLASS_ROWS = 1000  # training rows that give the untouched base, and a refitted head, their class means
Updates = dict[str, torch.Tensor]
Scored = dict[str, Scores]


@dataclass(frozen=True)
class Bench:
    """The tasks, how many rows of a side are scored, and where scores are kept between runs."""

    tasks: list[Task]
    most: Mapping[str, int]
    cache: Path
    lesson_rows: int

    def lessons(self) -> dict[str, Any]:
        """The training rows of each task that a measured rule reads."""
        return {task.name: encode(task.base, task.rows["train"][: self.lesson_rows]) for task in self.tasks}

    def rows(self, task: Task, *sides: str) -> tuple[Example, ...]:
        return tuple(row for side in sides for row in task.rows[side][: self.most[side]])

    def known(self, model: str, task: Task, sides: Sequence[str], measure: Callable[[], Scores]) -> Scores:
        keys = "".join(row.key for row in self.rows(task, *sides))
        return remembered(
            self.cache, f"{model} on {', '.join(sides)} of {task.name}: {task.spec.metric} {keys}", measure
        )

    @property
    def experts(self) -> str:
        """What every merge here is made of."""
        return ", ".join(trained(task, self.cache).name for task in self.tasks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the trained adapters")
    parser.add_argument("--kind", choices=("classification", "generation"), default="classification")
    parser.add_argument("--tasks", default="", help="comma-separated; all of the kind by default")
    parser.add_argument("--validation", type=int, default=300, help="rows per task that choose settings")
    parser.add_argument("--test", type=int, default=1000, help="rows per task that judge")
    parser.add_argument("--rows", type=int, default=400, help="training rows per task that the measured rules read")
    parser.add_argument("--steps", default="240", help="steps of the distillation, comma-separated; none leaves it out")
    asked = parser.parse_args()
    if "FACTORY_DATA" not in os.environ or "FACTORY_MINILM" not in os.environ:
        parser.error("export FACTORY_DATA and FACTORY_MINILM first; benchmarks/README.md says what they name")
    torch.set_num_threads(1)
    tasks = tasks_of(asked.kind, [name for name in asked.tasks.split(",") if name])
    bench = Bench(tasks, {"validation": asked.validation, "test": asked.test}, asked.cache, asked.rows)
    folders = {task.name: trained(task, asked.cache) for task in tasks}
    plan = check_parents([Parent(f"{name}:1", name, folder, "one") for name, folder in folders.items()])
    alone = before_and_alone(bench, folders)
    best = {rule: best_setting(bench, plan, alone["validation"], rule, found) for rule, found in candidates(plan)}
    regmean = measured(bench, plan)
    found = [(f"{asked.rows} rows a task", regmean, 1.0)]
    best["regmean"] = best_setting(bench, plan, alone["validation"], "regmean", found)
    if numbers := [int(number) for number in asked.steps.split(",") if number]:
        found = [
            (
                f"{steps} steps on {asked.rows} rows a task",
                cache(lambda steps=steps: alignment(bench, plan, regmean(), steps)),
                1.0,
            )
            for steps in numbers
        ]
        best["distilled"] = best_setting(bench, plan, alone["validation"], "distilled", found)
    chosen = max(best, key=lambda rule: (round(min(best[rule].kept.values()), 2), mean(best[rule].kept)))
    rows = {"base": alone["test"]["base"], "routing": alone["test"]["experts"]}
    for rule, one in best.items():
        rows[f"{rule} ({one.how})"] = scored(bench, plan, rule, one, "test")
        print(f"  test, {rule} ({one.how}): {retentions(rows[f'{rule} ({one.how})'], alone['test'])}", flush=True)
    if asked.kind == "classification":
        for rule in ("regmean", "distilled") if numbers else ("regmean",):
            name = f"{rule} ({best[rule].how}), heads refitted"
            rows[name] = scored(bench, plan, f"{rule} refitted", best[rule], "test", refit=True)
    kept = {name: retentions(found, alone["test"]) for name, found in rows.items()}
    say_table(bench, rows, kept)
    print(f"chosen on validation rows: {chosen}", flush=True)
    print(foretold(plan, open_base(Path(tasks[0].spec.base.model))).summary, flush=True)
    foresight(bench, plan, alone["validation"])
    print(json.dumps({"kind": asked.kind, "chosen": chosen, "kept": {n: rounded(k) for n, k in kept.items()}}))
    return 0


@dataclass(frozen=True)
class Setting:
    """A setting of a rule: how it reads, its unscaled update (computed when it is needed), its scale, what it kept."""

    how: str
    updates: Callable[[], Updates]
    scale: float
    kept: Mapping[str, float]


def before_and_alone(bench: Bench, folders: Mapping[str, Path]) -> dict[str, dict[str, Scored]]:
    """Side to the untouched base (classes from the means of its own features) and each expert, per task."""
    found: dict[str, dict[str, Scored]] = {side: {"base": {}, "experts": {}} for side in SIDES}
    for task, who in itertools.product(bench.tasks, ("base", "experts")):

        def measure(task: Task = task, who: str = who) -> Scores:
            if who == "base":
                alone: Any = untouched(task.base, task.rows["train"][:CLASS_ROWS])
            else:
                alone = attached(task.base, folders[task.name])
            with alone as model:
                return score(task.base, model, bench.rows(task, *SIDES), task.spec.metric)

        both = bench.known(f"{who} {folders[task.name].name}", task, SIDES, measure)
        for side in SIDES:
            found[side][who][task.name] = part(both, bench.rows(task, side))
    for side, who in itertools.product(SIDES, ("base", "experts")):
        shown = ", ".join(f"{name} {s.mean:.3f}" for name, s in found[side][who].items())
        print(f"{side} {who}: {shown}", flush=True)
    return found


def part(scores: Scores, rows: tuple[Example, ...]) -> Scores:
    """The scores of some of the rows."""
    by_key = dict(zip(scores.keys, scores.outcomes, strict=True))
    return Scores(scores.metric, tuple(row.key for row in rows), tuple(by_key[row.key] for row in rows))


def candidates(plan: MergePlan) -> Iterator[tuple[str, list[tuple[str, Callable[[], Updates], float]]]]:
    """Each rule with its settings: how it reads, the unscaled update, the scale."""
    for rule, densities, scales in GRID:
        settings = []
        for density in densities:
            updates = cache(lambda rule=rule, density=density: dict(merged_updates(plan, rule, density=density)))
            note = f"density {density:g}, " if len(densities) > 1 or density < 1 else ""
            settings += [(f"{note}scale {scale:g}", updates, scale) for scale in scales]
        yield rule, settings


def best_setting(
    bench: Bench,
    plan: MergePlan,
    alone: dict[str, Scored],
    rule: str,
    settings: list[tuple[str, Callable[[], Updates], float]],
) -> Setting:
    """The setting with the best mean retention on validation rows."""
    tried = []
    for how, updates, scale in settings:
        kept = retentions(scored(bench, plan, rule, Setting(how, updates, scale, {}), "validation"), alone)
        tried.append(Setting(how, updates, scale, kept))
        print(f"  {rule}, {how}: mean {mean(kept):.3f}, worst {min(kept.values()):.3f}", flush=True)
    return max(tried, key=lambda one: (mean(one.kept), min(one.kept.values())))


def measured(bench: Bench, plan: MergePlan) -> Callable[[], Updates]:
    return cache(lambda: regression_mean(bench.tasks[0].base, plan, bench.lessons()))


def alignment(bench: Bench, plan: MergePlan, start: Updates, steps: int) -> Updates:
    """Some hundred steps of distillation on inputs of training rows."""
    began = time.monotonic()

    def show(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"  distilled: step {step} of {steps}, loss {loss:.4f}, {time.monotonic() - began:.0f} s", flush=True)

    return distilled(bench.tasks[0].base, plan, bench.lessons(), start, steps=steps, on_step=show)


def scored(bench: Bench, plan: MergePlan, rule: str, one: Setting, side: str, *, refit: bool = False) -> Scored:
    found = {}
    for task in bench.tasks:

        def measure(task: Task = task) -> Scores:
            head = plan.heads.get(task.name)
            with applied(task.base.model, one.updates(), scale=one.scale, head=head) as model:
                if refit:
                    start_head_from_class_means(task.base, model, encode(task.base, task.rows["train"][:CLASS_ROWS]))
                return score(task.base, model, bench.rows(task, side), task.spec.metric)

        found[task.name] = bench.known(f"{rule}, {one.how}, of {bench.experts}", task, (side,), measure)
    return found


def retentions(scores: Scored, alone: Mapping[str, Scored]) -> dict[str, float]:
    base, experts = alone["base"], alone["experts"]
    return {
        name: (found.mean - base[name].mean) / (experts[name].mean - base[name].mean) for name, found in scores.items()
    }


def say_table(bench: Bench, rows: Mapping[str, Scored], kept: Mapping[str, Mapping[str, float]]) -> None:
    names = [task.name for task in bench.tasks]
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
    print("n: " + ", ".join(f"{task.name} {len(bench.rows(task, 'test'))}" for task in bench.tasks), flush=True)


def foresight(bench: Bench, plan: MergePlan, alone: dict[str, Scored]) -> None:
    """How well the adapters alone foretell what is kept: of every pair of tasks and of all together, each parent's
    interference beside what a plain mean and an aligned merge keep of it on validation rows."""
    seen: dict[str, list[tuple[float, dict[str, float], str]]] = {"pairs": [], "all": []}
    for group in [*itertools.combinations(bench.tasks, 2), tuple(bench.tasks)]:
        few = replace(
            bench, tasks=list(group), most={**bench.most, "validation": min(PAIR_ROWS, bench.most["validation"])}
        )
        some = check_parents([one for one in plan.parents if one.task in {task.name for task in group}])
        known = {who: {t.name: part(alone[who][t.name], few.rows(t, "validation")) for t in group} for who in alone}
        kept = {}
        for rule in ("average", "knots_ties"):
            updates = cache(lambda rule=rule, some=some: dict(merged_updates(some, rule, density=0.2)))
            one = Setting("scale 1.0", updates, 1.0, {})
            kept[rule] = retentions(scored(few, some, rule, one, "validation"), known)
        told = foretold(some)
        seen["all" if len(group) > 2 else "pairs"] += [
            (parent.interference, {rule: kept[rule][parent.task] for rule in kept}, told.verdict)
            for parent in told.parents
        ]
    for rule in ("average", "knots_ties"):
        for which, points in (("pairs", seen["pairs"]), ("pairs and all together", seen["pairs"] + seen["all"])):
            order = rank_correlation([point[0] for point in points], [point[1][rule] for point in points])
            print(f"interference against what {rule} keeps, {which}: rank correlation {order:.2f}, n {len(points)}")
        for verdict in sorted({point[2] for points in seen.values() for point in points}):
            shares = [min(1.0, p[1][rule]) for points in seen.values() for p in points if p[2] == verdict]
            print(f"  told to {verdict}: {rule} keeps {sum(shares) / len(shares):.0%} on average, n {len(shares)}")


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank."""

    def ranks(values: Sequence[float]) -> torch.Tensor:
        row = torch.tensor(values, dtype=torch.float64)
        return (row[:, None] > row).sum(1) + ((row[:, None] == row).sum(1) - 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(one).double(), ranks(other).double()]))[0, 1])


def mean(kept: Mapping[str, float]) -> float:
    """Over tasks, each counted up to the whole of its expert's gain."""
    return sum(min(1.0, share) for share in kept.values()) / len(kept)


def rounded(kept: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in kept.items()}


if __name__ == "__main__":
    raise SystemExit(main())
