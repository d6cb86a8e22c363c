from __future__ import annotations

import csv
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tasks.drift.traffic import SetAside, TrafficRow, newest, read_traffic, traffic_rows
from tasks.drift.traffic_files import LONGEST_LINE_BYTES
from tasks.errors import DataRefused

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def record(number: int, **changes: object) -> dict[str, object]:
    day = NOW - timedelta(days=number % 20)
    row = {"id": f"e{number}", "time": day.isoformat(), "source": f"shop-{number % 3}", "message": f"where is {number}"}
    return {**row, "label": "delivery", **changes}


def jsonl(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def read(path: Path):
    return read_traffic(path, inputs=["message"], now=NOW)


def test_a_row_becomes_a_value_with_a_time_in_utc(tmp_path: Path) -> None:
    row = record(1, time="2026-02-03T04:05:06+02:00", confidence=0.5, note="", more=None)
    (found,) = read(jsonl(tmp_path / "a.jsonl", row)).rows
    columns = {"message": "where is 1", "label": "delivery", "confidence": "0.5"}
    assert found == TrafficRow("e1", datetime(2026, 2, 3, 2, 5, 6, tzinfo=UTC), "shop-1", columns)


@pytest.mark.parametrize(
    "time", ["2026-02-03T00:00:00Z", "2026-02-03", "2026-02-03 00:00:00", 1770076800, "1770076800.0"]
)
def test_a_time_may_be_written_in_several_ways(time: object, tmp_path: Path) -> None:
    (found,) = read(jsonl(tmp_path / "a.jsonl", record(1, time=time))).rows
    assert found.time == datetime(2026, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ('{"id": "e1", "time": "2026-0', "", "not valid JSON"),
        ("[1, 2]", "", "a JSON object is expected, found list"),
        ("[" * 100_000, "", "not valid JSON"),
        (record(1, id=""), "id", "missing"),
        (record(1, id=None), "id", "missing"),
        (record(1, time=""), "time", "missing"),
        (record(1, time="soon"), "time", "neither ISO 8601"),
        (record(1, time="1e400"), "time", "neither ISO 8601"),
        (record(1, time="0001-01-01T00:00:00+14:00"), "time", "neither ISO 8601"),
        (record(1, time="1970-01-01"), "time", "is not between 2000-01-01"),
        (record(1, time="2026-03-03"), "time", "a day after now"),
        (record(1, message=None), "message", "missing"),
        (record(1, message={"text": "hi"}), "message", "found dict"),
        (record(1, message="a\0b"), "message", "a NUL character"),
        ('{"id": "e1", "time": "2026-02-03", "message": "a", "\\ud800": 1}', "", "the name of a column"),
        ('{"id": "e1", "time": "2026-02-03", "message": NaN}', "message", "is not a number"),
        (record(1, message="x" * 1_000_001), "message", "1,000,001 characters"),
        ('{"id": "e1", "time": "2026-02-03", "message": "\\ud800"}', "message", "not valid UTF-8"),
    ],
)
def test_a_malformed_line_is_set_aside_with_its_number_and_reason(
    line: object, field: str, reason: str, tmp_path: Path
) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", record(7), line, record(8)))
    assert [row.id for row in found.rows] == ["e7", "e8"]
    (aside,) = found.set_aside
    assert (aside.row, aside.field) == (2, field)
    assert reason in aside.reason


def test_an_invalid_byte_and_an_endless_line_cost_only_their_row(tmp_path: Path) -> None:
    good = json.dumps(record(1)).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + good
        + b"\r\n"
        + b'{"id": "\xff"}\n'
        + b"["
        + b" " * (17 * 2**20)
        + b"]\n\n"
        + json.dumps(record(2)).encode()
    )
    found = read(path)
    assert [row.id for row in found.rows] == ["e1", "e2"]
    assert [(one.row, one.reason) for one in found.set_aside] == [
        (2, "not valid UTF-8 at byte 9 of the line"),
        (3, "a line of more than 16 MiB"),
    ]


def test_counts_are_conserved_whatever_is_broken(tmp_path: Path) -> None:
    chance = random.Random(0)
    for trial in range(30):
        lines: list[object] = []
        for _ in range(60):
            kind = chance.randrange(5)
            number = chance.randrange(40)
            lines.append(
                [
                    record(number),
                    record(number, label=""),
                    record(number, label="other"),
                    "{",
                    record(number, time="?"),
                ][kind]
            )
        found = read(jsonl(tmp_path / f"{trial}.jsonl", *lines))
        assert found.rows_in == len(lines) == len(found.rows) + len(found.set_aside) + found.repeated
        assert len({row.id for row in found.rows}) == len(found.rows)


def test_the_order_of_rows_changes_nothing_but_the_order(tmp_path: Path) -> None:
    lines = [record(number) for number in range(50)] + [record(number) for number in range(10)]
    straight = read(jsonl(tmp_path / "a.jsonl", *lines))
    random.Random(1).shuffle(lines)
    shuffled = read(jsonl(tmp_path / "b.jsonl", *lines))
    key = lambda row: row.id  # noqa: E731 - the same key twice
    assert sorted(straight.rows, key=key) == sorted(shuffled.rows, key=key)
    assert straight.repeated == shuffled.repeated == 10


