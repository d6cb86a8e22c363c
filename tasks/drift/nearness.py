"""How far a row lies from all that an adapter was judged on: rows of a topic that it never learned lie outside.

Distances are 1 - cosine to the `NEIGHBOURS`-th nearest reference point (k-nearest-neighbour detection of what is out of
distribution: Sun et al. 2022, arXiv:2204.06507). A reference row's own distance leaves the row itself out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NEIGHBOURS = 5
OUTSIDE = 0.1  # share of the reference itself that counts as outside: the tail in which foreign rows are looked for
BLOCK = 2048


class Scope(NamedTuple):
    """Which window rows lie outside of the reference, and what share of the window is foreign beyond chance.

    `foreign` is the mixture share: (share outside - OUTSIDE) / (1 - OUTSIDE), not below 0. `p` is the one-sided chance
    of so many rows outside if window and reference were alike (Fisher's exact test).
    """

    outside: np.ndarray  # (window rows,) bool
    foreign: float
    p: float

    @property
    def surely(self) -> float:
        """The chance that a row which lies outside is foreign."""
        share = float(self.outside.mean()) if len(self.outside) else 0.0
        return 0.0 if share == 0 else max(0.0, min(1.0, 1 - OUTSIDE * (1 - self.foreign) / share))


def distances(points: np.ndarray, reference: np.ndarray, *, itself: bool = False) -> np.ndarray:
    """Of each point of unit length, (points, width), to its 5th nearest reference point.

    `itself` says that points and reference are the same rows, of which each leaves itself out.
    """
    count = min(NEIGHBOURS + itself, len(reference))
    found = np.empty(len(points))
    for start in range(0, len(points), BLOCK):
        cosine = points[start : start + BLOCK] @ reference.T
        found[start : start + BLOCK] = 1 - np.partition(cosine, -count, axis=1)[:, -count]
    return found


def scope_of(reference: np.ndarray, window: np.ndarray) -> Scope:
    """The window's rows beyond the distance that `OUTSIDE` of the reference's own rows exceed.

    >>> axes = np.eye(8)[np.arange(400) % 4]
    >>> near = axes + 0.01 * np.random.default_rng(0).standard_normal((400, 8))
    >>> far = np.eye(8)[[4] * 30 + [1] * 70]
    >>> unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    >>> found = scope_of(unit(near), far)
    >>> bool(found.outside[:30].all()), found.p < 1e-4, 0.2 < found.foreign < 0.35
    (True, True, True)
    """
    from scipy.stats import fisher_exact

    own = distances(reference, reference, itself=True)
    limit = float(np.quantile(own, 1 - OUTSIDE))
    before, outside = own > limit, distances(window, reference) > limit
    table = [[outside.sum(), (~outside).sum()], [before.sum(), (~before).sum()]]
    p = float(fisher_exact(table, alternative="greater").pvalue)
    usual = float(before.mean())
    return Scope(outside, max(0.0, (float(outside.mean()) - usual) / max(1 - usual, 1e-9)), p)


def foreign_chances(
    reference: np.ndarray, window: np.ndarray, sure_before: np.ndarray, sure_now: np.ndarray
) -> np.ndarray:
    """Each window row's chance of being foreign, (window rows,), from its distance and the adapter's confidence.

    Strange is what is far *and* answered with doubt: the sum of both ranks among the reference's rows. A topic next
    door is near, and only the two together tell it. Rows beyond the tail share the excess over `OUTSIDE` equally.
    """
    own, new = distances(reference, reference, itself=True), distances(window, reference)
    before = _rank(own, own) + _rank(-sure_before, -sure_before)
    strange = _rank(new, own) + _rank(-sure_now, -sure_before)
    outside = strange > np.quantile(before, 1 - OUTSIDE)
    share = float(outside.mean())
    foreign = max(0.0, (share - OUTSIDE) / (1 - OUTSIDE))
    return np.where(outside, max(0.0, 1 - OUTSIDE * (1 - foreign) / max(share, 1e-9)), 0.0)


def _rank(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Share of `among` below each value."""
    return np.searchsorted(np.sort(among), values) / len(among)
