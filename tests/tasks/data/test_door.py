from __future__ import annotations

import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data import door
from tasks.data.door import admit
from tasks.data.examples import key_of
from tasks.data.splits import side_of
from tasks.errors import DataRefused, FactoryError, SpecRefused
from tasks.specs import SIDES, ExpectationSpec, SplitSpec

small = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sides_of(admission):
    return {example.key: side for side in SIDES for example in admission.examples[side]}


def reasons(admission):
    return {bad.row: (bad.guard, bad.field) for bad in admission.quarantined}


def words(texts):
    return [len(text.split()) for text in texts]


# --- what comes in


def test_the_three_formats_of_the_same_rows_give_the_same_examples(tmp_path, asks, write, clean):
    rows = [*clean(60), {"text": "NA", "label": "fee"}, {"text": 'a "b",\nc', "label": "card"}]
    seen = []
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        admission = admit(asks(write(tmp_path / name, rows)))
        seen.append({side: [(e.key, e.input, e.target) for e in admission.examples[side]] for side in SIDES})
        assert (admission.accepted, admission.quarantined, admission.deduplicated) == (62, (), 0)
    assert seen[0] == seen[1] == seen[2]


def test_a_folder_gives_the_rows_of_its_files(tmp_path, asks, write, clean):
    rows = clean(80)
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "1.jsonl", rows[:30])
    write(tmp_path / "set" / "2.jsonl", rows[30:])
    whole, parts = admit(asks(write(tmp_path / "a.jsonl", rows))), admit(asks(tmp_path / "set"))
    assert sides_of(whole) == sides_of(parts)
    assert {e.file for side in SIDES for e in parts.examples[side]} == {"1.jsonl", "2.jsonl"}


