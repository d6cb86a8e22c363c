"""What is watched, one table row per signal: which values, by which statistic, and from where on it matters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tasks.drift.nearness import Scope, scope_of
from tasks.drift.observed import Observed
from tasks.drift.permutation import near_pairs
from tasks.drift.statistics import STATISTICS, Measured, decile_counts
from tasks.drift.terms import bags_of, speaks_in_words, terms_of, words

SAMPLED_ROWS = 2500
LEAST_VALUES = 20
SHOWN = 5
LONGEST_SHOWN = 120


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


def _outside_examples(pair: Paired) -> tuple[str, ...]:
    if pair.scope is None:
        return ()
    texts = [text for text, inside in zip(pair.sample.inputs, pair.in_window, strict=True) if inside]
    far = [shown(text) for text, out in zip(texts, pair.scope.outside, strict=True) if out]
    return tuple(dict.fromkeys(far))[:SHOWN]


def _label_bags(pair: Paired) -> tuple[Any, tuple[str, ...], np.ndarray] | None:
    """Labels as bags of one term, where they are classes and known on both sides; and which rows are the window's."""
    if mix_of(named(pair.reference.labels), named(pair.window.labels)) is None:
        return None
    rows = [row for row, label in enumerate(pair.sample.labels) if label is not None]
    return *bags_of([[pair.sample.labels[row]] for row in rows]), pair.in_window[rows]


