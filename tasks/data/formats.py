"""A JSONL, CSV, Parquet or Arrow file into rows. What cannot be a row is quarantined; what breaks the file refuses it.

No reader guesses a type: the texts NA and null stay texts, and a CSV cell is always text.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from tasks.data.admission import Quarantined, shown, type_found
from tasks.errors import DataRefused

MAX_LINE_BYTES = 1_000_000
MAX_COLUMNS = 1_000
MAX_ROWS = 20_000_000
MAX_CHARACTERS = 16 * 2**30
BATCH_ROWS = 65_536

_FOREIGN_MARKS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
}


@dataclass
class Parsed:
    """Rows of one file. `rows[i]` numbers `records[i]` from 1: its first line (CSV, JSONL) or its place (Parquet)."""

    columns: tuple[str, ...] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    malformed: list[Quarantined] = field(default_factory=list)

    def quarantine(self, row: int, reason: str, raw: object, file: str) -> None:
        self.malformed.append(Quarantined(row, "", reason, {"raw": shown(raw)}, "row_is_readable", file))


def utf8_lines(stream: BinaryIO, path: str) -> Iterator[str]:
    """Lines of a UTF-8 file, ends kept, a leading byte order mark dropped; memory is one line, whatever the file holds.

    Raises:
        DataRefused: another encoding, a NUL byte (with byte offset and line) or a line above 1,000,000 bytes.
    """
    offset = number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            for mark, name in _FOREIGN_MARKS.items():
                if raw.startswith(mark):
                    _refused(
                        "002",
                        f"{path}:1",
                        f"this is {name}, not UTF-8 text",
                        "save it as UTF-8, and name it by its format",
                    )
        if len(raw) > MAX_LINE_BYTES:
            _refused(
                "003", f"{path}:{number}", f"the line is longer than {MAX_LINE_BYTES:,} bytes", "write one row per line"
            )
        if (nul := raw.find(b"\0")) >= 0:
            _refused(
                "002", f"{path}:{number}", f"NUL byte at offset {offset + nul}", "remove it, or save the file as UTF-8"
            )
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            at = error.start
            found = f"byte 0x{error.object[at]:02x} at offset {offset + at} is not UTF-8"
            _refused("002", f"{path}:{number}", found, "save the file as UTF-8 (iconv -f latin1 -t utf-8)")
        offset += len(raw)
        yield text


def read_jsonl(stream: BinaryIO, path: str, file: str) -> Parsed:
    """One JSON object per line; blank lines are no rows. What is no object, or has a key twice, is quarantined."""
    parsed = Parsed()
    seen: dict[str, None] = {}
    for number, line in enumerate(utf8_lines(stream, path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
            if not isinstance(record, dict):
                raise ValueError(f"{type_found(record)} where an object is expected")
            if "\\ud" in line or "\\uD" in line:  # half a surrogate pair is valid JSON and no text
                json.dumps(record, ensure_ascii=False).encode()
        except RecursionError:
            parsed.quarantine(number, "nested too deep", line, file)
        except UnicodeEncodeError:
            parsed.quarantine(number, "half a surrogate pair, which is no character", line, file)
        except ValueError as error:
            parsed.quarantine(number, f"not one JSON object: {error}", line, file)
        else:
            if not record.keys() <= seen.keys():
                seen |= dict.fromkeys(record)
                check_columns(tuple(seen), f"{path}:{number}")
            parsed.records.append(record)
            parsed.rows.append(number)
    parsed.columns = tuple(seen)
    return parsed


def read_csv(stream: BinaryIO, path: str, file: str) -> Parsed:
    """Comma-separated with a header and double quotes (RFC 4180); every cell is text, blank lines are no rows.

    Raises:
        DataRefused: a quote that is not closed, or a column named twice: no row after it can be trusted.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # one setting for the whole process, so it is set where it is relied on
    reader = csv.reader(utf8_lines(stream, path), strict=True)
    parsed = Parsed()
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return parsed
        except csv.Error as error:
            place, reached = f"{path}:{number}", f" (line {reader.line_num})" if reader.line_num > number else ""
            _refused(
                "003", place, f"not closed or badly quoted{reached}: {error}", 'close the quote, and write " as ""'
            )
        if not cells:
            continue
        if not parsed.columns:
            parsed.columns = tuple(cells)
            check_columns(parsed.columns, f"{path}:{number}")
        elif len(cells) != len(parsed.columns):
            parsed.quarantine(
                number, f"{len(cells)} fields where the header has {len(parsed.columns)}", ",".join(cells), file
            )
        else:
            parsed.records.append(dict(zip(parsed.columns, cells, strict=True)))
            parsed.rows.append(number)


