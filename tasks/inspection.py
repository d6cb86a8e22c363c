"""What an adapter's update looks like inside: spectrum, effective rank, norm, what of the base it amplifies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.figures.inside import energy_kept
from tasks.merging.factors import thin_svd
from tasks.merging.vectors import Update
from tasks.methods.catalogue import METHODS, TRAINED

EMPTY_SHARE = 1e-3
CUTTABLE = tuple(name for name in TRAINED if METHODS[name].is_low_rank and name != "dora")
NO_UPDATE = "its method changes no weight"


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

    def energy_at(self, rank: int) -> float:
        """The share of the squared norm that the first directions hold.

        >>> round(Inside("m", (3.0, 1.0, 0.1), 2.0, 3.2, 1.0).energy_at(1), 3)
        0.899
        """
        return energy_kept(self.values)[min(rank, len(self.values)) - 1]

    def rank_at(self, energy: float) -> int:
        """The smallest rank that keeps a share of the squared norm.

        >>> Inside("m", (3.0, 1.0, 0.1), 2.0, 3.2, 1.0).rank_at(0.99)
        2
        """
        kept = energy_kept(self.values)
        return next((rank for rank, share in enumerate(kept, 1) if share >= energy * (1 - 1e-12)), len(kept))


def inspected(update: Update, weight: Callable[[str], Tensor]) -> tuple[Inside, ...]:
    """Every adapted module of an adapter whose update is low-rank; others (DoRA, IA3) by their dense change. What has
    one axis (a norm, a bias) has no spectrum and is left out.

    Args:
        weight: module name to the base's weight (out, in), as the adapter saw it.
    """
    return tuple(_inside(update, name, weight) for name in update.modules if name not in update.vectors)


def moved(update: Update, weight: Callable[[str], Tensor]) -> dict[str, float]:
    """By how much of its own length each norm or bias of an update has changed."""
    found = {}
    for name in sorted(update.vectors):
        length = float(torch.linalg.vector_norm(weight(name).double()))
        found[name] = float(torch.linalg.vector_norm(update.delta(name).double())) / (length or 1.0)
    return found


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


def similarities(first: Update, second: Update, names: Sequence[str], most: int = 64) -> Tensor:
    """(i, j): phi(i, j) from 1 to as many directions as every module has in each update, the mean over the modules."""
    grids = []
    for name in names:
        one, other = _directions(first, name, most), _directions(second, name, most)
        within = (one @ other.T).pow(2).cumsum(0).cumsum(1)
        i, j = torch.arange(1, len(one) + 1)[:, None], torch.arange(1, len(other) + 1)[None]
        grids.append(within / torch.minimum(i, j))
    rows, columns = (min(grid.shape[axis] for grid in grids) for axis in (0, 1))
    return torch.stack([grid[:rows, :columns] for grid in grids]).mean(0)


def _directions(update: Update, name: str, count: int | None) -> Tensor:
    """(count, in), orthonormal rows: the inputs that the update reads, the strongest first."""
    factors = update.factors(name)
    if factors is not None:
        return thin_svd(*factors)[2][:count]
    return torch.linalg.svd(update.delta(name).double(), full_matrices=False)[2][:count]


def rankless(method: str) -> str:
    """Why an adapter of this method has no rank that could be cut, or "".

    >>> rankless("adalora"), rankless("dora")
    ('', 'dora changes every weight: its update has no rank to cut')
    """
    if method in CUTTABLE:
        return ""
    return f"{method} changes every weight: its update has no rank to cut" if METHODS[method].update else NO_UPDATE


def advice(insides: Sequence[Inside], energy: float = 0.99, method: str = "lora") -> tuple[str, ...]:
    """What the figures support: a smaller rank, where there is one to cut, and modules that carry nothing."""
    rank = max(inside.rank_at(energy) for inside in insides)
    held = max(len(inside.values) for inside in insides)
    share = f"{100 * energy:g}%"
    told = f"rank {rank} of {held} keeps {share} of every module's update"
    if why := rankless(method):
        told = f"{why}; of {held} directions {rank} hold {share} in every module"
    elif rank == held:
        told = f"no smaller rank than {held} keeps {share} of every module's update"
    largest = max(inside.norm for inside in insides)
    idle = [inside.module for inside in insides if inside.norm <= EMPTY_SHARE * largest]
    if not idle:
        return (told,)
    return told, f"{len(idle)} of {len(insides)} modules carry nothing: {', '.join(idle[:6])}"
