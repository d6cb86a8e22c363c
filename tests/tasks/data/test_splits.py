from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tasks.data.examples import key_of
from tasks.data.splits import declared_side, side_in, side_of
from tasks.specs import SplitSpec

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
