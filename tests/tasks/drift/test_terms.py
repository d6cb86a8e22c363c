from __future__ import annotations

from collections import Counter

import pytest

from tasks.drift.observed import Observed
from tasks.drift.terms import bags_of, script_of, speaks_in_words, words
from tasks.errors import DataRefused


def said(*texts: str, tokens_each: int = 6) -> Observed:
    unknown = (None,) * len(texts)
    return Observed(texts, (tuple(range(tokens_each)),) * len(texts), unknown, texts, unknown, unknown)


def test_bags_count_like_a_counter() -> None:
    rows = [["a", "b", "a"], [], ["c", "a"], ["b", "b", "b"]]
    counts, terms = bags_of(rows)
    found = [{terms[j]: int(row[j]) for j in range(len(terms)) if row[j]} for row in counts.toarray()]
    assert found == [dict(Counter(row)) for row in rows]


def test_no_rows_make_an_empty_table() -> None:
    assert bags_of([])[0].shape == (0, 0)
    assert bags_of([[], []])[0].shape == (2, 0)


def test_a_new_order_number_is_not_a_new_word() -> None:
    assert words("order A-4711") == words("ORDER a-9023")


def test_text_without_blanks_is_counted_by_token() -> None:
    assert speaks_in_words(said("where is my parcel"))
    assert not speaks_in_words(said("我的包裹在哪里谁知道呢", tokens_each=11))


def test_every_letter_of_a_script_has_its_name() -> None:
    assert {script_of(letter) for letter in "Größe"} == {"LATIN"}
    assert {script_of(letter) for letter in "заказ"} == {"CYRILLIC"}
    assert {script_of(letter) for letter in " ,.3€"} == {""}


def test_columns_of_unlike_length_are_all_named() -> None:
    with pytest.raises(DataRefused) as refusal:
        Observed(("a", "b"), ((), ()), (0.5,), ("x", "y"), (None,), (None, None), sources=("one", "two", "three"))
    assert [problem.where for problem in refusal.value.problems] == ["confidences", "labels", "sources"]


def test_rows_are_picked_in_the_order_asked_and_keep_their_columns_together() -> None:
    seen = Observed(("a", "b", "c"), ((1,), (2,), (3,)), (0.1, 0.2, 0.3), ("x", "y", "z"), (None,) * 3, (0.0, 1.0, 0.5))
    picked = seen.at([2, 0])
    assert (picked.inputs, picked.tokens, picked.confidences, picked.outcomes) == (
        ("c", "a"),
        ((3,), (1,)),
        (0.3, 0.1),
        (0.5, 0.0),
    )
    assert picked.sources == ()
