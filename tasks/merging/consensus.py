"""Rules that work entry by entry, one row block at a time: TIES, magnitude pruning, Breadcrumbs, DARE, DELLA.

Each is a function from a stack to the rows of its merged change, computed when a row block is asked for: only a block
per parent is in memory, recomputed from the factors. A trim passes over each module twice, once for the threshold and
once to merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.merging.algebra import (
    Divisor,
    Draw,
    Kept,
    Over,
    Vote,
    disjoint_merge,
    drawn,
    drop,
    elect,
    keep_chances,
    kept_entries,
    trim,
    weighted_sum,
)
from tasks.merging.kernels import trimmed_consensus
from tasks.merging.stack import Stack

if TYPE_CHECKING:
    from torch import Tensor


Rows = Callable[[slice], "Tensor"]


@dataclass(frozen=True)
class Ask:
    """What a rule is asked for beside the stack. `thresholds` and `majority` are set when a rule trims the whole
    model."""

    density: float = 1.0
    seed: int = 0
    thresholds: tuple[float, ...] | None = None
    majority: float = 0.0


def ties(stack: Stack, ask: Ask, *, kept: Kept, over: Over, vote: Vote, divisor: Divisor, draw: Draw) -> Rows:
    """Trim, elect, agree (Yadav et al. 2023, arXiv:2306.01708)."""
    if over == "model":
        assert ask.thresholds is not None
        thresholds = [ask.thresholds[member] for member in stack.members]
    else:
        thresholds = stack.thresholds(ask.density, kept)
    winner, read = 1.0 if draw == "plus" else ask.majority if draw == "majority" else 0.0, stack.rows()
    merge = trimmed_consensus(thresholds, stack.weights, vote=vote, divisor=divisor, draw=winner)
    return lambda block: merge(read(block))


def magnitude_prune(stack: Stack, ask: Ask, *, kept: Kept) -> Rows:
    """The weighted sum of what a trim keeps."""
    thresholds, read = stack.thresholds(ask.density, kept), stack.rows()
    return lambda block: weighted_sum(trim(read(block), thresholds), stack.weights)


def breadcrumbs(stack: Stack, ask: Ask, *, kept: Kept, outliers: float) -> Rows:
    """The weighted sum of the entries below the largest and above the smallest (Davari and Belilovsky 2023,
    arXiv:2312.06795): a share `outliers` of the largest is left out, as far as the density leaves room for it."""
    entries = stack.shape[0] * stack.shape[1]
    count = kept_entries(entries, ask.density, kept=kept)
    left_out = min(int(outliers * entries), entries - count)
    low, high, read = stack.magnitudes_of_rank(left_out + count), stack.magnitudes_of_rank(left_out), stack.rows()

    def rows(block: slice) -> Tensor:
        deltas = read(block)
        bands = [most - top for most, top in zip(trim(deltas, low), trim(deltas, high), strict=True)]
        return weighted_sum(bands, stack.weights)

    return rows


def dare(stack: Stack, ask: Ask) -> Rows:
    """The weighted sum of randomly dropped and rescaled changes (Yu et al. 2023, arXiv:2311.03099)."""
    read = stack.rows()
    return lambda block: weighted_sum(_dropped(stack, ask, block, read(block)), stack.weights)


def dare_ties(stack: Stack, ask: Ask, *, vote: Vote, divisor: Divisor, draw: Draw) -> Rows:
    """DARE's drop in place of the trim, then elect and agree."""
    winner, read = 1.0 if draw == "plus" else 0.0, stack.rows()
    return lambda block: disjoint_merge(
        _dropped(stack, ask, block, read(block)), stack.weights, vote=vote, divisor=divisor, draw=winner
    )


def della(stack: Stack, ask: Ask, *, spread: float, vote: Vote, divisor: Divisor, draw: Draw) -> Rows:
    """DELLA (Deep et al. 2024, arXiv:2406.11617): DARE's drop with a chance that follows each entry's rank in its row,
    then elect and agree. Kept entries are divided by their own chance, so that the mean stays."""
    winner, read = 1.0 if draw == "plus" else 0.0, stack.rows()

    def rows(block: slice) -> Tensor:
        deltas = read(block)
        dropped = _dropped(stack, ask, block, deltas, [keep_chances(delta, ask.density, spread) for delta in deltas])
        return disjoint_merge(dropped, stack.weights, vote=vote, divisor=divisor, draw=winner)

    return rows


