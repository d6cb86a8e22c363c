"""Candidates of a merge: what a recipe asks to try, each setting's model scored on every task, and the choice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flows.learn import record_of, threads
from flows.merge_parents import Expert, Planned, dense_base, pooled
from flows.policy import on_gpu
from flows.progress import voice
from registry.records import EvaluationRecord
from tasks.data.examples import Example
from tasks.merging.catalogue import MEASURED, reads_density, trains
from tasks.promotion import retention
from tasks.specs import MergeSpec, Side

if TYPE_CHECKING:
    from tasks.training.base import Base

KEPT_UPDATES = 3


@dataclass(frozen=True)
class Setting:
    """One candidate: a rule with weights, a density, and a factor on the merged update; where it is measured on rows,
    how many of each task, and where it trains, for how many steps."""

    rule: str
    weights: tuple[tuple[str, float], ...]
    density: float
    scale: float
    rows: int = 0
    steps: int = 0

    @property
    def name(self) -> str:
        density = f", density {self.density:g}" if reads_density(self.rule) else ""
        rows = f", {self.rows} rows" if self.rule in MEASURED else ""
        steps = f", {self.steps} steps" if trains(self.rule) else ""
        return f"{self.rule} (scale {self.scale:g}{density}{rows}{steps})"


def settings_of(spec: MergeSpec) -> list[Setting]:
    """Every combination that the recipe asks for and the baselines, those of one update side by side."""
    return [
        Setting(rule.rule, tuple(sorted(rule.weights.items())), density, scale, rows, steps)
        for rule in spec.tried
        for density in rule.density
        for rows in ((rule.rows,) if rule.rule in MEASURED else (0,))
        for steps in (rule.steps if trains(rule.rule) else (0,))
        for scale in rule.scale
    ]


class Scorer:
    """Settings scored one task at a time, on bases that hold the weights that are merged into. The last few updates are
    kept, so that settings that differ in scale alone are merged once."""

    def __init__(
        self, spec: MergeSpec, experts: Sequence[Expert], plan: Planned, heads: Mapping[str, Any] | None = None
    ) -> None:
        self._spec, self._experts, self._plan = spec, experts, plan
        self._heads = plan.parents.heads if heads is None else heads
        self._updates: dict[Setting, dict[str, Any]] = {}
        self._kept: dict[str, float] = {}

    @classmethod
    @contextmanager
    def opened(
        cls, spec: MergeSpec, experts: Sequence[Expert], plan: Planned, heads: Mapping[str, Any] | None = None
    ) -> Iterator[Scorer]:
        """The bases are given back, as they were stored, at the end of the block."""
        with as_merged([dense_base(e) for e in experts], plan):
            yield cls(spec, experts, plan, heads)

    def updates(self, setting: Setting) -> dict[str, Any]:
        """The setting's update, unscaled."""
        key = replace(setting, scale=1.0)
        if key not in self._updates:
            while len(self._updates) >= KEPT_UPDATES:
                del self._updates[next(iter(self._updates))]
            self._updates[key] = updates_of(self._spec, self._experts, self._plan, setting)
        return self._updates[key]

    def record(self, setting: Setting, e: Expert, side: Side) -> EvaluationRecord:
        """One setting's model on one task."""
        from tasks.merging.apply import applied

        def measure() -> EvaluationRecord:
            with applied(dense_base(e).model, self.updates(setting), scale=setting.scale):
                return self.as_it_is(e, side)

        taking_part = [parent.ref for parent in self._plan.parents.parents]
        return self._plan.place.score(f"{setting} of {taking_part} on {side} of {e.task}", measure)

    def as_it_is(self, e: Expert, side: Side) -> EvaluationRecord:
        """One task on the body as it stands, with the task's own head."""
        from tasks.evaluation.scoring import score
        from tasks.merging.apply import applied

        base = dense_base(e)
        with applied(base.model, {}, head=self._heads.get(e.task)) as model:
            return pooled([record_of(score(base, model, s.examples, e.spec.metric), s) for s in e.slices[side]])

    def hardest_first(self) -> list[Expert]:
        """Tasks in the order of what the last settings kept of them."""
        return sorted(self._experts, key=lambda e: self._kept.get(e.task, 0.0))

    def note(self, task: str, kept: float) -> None:
        """What a setting kept of a task."""
        self._kept[task] = kept


