"""What can be said of a bad set in a second, before Great Expectations and Prefect are loaded: they take several."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.data.admission import Fallen, Quarantined, shown, type_found
from tasks.data.examples import VISIBLE, label_column, text_columns
from tasks.data.formats import utf8_lines
from tasks.data.labels import nearest_labels
from tasks.data.layouts import laid_out
from tasks.data.reading import FORMATS, Rows, data_files, head_of, is_local, missing_columns, read_rows
from tasks.data.refusals import OFFENDERS_NAMED, refuse_empty, too_many_bad
from tasks.errors import DataRefused
from tasks.specs import AdapterSpec

EARLY_BYTES = 32 * 2**20

_VISIBLE = re.compile(VISIBLE)


def refuse_early(spec: AdapterSpec) -> None:
    """Refuse what the door would refuse for its bytes, columns or plain values. It never refuses what the door takes.

    Local data of up to 32 MiB is read whole, of more than that the beginning of each file.

    Raises:
        DataRefused: as `admit` would say it.
    """
    if spec.data.query is not None or not is_local(spec.data.source):
        return
    source = Path(spec.data.source)
    with contextlib.suppress(OSError):  # which `read_rows` says better
        files = data_files(source) if source.is_dir() else [source]
        if sum(path.stat().st_size for path in files) > EARLY_BYTES:
            for path in files:
                _refuse_head(path)
            return
    rows = laid_out(spec.data, read_rows(spec.data))
    refuse_empty(rows)
    columns = [*text_columns(spec), *([spec.data.split.column] if spec.data.split.column else [])]
    if missing := [name for name in columns if name not in rows.columns]:
        raise missing_columns(rows.source, missing, rows.columns)
    found = [*rows.malformed, *(_quarantined(rows, fallen) for fallen in faults(spec, rows))]
    if problem := too_many_bad(spec, rows.source, len(found), rows.rows_in):
        found.sort(key=lambda bad: (bad.file, bad.row))
        offenders = found[:OFFENDERS_NAMED]
        raise DataRefused(problem, *(bad.problem(rows.where(bad.file, bad.row, bad.field)) for bad in offenders))


def faults(spec: AdapterSpec, rows: Rows) -> Iterator[Fallen]:
    """Rows that have no visible text where text is expected, or a label outside the closed set; each once."""
    label, allowed = label_column(spec), {*spec.data.labels}
    values = (record.get(label) for record in rows.records) if label and allowed else ()
    strange = {value for value in values if isinstance(value, str)} - allowed
    near = nearest_labels(sorted(strange), spec.data.labels)
    for at, record in enumerate(rows.records):
        for column in text_columns(spec):
            value = record.get(column)
            if not isinstance(value, str):
                wrong = f"{type_found(value)} where text is expected" + ("" if value is None else f": {shown(value)}")
            elif not _VISIBLE.search(value):
                wrong = f"no visible character in {shown(value)}"
            elif column == label and allowed and value not in allowed:
                nearest = f"nearest is {shown(near[value])}" if near.get(value) else "nothing in it is near"
                wrong = f"{shown(value)} is not in the set; {nearest}"
            else:
                continue
            yield Fallen(at, "expectation", column, wrong)
            break


def _quarantined(rows: Rows, fallen: Fallen) -> Quarantined:
    file, row = rows.places[fallen.at]
    return Quarantined(row, fallen.field, fallen.reason, rows.records[fallen.at], fallen.guard, file)


def _refuse_head(path: Path) -> None:
    """Refuse a large text file whose beginning is not UTF-8, holds a NUL or an endless line."""
    head = head_of(path)
    if FORMATS[path.suffix.lower()][0] in ("JSONL", "CSV"):
        whole_lines = head[: head.rfind(b"\n") + 1] or head
        for _ in utf8_lines(io.BytesIO(whole_lines), str(path)):
            pass
