"""Every bad file is one clear line with its place, in little time and memory, and nothing is written."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.data.door import admit
from tasks.data.early import refuse_early
from tasks.data.guess import spec_of_file
from tasks.errors import DataRefused, FactoryError

SECONDS, MEGABYTES = 2.0, 500
GOOD = [{"text": f"complaint {at} about a late card", "label": ("card", "fee")[at % 2]} for at in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD)
TABLE = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in GOOD)


def replaced(**values):
    """The good rows with every third one changed."""
    return "".join(json.dumps(row | values if at % 3 == 0 else row) + "\n" for at, row in enumerate(GOOD))


def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000, pa.int32()), pa.array(["a" * 900_000]))
    labels = pa.array(["a", "b"] * 30_000)
    pq.write_table(pa.table({"text": bomb, "label": labels}), path)


# name of the file, its content (or what makes it), and what the line must hold beside the file
BAD = {
    "0 bytes": ("a.csv", "", "E-DATA-005 {}: it has no rows"),
    "header only": ("a.csv", "text,label\n", "E-DATA-005 {}: it has no rows"),
    "latin-1": ("a.csv", TABLE.encode() + b"caf\xe9,fee\n", f"{{}}:42: byte 0xe9 at offset {len(TABLE) + 3}"),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), "{}:1: this is UTF-16"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), "{}:1: NUL byte at offset 1"),
    "invalid byte": ("a.jsonl", LINES.encode() + b'{"t": "\xff"}\n', f"{{}}:41: byte 0xff at offset {len(LINES) + 7}"),
    "NUL": ("a.csv", TABLE.encode() + b"a\0b,fee\n", f"{{}}:42: NUL byte at offset {len(TABLE) + 1}"),
    "unclosed quote": ("a.csv", TABLE + '"never closed,fee\n' + "more,fee\n" * 50, "{}:42: not closed or badly quoted"),
    "a row of 1e6 characters": ("a.jsonl", LINES + '{"text": "' + "a" * 10**6 + '"}\n', "{}:41: the line is longer"),
    "1e5 columns": ("a.csv", ",".join(f"c{at}" for at in range(10**5)) + "\n" + "x\n" * 50, "{}:1: 100,000 columns"),
    "mixed types": ("a.jsonl", replaced(text=12), "{}:1:text: integer where text is expected: 12"),
    "nested objects": ("a.jsonl", replaced(text={"a": {"b": [1]}}), "{}:1:text: object where text is expected"),
    "a boolean label": ("a.jsonl", replaced(label=True), "{}:1:label: boolean where text is expected: True"),
    "column named twice": ("a.csv", "text,text,label\n" + "a,b,c\n" * 50, "{}:1: column named twice: 'text'"),
    "key named twice": ("a.jsonl", '{"text": "a", "text": "b"}\n' * 50, "{}:1: not one JSON object: key 'text'"),
    "missing column": ("a.csv", "text,lable\n" + "a,b\n" * 50, "'lable'"),
    "white space": ("a.jsonl", replaced(text=" \t\u00a0"), "{}:1:text: no visible character"),
    "zero width": ("a.jsonl", replaced(text="\u200b\u2060\ufeff"), "{}:1:text: no visible character"),
    "null": ("a.jsonl", replaced(text=None), "{}:1:text: null where text is expected"),
    "gzip bomb": ("a.csv", gzip.compress(b"0" * 10**8), "{}:1: this is gzip"),
    "gzip bomb by its name": ("a.csv.gz", gzip.compress(b"0" * 10**8), "names no data format"),
    "Parquet bomb": ("a.parquet", parquet, "{}: it unfolds to more than"),
    "Parquet cut short": ("a.parquet", b"PAR1" + b"\0" * 100, "{}: not a readable Parquet file"),
    "Arrow cut short": ("a.arrow", b"ARROW1\0\0" + b"\0" * 100, "{}: not a readable Arrow file"),
    "FIFO": ("a.jsonl", os.mkfifo, "{}: not a regular file"),
    "device": ("a.csv", lambda path: path.symlink_to("/dev/zero"), "{}: not a regular file"),
    "a 2 GB line": ("a.jsonl", lambda path: sparse(path, 2 * 2**30), "{}:1: "),
    "no such file": ("a.csv", lambda path: None, "{}: no such file or directory"),
}  # fmt: skip


def sparse(path, size):
    """A line of that many bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b'{"text": "' + b"a" * 5_000_000)
        file.truncate(size)