def test_reading_a_file_three_times_over_is_reading_it_once(tmp_path: Path) -> None:
    lines = [record(number) for number in range(20)]
    once, thrice = read(jsonl(tmp_path / "a.jsonl", *lines)), read(jsonl(tmp_path / "b.jsonl", *lines, *lines, *lines))
    assert once.rows == thrice.rows
    assert thrice.repeated == 40


def test_a_label_that_becomes_known_later_is_taken_whichever_row_comes_first(tmp_path: Path) -> None:
    for name, lines in (("a", [record(1, label=None), record(1)]), ("b", [record(1), record(1, label=None)])):
        found = read(jsonl(tmp_path / f"{name}.jsonl", *lines))
        assert [row.columns["label"] for row in found.rows] == ["delivery"]
        assert (found.repeated, found.late) == (1, int(name == "a"))


def test_a_second_row_of_one_id_that_says_otherwise_is_set_aside(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", record(1), record(1, label="refund"), record(1, time="2026-01-01")))
    assert [row.columns["label"] for row in found.rows] == ["delivery"]
    assert found.set_aside == (
        SetAside(2, "label", "id 'e1' came before with another label", NOW - timedelta(days=1)),
        SetAside(3, "time", "id 'e1' came before with another time", datetime(2026, 1, 1, tzinfo=UTC)),
    )


def test_the_three_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    records = [record(number) for number in range(30)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, records[0].keys())
        writer.writeheader()
        writer.writerows(records)
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    from_lines = read(jsonl(tmp_path / "a.jsonl", *records))
    assert read(tmp_path / "a.csv") == read(tmp_path / "a.parquet") == from_lines
    assert len(from_lines.rows) == 30


def test_times_of_a_parquet_column_are_read_as_they_are(tmp_path: Path) -> None:
    times = pa.array([NOW, NOW - timedelta(hours=5)], pa.timestamp("us", "UTC"))
    parquet.write_table(pa.table({"id": ["a", "b"], "time": times, "message": ["x", "y"]}), tmp_path / "a.parquet")
    assert [row.time for row in read(tmp_path / "a.parquet").rows] == [NOW, NOW - timedelta(hours=5)]


def test_a_csv_row_of_another_width_or_encoding_is_set_aside_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'id,time,message\ne1,2026-02-01,"two\nlines"\ne2,2026-02-01\ne3,2026-02-01,\xff\ne4,2026-02-01,\n'
    )
    found = read(path)
    assert [(row.id, row.columns["message"]) for row in found.rows] == [("e1", "two\nlines"), ("e4", "")]
    assert [(one.row, one.field, one.reason) for one in found.set_aside] == [
        (4, "", "2 values for 3 columns"),
        (5, "message", "not valid UTF-8"),
    ]


