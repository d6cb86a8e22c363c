from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data import sensitive as room
from tasks.data.door import admit
from tasks.data.examples import key_of
from tasks.data.scripts import script_of
from tasks.data.sensitive import may_be_sensitive, sensitive
from tasks.data.splits import side_of
from tasks.errors import DataRefused
from tasks.specs import SplitSpec


def check(admission, name):
    return next(c for c in (*admission.checks, *admission.around.notices) if c.name == name)


def test_a_class_of_few_rows_is_warned_of_and_refuses_the_set_where_that_is_asked(tmp_path, asks, write, clean):
    rows = clean(300)
    rows[0]["label"] = rows[2]["label"] = "rare"
    path = write(tmp_path / "a.csv", rows)
    admission = admit(asks(path, split={"validation": 0.01, "test": 0.01}))
    assert not check(admission, "every_class_has_enough_train_rows").passed
    assert "'rare' has 2 of 148" in check(admission, "classes_are_balanced").samples
    with pytest.raises(DataRefused) as refused:
        admit(asks(path, split={"validation": 0.01, "test": 0.01}, min_class_rows=3))
    assert [problem.code for problem in refused.value.problems] == ["E-DATA-029"]
    assert "'rare' has 2" in refused.value.problems[0].wrong


def test_a_column_that_nothing_reads_is_told(tmp_path, asks, write, clean):
    rows = [row | {"body": "more", "split": "train" if at > 9 else "test"} for at, row in enumerate(clean(60))]
    admission = admit(asks(write(tmp_path / "a.csv", rows), split={"column": "split"}))
    assert check(admission, "every_column_is_read").samples == ("'body'",)


def test_a_rare_script_is_told_and_kept_out_where_scripts_are_named(tmp_path, asks, write, clean):
    rows = clean(200)
    rows[7]["text"] = "где моя карта"
    path = write(tmp_path / "a.jsonl", rows)
    admission = admit(asks(path))
    told = check(admission, "inputs_share_a_script")
    assert (told.severity, told.passed, told.unexpected) == ("warning", False, 1)
    assert admission.histograms["script"] == {"Latin": 199, "Cyrillic": 1}
    closed = admit(asks(path, scripts=("Latin",)))
    assert [(bad.row, bad.guard) for bad in closed.quarantined] == [(8, "input_is_in_an_allowed_script")]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a", "Latin"),
        ("Ａ", "Latin"),
        ("é?", "Latin"),
        ("漢字", "Han"),
        ("안녕", "Hangul"),
        ("٣", ""),
        ("مرحبا", "Arabic"),
    ],
)
def test_a_script_is_that_of_the_letters(text, script):
    assert script_of(text) == script


KEY = "AKIA" + "IOSFODNN7EXAMPLE"  # the example of Amazon's own documentation, in two parts


def test_secrets_addresses_and_numbers_are_told_by_row_and_never_repeated(tmp_path, asks, write, clean):
    pytest.importorskip("detect_secrets")
    pytest.importorskip("phonenumbers")
    rows = clean(100)
    for at, secret in {3: f"my key is {KEY}", 5: "mail ann.berg@example.org", 7: "call +47 22 22 55 55"}.items():
        rows[at]["text"] = secret
    admission = admit(asks(write(tmp_path / "a.jsonl", rows)))
    told = check(admission, "no_secret_or_personal_data")
    assert (told.severity, told.passed, told.unexpected) == ("warning", False, 3)
    assert [sample.split(":")[0] for sample in told.samples] == ["row 4", "row 6", "row 8"]
    assert not any(secret in str(told) for secret in (KEY, "ann.berg", "22 55"))


def test_inputs_of_several_languages_are_told(tmp_path, asks, write, clean):
    pytest.importorskip("py3langid")
    rows = [
        row | {"text": f"the parcel that I ordered last week has not come to my door {at}"}
        for at, row in enumerate(clean(90))
    ]
    told = check(admit(asks(write(tmp_path / "a.jsonl", rows))), "inputs_share_a_language")
    assert (told.passed, told.evaluated) == (True, 90)
    for at in range(30):
        rows[at]["text"] = f"das Paket, das ich letzte Woche bestellt habe, ist noch nicht angekommen {at}"
    told = check(admit(asks(write(tmp_path / "b.jsonl", rows))), "inputs_share_a_language")
    assert (told.severity, told.passed, told.unexpected, told.samples) == ("warning", False, 30, ("30 in de",))