@on_gpu
def merged_and_scored(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, settings: Sequence[Setting], side: Side
) -> dict[Setting, dict[str, EvaluationRecord]]:
    """Each setting's model on every task."""
    found: dict[Setting, dict[str, EvaluationRecord]] = {}
    began = time.monotonic()
    with threads(spec.resources.threads), Scorer.opened(spec, experts, plan) as scorer:
        for setting in settings:
            found[setting] = {e.task: scorer.record(setting, e, side) for e in experts}
            left = (time.monotonic() - began) / len(found) * (len(settings) - len(found))
            voice.bar(f"merging, scored on {side} rows:", len(found), len(settings), left, setting.name)
    return found


@contextmanager
def as_merged(bases: Iterable[Base], plan: Planned) -> Iterator[None]:
    """Dense bases with the weights that are merged into; whoever borrows them next finds the stored ones again."""
    import torch

    from tasks.merging.apply import fill
    from tasks.merging.base import open_base

    bases = tuple(bases)
    stored = open_base(plan.base.folder, dtype=torch.float32)
    try:
        for base in bases:
            fill(base.model, plan.base)
        yield
    finally:
        for base in bases:
            fill(base.model, stored)


def updates_of(spec: MergeSpec, experts: Sequence[Expert], plan: Planned, setting: Setting) -> dict[str, Any]:
    """The merged update of a setting, unscaled, by module. What was measured on rows is measured once per recipe."""
    from tasks.merging.merge import merged_updates

    if setting.rule in MEASURED:
        return measured_updates(spec, experts, plan, setting)
    weights = dict(setting.weights)
    return dict(merged_updates(plan.parents, setting.rule, weights=weights, density=setting.density, seed=spec.seed))


def measured_updates(spec: MergeSpec, experts: Sequence[Expert], plan: Planned, setting: Setting) -> dict[str, Any]:
    """The regression mean over some of the parents' training rows, or what a short training from there on them gives.
    Validation rows stay out of it: they choose."""
    from tasks.merging.apply import fill
    from tasks.merging.distillation import distilled
    from tasks.merging.regression import regression_mean
    from tasks.training.encoding import encode

    base = dense_base(experts[0])
    fill(base.model, plan.base)
    taking_part = hashlib.sha256(" ".join(parent.ref for parent in plan.parents.parents).encode()).hexdigest()[:8]
    rows = {
        e.task: encode(dense_base(e), some(setting.rows, [x for s in e.slices["train"] for x in s.examples]))
        for e in experts
    }
    began = time.monotonic()

    def show(done: int, total: int, loss: float | None = None) -> None:
        what = "regression mean: layer" if loss is None else "distillation: step"
        voice.bar(what, done, total, (time.monotonic() - began) / done * (total - done))

    start = plan.place.changes(
        f"regmean-{setting.rows}-{taking_part}", lambda: regression_mean(base, plan.parents, rows, on_layer=show)
    )
    if not trains(setting.rule):
        return start
    began = time.monotonic()
    return plan.place.changes(
        f"distilled-{setting.rows}-{setting.steps}-{taking_part}",
        lambda: distilled(base, plan.parents, rows, start, steps=setting.steps, seed=spec.seed, on_step=show),
    )


def some(most: int, examples: Sequence[Example]) -> list[Example]:
    """At most so many, drawn by their keys."""
    return sorted(examples, key=lambda example: example.key)[:most]


def retentions(
    scores: Mapping[str, EvaluationRecord], alone: Mapping[str, Mapping[str, EvaluationRecord]]
) -> dict[str, float]:
    """Share of each expert's gain that is kept."""
    return {
        task: retention(found.outcomes, alone["experts"][task].outcomes, alone["base"][task].outcomes)
        for task, found in scores.items()
    }


def worst_then_mean(kept: Mapping[str, float]) -> tuple[float, float]:
    """The order of candidates: a mean hides a dead task, so the worst task counts first."""
    return round(min(kept.values()), 2), sum(kept.values()) / len(kept)


def best_of_each_rule(kept: Mapping[Setting, Mapping[str, float]]) -> list[Setting]:
    """One setting per rule, in the order of the recipe."""
    best: dict[str, Setting] = {}
    for setting, values in kept.items():
        other = best.get(setting.rule)
        if other is None or worst_then_mean(values) > worst_then_mean(kept[other]):
            best[setting.rule] = setting
    return list(best.values())
