from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from tasks.drift.estimate import estimated_score


def calibrated(rows: int, seed: int, a: float = 5, b: float = 2) -> tuple[list[float], list[float]]:
    chance = np.random.default_rng(seed)
    confidence = chance.beta(a, b, rows)
    return confidence.tolist(), (chance.random(rows) < confidence**2).astype(
        float
    ).tolist()  # overconfident: P(right) = c^2


def test_the_estimate_is_the_mean_of_scikit_learns_isotonic_fit() -> None:
    confidences, outcomes = calibrated(400, 0)
    asked, _ = calibrated(200, 1, a=2)
    fit = IsotonicRegression(out_of_bounds="clip").fit(confidences, outcomes)
    found = estimated_score(confidences, outcomes, asked, seed=0, draws=5)
    assert found is not None
    assert found.score == pytest.approx(fit.predict(asked).mean())


def test_the_interval_holds_the_true_score_of_a_window_with_lower_confidence_almost_always() -> None:
    held = []
    for seed in range(40):
        confidences, outcomes = calibrated(500, seed)
        asked, truth = calibrated(300, 1000 + seed, a=3)
        found = estimated_score(confidences, outcomes, asked, seed=seed, draws=100)
        assert found is not None
        held.append(found.low <= np.mean(np.square(asked)) <= found.high)
        assert abs(found.score - np.mean(truth)) < 0.12
    assert np.mean(held) >= 0.85


def test_what_is_unknown_or_no_number_is_left_out_and_too_little_gives_nothing() -> None:
    confidences, outcomes = calibrated(120, 3)
    spoiled = estimated_score(
        [*confidences, None, float("nan")], [*outcomes, 1.0, 0.0], [*confidences, float("inf")], seed=0
    )
    assert spoiled == estimated_score(confidences, outcomes, confidences, seed=0)
    assert estimated_score(confidences, [None] * 120, confidences, seed=0) is None
    assert estimated_score(confidences, outcomes, [None] * 80, seed=0) is None
