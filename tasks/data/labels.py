"""Class names: which is meant by a wrong one, and which are one class spelt twice."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from tasks.data.examples import normalised

COMPARED = (
    200  # comparing every wrong label with every right one is quadratic; beyond this only the spelling is compared
)


def nearest_labels(wrong: Iterable[str], labels: Sequence[str]) -> dict[str, str]:
    """The label that each wrong one probably means, or "" where none is near.

    >>> nearest_labels(["Pos ", "negativ", "zzz"], ["pos", "negative"])
    {'Pos ': 'pos', 'negativ': 'negative', 'zzz': ''}
    """
    folded = {normalised(label): label for label in reversed(labels)}
    found: dict[str, str] = {}
    for label in dict.fromkeys(wrong):
        plain = normalised(label)
        near = [plain] if plain in folded else []
        if not near and len(found) < COMPARED and len(plain) <= 200:
            near = difflib.get_close_matches(plain, folded, n=1, cutoff=0.6)
        found[label] = folded[near[0]] if near else ""
    return found


def spelt_otherwise(labels: Iterable[str]) -> dict[str, str]:
    """Labels that differ from a more frequent one only in case, width or white space, with that one.

    >>> spelt_otherwise(["pos", "pos", "Pos ", "neg"])
    {'Pos ': 'pos'}
    """
    counts = Counter(labels)
    usual: dict[str, str] = {}
    for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        usual.setdefault(normalised(label), label)
    return {label: usual[normalised(label)] for label in counts if usual[normalised(label)] != label}
