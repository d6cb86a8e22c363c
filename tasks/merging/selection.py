"""The k-th largest magnitude of a change that is never in memory as a whole.

A sample of the entries gives a bracket that holds the wanted magnitude all but surely; one pass over the row blocks
counts what lies above it and keeps the few per cent that lie inside, and a selection among those is exact. A bracket
that missed is noticed by its count, and the search starts again with all entries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tasks.merging.algebra import magnitude_of_rank
from tasks.merging.kernels import band

if TYPE_CHECKING:
    from tasks.merging.vectors import Reader

SAMPLE = 1 << 18  # entries at most that the bracket is read from
SAMPLED_SHARE = 1 / 16
AT_ONCE = 1 << 18  # entries up to which one selection among all is quicker
WALK = 7919
ERRORS = 5  # standard errors of a share in the sample that the bracket reaches to either side


def kth_magnitude(read: Reader, shape: tuple[int, int], blocks: list[slice], kept: int) -> float:
    """The `kept`-th largest |entry| of a matrix whose row blocks `read` computes, one at a time; infinite for kept = 0.

    Raises nothing: a small module is read at once.
    """
    import torch

    entries = shape[0] * shape[1]
    if kept == 0:
        return math.inf
    if entries >= AT_ONCE:
        found = _within_bracket(read, shape, blocks, kept)
        if found is not None:
            return found
    whole = torch.empty(shape)
    for block in blocks:
        read(block, whole[block])
    return magnitude_of_rank(whole.abs_().numpy().reshape(-1), kept)


def sampled(read: Reader, shape: tuple[int, int]) -> np.ndarray:
    """Magnitudes of one entry in `step`, float32. Every row and every column gives its share: a low rank gives whole
    rows and columns their size, so entries that are read in few of them say little."""
    step = max(shape[0] * shape[1] // SAMPLE, int(1 / SAMPLED_SHARE)) | 1  # odd, so that no power of 2 lines up with it
    parts = (
        read(slice(place, None, step), columns=slice(WALK * place % step, None, step))
        for place in range(min(step, shape[0]))
    )
    return np.concatenate([part.abs().numpy().reshape(-1) for part in parts])


def _within_bracket(read: Reader, shape: tuple[int, int], blocks: list[slice], kept: int) -> float | None:
    import torch

    entries, sample = shape[0] * shape[1], sampled(read, shape)
    share, reach = kept / entries, math.ceil(ERRORS * math.sqrt(sample.size) / 2)
    middle = sample.size - int(share * sample.size)
    ends = (max(0, middle - reach), min(sample.size - 1, middle + reach))
    sample.partition(ends[1])  # one place at a time: for several NumPy leaves its vector code
    sample[: ends[1]].partition(min(ends[0], ends[1] - 1))
    low = sample[ends[0]] if ends[0] > 0 else np.float32(0)
    high = sample[ends[1]] if ends[1] < sample.size - 1 else np.float32(np.inf)
    above, held, room = 0, 0, 3 * reach * entries // sample.size
    rows = torch.empty(max(block.stop - block.start for block in blocks), shape[1])
    inside = np.empty(room + rows.numel(), np.float32)
    for block in blocks:
        found = read(block, rows[: block.stop - block.start])
        over, held = band(found.numpy().reshape(-1), low, high, inside, held)
        above += over
        if held > room:
            return None
    return magnitude_of_rank(inside[:held], kept - above) if above < kept <= above + held else None
