"""Two-sample tests over whole rows: the mark "is in the window" is dealt anew among the rows, again and again.

Exact for any statistic as long as the rows are exchangeable when nothing moved, whatever the dependence inside a row.
The dealing stops early once enough draws beat the observed value (Besag & Clifford 1991), so a quiet window is cheap.
Every effect is the observed value less the mean over the draws: what chance alone gives is 0, whatever the sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CHUNK = 100
Masks = np.ndarray  # (draws, rows) bool: the row is in the window


class Permuted(NamedTuple):
    """`value` is the observed statistic less its mean over the draws."""

    value: float
    p: float


def permuted(
    statistic: Callable[[Masks], np.ndarray],
    in_window: np.ndarray,
    chance: np.random.Generator,
    *,
    most: int = 999,
    enough: int = 20,
    strata: np.ndarray | None = None,
) -> Permuted:
    """One-sided permutation test: large values of `statistic` (one per mask) speak against "nothing moved".

    p = enough / draws when the dealing stopped early, else (beaten + 1) / (most + 1). With `strata` the marks are dealt
    among rows of the same stratum only, which tests "nothing moved within the strata".

    >>> marks = np.arange(40) >= 20
    >>> height = np.arange(40.0)
    >>> permuted(lambda masks: masks @ height, marks, np.random.default_rng(0), most=199).p
    0.005
    """
    observed = float(statistic(in_window[None])[0])
    slack = 1e-9 * max(1.0, abs(observed))
    groups = (
        [np.arange(len(in_window))]
        if strata is None
        else [np.flatnonzero(strata == name) for name in np.unique(strata)]
    )
    seen: list[np.ndarray] = []
    drawn, beaten = 0, 0
    while drawn < most:
        masks = np.repeat(in_window[None], min(CHUNK, most - drawn), axis=0)
        for group in groups:
            masks[:, group] = chance.permuted(masks[:, group], axis=1)
        values = np.asarray(statistic(masks))
        seen.append(values)
        beats = np.cumsum(values >= observed - slack)
        if beaten + beats[-1] >= enough and drawn + len(values) < most:
            stop = int(np.searchsorted(beats, enough - beaten)) + 1
            return Permuted(observed - float(np.concatenate(seen).mean()), enough / (drawn + stop))
        drawn, beaten = drawn + len(values), beaten + int(beats[-1])
    return Permuted(observed - float(np.concatenate(seen).mean()), (beaten + 1) / (most + 1))


def row_weights(masks: Masks, strata: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (draws, rows) of window and reference, each row of them summing to 1.

    With `strata` the reference is weighted to the window's mix of strata: a moved mix alone shows no difference.
    """
    window = masks / masks.sum(1, keepdims=True)
    outside = ~masks
    if strata is None:
        return window, outside / outside.sum(1, keepdims=True)
    _, which = np.unique(strata, return_inverse=True)
    member = np.eye(which.max() + 1)[which]  # (rows, strata)
    factor = (window @ member) / np.maximum(outside @ member, 1)  # (draws, strata)
    return window, outside * factor[:, which]


def _product(weights: np.ndarray, features: Any) -> np.ndarray:
    return np.asarray((features.T @ weights.T).T)  # (draws, terms)


def _per_row(bags: Any) -> Any:
    """Each row's counts as shares, so that a long row does not outvote a short one."""
    from scipy.sparse import diags

    totals = np.asarray(bags.sum(1)).ravel()
    return diags(1 / np.maximum(totals, 1)) @ bags


def informative(bags: Any) -> Any:
    """Presence of terms weighted by inverse document frequency, each row of length 1 (or 0), for cosines."""
    from scipy.sparse import diags

    present = bags.copy()
    present.data = np.ones_like(present.data)
    frequency = np.asarray(present.sum(0)).ravel()
    weighted = present @ diags(np.log((1 + bags.shape[0]) / (1 + frequency)))
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    return (diags(1 / np.where(length > 0, length, 1)) @ weighted).tocsr()


def term_divergence(
    bags: Any, in_window: np.ndarray, chance: np.random.Generator, *, most: int = 999, strata: np.ndarray | None = None
) -> Permuted:
    """Jensen-Shannon divergence in bits between the mean term shares of window and reference.

    >>> from tasks.drift.terms import bags_of
    >>> bags, _ = bags_of([["a", "b"]] * 30 + [["c", "d"]] * 30)
    >>> found = term_divergence(bags, np.arange(60) >= 30, np.random.default_rng(0), most=199)
    >>> found.value > 0.9, found.p
    (True, 0.005)
    """
    from scipy.special import entr

    shares = _per_row(bags).tocsr()

    def divergence(masks: Masks) -> np.ndarray:
        q, p = (_product(weights, shares) for weights in row_weights(masks, strata))
        return np.asarray(entr((p + q) / 2).sum(1) - (entr(p).sum(1) + entr(q).sum(1)) / 2) / np.log(2)

    return permuted(divergence, in_window, chance, most=most, strata=strata)


