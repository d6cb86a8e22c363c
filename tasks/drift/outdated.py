"""Which labels hold no longer: like inputs come with another known one now, and what was learned of them misleads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.drift.permutation import informative
from tasks.drift.terms import bags_of, words

LEAST_ROWS = 5
LIKE = 0.25  # share of the old rows that are less like their label's mean than a row has to be


def outdated_labels(old: Sequence[tuple[str, str]], fresh: Sequence[tuple[str, str]]) -> frozenset[str]:
    """Labels to which less than half as many fresh rows belong as old ones did, of those that look like them.

    Rows are (input, label). A row looks like the label whose old rows' mean (words, tf-idf) has the largest cosine with
    it (Rocchio 1971), no smaller than that of the lowest quarter of the old rows. Every other old row of a label is
    asked about the means of the rest, so that labels which never could be told apart are not called outdated. Fresh
    rows of labels that the old ones lack are a new topic and say nothing.

    >>> old = [("my card is lost", "card"), ("cash please", "cash")] * 10
    >>> sorted(outdated_labels(old, [("my card is lost", "cash"), ("cash please", "card")] * 6))
    ['card', 'cash']
    """
    known = sorted({label for _, label in old})
    fresh = [row for row in fresh if row[1] in known]
    if len(known) < 2 or len(known) > len(old) / 2 or not fresh:  # free text has no classes
        return frozenset()
    place = {label: n for n, label in enumerate(known)}
    truth = np.array([place[label] for _, label in (*old, *fresh)])
    bags, _ = bags_of([words(text) for text, _ in (*old, *fresh)])
    features, turn = informative(bags), dict.fromkeys(known, 0)
    asked = np.zeros(len(old), dtype=bool)
    for row, (_, label) in enumerate(old):
        asked[row], turn[label] = turn[label] % 2 == 1, turn[label] + 1

    def looks_like(rows: np.ndarray, taught: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = np.eye(len(known))[truth[taught]].T @ features[taught]  # (labels, terms)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        cosine = np.asarray(features[rows] @ means.T)  # (rows, labels)
        return cosine.argmax(1), cosine.max(1)

    before, now = np.flatnonzero(asked), np.arange(len(old), len(truth))
    (was, near), (new, close) = looks_like(before, np.flatnonzero(~asked)), looks_like(now, np.arange(len(old)))
    alike = close >= np.quantile(near, LIKE) if len(near) else np.zeros(len(now), dtype=bool)
    found = set()
    for label, n in place.items():
        usual, present = truth[before][was == n] == n, truth[now][(new == n) & alike] == n
        if min(len(usual), len(present)) >= LEAST_ROWS and present.mean() < usual.mean() / 2:
            found.add(label)
    return frozenset(found)
