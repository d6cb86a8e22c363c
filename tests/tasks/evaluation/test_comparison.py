"""Intervals and paired bounds, against scipy and against arithmetic."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from tasks.evaluation.comparison import gain, interval

pairs = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=120)


@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.5, 0.999))
def test_the_interval_of_a_share_is_wilsons(right: int, n: int, confidence: float) -> None:
    right = min(right, n)
    found = interval([1.0] * right + [0.0] * (n - right), confidence)
    witness = binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert (found.mean, found.n) == (right / n, n)
    assert (found.low, found.high) == pytest.approx((witness.low, witness.high), abs=1e-9)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw, covered = Random(0), 0
    for _ in range(2000):
        found = interval([float(draw.random() < 0.8) for _ in range(60)])
        covered += found.low <= 0.8 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_no_rows_say_nothing() -> None:
    assert (interval([]).low, interval([]).high) == (0.0, 1.0)
    assert (gain([], []).low, gain([], []).high) == (-1.0, 1.0)


def test_outcomes_between_nought_and_one_are_bootstrapped() -> None:
    draw = np.random.default_rng(3)
    values = draw.beta(2, 3, size=300)
    found = interval(values.tolist(), 0.9)
    witness = bootstrap((values,), np.mean, confidence_level=0.9, method="percentile", n_resamples=20_000, rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(witness.confidence_interval), abs=0.003)
    assert found.low < values.mean() < found.high


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(30, 10, 200), (5, 5, 60), (90, 0, 100), (1, 0, 50), (3, 200, 1000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_bounds_of_a_gain_are_scipys_paired_bootstrap(better: int, worse: int, n: int, confidence: float) -> None:
    new = [1.0] * better + [0.0] * worse + [1.0] * (n - better - worse)
    old = [0.0] * better + [1.0] * worse + [1.0] * (n - better - worse)
    found = gain(new, old, confidence)
    witness = bootstrap(
        (np.array(new), np.array(old)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=2 * confidence - 1,  # two-sided, so that each side has the one-sided confidence
        method="percentile",
        n_resamples=10_000,
        rng=0,
    )
    assert found.mean == pytest.approx((better - worse) / n)
    step = 1 / n  # means of resamples lie on a lattice of this width
    assert found.low == pytest.approx(witness.confidence_interval.low, abs=step + 0.003)
    assert found.high == pytest.approx(witness.confidence_interval.high, abs=step + 0.003)


@given(pairs)
def test_a_gain_one_way_is_a_loss_the_other_way(rows: list[tuple[float, float]]) -> None:
    new, old = [a for a, _ in rows], [b for _, b in rows]
    there, back = gain(new, old), gain(old, new)
    assert there.mean == pytest.approx(-back.mean)
    spread = max(there.high - there.low, back.high - back.low)
    assert there.low == pytest.approx(-back.high, abs=0.2 * spread + 1 / len(rows))
    assert there.high == pytest.approx(-back.low, abs=0.2 * spread + 1 / len(rows))


@given(pairs, st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[float, float]], draw: Random) -> None:
    shuffled = list(rows)
    draw.shuffle(shuffled)
    assert gain(*zip(*rows, strict=True)) == gain(*zip(*shuffled, strict=True))  # type: ignore[arg-type]


@given(st.integers(1, 500), st.sampled_from([0.0, 1.0]), st.floats(0.55, 0.99))
def test_rows_without_a_difference_leave_room_for_those_that_were_not_drawn(
    n: int, outcome: float, sure: float
) -> None:
    found = gain([outcome] * n, [outcome] * n, sure)
    witness = binomtest(0, n, alternative="less").proportion_ci(sure, method="exact").high
    assert found.mean == 0
    assert (found.low, found.high) == pytest.approx((-witness, witness))


@given(st.integers(1, 500))
def test_rows_that_all_changed_alike_leave_room_for_those_that_changed_the_other_way(n: int) -> None:
    found = gain([1.0] * n, [0.0] * n)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - 2 * binomtest(0, n, alternative="less").proportion_ci(0.95).high)


@given(pairs)
def test_the_mean_lies_between_its_bounds(rows: list[tuple[float, float]]) -> None:
    found = gain([a for a, _ in rows], [b for _, b in rows])
    assert found.low <= found.mean + 1e-12
    assert found.high >= found.mean - 1e-12


def test_pairing_sees_what_two_separate_intervals_cannot() -> None:
    draw = Random(5)
    hard = [draw.random() for _ in range(400)]
    old = [float(h > 0.5) for h in hard]
    new = [float(h > 0.46) for h in hard]  # right wherever the old one is, and a little beyond
    assert gain(new, old).low > 0
    assert interval(new).low < interval(old).high


def test_outcomes_of_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 and 2 rows"):
        gain([1.0, 0.0, 1.0], [1.0, 0.0])


def test_many_distinct_outcomes_and_few_give_the_same_bound() -> None:
    draw = np.random.default_rng(0)
    coarse = draw.choice(np.linspace(0, 1, 40), size=500)
    fine = coarse + draw.uniform(-1e-9, 1e-9, size=500)  # the same values, but now all distinct
    low, high = gain(coarse.tolist(), [0.5] * 500).low, gain(coarse.tolist(), [0.5] * 500).high
    found = gain(fine.tolist(), [0.5] * 500)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
