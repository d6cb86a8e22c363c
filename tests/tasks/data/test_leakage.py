from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from tasks.data.examples import Example
from tasks.data.leakage import Placed, settled
from tasks.specs import SIDES

FIRST = ("test", "validation", "train")
rows = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from(SIDES)), max_size=14).map(
    lambda drawn: [Placed(Example(key, key, target, at + 1), side, at) for at, (key, target, side) in enumerate(drawn)]
)


@given(rows, st.booleans())
def test_every_row_is_kept_or_has_one_reason_not_to_be(placed, one_target):
    kept = settled(placed, one_target=one_target)
    places = [row.at for part in (kept.rows, kept.contradicting, kept.leaking, kept.repeated) for row in part]
    assert sorted(places) == list(range(len(placed)))


@given(rows)
def test_with_one_answer_an_input_is_kept_once_exactly_when_all_its_rows_agree(placed):
    answers = defaultdict(set)
    for row in placed:
        answers[row.example.key].add(row.example.target)
    kept = settled(placed, one_target=True).rows
    assert sorted(row.example.key for row in kept) == sorted(
        key for key, targets in answers.items() if len(targets) == 1
    )


@given(rows, st.booleans())
def test_no_input_is_left_on_two_sides_and_it_stays_where_it_judges(placed, one_target):
    sides = defaultdict(set)
    for row in placed:
        sides[row.example.key].add(row.side)
    for row in settled(placed, one_target=one_target).rows:
        assert row.side == next(side for side in FIRST if side in sides[row.example.key])


@given(rows)
def test_with_many_good_answers_each_is_kept_once_on_the_side_that_judges(placed):
    kept = settled(placed, one_target=False).rows
    pairs = [(row.example.key, row.example.target, row.side) for row in kept]
    assert len(set(pairs)) == len(pairs)
    judged = {
        key: next(side for side in FIRST if any(r.example.key == key and r.side == side for r in placed))
        for key in "abcd"
        if any(r.example.key == key for r in placed)
    }
    assert set(pairs) == {(r.example.key, r.example.target, r.side) for r in placed if r.side == judged[r.example.key]}


@given(rows)
def test_a_contradicted_row_names_a_row_that_really_has_another_answer(placed):
    by_number = {row.example.row: row.example for row in placed}
    for fallen in settled(placed, one_target=True).contradicting:
        number = int(fallen.reason.split("row ")[1].split(",")[0])
        mine, other = placed[fallen.at].example, by_number[number]
        assert other.key == mine.key
        assert other.target != mine.target
