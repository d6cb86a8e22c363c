"""How two samples are told apart, one table row per statistic: an effect in a unit that one can read, and a p-value.

Large samples make every difference significant and small ones make every difference large, so both are kept: an alarm
needs a p-value that survives the correction *and* an effect that matters. Permutation tests over whole rows, for which
tokens of one row may depend on one another, live in `permutation.py` and stand in the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tasks.drift.nearness import scope_of
from tasks.drift.permutation import bag_mmd, new_terms, pair_disagreement, term_divergence

SMALLEST_EXPECTED = 5.0


class Measured(NamedTuple):
    """`value` is the effect in the statistic's unit; `p` is None where the statistic has no null distribution."""

    value: float
    p: float | None


class Fall(NamedTuple):
    """How far a score fell from the reference to the window, with two one-sided bounds."""

    fall: float
    low: float
    high: float
    p: float


def kolmogorov_smirnov(reference: ArrayLike, window: ArrayLike) -> Measured:
    """Largest distance between the two distribution functions; on tied values the p-value errs to the safe side.

    >>> kolmogorov_smirnov(range(100), range(50, 150)).value
    0.5
    """
    from scipy.stats import ks_2samp

    answer = ks_2samp(np.asarray(reference, float), np.asarray(window, float), method="asymp")
    return Measured(float(answer.statistic), float(answer.pvalue))


def population_stability(reference: ArrayLike, window: ArrayLike, *, pseudo: float = 0.5) -> Measured:
    """PSI = sum (q - p) ln(q / p) over the cells of two count vectors.

    `pseudo` is added to every cell, so that an empty one does not make it infinite. Without a shift PSI is about
    (1/n + 1/m) times a chi-square of cells - 1 degrees of freedom, which gives the p-value.

    >>> round(population_stability([500, 500], [600, 400]).value, 3)
    0.04
    """
    from scipy.stats import chi2

    before, after = np.asarray(reference, float), np.asarray(window, float)
    p, q = (before + pseudo) / (before + pseudo).sum(), (after + pseudo) / (after + pseudo).sum()
    value = float(((q - p) * np.log(q / p)).sum())
    return Measured(value, float(chi2.sf(value / (1 / before.sum() + 1 / after.sum()), max(len(p) - 1, 1))))


