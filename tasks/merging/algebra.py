"""TIES as its figure draws it: trim, elect, agree (Yadav et al. 2023, arXiv:2306.01708, algorithm 1); and DARE's drop.

    kept = trim(deltas, thresholds)
    signs = elect(kept, weights, ...)
    merged = agreeing_mean(kept, signs, weights, ...)

Implementations differ at five places, and each is a named argument: what share of which entries is kept (`kept`, and
the tensor or the whole model that a threshold is taken over), whether weights vote (`vote`), what the sum is divided
by (`divisor`), and who wins an exact draw (`draw`). Torch is only needed by the values that come in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["ceil", "floor", "floor_plus_one", "floor_or_one"]
Over = Literal["tensor", "model"]
Vote = Literal["weighted", "equal"]
Divisor = Literal["weights", "count", "signed_weights"]
Draw = Literal["none", "plus", "majority"]

TINY = 1e-30  # what was kept had a chance above this
PHILOX_LANES = 4  # 64-bit numbers per step of NumPy's Philox counter


def kept_entries(entries: int, density: float, *, kept: Kept = "ceil") -> int:
    """How many of `entries` a trim keeps.

    `ceil` keeps at least the share that was asked, so never nothing. `floor` can keep none of a small tensor (PEFT);
    `floor_or_one` keeps one then (mergekit); `floor_plus_one` is what the paper's code selects.

    >>> [kept_entries(4, 0.2, kept=k) for k in ("ceil", "floor", "floor_plus_one", "floor_or_one")]
    [1, 0, 1, 1]
    """
    if kept == "ceil":
        return min(entries, math.ceil(entries * density - 1e-9))
    least = 1 if kept == "floor_or_one" else 0
    return min(entries, max(least, int(entries * density)) + (kept == "floor_plus_one"))


def magnitude_of_rank(magnitudes: np.ndarray, kept: int) -> float:
    """The `kept`-th largest of `magnitudes`, by selection; reorders them. Infinite for kept = 0.

    >>> magnitude_of_rank(np.array([3.0, 1.0, 2.0], np.float32), 2)
    2.0
    """
    if kept == 0:
        return math.inf
    place = magnitudes.size - kept
    magnitudes.partition(place)
    return float(magnitudes[place])


def trim(deltas: Iterable[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Per model, the entries whose magnitude reaches its threshold, the others 0; all entries at it are kept."""
    below = [float(np.nextafter(np.float32(threshold), np.float32(0))) for threshold in thresholds]
    return [delta.hardshrink(edge) for delta, edge in zip(deltas, below, strict=True)]  # keeps what lies strictly above


def elect(kept: Sequence[Tensor], weights: Sequence[float], *, vote: Vote = "weighted", draw: float = 0.0) -> Tensor:
    """The sign of the summed votes, entry by entry; `draw` is the sign where they cancel exactly.

    Args:
        vote: `weighted` sums weight times entry, `equal` sums the entries.
    """
    signs = weighted_sum(kept, weights if vote == "weighted" else [1.0] * len(kept)).sign_()
    return signs.add_(1 - signs.abs(), alpha=draw) if draw else signs


def agreeing_mean(
    kept: Sequence[Tensor],
    signs: Tensor,
    weights: Sequence[float],
    *,
    vote: Vote = "weighted",
    divisor: Divisor = "weights",
) -> Tensor:
    """The weighted entries that carry the elected sign, summed, over their summed |weights| or their count; 0 if there
    are none. An entry's sign is the one it voted with. `signed_weights` divides by the plain sum of the weights, as
    mergekit does: the same unless one is negative."""
    shares = [
        1.0 if divisor == "count" else weight if divisor == "signed_weights" else abs(weight) for weight in weights
    ]
    total, over = signs.new_zeros(signs.shape), signs.new_zeros(signs.shape)
    for entries, weight, share in zip(kept, weights, shares, strict=True):
        votes = _times(entries, weight) if vote == "weighted" else entries
        agreeing = (votes * signs).clamp_(min=0)  # magnitude where the sign agrees, else 0
        total += agreeing if vote == "weighted" else _times(agreeing, weight)
        over.add_(agreeing.sign_(), alpha=share)
    over[over == 0] = 1
    return total.mul_(signs).div_(over)


def disjoint_merge(
    kept: Sequence[Tensor],
    weights: Sequence[float],
    *,
    vote: Vote = "weighted",
    divisor: Divisor = "weights",
    draw: float = 0.0,
) -> Tensor:
    """Elect and agree."""
    return agreeing_mean(kept, elect(kept, weights, vote=vote, draw=draw), weights, vote=vote, divisor=divisor)


def weighted_sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weight times change, in the order of the models."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total += _times(delta, weight)
    return total


def drop(delta: Tensor, keep: Tensor, chance: Tensor | float) -> Tensor:
    """DARE (Yu et al. 2023, arXiv:2311.03099): dropped at random, the rest over its chance, so that the mean stays."""
    return delta * keep / (chance if isinstance(chance, float) else chance.clamp_min(TINY))


def keep_chances(delta: Tensor, density: float, spread: float) -> Tensor:
    """DELLA's chance of each entry to be kept, (rows, columns): from density - spread for the smallest of its row to
    density + spread for the largest, evenly by rank. A density near 0 or 1 leaves less room to either side.

    >>> import torch
    >>> [round(chance, 2) for chance in keep_chances(torch.tensor([[0.1, -3.0, 2.0]]), 0.5, 0.1)[0].tolist()]
    [0.4, 0.6, 0.5]
    """
    room = min(spread, density, 1 - density)
    ranks = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).float()
    return (density - room) + ranks * (2 * room / max(1, delta.shape[1] - 1))


def drawn(seed: int, stream: int, start: int, entries: int, density: float | np.ndarray) -> np.ndarray:
    """Which of `entries` consecutive entries from `start` on are kept: bool (entries,), true with probability
    `density`, one for all or one for each.

    Entry i of a stream has its own counter of Philox 4x64 (Salmon et al. 2011), so the draw does not depend on where a
    block begins or on who computes it.

    >>> whole = drawn(1, 2, 0, 1000, 0.3)
    >>> bool((whole[317:400] == drawn(1, 2, 317, 83, 0.3)).all())
    True
    """
    lanes = 2 * PHILOX_LANES  # each 64-bit number gives two entries
    skip = start % lanes
    key = np.array([seed & (2**64 - 1), stream & (2**64 - 1)], np.uint64)
    bits = np.random.Philox(key=key, counter=start // lanes)
    numbers = bits.random_raw((skip + entries + 1) // 2).view(np.uint32)[skip : skip + entries]
    return numbers < np.asarray(density, np.float64) * 2**32


def _times(entries: Tensor, weight: float) -> Tensor:
    return entries if weight == 1 else entries * weight
