from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import reading
from tasks.data.formats import MAX_COLUMNS, MAX_LINE_BYTES
from tasks.data.reading import read_rows
from tasks.errors import DataRefused, DependencyDown, SpecRefused
from tasks.specs import DataSpec

PIN = "0123456789abcdef0123456789abcdef01234567"


def read(path, **data):
    return read_rows(DataSpec(source=str(path), **data))


def file_with(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TRICKY = [
    {"text": "NA", "label": "null"},
    {"text": 'say "no", twice', "label": "None"},
    {"text": "line one\nline two", "label": "1"},
    {"text": "héllo 漢字 🙂", "label": "true"},
    {"text": " padded ", "label": "NaN"},
]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_text_comes_out_of_each_format_as_it_went_in(tmp_path, write, name):
    rows = read(write(tmp_path / name, TRICKY))
    assert rows.records == TRICKY
    assert rows.columns == ("text", "label")
    assert rows.malformed == ()


def test_rows_are_numbered_by_line_where_lines_exist_and_by_record_where_not(tmp_path, write):
    csv = read(write(tmp_path / "a.csv", TRICKY))
    jsonl = read(write(tmp_path / "a.jsonl", TRICKY))
    parquet = read(write(tmp_path / "a.parquet", TRICKY))
    assert [row for _, row in csv.places] == [2, 3, 4, 6, 7]  # the third record holds a line break
    assert [row for _, row in jsonl.places] == [1, 2, 3, 4, 5]
    assert [row for _, row in parquet.places] == [1, 2, 3, 4, 5]
    assert (csv.unit, jsonl.unit, parquet.unit) == ("line", "line", "record")
    assert parquet.where("a.parquet", 2, "text") == f"{tmp_path}/a.parquet:record 2:text"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_the_digest_is_that_of_the_file(tmp_path, write, name):
    path = write(tmp_path / name, TRICKY)
    assert read(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_folder_is_that_of_its_checksum_list(tmp_path, write):
    (tmp_path / "set" / "b").mkdir(parents=True)
    first = write(tmp_path / "set" / "b" / "part.jsonl", TRICKY[:2])
    second = write(tmp_path / "set" / "a.jsonl", TRICKY[2:])
    file_with(tmp_path / "set", "README.md", "not data")
    file_with(tmp_path / "set", ".hidden.csv", "not,data\n")
    rows = read(tmp_path / "set")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {n}\n"
        for p, n in ((second, "a.jsonl"), (first, "b/part.jsonl"))
    ]
    assert rows.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert rows.records == TRICKY[2:] + TRICKY[:2]
    assert rows.places == [("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b/part.jsonl", 1), ("b/part.jsonl", 2)]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    plain = file_with(tmp_path, "plain.csv", "text,label\na,x\nb,y\n")
    windows = file_with(tmp_path, "windows.csv", b"\xef\xbb\xbftext,label\r\na,x\r\n\r\nb,y\r\n")
    lines = file_with(
        tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a", "label": "x"}\r\n\r\n{"text": "b", "label": "y"}'
    )
    assert read(plain).records == read(windows).records == read(lines).records
    assert read(windows).columns == ("text", "label")


def test_where_keeps_equal_text_and_counts_the_rest_apart(tmp_path, write):
    rows = [{"text": "a", "part": "x"}, {"text": "b", "part": "X"}, {"text": "c", "part": "x"}, {"text": "d"}]
    found = read(write(tmp_path / "a.jsonl", rows), where={"part": "x"})
    assert [record["text"] for record in found.records] == ["a", "c"]
    assert (found.rows_in, found.filtered) == (2, 2)
    assert [row for _, row in found.places] == [1, 3]


def test_where_that_nothing_meets_is_told_what_there_is(tmp_path, write):
    path = write(tmp_path / "a.jsonl", [{"part": "card"}, {"part": "fee"}])
    with pytest.raises(DataRefused, match="'card', 'fee'"):
        read(path, where={"part": "loan"})
    with pytest.raises(DataRefused, match="column 'topic' missing; found 'part'"):
        read(path, where={"topic": "loan"})


BAD_LINES = {  # a line of JSONL, and what must be said of it
    "[1, 2]": "list where an object is expected",
    '"text"': "text where an object is expected",
    '{"text": "cut': "Invalid control character",
    '{"a": 1, "a": 2}': "'a' stands twice",
    '{"n": NaN}': "NaN is not JSON",
    '{"n": -Infinity}': "-Infinity is not JSON",
    '{"t": "\\ud83d"}': "half a surrogate pair",
    "[" * 100_000: "too deep",
    '{"n": ' + "9" * 5_000 + "}": "digits",
}


def test_a_line_that_is_no_object_is_quarantined_with_its_number(tmp_path):
    lines = ['{"t": "fine"}', "", *BAD_LINES, '{"t": "\\ud83d\\ude00"}', "  ", '{"t": "also fine"}']
    found = read(file_with(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [(bad.row, bad.file) for bad in found.malformed] == [(at, "a.jsonl") for at in range(3, 3 + len(BAD_LINES))]
    for bad, said in zip(found.malformed, BAD_LINES.values(), strict=True):
        assert said in bad.reason
    assert [record["t"] for record in found.records] == ["fine", "😀", "also fine"]
    assert found.rows_in == 3 + len(BAD_LINES)


def test_a_row_with_another_number_of_fields_is_quarantined_with_its_line(tmp_path):
    found = read(file_with(tmp_path, "a.csv", 'text,label\n"two\nlines",x\nshort\n\nlong,x,y\nfine,y\n'))
    assert [(bad.row, bad.reason) for bad in found.malformed] == [
        (4, "1 fields where the header has 2"),
        (6, "3 fields where the header has 2"),
    ]
    assert found.records == [{"text": "two\nlines", "label": "x"}, {"text": "fine", "label": "y"}]
    assert found.rows_in == 4


REFUSED = {
    "latin-1": ("a.csv", b"text,label\nfine,x\ncaf\xe9,y\n", "002", ":3: byte 0xe9 at offset 21 "),
    "cut utf-8": ("a.jsonl", b'{"text": "\xe6\xbc', "002", ":1: byte 0xe6 at offset 10 "),
    "utf-16": ("a.csv", "text,label\na,x\n".encode("utf-16"), "002", ":1: this is UTF-16"),
    "utf-16 without a mark": ("a.csv", "text\n".encode("utf-16-le"), "002", ":1: NUL byte at offset 1 "),
    "nul": ("a.csv", b"text,label\na,x\nb\0,y\n", "002", ":3: NUL byte at offset 16 "),
    "gzip": ("a.csv", b"\x1f\x8b\x08\x00\x00", "002", ":1: this is gzip"),
    "parquet by another name": ("a.csv", b"PAR1\x15\x04", "002", ":1: this is Parquet"),
    "unclosed quote": ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', "003", ":3: not closed or badly quoted (line 4)"),
    "quote closed too late": ("a.csv", 'text,label\n"a,x\n"b",y\n', "003", ":2: not closed or badly quoted (line 3)"),
    "column twice": ("a.csv", "text,label,text\na,x,b\n", "003", ":1: column named twice: 'text'"),
    "too many columns": ("a.csv", ",".join(map(str, range(100_000))) + "\n", "003", ":1: 100,000 columns"),
    "too many keys": (
        "a.jsonl",
        json.dumps(dict.fromkeys(map(str, range(MAX_COLUMNS + 1)))),
        "003",
        ":1: 1,001 columns",
    ),
    "long line": ("a.jsonl", '{"text": "ok"}\n' + "a" * (MAX_LINE_BYTES + 1), "003", ":2: the line is longer than"),
    "long cell": ("a.csv", 'text\n"' + "a\n" * MAX_LINE_BYTES + '"', "003", ":2: not closed or badly quoted"),
    "no parquet": ("a.parquet", b"PAR1 not really PAR1", "003", ": not a readable Parquet file"),
    "empty parquet": ("a.parquet", b"", "003", ": not a readable Parquet file"),
    "other format": ("a.csv.gz", b"\x1f\x8b", "001", ": the ending of 'a.csv.gz' names no data format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_trusted_is_refused_with_its_place(tmp_path, case):
    name, content, number, said = REFUSED[case]
    path = file_with(tmp_path, name, content)
    with pytest.raises(DataRefused) as refused:
        read(path)
    (line,) = refused.value.lines()
    assert line.startswith(f"E-DATA-{number} {path}{said}")
    assert refused.value.exit_code == 3


def test_an_endless_line_is_refused_in_little_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)  # two gigabytes without a line end, and without disk
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(DataRefused, match=":1: the line is longer than"):
            read(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * 1024**2
    assert time.monotonic() - started < 2


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "device.csv"):
        with pytest.raises(DataRefused, match="not a regular file"):
            read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.csv", "none", "no/such.jsonl"):
        with pytest.raises(DataRefused) as refused:
            read(tmp_path / name)
        assert str(refused.value).startswith(f"E-DATA-001 {tmp_path / name}: no such file or directory")


def test_a_file_without_permission_is_named(tmp_path):
    path = file_with(tmp_path, "a.csv", "text\n")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything, so ask as nobody
        os.seteuid(65534)
    try:
        with pytest.raises(DataRefused, match=r"a\.csv: permission denied"):
            read(path)
    finally:
        os.seteuid(user)


def test_a_folder_holds_files_of_one_format_and_none_from_outside(tmp_path, write):
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(DataRefused, match="holds no data file"):
        read(folder)
    write(folder / "a.csv", TRICKY)
    outside = write(tmp_path / "b.csv", TRICKY)
    (folder / "link.csv").symlink_to(outside)
    with pytest.raises(DataRefused, match=r"link\.csv: a link that leads out"):
        read(folder)
    (folder / "link.csv").unlink()
    write(folder / "b.parquet", TRICKY)
    with pytest.raises(DataRefused, match="mixes CSV and Parquet"):
        read(folder)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, write, monkeypatch):
    path = write(tmp_path / "a.csv", TRICKY)
    name, reader, unit = reading.FORMATS[".csv"]

    def read_while_another_writes(stream, *places):
        parsed = reader(stream, *places)
        with path.open("a") as file:
            file.write("late,row\n")
        return parsed

    monkeypatch.setattr(reading, "FORMATS", {".csv": (name, read_while_another_writes, unit)})
    with pytest.raises(DataRefused, match="changed while it was read"):
        read(path)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["a.csv", "a.jsonl", "a.parquet"]),
    st.floats(0, 1),
    st.integers(0, 40),
    st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"\n", b",", b"\xff\xfe", b"{", b"\\ud8", b"\r"])),
)
def test_a_damaged_file_gives_rows_or_one_clear_refusal(tmp_path_factory, write, name, at, removed, inserted):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    path = write(folder / name, TRICKY * 3)
    content = path.read_bytes()
    start = int(at * len(content))
    path.write_bytes(content[:start] + inserted + content[start + removed :])
    with contextlib.suppress(DataRefused):
        rows = read(path)
        assert rows.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert len(rows.places) == len(rows.records)
        if name == "a.jsonl":
            text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
            assert rows.rows_in == sum(1 for line in text.split("\n") if line.strip())