def decile_counts(reference: ArrayLike, window: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as counts between the deciles of the reference (equal deciles merge): what PSI of a number is taken of.

    >>> before, after = decile_counts(range(100), range(90, 190))
    >>> before.tolist(), after.tolist()
    ([10, 10, 10, 10, 10, 10, 10, 10, 10, 10], [0, 0, 0, 0, 0, 0, 0, 0, 0, 100])
    """
    before, after = np.asarray(reference, float), np.asarray(window, float)
    edges = np.unique(np.quantile(before, np.arange(1, 10) / 10))
    cells = len(edges) + 1
    counts = [np.bincount(np.searchsorted(edges, numbers, side="left"), minlength=cells) for numbers in (before, after)]
    return counts[0], counts[1]


def pooled_cells(
    reference: ArrayLike, window: ArrayLike, *, least: float = SMALLEST_EXPECTED
) -> tuple[np.ndarray, np.ndarray]:
    """Rare cells joined, from the most frequent down, until each expects `least` counts in both rows.

    The pooling looks at the totals only, so that it does not bend the test; a remainder joins the last group.

    >>> before, after = pooled_cells([50, 2, 3, 3], [50, 4, 3, 2])
    >>> before.tolist(), after.tolist()
    ([50.0, 8.0], [50.0, 9.0])
    """
    before, after = np.asarray(reference, float), np.asarray(window, float)
    total = before + after
    share = min(before.sum(), after.sum()) / max(total.sum(), 1)
    groups: list[list[int]] = []
    open_group: list[int] = []
    for cell in np.argsort(-total, kind="stable"):
        open_group.append(int(cell))
        if total[open_group].sum() * share >= least:
            groups.append(open_group)
            open_group = []
    if open_group and groups:
        groups[-1] += open_group
    elif open_group:
        groups.append(open_group)
    return np.array([before[group].sum() for group in groups]), np.array([after[group].sum() for group in groups])


def chi_square(reference: ArrayLike, window: ArrayLike) -> Measured:
    """Pearson's test of two count vectors after pooling. The effect is the total variation distance of the two mixes
    (the share of rows that would have to change cell) less what chance alone gives on average in samples of this size.

    >>> found = chi_square([70, 30], [30, 70])
    >>> round(found.value, 3), found.p < 1e-7
    (0.344, True)
    """
    from scipy.stats import chi2

    before, after = np.asarray(reference, float), np.asarray(window, float)
    n, m = before.sum(), after.sum()
    middle = (before + after) / (n + m)
    by_chance = np.sqrt(2 / np.pi * middle * (1 - middle) * (1 / n + 1 / m)).sum() / 2  # mean of |normal|, cell by cell
    value = float(np.abs(before / n - after / m).sum() / 2 - by_chance)
    table = np.stack(pooled_cells(before, after))  # (2, cells)
    if table.shape[1] < 2:
        return Measured(value, 1.0)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return Measured(value, float(chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1)))


def wilson(mean: float, rows: int, confidence: float) -> tuple[float, float]:
    """Wilson's bounds of a mean of outcomes in [0, 1], each one-sided at `confidence`.

    Exact in form for right/wrong outcomes; for graded ones it is wide, as their variance is at most mean (1 - mean).

    >>> [round(bound, 3) for bound in wilson(0.9, 100, 0.95)]
    [0.84, 0.939]
    """
    from scipy.stats import norm

    z2 = float(norm.ppf(confidence)) ** 2
    middle = (mean + z2 / (2 * rows)) / (1 + z2 / rows)
    half = (z2 * (mean * (1 - mean) / rows + z2 / (4 * rows**2))) ** 0.5 / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def score_fall(reference: Sequence[float], window: Sequence[float], *, confidence: float = 0.95) -> Fall:
    """Fall of the mean outcome, Newcombe's hybrid score bounds, and the p-value of "it did not fall".

    The p-value is Fisher's (exact) for right/wrong outcomes and Welch's for graded ones.

    >>> fall = score_fall([1] * 188 + [0] * 12, [1] * 234 + [0] * 66)
    >>> [round(figure, 3) for figure in fall[:3]]
    [0.16, 0.11, 0.207]
    """
    from scipy.stats import hypergeom, ttest_ind

    before, after = np.asarray(reference, float), np.asarray(window, float)
    p, q = float(before.mean()), float(after.mean())
    (p_low, p_high), (q_low, q_high) = wilson(p, len(before), confidence), wilson(q, len(after), confidence)
    low = (p - q) - ((p - p_low) ** 2 + (q_high - q) ** 2) ** 0.5
    high = (p - q) + ((p_high - p) ** 2 + (q - q_low) ** 2) ** 0.5
    everything = np.concatenate([before, after])
    if np.isin(everything, (0.0, 1.0)).all():
        wrong = int((everything == 0).sum())
        chance = float(hypergeom.sf(int((after == 0).sum()) - 1, len(everything), wrong, len(after)))
    elif everything.std() == 0 or (before.std() == 0 and after.std() == 0):
        chance = float(p <= q)
    else:
        chance = float(ttest_ind(before, after, equal_var=False, alternative="greater").pvalue)
    return Fall(p - q, low, high, chance)


def classifier_auc(
    points: np.ndarray, in_window: np.ndarray, chance: np.random.Generator, *, folds: int = 2, ridge: float = 1.0
) -> Measured:
    """How well a linear classifier tells window from reference rows that it has not seen: AUC - 1/2 (Lopez-Paz & Oquab
    2017, arXiv:1610.06545).

    Ridge regression on `points` (rows, width), fitted on one half and asked about the other. Each half's AUC has the
    Mann-Whitney distribution when nothing moved; the smaller p-value counts twice (Bonferroni over the halves).

    >>> chance = np.random.default_rng(0)
    >>> rows = chance.standard_normal((300, 4)) + np.outer(np.arange(300) >= 150, [1, 0, 0, 0])
    >>> classifier_auc(rows, np.arange(300) >= 150, chance).value > 0.15
    True
    """
    from scipy.stats import mannwhitneyu

    fold = np.empty(len(points), dtype=int)
    for side in (False, True):
        rows = np.flatnonzero(in_window == side)
        fold[chance.permutation(rows)] = np.arange(len(rows)) % folds
    values, chances = [], []
    for held in range(folds):
        fit, asked = fold != held, fold == held
        mean = points[fit].mean(0)
        centred = points[fit] - mean
        spread = centred.T @ centred
        scale = ridge * max(float(np.trace(spread)) / spread.shape[0], 1e-12)
        wanted = np.where(in_window[fit], 1 / in_window[fit].sum(), -1 / (~in_window[fit]).sum())
        weights = np.linalg.solve(spread + scale * np.eye(len(spread)), centred.T @ wanted)
        score = (points[asked] - mean) @ weights
        marks = in_window[asked]
        answer = mannwhitneyu(score[marks], score[~marks], alternative="greater", method="asymptotic")
        values.append(float(answer.statistic) / (marks.sum() * (~marks).sum()) - 0.5)
        chances.append(float(answer.pvalue))
    return Measured(float(np.mean(values)), min(1.0, folds * min(chances)))


@dataclass(frozen=True)
class Statistic:
    """A row. `applies_to`: numbers (two arrays), mixes (two count vectors over the same cells), outcomes (two arrays in
    [0, 1]), or rows (bags of terms with a mark for the window, by permutation)."""

    name: str
    title: str
    paper: str
    applies_to: str
    unit: str
    measure: Callable[..., Any]


STATISTICS: Mapping[str, Statistic] = MappingProxyType({row.name: row for row in (
    Statistic("ks", "two-sample Kolmogorov-Smirnov", "Smirnov 1939; Hodges 1958",
              "numbers", "KS distance", kolmogorov_smirnov),
    Statistic("psi", "population stability index", "Kullback 1959; null distribution: Yurdakul 2018",
              "mixes", "nats", population_stability),
    Statistic("chi2", "chi-square, rare cells pooled", "Pearson 1900; Cochran 1954",
              "mixes", "of the mix above chance", chi_square),
    Statistic("fall", "fall of a score", "Newcombe 1998, Stat. Med. 17; Fisher 1935; Welch 1947",
              "outcomes", "score", score_fall),
    Statistic("js_rows", "Jensen-Shannon of term use, permuted", "Lin 1991; Besag & Clifford 1991",
              "rows", "bits above chance", term_divergence),
    Statistic("mmd", "MMD, cosine kernel, permuted", "Gretton et al. 2012, JMLR 13",
              "rows", "squared distance above chance", bag_mmd),
    Statistic("outside", "rows beyond the reference's own tail", "Sun et al. 2022; Fisher 1935",
              "rows", "of the rows above chance", scope_of),
    Statistic("auc", "classifier two-sample test", "Lopez-Paz & Oquab 2017; Mann & Whitney 1947",
              "rows", "AUC above chance", classifier_auc),
    Statistic("new_terms", "rows with an unseen term, permuted", "Besag & Clifford 1991, Biometrika 78(2)",
              "rows", "of the rows above chance", new_terms),
    Statistic("pairs", "unlike labels of near-same rows, permuted", "Friedman & Rafsky 1979, Ann. Stat. 7(4)",
              "rows", "of the pairs above chance", pair_disagreement),
)})  # fmt: skip


def holm(p_values: Sequence[float], level: float) -> tuple[bool, ...]:
    """Which hypotheses fall when at most `level` of quiet families may lose any (Holm 1979, Scand. J. Stat. 6(2)).

    >>> holm([0.01, 0.04, 0.03], 0.05)
    (True, False, False)
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    fallen = [False] * len(p_values)
    for step, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - step):
            break
        fallen[i] = True
    return tuple(fallen)
