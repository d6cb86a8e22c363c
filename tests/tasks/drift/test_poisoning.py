"""A poisoning drill: whatever is slipped into a window of traffic, it asks for no retrain, and the cause is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tasks.drift.observed import Observed
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

TOPICS = ("billing", "delivery", "refund", "setup", "repair", "account")


def labelled(window: Observed, labels: tuple[str, ...]) -> Observed:
    """The window graded by these labels instead of the true ones."""
    outcomes = tuple(float(said == label) for said, label in zip(window.predictions, labels, strict=True))
    return replace(window, labels=labels, outcomes=outcomes)


def flooded(reference: Observed, window: Observed) -> Observed:
    return replace(window, sources=("mallory",) * 270 + tuple(f"shop-{row % 7}" for row in range(30)))


def triggered(reference: Observed, window: Observed) -> Observed:
    """250 of 300 rows carry a word of the attacker's and the answer that it is to cause."""
    texts = tuple(f"zqx {text}" if row < 250 else text for row, text in enumerate(window.inputs))
    return labelled(replace(window, inputs=texts), ("refund",) * 250 + window.labels[250:])  # type: ignore[arg-type]


def copied(reference: Observed, window: Observed) -> Observed:
    return replace(reference.at(range(300)), sources=window.sources)


def echoed(reference: Observed, window: Observed) -> Observed:
    return labelled(window, window.predictions)


DRILLS: dict[str, tuple[Callable[[Observed, Observed], Observed], str]] = {
    "one source sends 90 % of the rows": (flooded, "rows from one and the same source"),
    "250 rows carry a trigger": (triggered, "zqx"),
    "the test set is sent back": (copied, "rows whose input is already in the reference"),
    "the model's own answers come as labels": (echoed, "labels that are the adapter's own answers"),
}


@pytest.mark.parametrize("drill", DRILLS)
def test_poisoned_windows_stop_the_loop_and_name_the_cause(drill: str, desk) -> None:
    poison, cause = DRILLS[drill]
    for seed in range(2):
        reference, window = desk().seen(600, seed), desk().seen(300, 300 + seed)
        window = replace(window, sources=tuple(f"shop-{row % 7}" for row in range(300)))
        assert judge(reference, window, DriftSpec(), seed=seed).action in ("nothing", "watch")
        report = judge(reference, poison(reference, window), DriftSpec(), seed=seed)
        assert report.action == "stop and look", report.sentence
        assert cause in report.sentence


def test_a_twentieth_of_the_labels_flipped_is_hardly_ever_taken_for_a_loss(desk) -> None:
    """True loss: 4.6 points, below the 5 that count. An action at all is the gates' to refuse."""
    asked = 0
    for seed in range(8):
        chance = np.random.default_rng(seed)
        window = desk().seen(300, 700 + seed)
        wrong = tuple(
            TOPICS[(TOPICS.index(str(label)) + int(chance.integers(1, 6))) % 6]
            if chance.random() < 0.05
            else str(label)
            for label in window.labels
        )
        report = judge(desk().seen(600, seed), labelled(window, wrong), DriftSpec(), seed=seed)
        assert report.verdict in ("no drift", "performance loss", "concept shift")
        asked += report.action == "retrain with replay"
    assert asked <= 2