@small
@given(st.integers(60, 200), st.integers(1, 120), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_row_never_changes_side_when_data_grows_or_the_seed_changes(
    tmp_path, asks, write, clean, few, more, one, two
):
    before = sides_of(admit(asks(write(tmp_path / "few.csv", clean(few)), seed=one)))
    after = sides_of(admit(asks(write(tmp_path / "all.csv", clean(few + more)[::-1]), seed=two)))
    assert {key: after[key] for key in before} == before
    assert len(after) == few + more


def test_sides_follow_the_hash_of_the_rendered_prompt(tmp_path, asks, write, clean):
    spec = asks(write(tmp_path / "a.csv", clean(100)), prompt="{text}\n=>", completion=" {label}")
    for key, side in sides_of(admit(spec)).items():
        assert side == side_of(key, SplitSpec())
    assert key_of("complaint 7 about a late card\n=>") in sides_of(admit(spec))


def test_declared_sides_are_kept_and_validation_is_cut_from_train_by_hash(tmp_path, asks, write, clean):
    rows = [row | {"split": "Test" if at % 5 == 0 else "train"} for at, row in enumerate(clean(100))]
    admission = admit(asks(write(tmp_path / "a.csv", rows), split={"column": "split", "validation": 0.25}))
    tests = {key_of(row["text"]) for row in rows if row["split"] == "Test"}
    assert {key for key, side in sides_of(admission).items() if side == "test"} == tests
    for key, side in sides_of(admission).items():
        if key not in tests:
            assert side == side_of(key, SplitSpec(validation=0.25, test=0))
    rows[1]["split"] = "dev"
    declared = admit(asks(write(tmp_path / "b.csv", rows), split={"column": "split", "validation": 0.25}))
    assert [e.input for e in declared.examples["validation"]] == [rows[1]["text"]]


def test_local_data_is_admitted_without_a_socket(tmp_path, asks, write, clean, monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert admit(asks(write(tmp_path / "a.csv", clean(40)))).accepted == 40


# --- what stays out

PLANTED = {  # row as JSON, and the guard and field that must find it
    "null": ({"text": None, "label": "fee"}, ("expect_column_values_to_not_be_null", "text")),
    "no such key": ({"label": "fee"}, ("expect_column_values_to_not_be_null", "text")),
    "number": ({"text": 12, "label": "fee"}, ("expect_column_values_to_be_of_type", "text")),
    "decimal": ({"text": 1.5, "label": "fee"}, ("expect_column_values_to_be_of_type", "text")),
    "boolean label": ({"text": "is it", "label": True}, ("expect_column_values_to_be_of_type", "label")),
    "list": ({"text": ["a"], "label": "fee"}, ("expect_column_values_to_be_of_type", "text")),
    "object": ({"text": {"a": {"b": 1}}, "label": "fee"}, ("expect_column_values_to_be_of_type", "text")),
    "empty": ({"text": "", "label": "fee"}, ("expect_column_values_to_match_regex", "text")),
    "blank": ({"text": " \t\u00a0", "label": "fee"}, ("expect_column_values_to_match_regex", "text")),
    "zero width": ({"text": "\u200b\ufeff", "label": "fee"}, ("expect_column_values_to_match_regex", "text")),
    "nul": ({"text": "a\0b", "label": "fee"}, ("expect_column_values_to_not_match_regex", "text")),
    "endless": ({"text": "a" * 20_000, "label": "fee"}, ("example_fits_max_tokens", "text")),
    "too long": ({"text": "word " * 300, "label": "fee"}, ("example_fits_max_tokens", "text")),
    "foreign label": ({"text": "what is this", "label": "Fee "}, ("expect_column_values_to_be_in_set", "label")),
    "contradicted": ({"text": "COMPLAINT 4 about  a late card", "label": "fee"}, ("one_input_one_target", "label")),
    "unknown side": ({"text": "which side", "label": "fee", "split": "holdout"}, ("side_is_known", "split")),
    "leaked": (
        {"text": "Complaint 9 about a late card", "label": "fee", "split": "train"},
        ("one_side_per_input", "text"),
    ),
    "frozen": ({"text": "a frozen question", "label": "fee", "split": "train"}, ("frozen_rows_only_test", "text")),
    "not json": ("{'text': 1}", ("row_is_readable", "")),
}


def test_each_planted_row_is_found_and_no_other(tmp_path, asks, clean):
    rows = [row | {"split": "test" if at < 20 else "dev" if at < 40 else "train"} for at, row in enumerate(clean(200))]
    rows[150]["text"] = "word " * 256  # as long as is allowed
    expected = {5: ("one_input_one_target", "label")}  # the row that "contradicted" contradicts
    lines = [json.dumps(row) for row in rows]
    for row, reason in PLANTED.values():
        lines.append(row if isinstance(row, str) else json.dumps({"split": "train"} | row))
        expected[len(lines)] = reason
    lines.append(json.dumps({"text": "complaint  50 about a late CARD", "label": "card", "split": "train"}))  # a repeat
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    spec = asks(path, labels=("card", "fee"), split={"column": "split"}, max_quarantined=0.2, overlong="drop")
    admission = admit(spec, count_tokens=words, forbidden={key_of("a frozen question"): "2026-q1"})
    assert reasons(admission) == expected
    assert (admission.rows_in, admission.deduplicated, admission.accepted) == (220, 1, 199)
    said = {bad.row: bad.reason for bad in admission.quarantined}
    at = {name: number for number, name in enumerate(PLANTED, start=201)}
    assert "nearest is 'fee'" in said[at["foreign label"]]
    assert "row 5, where the answer is 'card'" in said[at["contradicted"]]
    assert "also in test: same input as row 10" in said[at["leaked"]]
    assert "300 tokens where 256 are allowed" in said[at["too long"]]
    assert "2026-q1" in said[at["frozen"]]
    for name, found in {
        "number": "integer",
        "decimal": "number",
        "boolean label": "boolean",
        "list": "list",
        "object": "object",
    }.items():
        assert said[at[name]].startswith(f"{found} where text is expected")


values = st.one_of(
    st.sampled_from(["a", "b", "A ", "c d", "", " ", "NA", "\u200b", "word " * 40]),
    st.none(),
    st.integers(),
    st.booleans(),
    st.lists(st.text(max_size=1), max_size=1),
)
lines = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": values, "label": st.sampled_from(["card", "fee", "Card", 1, None])}).map(
            json.dumps
        ),
        st.sampled_from(["[]", "{", '{"label": "fee"}', "null"]),
    ),
    min_size=5,
    max_size=60,
)