def bag_mmd(
    bags: Any, in_window: np.ndarray, chance: np.random.Generator, *, most: int = 999, strata: np.ndarray | None = None
) -> Permuted:
    """Squared distance between the mean tf-idf rows of window and reference (MMD with the cosine kernel).

    >>> from tasks.drift.terms import bags_of
    >>> bags, _ = bags_of([["a", "b"]] * 30 + [["c", "d"]] * 30)
    >>> bag_mmd(bags, np.arange(60) >= 30, np.random.default_rng(0), most=199).p
    0.005
    """
    features = informative(bags)

    def distance(masks: Masks) -> np.ndarray:
        window, reference = row_weights(masks, strata)
        return np.asarray((_product(window - reference, features) ** 2).sum(1))

    return permuted(distance, in_window, chance, most=most, strata=strata)


def new_terms(bags: Any, in_window: np.ndarray, chance: np.random.Generator, *, most: int = 999) -> Permuted:
    """Share of window rows that hold a term which no reference row holds.

    >>> from tasks.drift.terms import bags_of
    >>> bags, _ = bags_of([["a", "b"]] * 40 + [["a", "z"]] * 20)
    >>> new_terms(bags, np.arange(60) >= 40, np.random.default_rng(0), most=199).p
    0.005
    """
    present = bags.copy()
    present.data = np.ones_like(present.data)
    rows_with = np.asarray(present.sum(0)).ravel()

    def share(masks: Masks) -> np.ndarray:
        only_there = (_product(masks.astype(float), present) >= rows_with).astype(float)  # (draws, terms)
        holds = np.asarray((present @ only_there.T).T) > 0  # (draws, rows)
        return (holds & masks).sum(1) / masks.sum(1)

    return permuted(share, in_window, chance, most=most)


def near_pairs(
    bags: Any, *, least: float = 0.4, neighbours: int = 10, block: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (pairs, 2) of rows whose tf-idf cosine reaches `least`, each row with its nearest few; and the cosines.

    >>> from tasks.drift.terms import bags_of
    >>> pairs, cosine = near_pairs(bags_of([["a", "b"], ["c", "d"], ["b", "a"]])[0])
    >>> pairs.tolist(), cosine.round(3).tolist()
    ([[0, 2]], [1.0])
    """
    features = informative(bags)
    rows = features.shape[0]
    found: dict[tuple[int, int], float] = {}
    for start in range(0, rows, block):
        cosine = np.asarray((features[start : start + block] @ features.T).todense())
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1.0
        nearest = np.argpartition(-cosine, min(neighbours, rows - 1) - 1, axis=1)[:, :neighbours]
        for offset, others in enumerate(nearest):
            for other in others:
                if cosine[offset, other] >= least:
                    here, there = start + offset, int(other)
                    found[min(here, there), max(here, there)] = float(cosine[offset, other])
    pairs = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([found[pair] for pair in sorted(found)])


def pair_disagreement(
    pairs: np.ndarray,
    cosine: np.ndarray,
    labels: Sequence[str],
    in_window: np.ndarray,
    chance: np.random.Generator,
    *,
    most: int = 999,
    bins: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.95),
) -> Permuted:
    """How much oftener a pair of near-same rows disagrees in its label when one row is old and one is new.

    Compared with pairs from one side only, at equal closeness (cosine in `bins`), so that inputs which only moved
    further away do not count as inputs whose label changed.

    >>> pairs = np.array([[i, j] for i in range(20) for j in range(i)])
    >>> labels = ["a"] * 10 + ["b"] * 10
    >>> pair_disagreement(pairs, np.ones(190), labels, np.arange(20) >= 10, np.random.default_rng(1), most=199).p
    0.005
    """
    names = np.unique(np.asarray(labels), return_inverse=True)[1]
    unlike = (names[pairs[:, 0]] != names[pairs[:, 1]]).astype(float)
    member = np.eye(len(bins) + 1)[np.searchsorted(bins, cosine, side="right")]  # (pairs, bins)

    def excess(masks: Masks) -> np.ndarray:
        cross = (masks[:, pairs[:, 0]] ^ masks[:, pairs[:, 1]]).astype(float)  # (draws, pairs)
        across, among = cross @ member, (1 - cross) @ member  # (draws, bins)
        expected = ((1 - cross) @ (member * unlike[:, None])) / np.maximum(among, 1)
        usable = np.where(among > 0, across, 0.0)
        gap = (cross @ (member * unlike[:, None])) / np.maximum(across, 1) - expected
        return (usable * gap).sum(1) / np.maximum(usable.sum(1), 1)

    return permuted(excess, in_window, chance, most=most)
