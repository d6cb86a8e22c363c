"""Loops for Numba. Imported by `kernels.py` alone, which does without them where Numba is missing.

No fast-math: the sums run in the order of the models, each product and sum rounded to float32 as torch rounds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ZERO = np.float32(0)
ONE = np.float32(1)


CHUNK = 4096  # entries whose sums stay in a core's first-level cache


@njit(cache=True, nogil=True, error_model="numpy")
def band(values: Any, low: Any, high: Any, inside: Any, held: int) -> tuple[int, int]:
    """How many magnitudes reach `high`, and how many are held once those in [low, high), which are few, are put behind
    the first `held` of `inside`. First a vector of comparisons, then a look at those eights of it that hold one.

    Args:
        values, inside: float32 (entries,).
    """
    above, near = np.int32(0), np.zeros((values.size + 7) // 8 * 8, np.bool_)
    for i in range(values.size):
        magnitude = abs(values[i])
        above += np.int32(magnitude >= high)
        near[i] = (magnitude >= low) & (magnitude < high)
    eights = near.view(np.uint64)
    for eight in range(eights.size):
        if eights[eight]:
            for i in range(8 * eight, 8 * eight + 8):
                if near[i]:
                    inside[held] = abs(values[i])
                    held += 1
    return int(above), held


@njit(cache=True, nogil=True, error_model="numpy")
def consensus(deltas: Any, thresholds: Any, weights: Any, shares: Any, weighted: bool, draw: Any, merged: Any) -> None:
    """Trim, elect, agree for each entry; see `algebra.agreeing_mean`. Models outside and entries inside, so that the
    inner loops are vectors.

    Args:
        deltas: float32 (models, entries); thresholds, weights, shares: float32 (models,).
        merged: float32 (entries,), written.
    """
    models, entries = deltas.shape
    signs, over = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, entries, CHUNK):
        size = min(CHUNK, entries - start)
        into = merged[start : start + size]
        signs[:] = ZERO
        over[:] = ZERO
        into[:] = ZERO
        for m in range(models):
            own, threshold, factor = deltas[m, start : start + size], thresholds[m], weights[m] if weighted else ONE
            for i in range(size):
                signs[i] += factor * own[i] if abs(own[i]) >= threshold else ZERO
        for i in range(size):
            signs[i] = ONE if signs[i] > ZERO else -ONE if signs[i] < ZERO else draw
        for m in range(models):
            own, threshold, factor, share = deltas[m, start : start + size], thresholds[m], weights[m], shares[m]
            before, after = (factor, ONE) if weighted else (ONE, factor)
            for i in range(size):
                agreeing = (before * own[i] if abs(own[i]) >= threshold else ZERO) * signs[i]
                into[i] += agreeing * after if agreeing > ZERO else ZERO
                over[i] += share if agreeing > ZERO else ZERO
        for i in range(size):
            into[i] = into[i] * signs[i] / (over[i] if over[i] != ZERO else ONE)
