"""Candidates of a merge: what a recipe asks to try, each setting's model scored on every task, and the choice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.learn import record_of, threads
from flows.merge_parents import Expert, Planned, dense_base, pooled
from flows.policy import on_gpu
from flows.progress import voice
from registry.records import EvaluationRecord
from tasks.merging.catalogue import MEASURED, reads_density
from tasks.promotion import retention
from tasks.specs import MergeSpec, Side

if TYPE_CHECKING:
    from tasks.training.base import Base


@dataclass(frozen=True)
class Setting:
    """One candidate: a rule with weights, a density, and a factor on the merged update."""

    rule: str
    weights: tuple[tuple[str, float], ...]
    density: float
    scale: float

    @property
    def name(self) -> str:
        density = f", density {self.density:g}" if reads_density(self.rule) else ""
        return f"{self.rule} (scale {self.scale:g}{density})"


def settings_of(spec: MergeSpec) -> list[Setting]:
    """Every combination that the recipe asks for, those of one update side by side."""
    return [
        Setting(rule.rule, tuple(sorted(rule.weights.items())), density, scale)
        for rule in spec.rules
        for density in rule.density
        for scale in rule.scale
    ]


@on_gpu
def merged_and_scored(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, settings: Sequence[Setting], side: Side
) -> dict[Setting, dict[str, EvaluationRecord]]:
    """Each setting's model on every task. A rule's update is computed once per density."""
    from tasks.evaluation.scoring import score
    from tasks.merging.apply import applied

    bases = {e.task: dense_base(e) for e in experts}
    found: dict[Setting, dict[str, EvaluationRecord]] = {}
    began = time.monotonic()
    with threads(spec.resources.threads), as_merged(bases.values(), plan):
        for _, alike in itertools.groupby(settings, key=lambda s: (s.rule, s.weights, s.density)):
            group = list(alike)
            updates = updates_of(spec, experts, plan, group[0])
            for setting in group:
                found[setting] = {}
                for e in experts:
                    base, head = bases[e.task], plan.parents.heads.get(e.task)
                    with applied(base.model, updates, scale=setting.scale, head=head) as model:
                        scores = [record_of(score(base, model, s.examples, e.spec.metric), s) for s in e.slices[side]]
                    found[setting][e.task] = pooled(scores)
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
        if setting.rule not in plan.measured:
            plan.measured[setting.rule] = measured_updates(experts, plan)
        return plan.measured[setting.rule]
    weights = dict(setting.weights)
    return dict(merged_updates(plan.parents, setting.rule, weights=weights, density=setting.density, seed=spec.seed))


def measured_updates(experts: Sequence[Expert], plan: Planned) -> dict[str, Any]:
    """The regression mean over the parents' validation rows."""
    from tasks.merging.apply import fill
    from tasks.merging.regression import regression_mean
    from tasks.training.encoding import encode

    base = dense_base(experts[0])
    fill(base.model, plan.base)
    rows = {e.task: encode(base, [x for s in e.slices["validation"] for x in s.examples]) for e in experts}
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        voice.bar("regression mean: layer", done, total, (time.monotonic() - began) / done * (total - done))

    return regression_mean(base, plan.parents, rows, on_layer=show)


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
