from __future__ import annotations

import pytest

from tasks.data.door import admit
from tasks.data.examples import key_of
from tasks.data.snapshot import write_snapshot
from tasks.data.splits import side_of
from tasks.errors import DataRefused
from tasks.specs import SIDES, SplitSpec

STORY = (
    "the parcel with the blue kettle came on monday and its lid was broken in two places when i opened the box number"
)


@pytest.fixture
def path(tmp_path, write):
    """Sixty rows that have nothing in common, and one pair of near texts: a test row, and a train row of it."""
    rows = [
        {"text": f"{chr(97 + at % 26) * 9}{at} {chr(98 + at % 24) * 7} {at * 7919}", "label": ("a", "b")[at % 2]}
        | {"split": "test" if at < 15 else "train"}
        for at in range(60)
    ]
    rows[3]["text"], rows[40]["text"] = STORY, STORY + " 7"
    return write(tmp_path / "a.jsonl", rows)


def leak_check(admission):
    return next(check for check in admission.checks if check.name == "no_near_leak")


def test_a_near_leak_is_shown_with_both_texts_and_kept_by_default(path, asks):
    admission = admit(asks(path, split={"column": "split"}))
    check = leak_check(admission)
    assert (check.severity, check.passed, check.unexpected) == ("warning", False, 1)
    (pair,) = [pair for pair in admission.near if pair.kind == "leak"]
    assert (pair.row, pair.input, pair.other_input, pair.same_target) == (41, STORY + " 7", STORY, False)
    assert "test row 4" in pair.other
    assert admission.accepted == 60


def test_a_near_leak_is_kept_out_or_refuses_the_set_where_that_is_asked(path, asks):
    admission = admit(asks(path, split={"column": "split"}, near={"leaks": "quarantine"}, max_quarantined=0))
    assert [(bad.row, bad.guard) for bad in admission.quarantined] == [(41, "no_near_leak")]
    with pytest.raises(DataRefused) as refused:
        admit(asks(path, split={"column": "split"}, near={"leaks": "refuse"}))
    assert [problem.code for problem in refused.value.problems] == ["E-DATA-028"]
    assert "row 41" in refused.value.lines()[0]


def test_a_row_that_nearly_repeats_an_earlier_test_slice_leaks(tmp_path, asks, write, clean):
    rows = clean(100)
    learned = next(at for at, row in enumerate(rows) if side_of(key_of(row["text"]), SplitSpec()) == "train")
    rows[learned]["text"] = next(
        text for n in range(99) if side_of(key_of(text := f"{STORY} {n}"), SplitSpec()) == "train"
    )
    path = write(tmp_path / "a.csv", rows)
    admission = admit(asks(path, near={"similarity": 0.9}), judged={STORY: "test of 2026-q1"})
    (notice,) = [check for check in admission.around.notices if check.name == "no_near_frozen_row"]
    assert (notice.passed, notice.unexpected) == (False, 1)
    assert notice.samples[0].startswith(f"row {learned + 2} (train)")
    assert "test of 2026-q1" in notice.samples[0]
    kept_out = admit(asks(path, near={"leaks": "quarantine", "similarity": 0.9}), judged={STORY: "test of 2026-q1"})
    assert learned + 2 in {bad.row for bad in kept_out.quarantined if bad.guard == "no_near_leak"}


def test_what_judged_before_does_not_change_the_bytes_of_a_snapshot(tmp_path, asks, write, clean):
    path = write(tmp_path / "a.csv", clean(100))
    for name, known in (("one", {}), ("two", {"complaint 5 about a late card!": "earlier"})):
        write_snapshot(admit(asks(path), judged=known, traffic=dict.fromkeys(known, "inbox")), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_near_repeats_are_deduplicated_where_that_is_asked_and_every_row_is_counted(tmp_path, asks, write):
    texts = [f"{chr(97 + at % 26) * 9}{at} {at * 7919}" for at in range(60)] + [STORY, STORY + " 8", STORY + " 9"]
    split = ["test"] * 12 + ["train"] * 51
    rows = [{"text": text, "label": "ab"[at % 2], "split": split[at]} for at, text in enumerate(texts)]
    path = write(tmp_path / "a.csv", rows)
    shown = admit(asks(path, split={"column": "split"}))
    dropped = admit(asks(path, split={"column": "split"}, near={"repeats": "drop"}))
    repeats = sum(pair.kind == "repeat" for pair in shown.near)
    assert repeats >= 1
    assert (shown.deduplicated, dropped.deduplicated) == (0, repeats)
    assert dropped.accepted == 63 - repeats
    for side in SIDES:
        assert {e.key for e in dropped.examples[side]} <= {e.key for e in shown.examples[side]}


def test_one_input_with_many_good_answers_is_no_near_repeat_of_itself(tmp_path, asks, write, clean):
    rows = [{"text": STORY, "label": f"answer {at}"} for at in range(40)]
    rows += [{"text": f"{chr(97 + at % 26) * 9}{at} {at * 7919}", "label": "x"} for at in range(60)]
    spec = asks(write(tmp_path / "a.csv", rows), prompt="{text}", completion="{label}", metric="token_accuracy")
    assert admit(spec).near == ()


def test_words_of_the_template_make_no_two_inputs_alike(tmp_path, asks, write):
    rows = [{"text": f"{chr(97 + at % 26) * 9}{at} {at * 7919}", "label": "ab"[at % 2]} for at in range(80)]
    long = (
        "You answer for a shop that sells kettles, and you are polite. {{rules}} The customer writes: {text}\nYou say:"
    )
    spec = asks(write(tmp_path / "a.csv", rows), prompt=long, completion="{label}")
    admission = admit(spec, judged={long.replace("{{rules}}", "{rules}").format(rules="{rules}", text="zzz"): "old"})
    assert admission.near == ()
    assert [notice.passed for notice in admission.around.notices if notice.name == "no_near_frozen_row"] == [True]
