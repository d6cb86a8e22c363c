"""The algebra is what a loop over entries computes, in every dialect, and what PEFT and the paper's code compute."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import peft.utils.merge_utils
import pytest
import torch

from tasks.merging.algebra import disjoint_merge, drawn, drop, kept_entries, magnitude_of_rank, trim
from tasks.merging.catalogue import RULES

DIALECTS = {name: row.dialect for name, row in RULES.items() if "over" in row.dialect}
VOTES, DIVISORS, DRAWS = ("weighted", "equal"), ("weights", "count"), (0.0, 1.0, -1.0)


def deltas_of(seed: int, models: int = 3, shape: tuple[int, ...] = (7, 5), levels: int | None = None) -> torch.Tensor:
    """Random (models, ...); with `levels`, few distinct values, so that ties and exact draws occur."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(-levels, levels + 1, (models, *shape), generator=generator) / 2
    return torch.randn((models, *shape), generator=generator)


def by_loop(deltas: np.ndarray, weights: list[float], counts: int, vote: str, divisor: str, draw: float) -> np.ndarray:
    """TIES, one entry after the other, in Python floats."""
    models, flat = len(deltas), deltas.reshape(len(deltas), -1).astype(float)
    kept = np.zeros_like(flat)
    for m in range(models):
        order = sorted((abs(value) for value in flat[m]), reverse=True)
        for i, value in enumerate(flat[m]):
            if counts and abs(value) >= order[counts - 1]:
                kept[m, i] = value
    merged = np.zeros(flat.shape[1])
    for i in range(flat.shape[1]):
        votes = [kept[m, i] * (weights[m] if vote == "weighted" else 1) for m in range(models)]
        sign = math.copysign(1, sum(votes)) if sum(votes) else draw
        agreeing = [m for m in range(models) if votes[m] * sign > 0]
        if agreeing:
            over = len(agreeing) if divisor == "count" else sum(abs(weights[m]) for m in agreeing)
            merged[i] = sum(weights[m] * kept[m, i] for m in agreeing) / over if over else 0
    return merged.reshape(deltas.shape[1:])


def ours(deltas: torch.Tensor, weights: list[float], counts: int, **dialect: Any) -> torch.Tensor:
    thresholds = [magnitude_of_rank(model.abs().reshape(-1).numpy().copy(), counts) for model in deltas]
    return disjoint_merge(trim(deltas, thresholds), weights, **dialect)


@pytest.mark.parametrize(("vote", "divisor", "draw"), itertools.product(VOTES, DIVISORS, DRAWS))
@pytest.mark.parametrize("levels", [None, 2])
def test_the_merge_is_what_a_loop_over_entries_computes(
    vote: str, divisor: str, draw: float, levels: int | None
) -> None:
    for seed, weights in enumerate([[1.0, 1.0, 1.0], [1.0, 0.5, 0.25], [2.0, -1.0, 1.0]]):
        deltas = deltas_of(seed, levels=levels)
        for counts in (0, 1, 9, 35):
            merged = ours(deltas, weights, counts, vote=vote, divisor=divisor, draw=draw)
            expected = by_loop(deltas.numpy(), weights, counts, vote, divisor, draw)
            np.testing.assert_allclose(merged.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.5, 0.25], [3.0, 1.0, 1.0]])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.99])
def test_the_peft_dialect_is_bit_for_bit_peft(weights: list[float], density: float) -> None:
    dialect = DIALECTS["ties_peft"]
    deltas = deltas_of(3, shape=(64, 33))
    theirs = peft.utils.merge_utils.ties(list(deltas), torch.tensor(weights), density)
    counts = kept_entries(64 * 33, density, kept=dialect["kept"])
    assert dialect["draw"] == "plus"
    mine = ours(deltas, weights, counts, vote=dialect["vote"], divisor=dialect["divisor"], draw=1.0)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("seed", range(5))
def test_the_paper_dialect_is_the_papers_selection_and_mean(seed: int) -> None:
    """Written after the published `ties_merging` code's steps, over one flat vector per model."""
    dialect, density = DIALECTS["ties_paper"], 0.3
    deltas = deltas_of(seed, shape=(60,), levels=3)
    position = 60 - int(60 * density)  # kthvalue counts from the smallest
    smallest = deltas.abs().kthvalue(position, dim=1, keepdim=True).values
    kept = deltas * (deltas.abs() >= smallest)
    sign = kept.sum(0).sign()
    majority = sign.sum().sign()
    sign[sign == 0] = majority
    chosen = kept * torch.where(sign > 0, kept > 0, kept < 0)
    theirs = chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)
    counts = kept_entries(60, density, kept=dialect["kept"])
    mine = ours(deltas, [1.0] * 3, counts, vote=dialect["vote"], divisor=dialect["divisor"], draw=float(majority))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_all_dialects_agree_at_equal_weights_where_nothing_ties() -> None:
    deltas = deltas_of(4, shape=(20, 10))
    results = [
        ours(deltas, [1.0] * 3, 40, vote=row["vote"], divisor=row["divisor"], draw=0.0) for row in DIALECTS.values()
    ]
    assert all(torch.allclose(result, results[0], rtol=0, atol=1e-7) for result in results)


def test_a_trim_keeps_every_entry_at_the_threshold() -> None:
    delta = torch.tensor([1.0, -1.0, 1.0, 0.5])
    at_one, at_infinity, at_zero = trim([delta] * 3, [1.0, math.inf, 0.0])
    assert torch.equal(at_one, torch.tensor([1.0, -1.0, 1.0, 0.0]))
    assert torch.equal(at_infinity, torch.zeros(4))
    assert torch.equal(at_zero, delta)


@pytest.mark.parametrize("density", [0.2, 0.29, 0.5, 0.9, 1.0])
def test_a_trim_keeps_the_share_it_was_asked_for(density: float) -> None:
    for entries in (1, 4, 100, 1009):
        counts = {kept: kept_entries(entries, density, kept=kept) for kept in ("ceil", "floor", "floor_plus_one")}
        assert entries >= counts["ceil"] >= entries * density - 1e-6 > counts["ceil"] - 1
        assert counts["floor"] == int(entries * density)
        assert counts["floor_plus_one"] == min(entries, counts["floor"] + 1)


def test_selection_finds_what_sorting_finds() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    for place in (1, 2, 700, 5000):
        assert magnitude_of_rank(values.copy(), place) == np.sort(values)[-place]
    assert magnitude_of_rank(values.copy(), 0) == math.inf


def test_a_drop_keeps_the_density_and_the_mean() -> None:
    entries, density = 200_000, 0.3
    keep = drawn(7, 8, 0, entries, density)
    assert abs(keep.mean() - density) < 5 * math.sqrt(density * (1 - density) / entries)
    deltas = deltas_of(5, models=1, shape=(entries,)).abs()
    dropped = drop(deltas, torch.from_numpy(keep)[None], density)
    assert abs(float(dropped.mean() / deltas.mean()) - 1) < 0.02


def test_draws_depend_on_seed_and_stream_and_on_nothing_else() -> None:
    whole = drawn(1, 2, 0, 4096, 0.5)
    pieces = np.concatenate([drawn(1, 2, start, min(37, 4096 - start), 0.5) for start in range(0, 4096, 37)])
    assert (whole == pieces).all()
    for seed, stream in ((2, 2), (1, 3)):
        agreement = (whole == drawn(seed, stream, 0, 4096, 0.5)).mean()
        assert 0.45 < agreement < 0.55, "unrelated draws agree half of the time"
