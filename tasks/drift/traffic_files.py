"""The three kinds of traffic files as streams of numbered records; nothing larger than one line or batch is held."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tasks.errors import DataRefused

LONGEST_LINE_BYTES = 16 * 2**20
SUFFIXES = (".jsonl", ".csv", ".parquet")


class Unreadable(NamedTuple):
    """A record that is there but cannot be parsed."""

    reason: str


Record = dict[str, Any] | Unreadable


def records(path: Path, *, needed: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """Numbered records: the line on which one begins, counted from 1, or the row of a Parquet file.

    Raises:
        DataRefused: if the file is missing, of another kind, unreadable, or if a CSV or Parquet file lacks a column or
            a Parquet file has one that is nested.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise DataRefused.one(
            "E-DRIFT-002", path, f"'{path.suffix}' is no kind of traffic file", f"give one of {kinds}"
        )
    if not path.is_file():
        raise DataRefused.one("E-DRIFT-003", path, "there is no such file", "check the path")
    return {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix](path, needed)


def _jsonl(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Record]]:
    with path.open("rb") as file:
        for number, line in _lines(file):
            if isinstance(line, Unreadable):
                yield number, line
            elif line.strip():
                yield number, _parsed(line)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Numbered lines; of one that is too long only the fact is kept."""
    number = 0
    while piece := file.readline(LONGEST_LINE_BYTES):
        number += 1
        whole: bytes | Unreadable = piece.removeprefix(b"\xef\xbb\xbf") if number == 1 else piece
        while len(piece) == LONGEST_LINE_BYTES and not piece.endswith(b"\n"):
            whole = Unreadable(f"a line of more than {LONGEST_LINE_BYTES // 2**20} MiB")
            piece = file.readline(LONGEST_LINE_BYTES)
        yield number, whole


def _parsed(line: bytes) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"not valid UTF-8 at byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not valid JSON ({error})")
    return (
        record if isinstance(record, dict) else Unreadable(f"a JSON object is expected, found {type(record).__name__}")
    )


def _csv(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(LONGEST_LINE_BYTES)  # one setting for the whole process, so it is set where it is relied on
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        with _readable(path, "CSV"):
            header = next(reader, [])
            if not all(map(is_text, header)):
                raise ValueError("its first line is no UTF-8 text")
            _refuse_missing(path, header, needed)
        while True:
            number = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, Unreadable(f"not valid CSV ({error})")
                continue
            if not values:
                continue
            if len(values) != len(header):
                yield number, Unreadable(f"{len(values)} values for {len(header)} columns")
            else:
                yield number, dict(zip(header, values, strict=True))


def _parquet(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Record]]:
    import pyarrow.parquet as parquet

    with _readable(path, "Parquet"), parquet.ParquetFile(path) as file:
        _refuse_missing(path, file.schema_arrow.names, needed)
        _refuse_nested(path, file.schema_arrow)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield number, record


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """A block in which any failure but a refusal says that the file is not what its name says."""
    try:
        yield
    except DataRefused:
        raise
    except Exception as error:  # besides its own, pyarrow lets text, times, time zones and memory raise what they like
        wrong = f"not readable as {kind} ({in_one_line(str(error), 200)})"
        raise DataRefused.one("E-DRIFT-005", path, wrong, "write the file again") from error


def is_text(value: str) -> bool:
    """Whether any database can keep it: no byte of it was invalid UTF-8, and none is NUL.

    >>> is_text("ä"), is_text("a\\0"), is_text(b"\\xff".decode(errors="surrogateescape"))
    (True, False, False)
    """
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def in_one_line(value: str, most: int = 40) -> str:
    """What can be printed of a foreign value, and no more than `most` letters of it.

    >>> in_one_line("two\\nlines"), in_one_line("a" * 50, 3)
    ('two?lines', 'aaa')
    """
    return "".join(letter if letter.isprintable() else "?" for letter in value[:most])


def _refuse_nested(path: Path, schema: Any) -> None:
    from pyarrow.types import is_nested

    nested = [
        f"{in_one_line(one.name)} holds {in_one_line(str(one.type), 80)}" for one in schema if is_nested(one.type)
    ]
    if nested:
        wrong = f"column {'; '.join(nested[:5])}; a plain value in each row is expected"
        raise DataRefused.one("E-DRIFT-006", path, wrong, "leave it out, or write it as text")


def _refuse_missing(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    twice = sorted({name for name in columns if list(columns).count(name) > 1})
    if missing or twice:
        wrong = (
            f"no column {', '.join(missing)}"
            if missing
            else f"column {', '.join(map(in_one_line, twice))} is there twice"
        )
        found = ", ".join(map(in_one_line, list(columns)[:20])) or "nothing"
        raise DataRefused.one(
            "E-DRIFT-004", path, f"{wrong}; found {found}", "name the columns as the task's spec does"
        )
