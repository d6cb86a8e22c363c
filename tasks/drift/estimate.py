"""The score of rows that nobody has graded, from the adapter's own confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.drift.paired import finite


class Estimate(NamedTuple):
    """A score with an interval; it holds as long as a confidence still means what it meant on the reference."""

    score: float
    low: float
    high: float


def estimated_score(
    confidences: Sequence[float | None],
    outcomes: Sequence[float | None],
    window: Sequence[float | None],
    *,
    foreign: np.ndarray | None = None,
    seed: int,
    least: int = 50,
    draws: int = 200,
    confidence: float = 0.95,
) -> Estimate | None:
    """Mean of the calibrated confidences of the window; None when there are fewer than `least` on either side.

    `foreign` is each window row's chance of being of a topic that the adapter never learned: it is taken to be answered
    wrong there, whatever its confidence, for a confidence means nothing outside of what it was calibrated on.

    The calibration is the increasing function of the confidence that fits the reference's outcomes best (isotonic
    regression; Zadrozny & Elkan 2002, KDD), as in confidence-based performance estimation (Garg et al. 2022,
    arXiv:2201.04234, compare such estimators). The interval is a bootstrap over the reference rows and the window rows.

    >>> sure, right = [0.1] * 60 + [0.9] * 60, [0.0] * 60 + [1.0] * 60
    >>> estimated_score(sure, right, [0.9] * 80 + [0.1] * 20, seed=0).score
    0.8
    """
    from scipy.optimize import isotonic_regression

    known = [(c, o) for c, o in zip(confidences, outcomes, strict=True) if c is not None and o is not None]
    pairs = np.array([pair for pair in known if np.isfinite(pair).all()], dtype=float).reshape(-1, 2)
    sound = np.array([value is not None and np.isfinite(value) for value in window], dtype=bool)
    asked = finite(window)
    known_topic = np.ones(len(asked)) if foreign is None else 1 - foreign[sound]
    if min(len(pairs), len(asked)) < least:
        return None

    def score(rows: np.ndarray, wanted: np.ndarray, weight_of: np.ndarray) -> float:
        levels, where, weight = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
        mean = np.bincount(where, weights=rows[:, 1]) / weight
        fitted = isotonic_regression(mean, weights=weight).x
        return float((weight_of * np.interp(wanted, levels, fitted)).mean())

    chance = np.random.default_rng([seed, 2])
    again = []
    for _ in range(draws):
        drawn = chance.integers(0, len(asked), len(asked))
        again.append(score(pairs[chance.integers(0, len(pairs), len(pairs))], asked[drawn], known_topic[drawn]))
    spread = (1 - confidence) / 2
    low, high = np.quantile(again, (spread, 1 - spread))
    best = score(pairs, asked, known_topic)
    return Estimate(best, float(min(low, best)), float(max(high, best)))