def test_of_short_inputs_no_language_is_told(tmp_path, asks, write, clean):
    rows = [row | {"text": f"card {at}"} for at, row in enumerate(clean(60))]
    names = [notice.name for notice in admit(asks(write(tmp_path / "a.jsonl", rows))).around.notices]
    assert "inputs_share_a_language" not in names


def test_whatever_a_detector_would_find_is_read_closely():
    pytest.importorskip("detect_secrets")
    detectors = room._secret_detectors()
    forms = [pattern for detector in detectors for pattern in detector.denylist]
    assert len(forms) > 30

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(forms).flatmap(st.from_regex))
    def read(text):
        assert may_be_sensitive(text) or not any(True for d in detectors for _ in d.analyze_string(text))

    read()


@pytest.mark.parametrize("number", ["+47 22 22 55 55", "+1 (212) 555-0188", "+442079460958", "+ 49 30 / 901820"])
def test_whatever_is_a_telephone_number_is_read_closely(number):
    pytest.importorskip("phonenumbers")
    assert sensitive(["nothing", f"call {number} now"]).found == ((1, "telephone number"),)


def test_one_secret_among_many_rows_is_found(clean):
    texts = [f"{row['text']} {at}" for at, row in enumerate(clean(100) * 100)]
    texts[7351] += " ann.berg@example.org"
    assert sensitive(texts)[::2] == (10_000, ((7351, "e-mail address"),))


def test_ordinary_complaints_hold_no_secret(clean):
    assert sensitive([row["text"] for row in clean(300)]).found == ()


def test_without_the_optional_detectors_addresses_are_still_found(monkeypatch):
    for name in ("detect_secrets", "detect_secrets.core.plugins.util", "phonenumbers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(room, "_secret_detectors", room._secret_detectors.__wrapped__)
    monkeypatch.setattr(room, "_phone_matcher", room._phone_matcher.__wrapped__)
    found = sensitive(["nothing", "to ann@example.org"])
    assert (found.kinds, found.found) == (("e-mail address",), ((1, "e-mail address"),))


def test_traffic_that_is_learned_from_is_told(tmp_path, asks, write, clean):
    path = write(tmp_path / "a.csv", clean(100))
    learned = admit(asks(path)).examples["train"][:4]
    admission = admit(asks(path), traffic={f" {example.input.upper()} ": "2026-q1.jsonl" for example in learned})
    told = check(admission, "traffic_is_not_learned_from")
    assert (told.passed, told.unexpected) == (False, 4)
    assert told.samples[0].startswith(f"row {learned[0].row} (train): 1.00 the same as 2026-q1.jsonl: ")
    assert len(admission.examples["train"]) == len(admit(asks(path)).examples["train"]), "it is told, and stays"


def test_a_row_that_is_nearly_a_request_is_told(tmp_path, asks, write, clean):
    rows = clean(100)
    learned = next(at for at, row in enumerate(rows) if side_of(key_of(row["text"]), SplitSpec()) == "train")
    story = "my parcel went from one depot to the next for weeks, and nobody could say to me where it was by now"
    rows[learned]["text"] = next(
        text for n in range(99) if side_of(key_of(text := f"{story} {n}"), SplitSpec()) == "train"
    )
    admission = admit(asks(write(tmp_path / "a.csv", rows)), traffic={story: "the task's traffic"})
    told = check(admission, "traffic_is_not_learned_from")
    assert (told.severity, told.passed, told.unexpected) == ("warning", False, 1)
    assert told.samples[0].startswith(f"row {learned + 2} (train): ")
    assert "the same as the task's traffic" in told.samples[0]


@pytest.mark.parametrize(
    ("wanted", "broken", "rule"),
    [
        ({"target_format": "json"}, "{'a': 1}", "expect_column_values_to_be_json_parseable"),
        ({"target_regex": r"\{.+\}$"}, "none", "expect_column_values_to_match_regex"),
    ],
)
def test_an_answer_of_another_form_is_kept_out(tmp_path, asks, write, wanted, broken, rule):
    rows = [{"text": f"question {at}", "label": '{"n": ' + str(at) + "}"} for at in range(60)]
    rows[4]["label"] = broken
    admission = admit(asks(write(tmp_path / "a.jsonl", rows), prompt="{text}\n", completion="{label}", **wanted))
    assert [(bad.row, bad.guard, bad.field) for bad in admission.quarantined] == [(5, rule, "label")]
