"""What an adapter's update looks like inside: spectrum, effective rank, norm, what of the base it amplifies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.merging.factors import thin_svd
from tasks.merging.vectors import Update

EMPTY_SHARE = 1e-3


@dataclass(frozen=True)
class Inside:
    """One module's update.

    Attributes:
        values: singular values, the largest first.
        effective_rank: exp of the entropy of the singular values' shares. Roy and Vetterli 2007.
        amplification: ||dW|| / ||U^T W V^T|| with the update's own singular directions: how much more of them there is
            than in the base. Hu et al. 2021, arXiv:2106.09685, section 7.3.
    """

    module: str
    values: tuple[float, ...]
    effective_rank: float
    norm: float
    amplification: float

    def rank_at(self, energy: float) -> int:
        """The smallest rank that keeps a share of the squared norm.

        >>> Inside("m", (3.0, 1.0, 0.1), 2.0, 3.2, 1.0).rank_at(0.99)
        2
        """
        wanted, kept = energy * sum(value**2 for value in self.values), 0.0
        for rank, value in enumerate(self.values, start=1):
            kept += value**2
            if kept >= wanted * (1 - 1e-12):
                return rank
        return len(self.values)


def inspected(update: Update, weight: Callable[[str], Tensor]) -> tuple[Inside, ...]:
    """Every adapted module of an adapter whose update is low-rank; others (DoRA, IA3) by their dense change.

    Args:
        weight: module name to the base's weight (out, in), as the adapter saw it.
    """
    return tuple(_inside(update, name, weight) for name in update.modules if not name.endswith(".bias"))


def _inside(update: Update, name: str, weight: Callable[[str], Tensor]) -> Inside:
    factors = update.factors(name)
    if factors is not None:
        U, values, Vt = thin_svd(*factors)
    else:
        U, values, Vt = torch.linalg.svd(update.delta(name).double(), full_matrices=False)
    total = float(values.sum())
    if total == 0:
        return Inside(name, (0.0,), 0.0, 0.0, 0.0)
    shares = [float(value) / total for value in values if value > 0]
    norm = float(torch.linalg.vector_norm(values))
    of_base = float(torch.linalg.matrix_norm(U.T @ weight(name).double() @ Vt.T))
    entropy = -sum(share * math.log(share) for share in shares)
    ratio = norm / of_base if of_base else math.inf
    return Inside(name, tuple(values.tolist()), math.exp(entropy), norm, ratio)


def similarity(first: Update, second: Update, name: str, i: int | None = None, j: int | None = None) -> float:
    """phi(i, j): how much of the first i input directions of one update lies in the first j of the other, 0 to 1.

    ||V_i^T V'_j||^2 / min(i, j), with all directions by default. Hu et al. 2021, arXiv:2106.09685, section 7.2.
    """
    one, other = _directions(first, name, i), _directions(second, name, j)
    return float((one @ other.T).pow(2).sum()) / min(len(one), len(other))


def _directions(update: Update, name: str, count: int | None) -> Tensor:
    """(count, in), orthonormal rows: the inputs that the update reads, the strongest first."""
    factors = update.factors(name)
    if factors is not None:
        return thin_svd(*factors)[2][:count]
    return torch.linalg.svd(update.delta(name).double(), full_matrices=False)[2][:count]


def advice(insides: Sequence[Inside], energy: float = 0.99) -> tuple[str, ...]:
    """What the figures support: a smaller rank, modules that carry nothing."""
    rank = max(inside.rank_at(energy) for inside in insides)
    held = max(len(inside.values) for inside in insides)
    told = [f"rank {rank} of {held} keeps {energy:.0%} of every module's update"]
    if rank == held:
        told = [f"no smaller rank than {held} keeps {energy:.0%} of every module's update"]
    largest = max(inside.norm for inside in insides)
    idle = [inside.module for inside in insides if inside.norm <= EMPTY_SHARE * largest]
    if idle:
        told.append(f"{len(idle)} of {len(insides)} modules carry nothing: {', '.join(idle[:6])}")
    return tuple(told)
