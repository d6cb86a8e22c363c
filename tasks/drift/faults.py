"""Windows that say more about the pipe than about the world, one table row per fault.

A fault is judged by the share of rows that carry it, against a fixed limit *and* against what the reference shows of
the same defect, so that a task whose real traffic is full of repeats or blanks is not accused of them. No p-values:
these limits are far outside of what a quiet window reaches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.drift.observed import Observed
from tasks.drift.terms import script_of, speaks_in_words, terms_of

LOOKED_AT = 2000
BROKEN = {"�", *(chr(code) for code in range(32) if chr(code) not in "\t\n\r"), "\x7f"}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _not_a_share(values: Sequence[float | None]) -> float:
    known = _known(values)
    return sum(not (math.isfinite(value) and 0 <= value <= 1) for value in known) / len(known) if known else 0.0


def _blank(texts: Sequence[str]) -> float:
    return sum(not text.strip() for text in texts) / len(texts)


def _broken(texts: Sequence[str]) -> float:
    return sum(not BROKEN.isdisjoint(text) for text in texts) / len(texts)


def _commonest(values: Sequence[Hashable]) -> float:
    """Share of the commonest value; nothing can be said of fewer than 20."""
    return Counter(values).most_common(1)[0][1] / len(values) if len(values) >= 20 else 0.0


def _one_of_many(senders: Sequence[str]) -> float:
    """Share of the commonest sender where there are several; one that is alone, or never named, is no news."""
    return _commonest(senders) if len(set(senders)) > 1 else 0.0


FLOOD = 0.9


def floods(senders: Sequence[str]) -> bool:
    """Whether one of several senders fills nearly all of the rows.

    >>> floods(["a"] * 90 + ["b"] * 10), floods(["a"] * 100), floods(["a"] * 80 + ["b"] * 20)
    (True, False, False)
    """
    return _one_of_many(senders) >= FLOOD


def _echoed(reference: Observed, window: Observed) -> float:
    """Share of known labels that are the adapter's own answer, where that is more than its skill allows.

    An adapter that is right in a share p of the reference's rows agrees with n true labels in all but k rows with a
    binomial chance; below one in ten thousand the labels did not come from the world. 0 where chance allows it.
    """
    from scipy.stats import binom

    graded = [value for value in reference.outcomes if value is not None and math.isfinite(value)]
    rows = zip(window.predictions, window.labels, window.outcomes, strict=True)
    said = [a.strip() == b.strip() and right == 1 for a, b, right in rows if b is not None]
    if len(graded) < 20 or len(said) < 20:
        return 0.0
    skill = (sum(graded) + 1) / (len(graded) + 2)  # never quite 1: a perfect record is no proof of perfection
    return sum(said) / len(said) if binom.sf(sum(said) - 1, len(said), skill) < 1e-4 else 0.0


def folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _foreign(reference: Observed, window: Observed) -> float:
    """Share of window rows most of whose letters are of a script that hardly any reference row is written in."""
    scripts = [Counter(filter(None, map(script_of, text[:400]))) for text in (*reference.inputs, *window.inputs)]
    main = [counts.most_common(1)[0][0] if counts else "" for counts in scripts]
    usual = Counter(main[: reference.rows])
    return sum(bool(name) and usual[name] < 0.01 * reference.rows for name in main[reference.rows :]) / window.rows


def _unknown(reference: Observed, window: Observed) -> float:
    """Share of the window's term occurrences that no reference row holds."""
    by_word = speaks_in_words(reference)
    known = {term for row in terms_of(reference, by_word=by_word) for term in row}
    terms = [term for row in terms_of(window, by_word=by_word) for term in row]
    return sum(term not in known for term in terms) / len(terms) if terms else 0.0


def _again(reference: Observed, window: Observed) -> float:
    """Share of window rows whose input stands in the reference."""
    known = set(map(folded, reference.inputs))
    return sum(folded(text) in known for text in window.inputs if text.strip()) / window.rows