def whole(stack: Stack, ask: Ask, *, rule: Callable[[Stack, Ask], Rows]) -> Tensor:
    """All row blocks of a module, (out, in)."""
    import torch

    merged, rows = torch.empty(stack.shape), rule(stack, ask)
    for block in stack.blocks():
        merged[block] = rows(block)
    return merged


def whole_model(stacks: Iterable[Stack], parents: int, ask: Ask, *, kept: Kept, vote: Vote, draw: Draw) -> Ask:
    """`ask` with each parent's threshold over all modules together and, for that draw, the sign of the overall
    majority.

    The k-th largest magnitude is found exactly in two counting passes over the bits of the float32 numbers, whose
    order is that of the magnitudes: first the upper 16 bits, then the lower 15 among those that share the upper ones.
    Nothing is kept but the counts.
    """
    stacks = list(stacks)
    entries = sum(stack.shape[0] * stack.shape[1] for stack in stacks)
    wanted = kept_entries(entries, ask.density, kept=kept)
    upper = _counts(stacks, parents, lambda _, bits: bits >> 15, 1 << 16)
    places = [_place_from_the_top(upper[parent], wanted) for parent in range(parents)]
    lower = _counts(stacks, parents, lambda parent, bits: bits[bits >> 15 == places[parent][0]] & 0x7FFF, 1 << 15)
    thresholds = []
    for parent, (high, left) in enumerate(places):
        low = _place_from_the_top(lower[parent], left)[0]
        bits = np.array([(high << 15) | low], np.int32) if high >= 0 else np.zeros(1, np.int32)
        thresholds.append(float(bits.view(np.float32)[0]) if wanted else float("inf"))
    found = Ask(ask.density, ask.seed, tuple(thresholds))
    return found if draw != "majority" else Ask(ask.density, ask.seed, found.thresholds, _majority(stacks, found, vote))


def _counts(
    stacks: Iterable[Stack], parents: int, digits: Callable[[int, np.ndarray], np.ndarray], size: int
) -> np.ndarray:
    counts = np.zeros((parents, size), np.int64)
    for stack in stacks:
        rows = stack.rows()
        for block in stack.blocks():
            for member, delta in zip(stack.members, rows(block), strict=True):
                bits = delta.abs().numpy().reshape(-1).view(np.int32)
                counts[member] += np.bincount(digits(member, bits), minlength=size)
    return counts


def _place_from_the_top(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin of the `wanted`-th largest, and how many of that bin are wanted; (-1, 0) if there are fewer."""
    above = np.cumsum(counts[::-1])
    if wanted == 0 or above[-1] < wanted:
        return -1, 0
    step = int(np.searchsorted(above, wanted))
    return counts.size - 1 - step, wanted - int(above[step] - counts[counts.size - 1 - step])


def _majority(stacks: Iterable[Stack], ask: Ask, vote: Vote) -> float:
    assert ask.thresholds is not None
    surplus = 0.0
    for stack in stacks:
        rows, thresholds = stack.rows(), [ask.thresholds[member] for member in stack.members]
        for block in stack.blocks():
            surplus += float(elect(trim(rows(block), thresholds), stack.weights, vote=vote).sum().double())
    return float(np.sign(surplus))


def _dropped(
    stack: Stack, ask: Ask, block: slice, deltas: Iterable[Tensor], chances: Sequence[Tensor | float] | None = None
) -> list[Tensor]:
    import torch

    columns = stack.shape[1]
    start, entries = block.start * columns, (block.stop - block.start) * columns
    found = []
    for delta, stream, chance in zip(deltas, stack.streams, chances or [ask.density] * len(stack.streams), strict=True):
        by_entry = chance if isinstance(chance, float) else chance.numpy().reshape(-1)
        keep = torch.from_numpy(drawn(ask.seed, stream, start, entries, by_entry)).reshape(delta.shape)
        found.append(drop(delta, keep, chance))
    return found