@settings(small, max_examples=10)
@given(lines)
def test_every_row_that_came_in_is_accounted_for_once(tmp_path, asks, clean, drawn):
    rows = [*map(json.dumps, clean(50)), *drawn]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    admission = admit(asks(path, max_quarantined=1.0), count_tokens=words)
    accepted = [example.row for side in SIDES for example in admission.examples[side]]
    bad = [row.row for row in admission.quarantined]
    assert admission.rows_in == len(rows)
    assert len({*accepted, *bad}) == len(accepted) + len(bad)
    assert len(rows) - len(accepted) - len(bad) == admission.deduplicated
    repeated = [json.loads(rows[row - 1]) for row in range(1, len(rows) + 1) if row not in {*accepted, *bad}]
    kept = {(e.key, e.target) for side in SIDES for e in admission.examples[side]}
    assert all((key_of(row["text"]), row["label"]) in kept for row in repeated)


def test_one_class_spelt_two_ways_is_one_class_with_bad_rows(tmp_path, asks, write, clean):
    rows = [*clean(60), {"text": "how so", "label": "Fee "}]
    admission = admit(asks(write(tmp_path / "a.csv", rows)))
    assert reasons(admission) == {62: ("label_is_spelt_as_others", "label")}
    assert admission.labels == ("card", "fee")


def test_an_input_may_have_many_answers_where_the_metric_does_not_compare_them(tmp_path, asks, write, clean):
    rows = [*clean(60), {"text": "complaint 3 about a late card", "label": "another"}]
    template = {"prompt": "{text}", "completion": " {label}"}
    path = write(tmp_path / "a.csv", rows)
    assert admit(asks(path, metric="token_accuracy", **template)).accepted == 61
    assert reasons(admit(asks(path, metric="exact_match", **template))).keys() == {5, 62}


def test_a_frozen_row_lands_on_the_test_side_or_nowhere(tmp_path, asks, write, clean):
    rows = clean(150)
    frozen = {key_of(row["text"]): "first" for row in rows[::3]}
    admission = admit(asks(write(tmp_path / "a.csv", rows), max_quarantined=0), forbidden=frozen)
    assert {side for key, side in sides_of(admission).items() if key in frozen} <= {"test"}
    out = {key_of(bad.record["text"]) for bad in admission.quarantined}
    assert out == {key for key in frozen if side_of(key, SplitSpec()) != "test"}


# --- what refuses the whole


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n", "\ufeff"])
def test_a_set_without_rows_is_refused_before_anything_else(tmp_path, asks, content, monkeypatch):
    monkeypatch.setattr(door, "suite_for", lambda *_: pytest.fail("an empty set needs no suite"))
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataRefused) as refused:
        admit(asks(path))
    assert refused.value.lines() == [f"E-DATA-005 {path}: it has no rows -> add rows, one example each"]


def test_too_many_bad_rows_are_refused_with_the_count_and_the_first_of_them(tmp_path, asks, write, clean):
    rows = clean(200)
    for at in range(0, 200, 8):
        rows[at]["text"] = ""
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(DataRefused) as refused:
        admit(asks(path, max_quarantined=0.12))
    first, *offenders = refused.value.problems
    assert str(first).startswith(f"E-DATA-006 {path}: 25 of 200 rows are bad (12.5%), above 12.0%")
    assert [problem.where for problem in offenders] == [f"{path}:{at + 2}:text" for at in range(0, 200, 8)]
    assert admit(asks(path, max_quarantined=0.125)).accepted == 175


def test_all_reasons_to_refuse_a_set_come_together(tmp_path, asks, write, clean):
    rows = clean(40)
    for row in rows[:20]:
        row["text"] = " "
    own = (ExpectationSpec(expect="expect_table_row_count_to_equal", arguments={"value": 7}),)
    with pytest.raises(DataRefused) as refused:
        admit(asks(write(tmp_path / "a.csv", rows), split={"validation": 0.001}, expectations=own))
    codes = [problem.code for problem in refused.value.problems]
    assert codes == ["E-DATA-009", "E-DATA-006", "E-DATA-007", "E-DATA-008", *["E-DATA-012"] * 20]
    assert refused.value.lines()[-1] == "... and 4 more"


