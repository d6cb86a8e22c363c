"""What is within reach of a retrain: what the untouched base would answer, were it told the window's labels."""

from __future__ import annotations

import numpy as np

from tasks.drift.paired import Paired, mix_of, named
from tasks.evaluation.comparison import Interval, gain

FOLDS = 5


def gain_in_reach(pair: Paired, *, seed: int, least: int) -> Interval | None:
    """The nearest class mean of the base's embeddings against the served adapter, on the window's graded rows.

    An adapter starts at these class means (Snell et al. 2017, arXiv:1703.05175), so what they answer better than the
    one that is served is the least that a retrain promises. The means are of the reference's rows and of the window's
    that are not asked about, in five turns; rows with the same input are asked about together. None without embeddings,
    where labels are no classes, or with fewer than `least` graded rows.
    """
    known = pair.sample
    if not known.points or mix_of(named(pair.reference.labels), named(pair.window.labels)) is None:
        return None
    told = np.array([label is not None for label in known.labels], dtype=bool)
    graded = np.array([one is not None and bool(np.isfinite(one)) for one in known.outcomes], dtype=bool)
    asked = told & graded & pair.in_window
    if asked.sum() < least:
        return None
    points, labels = np.stack(known.points), np.array([label or "" for label in known.labels])
    texts = np.unique(np.array(known.inputs), return_inverse=True)[1]
    turn = (np.random.default_rng([seed, 5]).permutation(texts.max() + 1) % FOLDS)[texts]
    answers = np.empty(len(labels), dtype=labels.dtype)
    for now in range(FOLDS):
        open_rows, learned = asked & (turn == now), told & ~(pair.in_window & (turn == now))
        if open_rows.any():
            answers[open_rows] = nearest_class(points[learned], labels[learned], points[open_rows])
    served = [float(known.outcomes[row] or 0.0) for row in np.flatnonzero(asked)]
    return gain((answers == labels)[asked].astype(float).tolist(), served)


def nearest_class(points: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The class whose mean is nearest: (rows, width), (rows,) and (asked rows, width) -> (asked rows,).

    >>> nearest_class(np.array([[0.0], [2.0], [9.0]]), np.array(["a", "a", "b"]), np.array([[3.0], [6.0]])).tolist()
    ['a', 'b']
    """
    names, place = np.unique(labels, return_inverse=True)
    means = np.zeros((len(names), points.shape[1]))
    np.add.at(means, place, points)
    means /= np.bincount(place)[:, None]
    return names[np.argmax(asked @ means.T - (means**2).sum(1) / 2, axis=1)]
