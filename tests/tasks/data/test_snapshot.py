from __future__ import annotations

import json
import shutil

import pytest

from tasks.data.door import admit
from tasks.data.snapshot import read_snapshot, write_snapshot
from tasks.data.validation import great_expectations
from tasks.errors import ArtifactRefused
from tasks.specs import SIDES

FILES = ("examples.parquet", "near.jsonl", "quarantine.jsonl", "report.json", "suite.json")


@pytest.fixture
def admission(tmp_path, asks, write, clean):
    rows = [*clean(120), {"text": "", "label": "fee"}, {"text": "how so", "label": "Fee"}, clean(1)[0]]
    path = write(tmp_path / "rows.csv", rows)
    return admit(asks(path), count_tokens=lambda texts: [len(text.split()) for text in texts])


def test_what_is_written_is_read_back(tmp_path, admission):
    write_snapshot(admission, tmp_path / "snapshot")
    again = read_snapshot(tmp_path / "snapshot")
    for side in SIDES:
        assert again.examples(side) == admission.examples[side]
    for name in (
        "task",
        "kind",
        "source_digest",
        "columns",
        "rows_in",
        "deduplicated",
        "counts",
        "labels",
        "label_counts",
        "lengths",
        "checks",
        "row_unit",
        "filtered",
        "truncated",
        "histograms",
    ):
        assert getattr(again, name) == getattr(admission, name)
    assert again.rows_in == sum(again.counts.values()) + again.quarantined + again.deduplicated == 123


def test_the_same_rows_give_the_same_bytes_wherever_they_lie(tmp_path, asks, admission):
    write_snapshot(admission, tmp_path / "one")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(tmp_path / "rows.csv", tmp_path / "elsewhere" / "rows.csv")
    other = admit(asks(moved), count_tokens=lambda texts: [len(text.split()) for text in texts])
    write_snapshot(other, tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert str(tmp_path).encode() not in (tmp_path / "one" / name).read_bytes()


def test_the_quarantine_file_holds_row_field_reason_and_record(tmp_path, admission):
    write_snapshot(admission, tmp_path / "snapshot")
    lines = [json.loads(line) for line in (tmp_path / "snapshot" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["field"], line["record"]["label"]) for line in lines] == [
        (122, "text", "fee"),
        (123, "label", "Fee"),
    ]
    assert lines[1]["reason"] == "'Fee' is elsewhere 'fee'"
    reasons = read_snapshot(tmp_path / "snapshot").reasons
    assert {(line["guard"], line["rows"]) for line in reasons} == {
        ("expect_column_values_to_match_regex", 1),
        ("label_is_spelt_as_others", 1),
    }


def test_the_suite_beside_the_data_is_a_great_expectations_suite(tmp_path, admission):
    gx, _ = great_expectations()
    write_snapshot(admission, tmp_path / "snapshot")
    suite = gx.ExpectationSuite(**json.loads((tmp_path / "snapshot" / "suite.json").read_text()))
    assert suite.to_json_dict() == admission.suite


def test_counts_per_class_add_up_to_the_sides(admission):
    for side in SIDES:
        assert sum(admission.label_counts[side].values()) == len(admission.examples[side])
        assert admission.lengths[side]["tokens"]["max"] == 6


def test_values_without_json_are_still_written(tmp_path, asks, write, clean):
    import datetime

    rows = [row | {"day": datetime.date(2026, 1, 1), "raw": b"\xff"} for row in clean(60)]
    rows[3]["text"] = None
    admission = admit(asks(write(tmp_path / "a.parquet", rows)))
    write_snapshot(admission, tmp_path / "snapshot")
    (line,) = (tmp_path / "snapshot" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["record"]["day"] == "datetime.date(2026, 1, 1)"


def test_a_snapshot_is_never_written_over(tmp_path, admission):
    write_snapshot(admission, tmp_path / "snapshot")
    with pytest.raises(FileExistsError, match="never written over"):
        write_snapshot(admission, tmp_path / "snapshot")


@pytest.mark.parametrize("damage", ["report.json", "examples.parquet", "format", "field"])
def test_a_folder_that_is_no_snapshot_is_refused(tmp_path, admission, damage):
    folder = tmp_path / "snapshot"
    write_snapshot(admission, folder)
    if damage in FILES:
        (folder / damage).unlink()
    else:
        report = json.loads((folder / "report.json").read_text())
        report |= {"format": 99} if damage == "format" else {"surprise": 1}
        (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ArtifactRefused) as refused:
        read_snapshot(folder)
    assert refused.value.exit_code == 4
