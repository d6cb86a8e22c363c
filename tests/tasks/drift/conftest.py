"""A made-up help desk: six topics with words of their own, and an adapter that is right nine times in ten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tasks.drift.observed import Observed

TOPICS = ("billing", "delivery", "refund", "setup", "repair", "account")
SHARED = [f"say{letter}" for letter in "abcdefghijklmnopqrstuvwxyzåäöü"]
EVEN = (1 / 6,) * 6


@dataclass(frozen=True)
class Desk:
    """What may differ in a window; `new_rows` is the share of rows about a product that nobody asked about before."""

    mix: tuple[float, ...] = EVEN
    new_rows: float = 0.0
    relabelled: bool = False
    skill: float = 0.92
    skill_on_new: float = 0.4

    def seen(self, rows: int, seed: int, *, labelled: bool = True) -> Observed:
        chance = np.random.default_rng([seed, 77])
        topics = chance.choice(6, size=rows, p=self.mix)
        new = chance.random(rows) < self.new_rows
        texts = []
        for topic, is_new in zip(topics, new, strict=True):
            kind = f"pluto{TOPICS[topic]}" if is_new else TOPICS[topic]
            own = [f"{kind}{chr(97 + letter)}" for letter in chance.integers(0, 24, 4)]
            said = [*own, *chance.choice(SHARED, int(chance.integers(2, 6)))]
            texts.append(" ".join(said[place] for place in chance.permutation(len(said))))
        right = chance.random(rows) < np.where(new, self.skill_on_new, self.skill)
        answers = np.where(right, topics, (topics + chance.integers(1, 6, rows)) % 6)
        truth = (topics + 1) % 6 if self.relabelled else topics
        confidence = np.where(
            new, chance.beta(3, 3, rows), np.where(right, chance.beta(12, 2, rows), chance.beta(5, 3, rows))
        )
        return Observed(
            inputs=tuple(texts),
            tokens=tuple(tuple(hash_free(word) for word in text.split()) for text in texts),
            confidences=tuple(confidence.tolist()),
            predictions=tuple(TOPICS[answer] for answer in answers),
            labels=tuple(TOPICS[label] if labelled else None for label in truth),
            outcomes=tuple(float(a == t) if labelled else None for a, t in zip(answers, truth, strict=True)),
        )


def hash_free(word: str) -> int:
    """A number per word that is the same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(word)) % 1_000_003


@pytest.fixture
def desk() -> Callable[..., Desk]:
    return Desk