# --- the hub


def test_a_hub_id_needs_a_pinned_revision_and_a_path_takes_none(tmp_path, write):
    with pytest.raises(SpecRefused, match=r"E-SPEC-032 data.revision"):
        read("owner/name")
    with pytest.raises(SpecRefused, match=r"write \./rows\.csv for a path"):
        read("rows.csv")
    with pytest.raises(SpecRefused, match="E-SPEC-033"):
        read("a/b/c", revision=PIN)
    with pytest.raises(SpecRefused, match="E-SPEC-031"):
        read(write(tmp_path / "a.csv", TRICKY), revision=PIN)


def test_a_hub_that_cannot_be_reached_is_a_dependency_that_is_down(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DependencyDown) as refused:
        read("nobody/nothing", revision=PIN)
    assert refused.value.exit_code == 7
    assert f"nobody/nothing@{PIN}" in str(refused.value)


def test_rows_of_the_hub_name_their_split_and_their_classes(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["card", "fee"])}
    )
    train = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    test = datasets.Dataset.from_dict({"text": ["c"], "label": [None]}, features=features)
    asked = {}

    def load(name, **how):
        asked.update(name=name, **how)
        return datasets.DatasetDict(train=train, test=test)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read("owner/name", revision=PIN)
    assert asked == {"name": "owner/name", "revision": PIN}
    assert rows.records == [
        {"text": "a", "label": "fee", "split": "train"},
        {"text": "b", "label": "card", "split": "train"},
        {"text": "c", "label": None, "split": "test"},
    ]
    assert rows.places == [("train", 1), ("train", 2), ("test", 1)]
    assert rows.source == f"owner/name@{PIN}"
    witness = "".join(json.dumps(record) for record in rows.records)
    assert rows.digest == hashlib.sha256(witness.encode()).hexdigest()


@pytest.mark.parametrize("error", ["DatasetNotFoundError", "DataFilesNotFoundError"])
def test_a_data_set_that_the_hub_does_not_have_is_refused(monkeypatch, error):
    datasets = pytest.importorskip("datasets")

    def load(name, **how):
        raise getattr(datasets.exceptions, error)("not there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataRefused, match="not there"):
        read("owner/name", revision=PIN)


def test_reading_needs_no_heavy_library(tmp_path):
    path = file_with(tmp_path, "a.csv", "text,label\na,x\n")
    code = (
        "import sys, tasks.data.door, tasks.data.snapshot, tasks.data.reading as reading, tasks.specs as specs;"
        f"reading.read_rows(specs.DataSpec(source={str(path)!r}));"
        "heavy = ('great_expectations', 'pandas', 'pyarrow', 'torch', 'datasets', 'mlflow');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