@dataclass(frozen=True)
class Fault:
    """A row. `share` of rows with the defect; a fault from `limit` on, if also at least twice the reference's share.

    `pairwise` shares compare the window with the reference; their own "reference share" is one half of the reference
    against the other.
    """

    name: str
    title: str
    limit: float
    share: Callable[[Observed], float] | None = None
    pairwise: Callable[[Observed, Observed], float] | None = None


FAULTS: tuple[Fault, ...] = (
    Fault("blank inputs", "rows without any text", 0.2, lambda seen: _blank(seen.inputs)),
    Fault("one input", "rows with one and the same input", 0.5, lambda seen: _commonest([*map(folded, seen.inputs)])),
    Fault(
        "duplicates", "rows that repeat another row", 0.5, lambda seen: 1 - len({*map(folded, seen.inputs)}) / seen.rows
    ),
    Fault("broken characters", "rows with control or replacement characters", 0.2, lambda seen: _broken(seen.inputs)),
    Fault("blank answers", "rows that the adapter answered with nothing", 0.2, lambda seen: _blank(seen.predictions)),
    Fault("one answer", "rows with one and the same answer", 0.95, lambda seen: _commonest(seen.predictions)),
    Fault(
        "confidence out of range", "confidences outside of 0 to 1", 0.05, lambda seen: _not_a_share(seen.confidences)
    ),
    Fault("stuck confidence", "confidences of one value", 0.95, lambda seen: _commonest(_known(seen.confidences))),
    Fault("outcome out of range", "outcomes outside of 0 to 1", 0.05, lambda seen: _not_a_share(seen.outcomes)),
    Fault("one sender", "rows from one and the same source of several", FLOOD, lambda seen: _one_of_many(seen.sources)),
    Fault("foreign script", "rows in a writing system that the reference does not use", 0.5, pairwise=_foreign),
    Fault("unknown words", "words that the reference never used", 0.8, pairwise=_unknown),
    Fault("echoed labels", "labels that are the adapter's own answers", 0.99, pairwise=_echoed),
    Fault("repeats of the reference", "rows whose input is already in the reference", 0.5, pairwise=_again),
)


@dataclass(frozen=True)
class Found:
    """A fault that the window shows, with the share of rows and the reference's own share of the same defect."""

    fault: Fault
    share: float
    usual: float


def faults_of(reference: Observed, window: Observed, *, seed: int) -> tuple[Found, ...]:
    """All faults of the window, worst first. Up to 2,000 rows of each side are looked at, and as many of the reference
    as of the window, because repeats grow with the number of rows.

    >>> texts, unknown = tuple("a cat and a dog ran by"[i:] + chr(97 + i) for i in range(24)), (None,) * 24
    >>> calm = Observed(texts, ((),) * 24, unknown, texts, unknown, unknown)
    >>> stuck = Observed(("hello",) * 24, ((),) * 24, unknown, texts, unknown, unknown)
    >>> faults_of(calm, stuck, seed=0)[0].fault.name
    'one input'
    """
    if not reference.rows or not window.rows:
        return ()
    chance = np.random.default_rng([seed, 1])
    seen = window.at(sorted(chance.permutation(window.rows)[:LOOKED_AT])) if window.rows > LOOKED_AT else window
    dealt = chance.permutation(reference.rows)
    calm = reference.at(sorted(dealt[: min(seen.rows, LOOKED_AT)]))
    known = reference.at(sorted(dealt[:LOOKED_AT]))
    halves = known.at(range(0, known.rows, 2)), known.at(range(1, known.rows, 2))
    found = []
    for fault in FAULTS:
        if fault.share:
            share, usual = fault.share(seen), fault.share(calm)
        elif fault.pairwise and halves[1].rows:
            share, usual = fault.pairwise(known, seen), fault.pairwise(*halves)
        else:
            continue
        if share >= fault.limit and share >= 2 * usual:
            found.append(Found(fault, share, usual))
    return tuple(sorted(found, key=lambda one: (-one.share, FAULTS.index(one.fault))))