def read_parquet(stream: BinaryIO, path: str, file: str) -> Parsed:
    """Records of a Parquet file, numbered from 1 in stored order. Read whole, because its index stands at its end.

    Texts are read as dictionaries, so that one that fills a gigabyte by repetition is refused before it does.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pa.BufferReader(stream.read())
        schema = pq.ParquetFile(content).schema_arrow
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        check_columns(tuple(schema.names), path)
        opened = pq.ParquetFile(content, read_dictionary=texts)
        if opened.metadata.num_rows > MAX_ROWS:
            _refused("003", path, f"it claims {opened.metadata.num_rows:,} rows, above {MAX_ROWS:,}", "split the file")
        return table_rows(opened.iter_batches(batch_size=BATCH_ROWS), tuple(schema.names), path)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataRefused):
            raise
        _refused("003", path, f"not a readable Parquet file: {_first_line(error)}", "write the file again")


def read_arrow(stream: BinaryIO, path: str, file: str) -> Parsed:
    """Records of an Arrow file or stream (`.arrow`, `.feather`), numbered from 1 in stored order."""
    import pyarrow as pa

    content = stream.read()
    try:
        open_ipc = pa.ipc.open_file if content.startswith(b"ARROW1") else pa.ipc.open_stream
        with open_ipc(pa.BufferReader(content)) as reader:
            check_columns(tuple(reader.schema.names), path)
            batches = (
                (reader.get_batch(at) for at in range(reader.num_record_batches))
                if hasattr(reader, "num_record_batches")
                else iter(reader)
            )
            return table_rows(batches, tuple(reader.schema.names), path)
    except (pa.ArrowException, OSError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, DataRefused):
            raise
        _refused("003", path, f"not a readable Arrow file: {_first_line(error)}", "write the file again")


def table_rows(batches: Iterable[Any], columns: tuple[str, ...], path: str) -> Parsed:
    """Rows of Arrow batches, numbered from 1; equal texts of a dictionary are one object.

    Raises:
        DataRefused: more rows or characters than a data set has.
    """
    parsed, characters = Parsed(columns), 0
    for batch in batches:
        values = []
        for column in batch.columns:
            characters += _characters(column)
            if characters > MAX_CHARACTERS or len(parsed.records) > MAX_ROWS:
                most = f"{MAX_ROWS:,} rows or {MAX_CHARACTERS:,} bytes of text"
                _refused("003", path, f"it unfolds to more than {most}", "split the file")
            values.append(_values(column))
        parsed.records += [dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True)]
    parsed.rows = list(range(1, len(parsed.records) + 1))
    return parsed


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    known = column.dictionary.to_pylist()
    return [None if at is None else known[at] for at in column.indices.to_pylist()]


def _characters(column: Any) -> int:
    """Bytes of text that a column unfolds to, before it does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    if not (pa.types.is_string(column.dictionary.type) or pa.types.is_large_string(column.dictionary.type)):
        return int(column.nbytes)
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)


def check_columns(columns: Sequence[str], where: str) -> None:
    """Refuse more columns than a data set has, and a name that two of them share.

    Raises:
        DataRefused: if that is so.
    """
    if len(columns) > MAX_COLUMNS:
        _refused(
            "003", where, f"{len(columns):,} columns, above {MAX_COLUMNS:,}", "keep the columns that the spec names"
        )
    twice = [shown(name) for name, count in Counter(columns).items() if count > 1]
    if twice:
        _refused("003", where, f"column named twice: {', '.join(twice)}", "name every column once")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(shown(name) for name in names if names.count(name) > 1)} stands twice")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def _refused(number: str, where: str, wrong: str, remedy: str) -> NoReturn:
    raise DataRefused.one(f"E-DATA-{number}", where, wrong, remedy)
