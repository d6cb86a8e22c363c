from __future__ import annotations

from random import Random

from tasks.data.near import similarity
from tasks.drift.apart import near_rows

WORDS = ["card", "cards", "lost", "where", "is", "my", "the", "transfer", "transfers", "late", "pending", "cash"]


def test_every_pair_is_held_against_every_other() -> None:
    """The witness is the door's own index, pair by pair."""
    for seed in range(6):
        draw = Random(seed)
        rows = [" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) for _ in range(240)]
        texts, frozen = rows[:160], rows[160:]
        for limit in (0.5, 0.8, 1.0):
            wanted = {n for n, text in enumerate(texts) if any(similarity(text, other) >= limit for other in frozen)}
            assert near_rows(texts, frozen, limit) == wanted
            assert wanted


def test_nothing_is_near_where_there_is_nothing() -> None:
    assert near_rows([], ["a"], 0.8) == near_rows(["a"], [], 0.8) == frozenset()
    assert near_rows(["", "a"], ["zzz"], 0.8) == frozenset()
