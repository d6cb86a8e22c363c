from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.near import similarity, twins

WORDS = [
    "".join(random.Random(seed).choices("bdfgklmnprstvz", k=3)) + "aeiou"[seed % 5] * (seed % 3) for seed in range(4000)
]


def sentences(count, seed, words=30):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def with_one_word_changed(text, draw):
    words = text.split()
    words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_1_exactly_of_equal_shingles(one, other):
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, one.upper().lower()) <= similarity(one, one) == 1.0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_planted_near_pairs_at_least_95_in_100_are_found_and_of_1000_clean_rows_at_most_one_is_accused(seed):
    draw = random.Random(seed)
    clean = sentences(1000, seed)
    planted = [with_one_word_changed(text, draw) for text in clean[:100]]
    texts, ranks = [*clean, *planted], [0] * 100 + [1] * 1000
    near = [at for at in range(1000, 1100) if similarity(texts[at], texts[at - 1000]) >= 0.8]
    found = twins(texts, ranks, 0.8)
    assert len(near) >= 95
    assert sum(at in found.leaks and found.leaks[at].other == at - 1000 for at in near) >= 0.95 * len(near)
    assert len([at for at in (*found.leaks, *found.repeats) if at < 1000]) <= 1


def test_every_pair_that_is_told_is_one_by_the_definition():
    draw = random.Random(5)
    texts = [
        f"my order {draw.randrange(300)} of the {draw.choice(WORDS)} has not come and nobody answers the telephone"
        for _ in range(400)
    ]
    ranks = [draw.randrange(3) for _ in texts]
    found = twins(texts, ranks, 0.7)
    assert found.leaks
    assert found.repeats
    for at, (other, exact) in found.leaks.items():
        assert ranks[other] < ranks[at]
        assert exact == similarity(texts[at], texts[other]) >= 0.7
    for at, (other, exact) in found.repeats.items():
        assert ranks[other] == ranks[at]
        assert other < at
        assert exact == similarity(texts[at], texts[other]) >= 0.7


def test_texts_shorter_than_a_shingle_and_other_scripts_are_compared_too():
    texts = [
        "ok",
        "no",
        "私のカードはどこですか教えてください早く",
        "私のカードはどこですか教えてください早く!",
        "",
        "🙂",
    ]
    found = twins(texts, [0] * 6, 0.6)
    assert {at: twin.other for at, twin in found.repeats.items()} == {3: 2}


def test_nothing_has_no_twin():
    assert twins([], [], 0.8) == ({}, {})
