"""Reference and window side by side: what every signal is read from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tasks.drift.nearness import Scope, scope_of
from tasks.drift.observed import Observed
from tasks.drift.permutation import near_pairs
from tasks.drift.terms import bags_of, speaks_in_words, terms_of

SAMPLED_ROWS = 2500
LEAST_VALUES = 20


@dataclass(frozen=True)
class Paired:
    """Reference and window side by side. `sample` holds at most 2,500 rows of each (the reference's first), enough to
    see every shift that matters and few enough that a permutation test takes a second."""

    reference: Observed
    window: Observed
    sample: Observed
    in_window: np.ndarray  # (sample.rows,) bool
    by_word: bool

    @cached_property
    def scope(self) -> Scope | None:
        """Which window rows of the sample lie outside of the reference; None without embeddings on both sides."""
        if not self.sample.points or min(self.in_window.sum(), (~self.in_window).sum()) < LEAST_VALUES:
            return None
        points = np.stack(self.sample.points)
        return scope_of(points[~self.in_window], points[self.in_window])

    @cached_property
    def bags(self) -> tuple[Any, tuple[Any, ...]]:
        return bags_of(terms_of(self.sample, by_word=self.by_word))


def paired(reference: Observed, window: Observed, chance: np.random.Generator) -> Paired:
    """Both samples, cut by chance to what the permutation tests look at."""
    old, new = (
        seen if seen.rows <= SAMPLED_ROWS else seen.at(np.sort(chance.permutation(seen.rows)[:SAMPLED_ROWS]).tolist())
        for seen in (reference, window)
    )
    both = Observed(
        old.inputs + new.inputs,
        old.tokens + new.tokens,
        old.confidences + new.confidences,
        old.predictions + new.predictions,
        old.labels + new.labels,
        old.outcomes + new.outcomes,
        points=old.points + new.points if old.points and new.points else (),
    )
    return Paired(reference, window, both, np.arange(both.rows) >= old.rows, speaks_in_words(reference))


def finite(values: Sequence[float | None]) -> np.ndarray:
    """The known, finite values."""
    return np.array([value for value in values if value is not None and math.isfinite(value)], dtype=float)


def named(values: Sequence[str | None]) -> list[str]:
    """The known, non-blank names."""
    return [value for value in values if value is not None and value.strip()]


def lengths(observed: Observed) -> list[int]:
    """Tokens a row, or characters where no row has tokens."""
    return [len(row) for row in observed.tokens] if any(observed.tokens) else [len(text) for text in observed.inputs]


def mix_of(reference: Sequence[str], window: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray] | None:
    """Names and their counts on both sides; None where most values occur once (free text is not a mix of classes).

    >>> names, before, after = mix_of(["a", "b"] * 10, ["a", "c"] * 10)
    >>> names, before.tolist(), after.tolist()
    (('a', 'b', 'c'), [10, 10, 0], [10, 0, 10])
    """
    if min(len(reference), len(window)) < LEAST_VALUES:
        return None
    before, after = Counter(reference), Counter(window)
    names = tuple(sorted(before | after))
    if len(before) > len(reference) / 2:
        return None
    return names, np.array([before[name] for name in names]), np.array([after[name] for name in names])


def label_bags(pair: Paired) -> tuple[Any, tuple[str, ...], np.ndarray] | None:
    """Labels as bags of one term, where they are classes and known on both sides; and which rows are the window's."""
    if mix_of(named(pair.reference.labels), named(pair.window.labels)) is None:
        return None
    rows = [row for row, label in enumerate(pair.sample.labels) if label is not None]
    return *bags_of([[pair.sample.labels[row]] for row in rows]), pair.in_window[rows]


def labelled_pairs(pair: Paired) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Sampled rows with a label that the reference has more than once, their near pairs and how near."""
    usual = Counter(named(pair.reference.labels))
    rows = np.array(
        [i for i, label in enumerate(pair.sample.labels) if label is not None and usual[label] > 1], dtype=np.int64
    )
    if len(usual) < 2 or not pair.by_word or pair.in_window[rows].sum() < LEAST_VALUES or not pair.bags[0].nnz:
        return None
    pairs, cosine = near_pairs(pair.bags[0][rows])
    marks = pair.in_window[rows]
    across = marks[pairs[:, 0]] ^ marks[pairs[:, 1]]
    return (rows, pairs, cosine) if across.sum() >= LEAST_VALUES and (~across).sum() >= LEAST_VALUES else None
