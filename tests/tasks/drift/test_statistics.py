from __future__ import annotations

import doctest
import importlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp

from tasks.drift.statistics import (
    STATISTICS,
    chi_square,
    decile_counts,
    holm,
    kolmogorov_smirnov,
    pooled_cells,
    population_stability,
    score_fall,
    wilson,
)

COUNTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=9).filter(
    lambda cells: sum(a for a, _ in cells) > 0 and sum(b for _, b in cells) > 0
)
MODULES = (
    "estimate",
    "faults",
    "observed",
    "paired",
    "permutation",
    "report",
    "statistics",
    "terms",
    "traffic",
    "verdict",
)


@pytest.mark.parametrize("module", MODULES)
def test_every_example_in_a_docstring_holds(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"tasks.drift.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_ks_is_the_largest_gap_between_two_step_functions() -> None:
    chance = np.random.default_rng(5)
    for _ in range(20):
        a, b = chance.integers(0, 12, 40), chance.integers(2, 15, 31)
        gaps = [abs(np.mean(a <= x) - np.mean(b <= x)) for x in range(16)]
        found = kolmogorov_smirnov(a, b)
        assert found.value == pytest.approx(max(gaps))
        assert found.p == pytest.approx(ks_2samp(a, b, method="exact").pvalue, abs=0.08)


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_psi_is_the_symmetric_relative_entropy_of_the_smoothed_mixes(cells: list[tuple[int, int]]) -> None:
    before, after = [a + 0.5 for a, _ in cells], [b + 0.5 for _, b in cells]
    expected = 0.0
    for a, b in zip(before, after, strict=True):
        p, q = a / sum(before), b / sum(after)
        expected += (q - p) * np.log(q / p)
    found = population_stability([a for a, _ in cells], [b for _, b in cells])
    assert found.value == pytest.approx(expected)
    assert 0 <= found.p <= 1


def test_quiet_psi_is_rarely_significant() -> None:
    chance = np.random.default_rng(2)
    p_values = [
        population_stability(chance.multinomial(1000, [0.2] * 5), chance.multinomial(300, [0.2] * 5)).p
        for _ in range(1000)
    ]
    assert 0.03 < np.mean(np.array(p_values) <= 0.05) < 0.07


def test_quiet_psi_between_the_reference_s_own_deciles_errs_to_the_safe_side() -> None:
    """The edges are the sample's, so its own counts hardly vary; skewed numbers, as entropies are."""
    chance = np.random.default_rng(4)
    p_values = [
        population_stability(*decile_counts(chance.gamma(0.3, 1, 150), chance.gamma(0.3, 1, 60))).p for _ in range(2000)
    ]
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.06


def test_deciles_hold_every_number_of_both_sides() -> None:
    chance = np.random.default_rng(3)
    reference, window = chance.normal(size=211), chance.normal(1, 2, size=77)
    before, after = decile_counts(reference, window)
    assert (before.sum(), after.sum()) == (211, 77)
    assert before.max() - before.min() <= 1


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_pooling_keeps_the_rows_and_leaves_no_rare_cell(cells: list[tuple[int, int]]) -> None:
    before, after = np.array(cells).T
    pooled = np.stack(pooled_cells(before, after))
    assert pooled.sum(1).tolist() == [before.sum(), after.sum()]
    if pooled.shape[1] > 1:
        expected = np.outer(pooled.sum(1), pooled.sum(0)) / pooled.sum()
        assert expected.min() >= 5 - 1e-9


def test_chi_square_without_rare_cells_is_scipys() -> None:
    before, after = [120, 80, 100], [40, 70, 35]
    found = chi_square(before, after)
    witness = chi2_contingency([before, after], correction=False)
    assert found.p == pytest.approx(witness.pvalue)


def test_the_effect_of_chi_square_is_about_zero_when_nothing_moved_and_about_the_moved_share_when_it_did() -> None:
    chance = np.random.default_rng(0)
    mix = np.full(20, 1 / 20)
    moved = mix.copy()
    moved[:2] += 0.15
    moved[10:] -= 0.03
    quiet = [chi_square(chance.multinomial(2000, mix), chance.multinomial(300, mix)).value for _ in range(200)]
    loud = [chi_square(chance.multinomial(2000, mix), chance.multinomial(300, moved)).value for _ in range(200)]
    assert abs(np.mean(quiet)) < 0.01
    assert 0.2 < np.mean(loud) < 0.3


def test_wilsons_bounds_solve_the_score_equation() -> None:
    for mean, rows in ((0.9, 100), (0.5, 31), (0.02, 400)):
        for bound in wilson(mean, rows, 0.95):
            assert abs(mean - bound) == pytest.approx(1.6448536 * (bound * (1 - bound) / rows) ** 0.5, rel=1e-5)


def test_the_bounds_of_a_fall_are_newcombes_printed_ones() -> None:
    """Newcombe 1998, table II, method 10, 95 % two-sided."""
    for (a, n), (b, m), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ):
        fall = score_fall([1.0] * a + [0.0] * (n - a), [1.0] * b + [0.0] * (m - b), confidence=0.975)
        assert (fall.low, fall.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_p_value_of_a_fall_of_right_and_wrong_outcomes_is_fishers() -> None:
    for a, n, b, m in ((90, 100, 70, 100), (50, 60, 55, 60), (30, 30, 30, 30)):
        fall = score_fall([1.0] * a + [0.0] * (n - a), [1.0] * b + [0.0] * (m - b))
        assert fall.p == pytest.approx(fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue)


def test_the_lower_bound_of_a_fall_is_exceeded_by_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    lows = [
        score_fall((chance.random(300) < 0.94).astype(float), (chance.random(200) < 0.8).astype(float)).low
        for _ in range(600)
    ]
    assert 0.93 < np.mean(np.array(lows) <= 0.14) < 0.97


def test_graded_outcomes_without_any_spread_give_no_nan() -> None:
    same = score_fall([0.5] * 30, [0.5] * 30)
    lower = score_fall([0.5] * 30, [0.25] * 30)
    assert (same.p, lower.p) == (1.0, 0.0)
    assert np.isfinite([*same, *lower]).all()


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6), st.sampled_from([0.01, 0.05, 0.1]))
@settings(max_examples=150, deadline=None)
def test_holm_rejects_what_the_closure_of_bonferroni_rejects(p_values: list[float], level: float) -> None:
    """A hypothesis falls exactly when every intersection that contains it falls (Marcus, Peritz & Gabriel 1976)."""
    everyone = range(len(p_values))
    subsets = [set(s) for size in range(1, len(p_values) + 1) for s in combinations(everyone, size)]
    falls = [min(p_values[i] for i in subset) <= level / len(subset) for subset in subsets]
    closed = tuple(all(fell for subset, fell in zip(subsets, falls, strict=True) if i in subset) for i in everyone)
    assert holm(p_values, level) == closed


def test_every_row_of_the_catalogue_names_its_source_and_what_it_takes() -> None:
    for name, row in STATISTICS.items():
        assert name == row.name
        assert any(letter.isdigit() for letter in row.paper)
        assert row.applies_to in {"numbers", "mixes", "outcomes", "rows"}
        assert row.measure.__doc__
        assert ">>>" in row.measure.__doc__