def _new_labels(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    found = _label_bags(pair)
    return Measured(*measure(found[0], found[2], chance, most=most)) if found else None


def _labelled_pairs(pair: Paired) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
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


def _near_same(pair: Paired, measure: Callable[..., Any], chance: np.random.Generator, most: int) -> Measured | None:
    found = _labelled_pairs(pair)
    if found is None:
        return None
    rows, pairs, cosine = found
    labels = [pair.sample.labels[row] for row in rows]
    return Measured(*measure(pairs, cosine, labels, pair.in_window[rows], chance, most=most))


def shown(text: str) -> str:
    """One line of at most 120 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SHOWN else line[: LONGEST_SHOWN - 1] + "…"


def _median_examples(pair: Paired) -> tuple[str, ...]:
    unit = "tokens" if any(pair.reference.tokens) else "characters"
    return (f"median {np.median(lengths(pair.reference)):.0f} -> {np.median(lengths(pair.window)):.0f} {unit}",)


def _confidence_examples(pair: Paired) -> tuple[str, ...]:
    before, after = finite(pair.reference.confidences), finite(pair.window.confidences)
    known = [
        (value, text)
        for value, text in zip(pair.window.confidences, pair.window.inputs, strict=True)
        if value is not None
    ]
    least = sorted((one for one in known if math.isfinite(one[0])), key=lambda one: (one[0], one[1]))[:3]
    return (
        f"mean {before.mean():.2f} -> {after.mean():.2f}",
        *(f"{value:.2f}: {shown(text)}" for value, text in least),
    )


def _number_examples(
    values: Callable[[Observed], Sequence[float | None]], of: Callable[[Observed], Sequence[str]], unit: str
) -> Callable[[Paired], tuple[str, ...]]:
    """The medians, then the window's texts with the largest values."""

    def examples(pair: Paired) -> tuple[str, ...]:
        before, after = finite(values(pair.reference)), finite(values(pair.window))
        known = [(v, t) for v, t in zip(values(pair.window), of(pair.window), strict=True) if v is not None]
        most = sorted((one for one in known if math.isfinite(one[0])), key=lambda one: (-one[0], one[1]))[:3]
        medians = f"median {np.median(before):.3g} -> {np.median(after):.3g} {unit}"
        return (medians, *(f"{value:.3g}: {shown(text)}" for value, text in most))

    return examples


def _mix_examples(values: Callable[[Observed], Sequence[str | None]]) -> Callable[[Paired], tuple[str, ...]]:
    def examples(pair: Paired) -> tuple[str, ...]:
        mix = mix_of(named(values(pair.reference)), named(values(pair.window)))
        if mix is None:
            return ()
        names, p, q = mix[0], mix[1] / mix[1].sum(), mix[2] / mix[2].sum()
        most = [i for i in np.argsort(-np.abs(q - p), kind="stable")[:SHOWN] if p[i] != q[i]]
        return tuple(
            f"'{shown(names[i])}' {p[i]:.0%} -> {q[i]:.0%}{'' if p[i] else ' (never seen before)'}" for i in most
        )

    return examples


def _vocabulary_examples(pair: Paired) -> tuple[str, ...]:
    """Words that more rows hold than before, surest first (z-score of the log-odds ratio, Monroe et al. 2008, Polit.
    Anal. 16(4)), then the rows that hold most of them."""
    counts, terms = pair.bags
    sizes = [(~pair.in_window).sum(), pair.in_window.sum()]
    old, new = (np.asarray((counts[marks] > 0).sum(0)).ravel() + 0.5 for marks in (~pair.in_window, pair.in_window))
    odds = np.log(new / (sizes[1] + 1 - new)) - np.log(old / (sizes[0] + 1 - old))
    sure = odds / np.sqrt(1 / new + 1 / (sizes[1] + 1 - new) + 1 / old + 1 / (sizes[0] + 1 - old))
    grown = [i for i in np.argsort(-sure, kind="stable")[:SHOWN] if sure[i] > 0]
    lines = [
        f"'{terms[i]}' in {(old[i] - 0.5) / sizes[0]:.0%} -> {(new[i] - 0.5) / sizes[1]:.0%} of rows" for i in grown
    ]
    blame = np.asarray((counts > 0) @ np.where(sure > 2, sure, 0.0)).ravel()
    rows = [i for i in np.argsort(-blame, kind="stable") if pair.in_window[i] and blame[i] > 0]
    texts = dict.fromkeys(shown(pair.sample.inputs[i]) for i in rows[: 4 * SHOWN])
    return (*(lines if pair.by_word else ()), *tuple(texts)[:3])


def _fresh(counts: Any, terms: tuple[Any, ...], in_window: np.ndarray) -> tuple[str, ...]:
    """Terms that only the window holds, the commonest first."""
    holds = [np.asarray((counts[marks] > 0).sum(0)).ravel() for marks in (~in_window, in_window)]
    fresh = np.where(holds[0] == 0, holds[1], 0)
    top = [i for i in np.argsort(-fresh, kind="stable")[:SHOWN] if fresh[i]]
    return tuple(f"'{terms[i]}' in {fresh[i]} of {in_window.sum()} rows" for i in top)


def _new_word_examples(pair: Paired) -> tuple[str, ...]:
    return _fresh(*pair.bags, pair.in_window)


def _new_label_examples(pair: Paired) -> tuple[str, ...]:
    found = _label_bags(pair)
    return _fresh(*found) if found else ()


def _relabelled_examples(pair: Paired) -> tuple[str, ...]:
    found = _labelled_pairs(pair)
    if found is None:
        return ()
    rows, pairs, cosine = found
    lines: dict[str, None] = {}
    for best in np.argsort(-cosine, kind="stable"):
        old, new = sorted(int(rows[i]) for i in pairs[best])
        labels = pair.sample.labels
        if not pair.in_window[old] and pair.in_window[new] and labels[old] != labels[new]:
            lines[f"{shown(pair.sample.inputs[new])}: was '{labels[old]}', now '{labels[new]}'"] = None
    return tuple(lines)[:SHOWN]


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
    Signal("labels of near-same inputs", "concept", "pairs", 0.05, _near_same, _relabelled_examples),
    Signal("new labels", "classes", "new_terms", 0.02, _new_labels, _new_label_examples),
    Signal("labels", "labels", "chi2", 0.02, _mix(_labels), _mix_examples(_labels)),
    Signal("rows out of scope", "topics", "outside", 0.05, _outside, _outside_examples),
    Signal("embeddings", "inputs", "auc", 0.05, _points, _vocabulary_examples),
    Signal("new words", "inputs", "new_terms", 0.03, _bags, _new_word_examples),
    Signal("vocabulary", "inputs", "js_rows", 0.003, _bags, _vocabulary_examples),
    Signal("predicted labels", "answers", "chi2", 0.02, _mix(_answers), _mix_examples(_answers)),
    Signal("format of answers", "answers", "chi2", 0.02, _mix(_forms), _mix_examples(_forms)),
    Signal("words of answers", "answers", "mmd", 0.01, _answer_words, lambda pair: ()),
    Signal(
        "length of answers", "answers", "ks", 0.1, _answer_lengths, _number_examples(_said_lengths, _said, "characters")
    ),
    Signal("confidence", "confidence", "ks", 0.1, _numbers(_confidences), _confidence_examples),
    Signal("entropy", "confidence", "psi", 0.1, _deciles(_entropies), _number_examples(_entropies, _inputs, "nats")),
    Signal("input length", "inputs", "ks", 0.1, _numbers(lengths), _median_examples),
    Signal(
        "perplexity",
        "inputs",
        "ks",
        0.1,
        _numbers(_perplexities),
        _number_examples(_perplexities, _inputs, "per token"),
    ),
)


def measured(signal: Signal, pair: Paired, chance: np.random.Generator, *, most: int) -> Measured | None:
    """The signal's effect and p-value, or None where either side has too little of it."""
    return signal.compare(pair, STATISTICS[signal.statistic].measure, chance, most)
