"""Loops for Numba. Imported by `kernels.py` alone, which does without them where Numba is missing.

No fast-math: the sums run in the order of the models, each product and sum rounded to float32 as torch rounds it.
"""

from __future__ import annotations

from typing import Any

import numba.np.linalg
import numpy as np
from numba import njit


def _no_products() -> None:
    raise ImportError


# Numba loads SciPy (14 MB, a seventh of a second) to see whether it could compile np.cov; no loop here asks for that.
_looked_for, numba.np.linalg.ensure_blas = numba.np.linalg.ensure_blas, _no_products
import numba.np.arraymath  # noqa: E402

numba.np.linalg.ensure_blas = _looked_for

ZERO = np.float32(0)
ONE = np.float32(1)
UNROLLED = 8  # parents up to which the compiler unrolls a loop over them, and makes vectors of the one over entries
CHUNK = 512  # entries whose sums stay in a core's first-level cache


@njit(cache=True, nogil=True, error_model="numpy")
def band(values: Any, low: Any, high: Any, inside: Any, held: int) -> tuple[int, int]:
    """How many magnitudes reach `high`, and how many are held once those in [low, high), which are few, are put behind
    the first `held` of `inside`. Vectors of comparisons, then a list of those eights of them that hold one, then a look
    at these: nothing that a processor would have to guess.

    Args:
        values, inside: float32 (entries,).
    """
    above, near = np.int32(0), np.zeros((values.size + 7) // 8 * 8, np.uint8)
    for i in range(values.size):
        above += np.int32(abs(values[i]) >= high)
    for i in range(values.size):
        near[i] = (abs(values[i]) >= low) & (abs(values[i]) < high)
    eights = near.view(np.uint64)
    listed, places = 0, np.empty(eights.size, np.int32)
    for eight in range(eights.size):
        places[listed] = eight
        listed += int(eights[eight] != 0)
    for eight in places[:listed]:
        for i in range(8 * eight, min(8 * eight + 8, values.size)):
            inside[held] = abs(values[i])
            held += int(near[i])
    return int(above), held


@njit(cache=True, nogil=True, error_model="numpy")
def consensus(deltas: Any, thresholds: Any, weights: Any, shares: Any, weighted: bool, draw: Any, merged: Any) -> None:
    """Trim, elect, agree for each entry; see `algebra.agreeing_mean`.

    Args:
        deltas: float32 (models, entries); thresholds, weights, shares: as many float32, in tuples, whose length is
            known when the loop is compiled.
        merged: float32 (entries,), written.
    """
    for i in range(merged.size):
        votes = ZERO
        for m in range(len(weights)):
            votes += _vote(deltas[m, i], thresholds[m], weights[m], weighted)
        sign = ONE if votes > ZERO else -ONE if votes < ZERO else draw
        total, over = ZERO, ZERO
        for m in range(len(weights)):
            agreeing = _vote(deltas[m, i], thresholds[m], weights[m], weighted) * sign
            total += agreeing * (ONE if weighted else weights[m]) if agreeing > ZERO else ZERO
            over += shares[m] if agreeing > ZERO else ZERO
        merged[i] = total * sign / (over if over != ZERO else ONE)


@njit(cache=True, nogil=True, error_model="numpy")
def consensus_of_many(
    deltas: Any, thresholds: Any, weights: Any, shares: Any, weighted: bool, draw: Any, merged: Any
) -> None:
    """The same for more models than the compiler unrolls, which come in arrays: models outside and entries inside, so
    that the inner loops are vectors."""
    signs, over = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, merged.size, CHUNK):
        into = merged[start : start + CHUNK]
        signs[:], over[:], into[:] = ZERO, ZERO, ZERO
        for m in range(len(weights)):
            own, threshold, weight = deltas[m, start : start + CHUNK], thresholds[m], weights[m]
            for i in range(into.size):
                signs[i] += _vote(own[i], threshold, weight, weighted)
        for i in range(into.size):
            signs[i] = ONE if signs[i] > ZERO else -ONE if signs[i] < ZERO else draw
        for m in range(len(weights)):
            own, threshold, weight, share = deltas[m, start : start + CHUNK], thresholds[m], weights[m], shares[m]
            after = ONE if weighted else weight
            for i in range(into.size):
                agreeing = _vote(own[i], threshold, weight, weighted) * signs[i]
                into[i] += agreeing * after if agreeing > ZERO else ZERO
                over[i] += share if agreeing > ZERO else ZERO
        for i in range(into.size):
            into[i] = into[i] * signs[i] / (over[i] if over[i] != ZERO else ONE)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _vote(entry: Any, threshold: Any, weight: Any, weighted: bool) -> Any:
    """What a model says of an entry: nothing below its threshold."""
    return ((weight if weighted else ONE) * entry) if abs(entry) >= threshold else ZERO
