from __future__ import annotations

import pytest

from tasks.data.door import admit
from tasks.data.examples import key_of
from tasks.errors import DataRefused
from tasks.specs import SIDES

TEMPLATE = {"prompt": "Say: {text}\nAnswer now:", "completion": " {label}", "max_tokens": 16}


def words(texts):
    return [len(text.split()) for text in texts]


@pytest.fixture
def path(tmp_path, write, clean):
    rows = clean(80)
    rows[10]["text"] = "long " + "and longer " * 40
    rows[20]["text"] = "endless " * 5000
    return write(tmp_path / "a.jsonl", rows)


def test_a_row_that_is_too_long_refuses_the_set_unless_something_else_is_asked(path, asks):
    with pytest.raises(DataRefused) as refused:
        admit(asks(path, **TEMPLATE), count_tokens=words)
    first, *rows = refused.value.problems
    assert first.code == "E-DATA-030"
    assert "2 of 80 rows are longer than 16 tokens" in first.wrong
    assert [row.where for row in rows] == [f"{path}:11:text", f"{path}:21:text"]


def test_long_rows_are_dropped_and_counted_and_are_not_bad_where_that_is_asked(path, asks):
    admission = admit(asks(path, **TEMPLATE, overlong="drop", max_quarantined=0), count_tokens=words)
    assert [(bad.row, bad.guard) for bad in admission.quarantined] == [
        (11, "example_fits_max_tokens"),
        (21, "example_fits_max_tokens"),
    ]
    assert admission.accepted == 78


def test_a_cut_row_fits_keeps_its_template_and_its_answer_and_is_keyed_by_what_is_read(path, asks):
    admission = admit(asks(path, **TEMPLATE, overlong="truncate"), count_tokens=words)
    assert (admission.truncated, admission.accepted, admission.quarantined) == (2, 80, ())
    cut = {e.row: e for side in SIDES for e in admission.examples[side] if e.row in (11, 21)}
    for example in cut.values():
        assert example.input.startswith("Say: ")
        assert example.input.endswith("\nAnswer now:")
        assert words([example.input])[0] + words([example.target])[0] + 1 <= 16
        assert example.key == key_of(example.input)
    # as much as fits is kept: one word more of the column would be too much
    assert words([cut[11].input])[0] + words([cut[11].target])[0] + 1 == 16


def test_a_row_of_which_nothing_would_be_left_is_kept_out(tmp_path, asks, write, clean):
    rows = clean(80)
    rows[5]["label"] = "an answer of very many words " * 5
    spec = asks(write(tmp_path / "a.jsonl", rows), **TEMPLATE, overlong="truncate")
    admission = admit(spec, count_tokens=words)
    assert [bad.row for bad in admission.quarantined] == [6]
    assert admission.truncated == 0


def test_an_answer_without_a_token_is_kept_out_because_nothing_would_be_learned(tmp_path, asks, write, clean):
    rows = clean(80)
    rows[5]["label"] = "¤"

    def blind(texts):
        return [1 + len(text.replace("¤", "").split()) for text in texts]  # one token stands before every text

    template = {"prompt": "{text}", "completion": "{label}"}
    admission = admit(asks(write(tmp_path / "a.jsonl", rows), **template), count_tokens=blind)
    assert [(bad.row, bad.guard, bad.field) for bad in admission.quarantined] == [(6, "target_has_tokens", "label")]
    assert admission.lengths["train"]["tokens"]["max"] == 1 + 6 + 1 + 1


def test_a_classification_label_costs_no_tokens(tmp_path, asks, write, clean):
    rows = [row | {"label": f"a class of five words {at % 2}"} for at, row in enumerate(clean(60))]
    admission = admit(asks(write(tmp_path / "a.csv", rows), max_tokens=8), count_tokens=words)
    assert admission.lengths["train"]["tokens"]["max"] == 6