def test_a_long_value_of_a_csv_file_is_read_whatever_else_the_process_has_read(tmp_path: Path) -> None:
    path, before = tmp_path / "a.csv", csv.field_size_limit(1000)
    path.write_text(f"id,time,message\ne1,2026-02-01,{'x' * 200_000}\ne2,2026-02-01,{'x' * 1_000_001}\n")
    try:
        found = read(path)
    finally:
        csv.field_size_limit(before)
    assert [len(row.columns["message"]) for row in found.rows] == [200_000]
    assert [one.reason for one in found.set_aside] == ["1,000,001 characters, at most 1,000,000 are read"]


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("a.txt", b"", "E-DRIFT-002", ".jsonl, .csv, .parquet"),
        ("b.jsonl", None, "E-DRIFT-003", "no such file"),
        ("c.csv", b"id,when,message\n1,2,3\n", "E-DRIFT-004", "no column time; found id, when, message"),
        ("d.csv", b"id,time,message,id\n", "E-DRIFT-004", "column id is there twice"),
        ("e.parquet", b"not a table", "E-DRIFT-005", "not readable as Parquet"),
        ("f.csv", bytes(range(256)) * 9, "E-DRIFT-005", "not readable as CSV (its first line is no UTF-8 text)"),
        ("g.csv", "id,time,message\n".encode("utf-16"), "E-DRIFT-005", "its first line is no UTF-8 text"),
        ("h.csv", b"x" * (LONGEST_LINE_BYTES + 1), "E-DRIFT-005", "not readable as CSV (field larger than"),
        ("i.csv", b'id,when,"a\nb",message\n', "E-DRIFT-004", "found id, when, a?b, message"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(
    name: str, content: bytes | None, code: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataRefused) as refusal:
        read(path)
    assert refusal.value.exit_code == 3
    (line,) = refusal.value.lines()
    assert line.startswith(f"{code} {path}: ")
    assert says in line


def column(values: pa.Array) -> pa.Table:
    return pa.table({"id": ["a", "b"], "time": ["2026-02-01"] * 2, "message": ["x", "y"], "more": values})


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        (pa.array([["a"], ["b"]]), "E-DRIFT-006", "column more holds list<"),
        (pa.array([{"a": 1}, None]), "E-DRIFT-006", "column more holds struct<a: int64>"),
        (pa.array([2**40] * 2, pa.timestamp("s")), "E-DRIFT-005", "not readable as Parquet"),
        (pa.array([2**30] * 2, pa.date32()), "E-DRIFT-005", "not readable as Parquet"),
        (pa.array([0, 1], pa.timestamp("us", "No/Where")), "E-DRIFT-005", "No/Where"),
        (
            pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"b"], pa.binary()).buffers()),
            "E-DRIFT-005",
            "can't decode byte",
        ),
    ],
)
def test_a_parquet_file_whose_values_cannot_be_read_is_refused_in_one_line(
    values: pa.Array, code: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(column(values), path)
    with pytest.raises(DataRefused) as refusal:
        read(path)
    (line,) = refusal.value.lines()
    assert line.startswith(f"{code} {path}: ")
    assert says in line
    assert line.isprintable()


def test_a_parquet_file_that_was_cut_or_changed_anywhere_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([record(n) for n in range(9)]), tmp_path / "whole.parquet")
    whole, chance, path = (tmp_path / "whole.parquet").read_bytes(), random.Random(0), tmp_path / "a.parquet"
    for trial in range(150):
        harmed = bytearray(whole)
        for _ in range(1 + trial % 4):
            harmed[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(whole[: chance.randrange(len(whole))] if trial % 3 == 0 else harmed)
        try:
            read(path)
        except DataRefused as refusal:
            (line,) = refusal.lines()
            assert line.isprintable()


def test_rows_stream_one_at_a_time(tmp_path: Path) -> None:
    """The first row is there before the second line is looked at."""
    path = jsonl(tmp_path / "a.jsonl", record(1), "{")
    stream = traffic_rows(path, inputs=["message"], now=NOW)
    number, row = next(stream)
    assert (number, row.id) == (1, "e1")
    assert isinstance(next(stream), SetAside)


def test_no_sender_fills_a_window_alone() -> None:
    rows = [TrafficRow(f"bot{n}", NOW - timedelta(minutes=n), "bot", {}) for n in range(500)]
    rows += [TrafficRow(f"shop{n}", NOW - timedelta(days=1, minutes=n), f"shop-{n % 9}", {}) for n in range(200)]
    taken = newest(rows, 300, per_source=150)
    assert len(taken) == 300
    assert sum(row.source == "bot" for row in taken) == 150
    assert [row.time for row in taken] == sorted(row.time for row in taken)
    everyone = newest(rows, 300)
    assert {row.id for row in everyone} == {f"bot{n}" for n in range(300)}


def test_a_sender_that_was_last_heard_of_long_ago_takes_no_room_from_the_one_that_is_left() -> None:
    rows = [TrafficRow(f"{n}", NOW - timedelta(minutes=n), "ab"[n == 200], {}) for n in range(201)]
    assert [row.id for row in newest(rows, 10, per_source=5)] == [f"{n}" for n in reversed(range(10))]
    assert [row.source for row in newest(rows, 11, per_source=5)] == ["b", *["a"] * 5]


def test_a_row_that_only_brings_a_label_is_joined_with_its_request_whichever_comes_first(tmp_path: Path) -> None:
    asked = [record(n, label=None) for n in range(6)]
    labels = [{"id": f"e{n}", "label": "delivery"} for n in range(8)]
    rows = [*labels[:3], *asked, *labels[3:], *labels[5:7]]
    found = read_traffic(jsonl(tmp_path / "a.jsonl", *rows), inputs=["message"], now=NOW, truth=["label"])
    whole = read_traffic(
        jsonl(tmp_path / "b.jsonl", *map(record, range(6))), inputs=["message"], now=NOW, truth=["label"]
    )
    assert {row.id: row for row in found.rows} == {row.id: row for row in whole.rows}
    assert (found.labels, found.waiting, found.set_aside, found.rows_in) == (10, 2, (), len(rows))
    other = read_traffic(
        jsonl(tmp_path / "c.jsonl", record(1), {"id": "e1", "label": "refund"}),
        inputs=["message"],
        now=NOW,
        truth=["label"],
    )
    assert [(one.row, one.field, one.time) for one in other.set_aside] == [(2, "label", NOW - timedelta(days=1))]


def test_a_malformed_row_came_at_its_own_time_or_with_the_row_before_it(tmp_path: Path) -> None:
    old, new = "2026-01-01", "2026-02-01"
    rows = ["{", record(1, time=old), "{", record(2, message=None, time=new), record(3, time=new), "{"]
    found = read(jsonl(tmp_path / "a.jsonl", *rows, record(4, message=None, time=old), record(4, time=new)))
    days = [NOW, *(datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 2, 1))]
    assert [one.time for one in found.set_aside] == days
    assert [one.id for one in found.set_aside] == ["", "", "e2", "", "e4"]
    assert found.malformed(None) == 4  # e4 came well-formed, too
    assert found.malformed(datetime(2026, 2, 1, tzinfo=UTC)) == 3