def made(folder, case):
    name, content, words = BAD[case]
    path = folder / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path, words.replace("{}", str(path))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_clear_line_with_its_place(tmp_path, case):
    path, words = made(tmp_path, case)
    with pytest.raises(DataRefused) as refused:
        refuse_early(spec_of_file(path))
    assert any(words in line for line in refused.value.lines()), refused.value.lines()


def test_the_command_refuses_every_bad_file_in_two_seconds_and_500_mb_and_writes_nothing(tmp_path):
    """One process takes all of them, so that its peak is theirs; the start of an interpreter is counted once."""
    paths = []
    for number, case in enumerate(BAD):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        paths.append(str(made(folder, case)[0]))
    program = (
        "import json, sys, time\n"
        "from flows.cli import main\n"
        "spent = []\n"
        "for path in sys.argv[1:]:\n"
        "    began = time.process_time()\n"
        "    try:\n"
        "        main(['validate', path])\n"
        "    except SystemExit as end:\n"
        "        spent.append((path, end.code, time.process_time() - began))\n"
        "status = open('/proc/self/status').read()\n"  # getrusage counts what the parent held when it forked, too
        "peak = int(status.split('VmHWM:')[1].split()[0]) / 1024\n"
        "print(json.dumps([spent, peak]))\n"
    )
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", program, *paths],
        env=os.environ | {"FACTORY_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    spent, peak = json.loads(done.stdout.splitlines()[-1])
    assert [(path, code) for path, code, _ in spent if code != 3] == []
    assert [(path, seconds) for path, _, seconds in spent if seconds > SECONDS] == []
    assert peak < MEGABYTES
    assert "Traceback" not in done.stderr
    assert not home.exists()


@pytest.mark.parametrize("text", ["NA", "null", "None", "NaN", "nan", "true", "1", "1e5", "-inf", "'", "\\N"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_words_that_other_readers_take_for_nothing_stay_text(tmp_path, write, text, name):
    from tasks.data.reading import read_rows
    from tasks.specs import DataSpec

    path = write(tmp_path / name, [{"text": text, "label": "x"}, {"text": "y", "label": text}])
    records = read_rows(DataSpec(source=str(path))).records
    assert [records[0]["text"], records[1]["label"]] == [text, text]


def test_a_byte_order_mark_and_windows_lines_are_taken(tmp_path):
    for name, text in (("a.csv", TABLE), ("a.jsonl", LINES)):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        admission = admit(spec_of_file(path))
        assert (admission.accepted, admission.columns) == (40, ("text", "label"))


@pytest.mark.parametrize("case", [case for case in BAD if case not in ("missing column", "FIFO", "device")])
def test_what_is_refused_early_is_refused_by_the_door(tmp_path, case, asks):
    path, _ = made(tmp_path, case)
    with pytest.raises(FactoryError):
        admit(asks(path, max_tokens=131_072, min_rows=1))


def test_a_label_with_a_blank_is_told_the_nearest_before_anything_heavy_loads(tmp_path, asks):
    path = tmp_path / "a.jsonl"
    path.write_text(replaced(label="Fee "))
    with pytest.raises(DataRefused) as refused:
        refuse_early(asks(path, labels=("card", "fee")))
    assert f"E-DATA-012 {path}:1:label: 'Fee ' is not in the set; nearest is 'fee'" in refused.value.lines()[1]


def test_a_hundred_damaged_files_are_admitted_or_refused_with_every_row_counted():
    place = Path("benchmarks/fuzz_data.py").resolve()
    made_of = importlib.util.spec_from_file_location("fuzz_data", place)
    fuzz = importlib.util.module_from_spec(made_of)
    made_of.loader.exec_module(fuzz)
    answers = fuzz.campaign(100, seed=7)
    assert sum(answers.values()) == 100
    assert answers["admitted"] >= 10
    assert len(answers) >= 4
