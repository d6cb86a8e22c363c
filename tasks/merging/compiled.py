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

BITS, HALF, ODD, NAN = np.uint32(16), np.uint32(0x7FFF), np.uint32(1), np.uint16(0x7FC0)  # of bfloat16
NONE, ONCE, EIGHT, TOP_BYTE = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(56)
ONES = np.uint64(0x0101010101010101)  # a 1 in each of eight bytes; times it, their sum is in the top one
ZERO = np.float32(0)
ONE = np.float32(1)
UNROLLED = 8  # parents up to which the compiler unrolls a loop over them, and makes vectors of the one over entries
CHUNK = 512  # entries whose sums stay in a core's first-level cache


@njit(cache=True, nogil=True, error_model="numpy")
def band(values: Any, low: Any, high: Any, inside: Any, held: int) -> tuple[int, int]:
    """How many magnitudes reach `high`, and how many are held once those in [low, high), which are few, are put behind
    the first `held` of `inside`. A byte for each entry, 1 within and 2 above, then a list of those eights of bytes that
    hold a 1, then a look at these: nothing that a processor would have to guess.

    Args:
        values, inside: float32 (entries,).
    """
    state, whole = np.empty(values.size, np.uint8), values.size - values.size % 8
    for i in range(values.size):
        state[i] = np.uint8(abs(values[i]) >= low) + np.uint8(abs(values[i]) >= high)
    eights = state[:whole].view(np.uint64)
    above, listed, places = NONE, NONE, np.empty(eights.size, np.uint32)
    for place in range(np.uint64(eights.size)):  # unsigned, or each index is asked whether it counts from the end
        above += (((eights[place] >> ONCE) & ONES) * ONES) >> TOP_BYTE
        places[listed] = place
        listed += np.uint64((eights[place] & ONES) != NONE)
    last = np.uint64(held)
    for eight in places[:listed]:
        for i in range(EIGHT * eight, EIGHT * eight + EIGHT):
            inside[last] = abs(values[i])
            last += np.uint64(state[i] == 1)
    for i in range(whole, values.size):
        inside[last] = abs(values[i])
        last += np.uint64(state[i] == 1)
        above += np.uint64(state[i] == 2)
    return int(above), int(last)


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


@njit(cache=True, nogil=True, error_model="numpy")
def rounded_sum(weights: Any, change: Any, scale: Any, merged: Any) -> None:
    """W + scale dW, product and sum rounded to float32, then to the nearest bfloat16, the even one of two as near.

    Args:
        weights, merged: bfloat16 (entries,) as the uint16 of their bits; merged is written.
        change: float32 (entries,); scale: float32.
    """
    for i in range(merged.size):
        weight = np.uint32(np.uint32(weights[i]) << BITS).view(np.float32)
        total = np.float32(weight + scale * change[i])
        bits = total.view(np.uint32)
        to_even = np.uint32(np.uint32(bits >> BITS) & ODD)
        merged[i] = np.uint16(np.uint32(bits + np.uint32(HALF + to_even)) >> BITS) if total == total else NAN


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _vote(entry: Any, threshold: Any, weight: Any, weighted: bool) -> Any:
    """What a model says of an entry: nothing below its threshold."""
    return ((weight if weighted else ONE) * entry) if abs(entry) >= threshold else ZERO
