"""What shows that a signal moved: a few lines that a person can read, for each kind of signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tasks.drift.observed import Observed
from tasks.drift.paired import Paired, finite, label_bags, labelled_pairs, lengths, mix_of, named

SHOWN = 5
LONGEST_SHOWN = 120


def shown(text: str) -> str:
    """One line of at most 120 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SHOWN else line[: LONGEST_SHOWN - 1] + "…"


def first_of(texts: Callable[[Observed], Sequence[str]]) -> Callable[[Paired], tuple[str, ...]]:
    """The first few different texts of the window."""
    return lambda pair: tuple(dict.fromkeys(map(shown, texts(pair.window))))[:3]


def rows_outside(pair: Paired) -> tuple[str, ...]:
    if pair.scope is None:
        return ()
    texts = [text for text, inside in zip(pair.sample.inputs, pair.in_window, strict=True) if inside]
    far = [shown(text) for text, out in zip(texts, pair.scope.outside, strict=True) if out]
    return tuple(dict.fromkeys(far))[:SHOWN]


def median_lengths(pair: Paired) -> tuple[str, ...]:
    unit = "tokens" if any(pair.reference.tokens) else "characters"
    return (f"median {np.median(lengths(pair.reference)):.0f} -> {np.median(lengths(pair.window)):.0f} {unit}",)


def least_sure(pair: Paired) -> tuple[str, ...]:
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


def largest_of(
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


def mix_changes(values: Callable[[Observed], Sequence[str | None]]) -> Callable[[Paired], tuple[str, ...]]:
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


def grown_words(pair: Paired) -> tuple[str, ...]:
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


def new_words(pair: Paired) -> tuple[str, ...]:
    return _fresh(*pair.bags, pair.in_window)


def new_labels(pair: Paired) -> tuple[str, ...]:
    found = label_bags(pair)
    return _fresh(*found) if found else ()


def other_labels(pair: Paired) -> tuple[str, ...]:
    found = labelled_pairs(pair)
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
