"""What is watched, one table row per signal: which values, by which statistic, and from where on it matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.drift.observed import Observed
from tasks.drift.paired import LEAST_VALUES, Paired, finite, label_bags, labelled_pairs, lengths, mix_of, named
from tasks.drift.shown import (
    first_of,
    grown_words,
    largest_of,
    least_sure,
    median_lengths,
    mix_changes,
    new_labels,
    new_words,
    other_labels,
    rows_outside,
)
from tasks.drift.statistics import STATISTICS, Measured, decile_counts
from tasks.drift.terms import bags_of, words


def _numbers(values: Callable[[Observed], Sequence[float | None]]) -> Callable[..., Measured | None]:
    def compare(
        pair: Paired, measure: Callable[..., Measured], chance: np.random.Generator, most: int
    ) -> Measured | None:
        before, after = finite(values(pair.reference)), finite(values(pair.window))
        return measure(before, after) if min(len(before), len(after)) >= LEAST_VALUES else None

    return compare


def _deciles(values: Callable[[Observed], Sequence[float | None]]) -> Callable[..., Measured | None]:
    """Numbers as counts between the reference's deciles; None where they are nearly all one value."""

    def compare(
        pair: Paired, measure: Callable[..., Measured], chance: np.random.Generator, most: int
    ) -> Measured | None:
        before, after = finite(values(pair.reference)), finite(values(pair.window))
        if min(len(before), len(after)) < LEAST_VALUES:
            return None
        cells = decile_counts(before, after)
        return measure(*cells) if len(cells[0]) > 1 else None

    return compare


def _mix(values: Callable[[Observed], Sequence[str | None]]) -> Callable[..., Measured | None]:
    def compare(
        pair: Paired, measure: Callable[..., Measured], chance: np.random.Generator, most: int
    ) -> Measured | None:
        mix = mix_of(named(values(pair.reference)), named(values(pair.window)))
        return measure(mix[1], mix[2]) if mix else None

    return compare


def _bags(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    if not pair.bags[0].nnz:
        return None
    return Measured(*measure(pair.bags[0], pair.in_window, chance, most=most))


def _answers_are_text(pair: Paired) -> bool:
    """Whether the adapter writes, rather than names a class."""
    said = named(pair.reference.predictions), named(pair.window.predictions)
    return min(map(len, said)) >= LEAST_VALUES and mix_of(*said) is None


def _answer_lengths(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Any:
    if not _answers_are_text(pair):
        return None
    return measure(*([len(text) for text in seen.predictions] for seen in (pair.reference, pair.window)))


def _answer_words(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Any:
    if not _answers_are_text(pair):
        return None
    bags, _ = bags_of([words(text) for text in pair.sample.predictions])
    return Measured(*measure(bags, pair.in_window, chance, most=most)) if bags.nnz else None


def _points(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    if pair.scope is None:
        return None
    return Measured(*measure(np.stack(pair.sample.points), pair.in_window, chance))


def _outside(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    return None if pair.scope is None else Measured(pair.scope.foreign, pair.scope.p)


def _new_labels(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    found = label_bags(pair)
    return Measured(*measure(found[0], found[2], chance, most=most)) if found else None


def _near_same(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    found = labelled_pairs(pair)
    if found is None:
        return None
    rows, pairs, cosine = found
    labels = [pair.sample.labels[row] for row in rows]
    return Measured(*measure(pairs, cosine, labels, pair.in_window[rows], chance, most=most))


@dataclass(frozen=True)
class Signal:
    """A row. `material` is the smallest effect, in the statistic's unit, that counts. `tells` says what has moved when
    it moves: the inputs, the mix of labels, the set of classes, the topics, the concept (other labels for the same
    inputs), or the adapter's answers or confidence."""

    name: str
    tells: str
    statistic: str
    material: float
    compare: Callable[..., Measured | None]
    examples: Callable[[Paired], tuple[str, ...]]


def _confidences(seen: Observed) -> Sequence[float | None]:
    return seen.confidences


def _answers(seen: Observed) -> Sequence[str | None]:
    return seen.predictions


def _labels(seen: Observed) -> Sequence[str | None]:
    return seen.labels


def _entropies(seen: Observed) -> Sequence[float | None]:
    return seen.entropies


def _perplexities(seen: Observed) -> Sequence[float | None]:
    return seen.perplexities


def _forms(seen: Observed) -> Sequence[str | None]:
    return [None if kept is None else "kept" if kept else "broken" for kept in seen.well_formed]


def _said_lengths(seen: Observed) -> Sequence[float | None]:
    return [float(len(text)) for text in seen.predictions]


def _inputs(seen: Observed) -> Sequence[str]:
    return seen.inputs


def _said(seen: Observed) -> Sequence[str]:
    return seen.predictions


SIGNALS: tuple[Signal, ...] = (  # the most telling first: a sentence shows the first few that moved
    Signal("labels of near-same inputs", "concept", "pairs", 0.05, _near_same, other_labels),
    Signal("new labels", "classes", "new_terms", 0.02, _new_labels, new_labels),
    Signal("labels", "labels", "chi2", 0.02, _mix(_labels), mix_changes(_labels)),
    Signal("rows out of scope", "topics", "outside", 0.05, _outside, rows_outside),
    Signal("embeddings", "inputs", "auc", 0.05, _points, grown_words),
    Signal("new words", "inputs", "new_terms", 0.03, _bags, new_words),
    Signal("vocabulary", "inputs", "js_rows", 0.003, _bags, grown_words),
    Signal("predicted labels", "answers", "chi2", 0.02, _mix(_answers), mix_changes(_answers)),
    Signal("format of answers", "answers", "chi2", 0.02, _mix(_forms), mix_changes(_forms)),
    Signal("words of answers", "answers", "mmd", 0.01, _answer_words, first_of(_said)),
    Signal("length of answers", "answers", "ks", 0.1, _answer_lengths, largest_of(_said_lengths, _said, "characters")),
    Signal("confidence", "confidence", "ks", 0.1, _numbers(_confidences), least_sure),
    Signal("entropy", "confidence", "psi", 0.1, _deciles(_entropies), largest_of(_entropies, _inputs, "nats")),
    Signal("input length", "inputs", "ks", 0.1, _numbers(lengths), median_lengths),
    Signal(
        "perplexity",
        "inputs",
        "ks",
        0.1,
        _numbers(_perplexities),
        largest_of(_perplexities, _inputs, "per token"),
    ),
)


def measured(signal: Signal, pair: Paired, chance: np.random.Generator, *, most: int) -> Measured | None:
    """The signal's effect and p-value, or None where either side has too little of it."""
    return signal.compare(pair, STATISTICS[signal.statistic].measure, chance, most)
