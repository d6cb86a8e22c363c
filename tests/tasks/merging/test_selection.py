"""A threshold found in a bracket is the one a sort finds, and the compiled loop gives the bits of the plain one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tasks.merging import kernels, selection
from tasks.merging.algebra import disjoint_merge, trim
from tasks.merging.selection import kth_magnitude
from tasks.merging.stack import Held
from tasks.merging.vectors import BLOCK_ENTRIES, EVERY, row_blocks

SHAPE = (1024, 768)
KINDS = {
    "normal": lambda draw: draw.standard_normal(SHAPE),
    "rows of all sizes": lambda draw: draw.standard_normal(SHAPE) * np.exp(8 * draw.standard_normal((SHAPE[0], 1))),
    "few values": lambda draw: draw.integers(-3, 4, SHAPE),
    "zero but for one row": lambda draw: np.arange(SHAPE[0])[:, None].__eq__(17) * draw.standard_normal(SHAPE),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [1, 2, 400, 157_286, 786_000, SHAPE[0] * SHAPE[1]])
def test_the_selected_magnitude_is_the_sorted_one(kind: str, kept: int) -> None:
    matrix = np.asarray(KINDS[kind](np.random.default_rng(1)), np.float32)
    held = torch.from_numpy(matrix)
    found = kth_magnitude(Held(held).rows(""), SHAPE, list(row_blocks(*SHAPE)), kept)
    assert found == float(np.sort(np.abs(matrix).ravel())[-kept])


def test_a_usual_change_is_read_once_and_a_sample_before() -> None:
    draw = np.random.default_rng(2)
    held = torch.from_numpy(draw.standard_normal((SHAPE[0], 4)).astype(np.float32)) @ torch.randn(4, SHAPE[1])
    read: list[int] = []

    def rows(block: slice, out: torch.Tensor | None = None, columns: slice = EVERY) -> torch.Tensor:
        found = held[block, columns]
        read.append(found.numel())
        return found if out is None else out.copy_(found)

    kth_magnitude(rows, SHAPE, list(row_blocks(*SHAPE)), SHAPE[0] * SHAPE[1] // 5)
    assert SHAPE[0] * SHAPE[1] < sum(read) < 1.07 * SHAPE[0] * SHAPE[1]
    assert max(read) <= BLOCK_ENTRIES


@pytest.mark.parametrize("seed", [1, 5, 6])
def test_columns_of_all_sizes_do_not_make_the_bracket_miss(seed: int) -> None:
    """A low rank gives whole columns their size, so entries that are read at the same columns say little."""
    draw = np.random.default_rng(seed)
    rows, columns, rank = 2048, 5632, 2
    B, A = draw.standard_normal((rows, rank)), draw.standard_normal((rank, columns))
    held = torch.from_numpy((B @ A).astype(np.float32))
    found = selection._within_bracket(
        Held(held).rows(""), (rows, columns), list(row_blocks(rows, columns)), rows * columns // 5
    )
    place = rows * columns - rows * columns // 5
    assert found == float(np.partition(np.abs(held.numpy()).ravel(), place)[place])


def test_nothing_kept_is_an_infinite_threshold() -> None:
    assert kth_magnitude(Held(torch.zeros(4, 4)).rows(""), (4, 4), [slice(0, 4)], 0) == math.inf


@pytest.mark.parametrize(
    ("vote", "divisor", "draw"),
    itertools.product(("weighted", "equal"), ("weights", "count", "signed_weights"), (0.0, 1.0, -1.0)),
)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.3, 2.7), (1.0, -0.5, 0.1), (0.3, 1.0, -0.2) * 3])
def test_the_compiled_loop_gives_the_bits_of_the_plain_one(
    vote: str, divisor: str, draw: float, weights: tuple[float, ...]
) -> None:
    if kernels.compiled() is None:
        pytest.skip("Numba is not installed; the plain form runs")
    generator = torch.Generator().manual_seed(3)
    shape = (len(weights), 20, 31)
    exact = torch.randint(-3, 4, shape, generator=generator) / 2  # votes that cancel
    for deltas in (torch.randn(shape, generator=generator), exact):
        for threshold in (0.0, 0.5, 1.2, math.inf):
            thresholds = [threshold, threshold / 2, threshold] * (len(weights) // 3)
            asked = {"vote": vote, "divisor": divisor, "draw": draw}
            plain = disjoint_merge(trim(deltas, thresholds), weights, **asked)  # type: ignore[arg-type]
            fast = kernels.trimmed_consensus(thresholds, weights, **asked)(deltas)  # type: ignore[arg-type]
            assert torch.equal(fast.view(torch.int32), plain.view(torch.int32))


@pytest.mark.parametrize("scale", [1.0, 0.7, -1e30])
def test_the_compiled_sum_is_rounded_to_bfloat16_as_torch_rounds_it(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.compiled() is None:
        pytest.skip("Numba is not installed; the plain form runs")
    draw = np.random.default_rng(7)
    anything = torch.from_numpy(draw.integers(0, 1 << 32, (50, 41), np.uint32).view(np.float32))  # NaN, tiny, infinite
    halfway = torch.arange(50 * 41).reshape(50, 41) * 2.0**-9  # beside 1: every second lies between two bfloat16
    weights = (anything.bfloat16(), torch.ones(50, 41, dtype=torch.bfloat16))
    for change, base in itertools.product((anything.flip(0), halfway), weights):
        fast = kernels.rounded_sum(base, change, scale, torch.bfloat16)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "compiled", lambda: None)
            plain = kernels.rounded_sum(base, change, scale, torch.bfloat16)
        assert torch.equal(fast.isnan(), plain.isnan())
        assert torch.equal(fast.view(torch.int16)[~fast.isnan()], plain.view(torch.int16)[~plain.isnan()])
        exact = (base.double() + (change.double() * scale).float().double()).float().bfloat16()
        assert torch.equal(fast.nan_to_num(), exact.nan_to_num())


@pytest.mark.parametrize("entries", [1, 7, 8, 1000, 65_536])
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.6), (0.0, math.inf), (2.0, 2.0), (-1.0, 0.1)])
def test_what_lies_in_a_band_is_counted_and_held_in_order(
    entries: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(entries).standard_normal(entries).astype(np.float32)
    sizes = [abs(float(value)) for value in values]
    within = [size for size in sizes if np.float32(low) <= size < np.float32(high)]
    for plain in (False, True):
        inside = np.full(entries + 3, -1, np.float32)
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(kernels, "compiled", lambda: None)
            above, held = kernels.band(values, np.float32(low), np.float32(high), inside, 2)
        assert above == sum(size >= np.float32(high) for size in sizes)
        assert (held, inside[2:held].tolist()) == (2 + len(within), within)
        assert inside[:2].tolist() == [-1, -1]
