"""Two models on the same rows: how sure one may be that one is better. NumPy and SciPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided interval, over n rows."""

    mean: float
    low: float
    high: float
    n: int


def interval(outcomes: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean outcome: Wilson's interval (1927) for 0/1 outcomes, a bootstrap percentile interval otherwise.

    >>> interval([1.0] * 9 + [0.0]).high < 1
    True
    """
    n = len(outcomes)
    if n == 0:
        return Interval(0.0, 0.0, 1.0, 0)
    values = np.asarray(outcomes, dtype=float)
    mean = float(values.mean())
    if not np.isin(values, (0.0, 1.0)).all():
        low, high = _bootstrap(values, (1 - confidence) / 2, (1 + confidence) / 2)
        return Interval(mean, low, high, n)
    z = _normal_quantile((1 + confidence) / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half), n)


def interval_over_runs(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean score of runs with several seeds, with Student's interval over them, within 0 to 1. Student 1908.

    >>> found = interval_over_runs([0.8, 0.9, 0.85])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.85, 0.726, 0.974)
    """
    from scipy.stats import t

    n = len(scores)
    mean, spread = float(np.mean(scores)), float(np.std(scores, ddof=1)) if n > 1 else math.inf
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * spread / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def gain(new: Sequence[float], old: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of (new - old) over the same rows, with one-sided bounds at the confidence, by paired bootstrap.

    Efron & Tibshirani 1993, chapter 13; rows are resampled, so the pairing keeps what both models find hard together.
    Where all differences are equal the bootstrap has no spread, but n rows of a kind do not prove that there is no
    other: the bounds then leave room for the largest share of rows at the far end, -1 or 1, of which n rows show none
    with the probability 1 - confidence (Clopper & Pearson 1934; for 95 % about 3 / n).

    Raises:
        ValueError: the two are not over the same rows.
    """
    if len(new) != len(old):
        raise ValueError(f"outcomes of {len(new)} and {len(old)} rows are not paired")
    n = len(new)
    if n == 0:
        return Interval(0.0, -1.0, 1.0, 0)
    differences = np.asarray(new, dtype=float) - np.asarray(old, dtype=float)
    if np.ptp(differences) == 0:
        every, unseen = float(differences[0]), 1 - (1 - confidence) ** (1 / n)
        return Interval(every, every - unseen * (every + 1), every + unseen * (1 - every), n)
    low, high = _bootstrap(differences, 1 - confidence, confidence)
    return Interval(float(differences.mean()), low, high, n)


def _bootstrap(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Percentiles of the mean over resamples; the draw is fixed, so the same outcomes give the same bound.

    Outcomes take few distinct values, so resampling counts per value is enough: one multinomial draw per resample.
    """
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) > 50:
        draws = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
        means = draws.mean(1)
    else:
        draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
        means = draws @ levels / len(values)
    return float(np.quantile(means, low)), float(np.quantile(means, high))


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
