"""What the adapters alone say about a merge: where two of them pull the same weights, and in which direction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.merging.merge import MergePlan, one_thread
from tasks.merging.stack import Stack
from tasks.merging.vectors import Update


@dataclass(frozen=True)
class Overlap:
    """Two parents in one module that both change.

    Attributes:
        conflict_share: of the entries that both keep at the forecast's density, the share with opposite signs. Two
            unrelated updates have 0.5; 0 if they keep nothing in common.
        cosine: of the two updates as vectors, in [-1, 1].
        norm_ratio: smaller over larger norm, in [0, 1]; a quiet parent is outvoted by a loud one.
        input_overlap: how much of the smaller space of inputs read lies in the other, in [0, 1]: ||Q_1^T Q_2||^2 /
            rank.
    """

    module: str
    first: str
    second: str
    conflict_share: float
    cosine: float
    norm_ratio: float
    input_overlap: float


@dataclass(frozen=True)
class PairForecast:
    """Means over the modules that two parents share, weighted by the product of the norms there."""

    first: str
    second: str
    shared_modules: int
    conflict_share: float
    cosine: float
    norm_ratio: float
    input_overlap: float


def overlaps(plan: MergePlan, *, density: float = 0.2) -> Iterator[tuple[Overlap, float]]:
    """Each pair of parents in each module that both change, with the product of their norms there.

    Args:
        density: the share of largest entries in which signs are compared.
    """
    for name in plan.modules:
        members = [place for place, update in enumerate(plan.updates) if name in update.modules]
        with one_thread():
            for i, j in itertools.combinations(members, 2):
                tasks = (plan.parents[i].task, plan.parents[j].task)
                yield _overlap(name, plan.modules[name], tasks, (plan.updates[i], plan.updates[j]), density)


def forecast(plan: MergePlan, *, density: float = 0.2) -> tuple[PairForecast, ...]:
    """One line per pair of parents."""
    found: dict[tuple[str, str], list[tuple[Overlap, float]]] = {}
    for overlap, weight in overlaps(plan, density=density):
        found.setdefault((overlap.first, overlap.second), []).append((overlap, weight))
    return tuple(_mean(pair, rows) for pair, rows in sorted(found.items()))


def summary(pairs: Sequence[PairForecast]) -> str:
    """The forecast in plain words.

    >>> summary([PairForecast("a", "b", 14, 0.5, 0.0, 0.9, 0.1)]).partition(",")[0]
    'a and b meet in 14 modules: of their large entries in common 50 % pull apart'
    """
    if not pairs:
        return "no two parents change the same module: every rule but the average adds them up untouched"
    return "\n".join(
        f"{pair.first} and {pair.second} meet in {pair.shared_modules} modules: of their large entries in common "
        f"{pair.conflict_share:.0%} pull apart, cosine {pair.cosine:.2f}, norm ratio {pair.norm_ratio:.2f}, "
        f"inputs shared {pair.input_overlap:.0%}".replace("%", " %")
        for pair in sorted(pairs, key=lambda pair: -pair.conflict_share)
    )


def _overlap(
    name: str, shape: tuple[int, int], tasks: tuple[str, str], updates: tuple[Update, Update], density: float
) -> tuple[Overlap, float]:
    pair = Stack(name, shape, (0, 1), updates, (1.0, 1.0), 2.0, (0, 0), 2)
    thresholds, rows = pair.thresholds(density, "ceil"), pair.rows()
    common = opposed = 0
    products = torch.zeros(3, dtype=torch.float64)  # <1, 1>, <2, 2>, <1, 2>
    for block in pair.blocks():
        one, two = rows(block)
        products += torch.stack([(one * one).sum(), (two * two).sum(), (one * two).sum()]).double()
        both = (one.abs() >= thresholds[0]) & (two.abs() >= thresholds[1]) & (one != 0) & (two != 0)
        common += int(both.sum())
        opposed += int((both & (one.sign() != two.sign())).sum())
    norms = products[:2].sqrt().tolist()
    size = norms[0] * norms[1]
    overlap = Overlap(
        name,
        *tasks,
        conflict_share=opposed / common if common else 0.0,
        cosine=max(-1.0, min(1.0, float(products[2]) / size)) if size else 0.0,
        norm_ratio=min(norms) / max(norms) if max(norms) else 1.0,
        input_overlap=_shared(*(update.inputs_read(name) for update in updates)),
    )
    return overlap, size


def _shared(one: Tensor, two: Tensor) -> float:
    """||Q_1^T Q_2||^2 / min(rank): 1 when one row space lies in the other, 0 when they are orthogonal."""
    bases = [torch.linalg.qr(rows.double().T)[0] for rows in (one, two)]
    overlap = torch.linalg.matrix_norm(bases[0].T @ bases[1]) ** 2
    return min(1.0, float(overlap) / min(basis.shape[1] for basis in bases))


def _mean(pair: tuple[str, str], rows: Sequence[tuple[Overlap, float]]) -> PairForecast:
    total = math.fsum(weight for _, weight in rows)

    def mean(attribute: str) -> float:
        if total == 0:
            return math.fsum(getattr(overlap, attribute) for overlap, _ in rows) / len(rows)
        return math.fsum(getattr(overlap, attribute) * weight for overlap, weight in rows) / total

    return PairForecast(
        *pair, len(rows), mean("conflict_share"), mean("cosine"), mean("norm_ratio"), mean("input_overlap")
    )
