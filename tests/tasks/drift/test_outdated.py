from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tasks.drift.observed import Observed
from tasks.drift.outdated import outdated_labels

TOPICS = ("billing", "delivery", "refund", "setup", "repair", "account")


def rows(seen: Observed) -> list[tuple[str, str]]:
    return [(text, str(label)) for text, label in zip(seen.inputs, seen.labels, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_the_labels_that_were_swapped_are_named_and_no_others(seed: int, desk: Any) -> None:
    swap = {"billing": "refund", "refund": "billing"}
    old, fresh = rows(desk().seen(500, seed)), rows(desk().seen(300, 90 + seed))
    assert outdated_labels(old, fresh) == frozenset()
    assert outdated_labels(old, [(text, swap.get(label, label)) for text, label in fresh]) == frozenset(swap)


def test_noise_and_new_topics_make_no_label_outdated(desk: Any) -> None:
    chance = np.random.default_rng(0)
    fresh = rows(desk(new_rows=0.5).seen(300, 7))
    noisy = [(text, TOPICS[chance.integers(6)] if chance.random() < 0.2 else label) for text, label in fresh]
    named = [(text, "planets" if "pluto" in text else label) for text, label in noisy]
    assert outdated_labels(rows(desk().seen(500, 3)), noisy) == frozenset()
    assert outdated_labels(rows(desk().seen(500, 3)), named) == frozenset()


def test_classes_that_were_never_told_apart_are_not_called_outdated(desk: Any) -> None:
    """Labels drawn at random: near-same rows disagree as much among the old ones as across."""
    chance = np.random.default_rng(1)

    def mixed(seen: Observed) -> Observed:
        return replace(seen, labels=tuple(TOPICS[chance.integers(2)] for _ in seen.labels))

    assert outdated_labels(rows(mixed(desk().seen(400, 1))), rows(mixed(desk().seen(200, 2)))) == frozenset()
