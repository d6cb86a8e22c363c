from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.data.door import admit
from tasks.data.examples import key_of
from tasks.data.splits import declared_side, side_at, side_in, side_of, stratified, time_of
from tasks.specs import SIDES, SplitSpec

KEYS = [key_of(f"text {number}") for number in range(20_000)]
shares = st.floats(0, 0.49)


@given(shares, shares, st.floats(0, 0.01), st.sampled_from(KEYS))
def test_a_larger_share_draws_from_train_only(validation, test, more, key):
    before = side_of(key, SplitSpec(validation=validation, test=test))
    wider_test = side_of(key, SplitSpec(validation=validation, test=test + more))
    wider_validation = side_of(key, SplitSpec(validation=validation + more, test=test))
    assert wider_test == before or (before, wider_test) == ("train", "test")
    assert wider_validation == before or (before, wider_validation) == ("train", "validation")


def test_the_sides_have_their_shares_within_five_standard_errors():
    split = SplitSpec(validation=0.2, test=0.05)
    counts = Counter(side_of(key, split) for key in KEYS)
    for side, share in {"validation": 0.2, "test": 0.05, "train": 0.75}.items():
        assert abs(counts[side] / len(KEYS) - share) < 5 * math.sqrt(share * (1 - share) / len(KEYS))


def test_a_share_of_nothing_is_nothing():
    assert {side_of(key, SplitSpec(validation=0, test=0)) for key in ["0" * 64, "f" * 64, *KEYS]} == {"train"}


def test_declared_sides_are_read_in_any_case_and_nothing_else_is_guessed():
    read = {
        name: declared_side(name) for name in ("TRAIN", "Validation", "valid", "VAL", "dev", "Test", "tests", "", "0")
    }
    expected = ["train", "validation", "validation", "validation", "validation", "test", None, None, None]
    assert list(read.values()) == expected


def test_a_declared_test_row_stays_in_test_and_validation_is_cut_from_train_only_where_none_is_declared():
    split = SplitSpec(column="split", validation=0.3)
    for key in KEYS[:500]:
        assert side_in("test", key, split, has_validation=False) == "test"
        assert side_in("train", key, split, has_validation=True) == "train"
    cut = [side_in("train", key, split, has_validation=False) for key in KEYS]
    assert set(cut) == {"train", "validation"}
    assert [side == "validation" for side in cut] == [side_of(key, split) == "validation" for key in KEYS]


SIDES_BY_DAY = {
    "2025-06-01": "train",
    "2025-12-31T23:59:59Z": "train",
    "2026-01-01": "validation",
    "2026-03-01": "test",
}


def test_time_cuts_are_fixed_moments_so_that_no_row_moves_when_newer_ones_come():
    split = SplitSpec(time="day", validation_from="2026-01-01", test_from="2026-03-01T00:00:00+00:00")
    assert {day: side_at(time_of(day), split) for day in SIDES_BY_DAY} == SIDES_BY_DAY


@given(st.lists(st.tuples(st.sampled_from(KEYS[:400]), st.sampled_from("abc")), min_size=1, max_size=60), st.data())
def test_stratified_rows_move_only_to_give_a_class_the_side_that_it_lacks(drawn, data):
    split = SplitSpec(validation=0.1, test=0.1, stratify=True)
    frozen = dict.fromkeys(data.draw(st.sets(st.sampled_from(KEYS[:400]), max_size=5)), "earlier")
    by_key = dict(drawn)
    rows = [(key, name, side_of(key, split)) for key, name in by_key.items()]
    moved = stratified(rows, split, frozen)
    after = {key: moved.get(key, side) for key, _, side in rows}
    assert all(after[key] == "test" for key in by_key if key in frozen)
    for name in set(by_key.values()):
        members = [key for key in by_key if by_key[key] == name]
        sides = {after[key] for key in members}
        if len(members) >= 3 and sum(key in frozen for key in members) <= 1:
            assert {"test", "validation"} <= sides or [after[key] for key in members].count("train") <= 1
    before = Counter((name, side) for _, name, side in rows)
    for key, side in moved.items():
        if key not in frozen:
            assert before[by_key[key], side] == 0


def test_rows_of_one_group_lie_on_one_side_and_stay_there_when_data_grows(tmp_path, asks, write, clean):
    rows = [row | {"customer": f"c{at % 40}"} for at, row in enumerate(clean(400))]
    sides = []
    for name, part in (("few.jsonl", rows[:200]), ("all.jsonl", rows[::-1])):
        admission = admit(asks(write(tmp_path / name, part), split={"group": "customer"}))
        found = defaultdict(set)
        for side in SIDES:
            for example in admission.examples[side]:
                found[int(example.input.split()[1]) % 40].add(side)
        assert all(len(on) == 1 for on in found.values())
        sides.append({group: min(on) for group, on in found.items()})
    assert sides[0] == sides[1]
    assert {*sides[0].values()} == {*SIDES}


def test_a_row_without_its_group_or_its_time_is_kept_out_with_what_was_found(tmp_path, asks, write, clean):
    rows = [row | {"customer": f"c{at % 40}", "day": "2026-01-02"} for at, row in enumerate(clean(400))]
    rows[3] |= {"customer": None, "day": "yesterday"}
    for day in range(0, 400, 4):
        rows[day]["day"] = "2026-04-01"
    path = write(tmp_path / "a.jsonl", rows)
    by_group = admit(asks(path, split={"group": "customer"})).quarantined
    by_time = admit(asks(path, split={"time": "day", "test_from": "2026-03-01"}))
    assert [(bad.row, bad.guard, bad.reason) for bad in by_group] == [(4, "group_is_known", "None names no group")]
    assert [(bad.row, bad.reason) for bad in by_time.quarantined] == [(4, "'yesterday' is no ISO 8601 date or time")]
    assert len(by_time.examples["test"]) == 100


def test_every_class_has_a_row_that_judges_and_one_that_chooses_where_that_is_asked(tmp_path, asks, write, clean):
    rows = clean(300)
    for at in range(4):
        rows[at]["label"] = "rare"
    admission = admit(asks(write(tmp_path / "a.csv", rows), split={"stratify": True}))
    assert all(admission.label_counts[side].get("rare", 0) >= 1 for side in SIDES)


@pytest.mark.parametrize(
    "split",
    [
        {"column": "a", "group": "b"},
        {"stratify": True, "group": "b"},
        {"time": "a"},
        {"test_from": "2026-01-01"},
        {"time": "a", "test_from": "soon"},
        {"time": "a", "validation_from": "2026-02-01", "test_from": "2026-01-01"},
    ],
)
def test_a_split_that_contradicts_itself_is_refused(split):
    with pytest.raises(ValidationError):
        SplitSpec(**split)
