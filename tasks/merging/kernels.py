"""The innermost loop in one pass over memory: compiled by Numba where it is installed, in torch elsewhere. Both give
the same bits; the plain form is the witness of the compiled one."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.merging.algebra import Divisor, Vote, disjoint_merge, trim

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PLAIN = "FACTORY_PLAIN_KERNELS"  # environment variable: set, the plain forms run although Numba is there


@cache
def compiled() -> Any:
    """The compiled loops, or None where Numba is not installed or not wanted."""
    if os.environ.get(PLAIN):
        return None
    collecting = gc.isenabled()
    gc.disable()  # what Numba loads stays; to look through it again and again while it loads takes a fifth of a second
    try:
        from tasks.merging import compiled as loops

        loops.band(np.ones(1, np.float32), np.float32(0), np.float32(2), np.empty(2, np.float32), 0)  # loads the rest
    except ImportError:
        return None
    finally:
        if collecting:
            gc.enable()
    return loops


def band(values: np.ndarray, low: Any, high: Any, inside: np.ndarray, held: int) -> tuple[int, int]:
    """How many magnitudes reach `high`, and how many are held once those in [low, high) are put behind the first `held`
    of `inside`."""
    loops = compiled()
    if loops is not None:
        above, held = loops.band(values, low, high, inside, held)
        return above, held
    magnitudes = np.abs(values)
    over = magnitudes >= high
    found = magnitudes[(magnitudes >= low) & ~over]
    inside[held : held + found.size] = found
    return int(np.count_nonzero(over)), held + found.size


def trimmed_consensus(
    thresholds: Sequence[float],
    weights: Sequence[float],
    *,
    vote: Vote,
    divisor: Divisor,
    draw: float,
) -> Callable[[Tensor], Tensor]:
    """Trim, elect and agree: a function of a row block of each model, float32 (models, rows, in)."""
    loops = compiled()
    if loops is None:
        return lambda deltas: disjoint_merge(
            trim(list(deltas), thresholds), weights, vote=vote, divisor=divisor, draw=draw
        )
    import torch

    shares = [1.0 if divisor == "count" else w if divisor == "signed_weights" else abs(w) for w in weights]
    numbers = [np.asarray(values, np.float32) for values in (thresholds, weights, shares)]
    few = len(weights) <= loops.UNROLLED
    loop, asked = (loops.consensus, [tuple(own) for own in numbers]) if few else (loops.consensus_of_many, numbers)

    def merge(deltas: Tensor) -> Tensor:
        merged = torch.empty(deltas.shape[1:])
        entries = deltas.numpy().reshape(len(deltas), -1)
        loop(entries, *asked, vote == "weighted", np.float32(draw), merged.numpy().reshape(-1))
        return merged

    return merge


def rounded_sum(weights: Tensor, change: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """W + scale dW, product and sum rounded to float32 each, then to `dtype`."""
    import torch

    loops, halves = compiled(), weights.dtype == dtype == torch.bfloat16
    if loops is None or not halves or not (weights.is_contiguous() and change.is_contiguous()):
        return (weights.float() + change * scale).to(dtype)
    merged = torch.empty(weights.shape, dtype=dtype)
    into, bits = (own.view(torch.uint16).numpy().reshape(-1) for own in (merged, weights))
    loops.rounded_sum(bits, change.numpy().reshape(-1), np.float32(scale), into)
    return merged