def test_one_class_is_refused(tmp_path, asks, write, clean):
    rows = [row | {"label": "fee"} for row in clean(60)]
    with pytest.raises(
        DataRefused, match="expect_column_unique_value_count_to_be_between failed: expects min_value=2, found 1"
    ):
        admit(asks(write(tmp_path / "a.csv", rows)))


def test_a_class_that_is_never_taught_is_warned_of(tmp_path, asks, write, clean):
    admission = admit(asks(write(tmp_path / "a.csv", clean(60)), labels=("card", "fee", "loan")))
    (check,) = [check for check in admission.checks if check.name == "every_class_has_train_rows"]
    assert (check.passed, check.severity, check.samples) == (False, "warning", ("'loan'",))


def test_a_critical_rule_of_the_spec_quarantines_and_a_warning_only_says(tmp_path, asks, write, clean):
    path = write(tmp_path / "a.csv", clean(100))
    arguments = {"column": "text", "regex": "complaint [0-9]{2} "}
    own = {
        name: ExpectationSpec(expect="expect_column_values_to_match_regex", severity=name, arguments=arguments)
        for name in ("critical", "warning")
    }
    strict = admit(asks(path, expectations=(own["critical"],), max_quarantined=0.1))
    assert set(reasons(strict)) == set(range(2, 12))
    lenient = admit(asks(path, expectations=(own["warning"],)))
    assert lenient.quarantined == ()
    (check,) = [check for check in lenient.checks if check.severity == "warning" and "regex" in check.name]
    assert (check.passed, check.unexpected, check.evaluated) == (False, 10, 100)
    assert check.samples[0] == "'complaint 0 about a late card'"


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_a_rule_that_could_not_run_refuses_whatever_its_severity(tmp_path, asks, write, clean, severity):
    arguments = {"column": "text", "min_value": 3}
    own = ExpectationSpec(expect="expect_column_values_to_be_between", severity=severity, arguments=arguments)
    with pytest.raises(DataRefused, match=r"E-DATA-010 .*:text: expect_column_values_to_be_between could not run"):
        admit(asks(write(tmp_path / "a.csv", clean(60)), expectations=(own,)))


def test_a_rule_on_an_empty_column_is_no_pass(tmp_path, asks, write, clean):
    path = write(tmp_path / "a.jsonl", [row | {"note": None} for row in clean(60)])
    own = ExpectationSpec(expect="expect_column_values_to_be_in_set", arguments={"column": "note", "value_set": ["a"]})
    with pytest.raises(
        DataRefused, match=r"E-DATA-010 .*:note: expect_column_values_to_be_in_set could not run: it saw no"
    ):
        admit(asks(path, expectations=(own,)))


def test_a_closed_set_that_no_column_must_lie_in_is_refused_before_reading(asks):
    with pytest.raises(SpecRefused) as refused:
        admit(asks("/nowhere.csv", prompt="{text}", completion=" {label}", labels=("a", "b")))
    assert [problem.where for problem in refused.value.problems] == ["data.labels"]


def test_a_row_lost_on_the_way_is_a_bug_and_says_so(tmp_path, asks, write, clean, monkeypatch):
    honest = door.settled

    def forgetful(placed, **how):
        kept = honest(placed, **how)
        return kept._replace(rows=kept.rows[1:])

    monkeypatch.setattr(door, "settled", forgetful)
    with pytest.raises(FactoryError) as refused:
        admit(asks(write(tmp_path / "a.csv", clean(60))))
    assert refused.value.exit_code == 70
    assert "60 rows came in and 59 are accounted for" in str(refused.value)


def test_a_tokenizer_that_forgets_a_text_is_not_believed(tmp_path, asks, write, clean):
    with pytest.raises(ValueError, match="shorter"):
        admit(asks(write(tmp_path / "a.csv", clean(60))), count_tokens=lambda texts: words(texts)[1:])


@pytest.mark.realdata
def test_the_seven_leaks_of_banking77_are_found(asks):
    import os
    from pathlib import Path

    if "FACTORY_DATA" not in os.environ:
        pytest.skip("FACTORY_DATA names no folder of public data sets")
    admission = admit(asks(Path(os.environ["FACTORY_DATA"]).absolute() / "banking77", split={"column": "split"}))
    assert [bad.guard for bad in admission.quarantined] == ["one_side_per_input"] * 7
    assert len(admission.labels) == 77
