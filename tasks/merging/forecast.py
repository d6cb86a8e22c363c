"""What the adapters alone foretell of their merge: how much else it does on the inputs that each of them reads, what a
truncation would cut off, and whether to merge, to merge aligned, or to serve them apart.

On the inputs Q_i that parent i reads, the sum of all updates is

    sum_j dW_j Q_i = (1 + c_i) dW_i Q_i + R_i        c_i = <sum_{j != i} dW_j, dW_i> / ||dW_i||^2

over all modules together, R_i orthogonal to dW_i. The interference ||R_i|| / ((1 + c_i) ||dW_i||) does not change with
a scale on the merge: 0 where the others read other inputs or say the same, infinite where they undo the parent.

Where the base is at hand, a parent's departure ||dW_i|| / ||W|| over the modules that it changes says how far it moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tasks.merging.base import BaseWeights
from tasks.merging.factors import reduce_dense, reduce_factors
from tasks.merging.merge import MergePlan, one_thread
from tasks.merging.overlap import PairForecast, forecast, summary
from tasks.merging.vectors import Update

Verdict = Literal["merge", "merge aligned", "serve apart"]

MERGES_PLAIN, MERGES_ALIGNED, DEPARTS = 1.0, 2.5, 0.1
"""Largest interference up to which a plain sum, and an aligned one, is advised. docs/merging.md says what was measured:
two parents lie below the first and kept nine tenths under a plain mean; six reached the second. And the departure from
which adapters are advised to stay apart: those of 0.04 merged, those of 0.2 did not."""


@dataclass(frozen=True)
class ParentForecast:
    """One parent in the sum of all: `interference` and `departure` as above (0 without a base), `agreement` is c."""

    task: str
    interference: float
    agreement: float
    departure: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """All that is foretold, and the same in plain words. `cut_share` of the sum's squared norm is lost if each module
    is truncated to the largest rank of its parents."""

    pairs: tuple[PairForecast, ...]
    parents: tuple[ParentForecast, ...]
    cut_share: float
    verdict: Verdict
    summary: str


def foretold(plan: MergePlan, base: BaseWeights | None = None) -> Forecast:
    """The forecast of merging all parents of the plan."""
    parents, cut_share = _in_the_sum(plan)
    if base is not None:
        away = [_departure(update, base) for update in plan.updates]
        parents = tuple(replace(parent, departure=far) for parent, far in zip(parents, away, strict=True))
    pairs, verdict = forecast(plan), verdict_on(parents)
    worst = max(parents, key=lambda parent: parent.interference)
    told = (
        f"on the inputs that {worst.task} reads the others do {worst.interference:.2f} times its own change"
        if worst.interference < math.inf
        else f"the others undo {worst.task}"
    )
    farthest = max(parents, key=lambda parent: parent.departure)
    if farthest.departure > DEPARTS:
        told = f"{farthest.task} departs from its base by {farthest.departure:.0%} of the weights' norm; {told}"
    cut = f"truncated to one parent's rank the sum would lose {cut_share:.0%} of its energy"
    return Forecast(
        pairs, parents, cut_share, verdict, f"{summary(pairs)}\n{verdict}: {f'{told}; {cut}'.replace('%', ' %')}"
    )


def verdict_on(parents: tuple[ParentForecast, ...]) -> Verdict:
    """By the parent that suffers most, unless one of them departs too far from the base.

    >>> verdict_on((ParentForecast("a", 0.2, 0.0), ParentForecast("b", 2.0, 0.1)))
    'merge aligned'
    """
    worst = max(parent.interference for parent in parents)
    if max(parent.departure for parent in parents) > DEPARTS:
        return "serve apart"
    return "merge" if worst <= MERGES_PLAIN else "merge aligned" if worst <= MERGES_ALIGNED else "serve apart"


def _departure(update: Update, base: BaseWeights) -> float:
    """||dW|| / ||W|| over the modules that an adapter changes."""
    moved = sum(float(update.delta(name).double().pow(2).sum()) for name in update.modules)
    whole = sum(float(base.weight(name).double().pow(2).sum()) for name in update.modules)
    return math.sqrt(moved / whole) if whole else 0.0


def _in_the_sum(plan: MergePlan) -> tuple[tuple[ParentForecast, ...], float]:
    """Each parent's forecast, and the share of the sum's squared norm beyond one parent's rank."""
    count = len(plan.updates)
    own, along, others = (
        torch.zeros(count, dtype=torch.float64) for _ in range(3)
    )  # ||dW||^2, <rest, dW>, ||rest Q||^2
    whole = cut = 0.0
    for name in plan.modules:
        members = [place for place in range(count) if name in plan.updates[place].modules]
        with one_thread():
            spaces = [torch.linalg.qr(plan.updates[place].inputs_read(name).T)[0] for place in members]
            deltas = [plan.updates[place].delta(name) for place in members]
            total = torch.stack(deltas).sum(0)
            for place, delta, space in zip(members, deltas, spaces, strict=True):
                rest = total - delta
                own[place] += float(delta.double().pow(2).sum())
                along[place] += float((rest.double() * delta.double()).sum())
                others[place] += float((rest @ space).double().pow(2).sum())
            squares = float(total.double().pow(2).sum())
            whole += squares
            cut += squares * _cut_off(plan, name, members, total, max(space.shape[1] for space in spaces))
    agreement = (along / own.clamp_min(1e-300)).tolist()
    left = ((others - along**2 / own.clamp_min(1e-300)).clamp_min(0) / own.clamp_min(1e-300)).sqrt().tolist()
    parents = tuple(
        ParentForecast(parent.task, residue / (1 + c) if 1 + c > 1e-6 else math.inf, c)
        for parent, residue, c in zip(plan.parents, left, agreement, strict=True)
    )
    return parents, cut / whole if whole else 0.0


def _cut_off(plan: MergePlan, name: str, members: list[int], total: torch.Tensor, rank: int) -> float:
    """The share of a module's sum that lies beyond this rank."""
    pairs = [plan.updates[place].factors(name) for place in members]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        start = torch.cat([plan.updates[place].inputs_read(name) for place in members])
        return reduce_dense(total, min(rank, *total.shape), start=start).lost
    return reduce_factors(torch.cat([B for B, _ in known], 1), torch.cat([A for _, A in known]), rank=rank).lost
