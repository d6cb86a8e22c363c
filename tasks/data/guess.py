"""A data file without a spec: what its columns are called says what its rows are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tasks.data.admission import shown
from tasks.data.formats import MAX_LINE_BYTES, check_columns, utf8_lines
from tasks.data.reading import FORMATS, Rows, data_files, head_of, read_rows
from tasks.data.refusals import OFFENDERS_NAMED, refuse_empty
from tasks.errors import DataRefused, Problem
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, EvaluationSpec, SplitSpec

# columns -> what `data` says of them; the first row of which all columns are there is taken
SHAPES: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...] = (
    (("messages",), MappingProxyType({"layout": "messages"})),
    (("instruction", "output"), MappingProxyType({"layout": "instruction"})),
    (("prompt", "completion"), MappingProxyType({"prompt": "{prompt}\n", "completion": "{completion}"})),
    (("input", "target"), MappingProxyType({"prompt": "{input}\n", "completion": "{target}"})),
    (("question", "answer"), MappingProxyType({"prompt": "{question}\n", "completion": "{answer}"})),
    (("text", "label"), MappingProxyType({"text": "text", "label": "label"})),
)
LONGEST_TOKENS = 131_072


def is_data(path: str | Path) -> bool:
    """Whether a path names data and no spec: by an ending, or because it is a folder.

    >>> is_data("rows.jsonl"), is_data("rows.csv.gz"), is_data("triage.yaml")
    (True, True, False)
    """
    return not FORMATS.keys().isdisjoint(ending.lower() for ending in Path(path).suffixes) or Path(path).is_dir()


def spec_of_file(path: str | Path) -> AdapterSpec:
    """The spec that a file's columns suggest. It has no base, so lengths are counted in characters.

    Raises:
        DataRefused: the file cannot be read, or its columns do not say what is asked and what is answered.
    """
    source = Path(path).absolute()
    columns = columns_in(source)
    shape = next((said for needed, said in SHAPES if set(needed) <= set(columns)), None)
    if shape is None:
        _refuse_unread(read_rows(DataSpec(source=str(source))))
        found = ", ".join(map(shown, columns[:20])) or "no columns"
        known = "; ".join(" and ".join(needed) for needed, _ in SHAPES)
        wrong = f"its columns do not say what is asked and what is answered: {found}"
        raise DataRefused.one("E-DATA-031", source, wrong, f"name them as one of: {known}; or write a spec")
    data = DataSpec(
        source=str(source),
        split=SplitSpec(column="split" if "split" in columns else None),
        min_rows=1,
        max_tokens=LONGEST_TOKENS,
        **shape,
    )
    name = re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-")[:60] or "data"
    kind = "classification" if "label" in shape else "generation"
    # free text may have many good answers
    metric = "auto" if kind == "classification" else "token_accuracy"
    return AdapterSpec.model_validate(
        {
            "task": name,
            "kind": kind,
            "base": BaseSpec(model="/no-base"),
            "data": data,
            "evaluation": EvaluationSpec.model_validate({"metric": metric}),
        }
    )


def _refuse_unread(rows: Rows) -> None:
    """Refuse a source without a row that can be read.

    Raises:
        DataRefused: if that is so, with the first of the others.
    """
    refuse_empty(rows)
    if not rows.records:
        wrong = f"none of its {rows.rows_in:,} rows can be read"
        bad = [row.problem(rows.where(row.file, row.row)) for row in rows.malformed[:OFFENDERS_NAMED]]
        raise DataRefused(Problem("E-DATA-006", rows.source, wrong, "mend them"), *bad)


def columns_in(source: Path) -> tuple[str, ...]:
    """Columns of a file, or of the first file of a folder, from its beginning; empty where it has no row.

    Raises:
        DataRefused: there is nothing to read.
    """
    path = data_files(source)[0] if source.is_dir() else source
    content = head_of(path)
    form = FORMATS[path.suffix.lower()][0]
    if form in ("Parquet", "Arrow"):
        return _stored_columns(path, form)
    whole = content[: content.rfind(b"\n") + 1] or content
    lines = list(utf8_lines(io.BytesIO(whole), str(path)))
    if form == "CSV":
        csv.field_size_limit(MAX_LINE_BYTES)
        with contextlib.suppress(csv.Error):  # reading says what is wrong with it
            columns = tuple(next((row for row in csv.reader(lines) if row), ()))
            check_columns(columns, f"{path}:1")
            return columns
        return ()
    for line in lines:
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return tuple(record)
    return ()


def _stored_columns(path: Path, form: str) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if form == "Parquet":
            return tuple(pq.read_schema(path).names)
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            return tuple((pa.ipc.open_file if is_file else pa.ipc.open_stream)(file).schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        wrong = f"not a readable {form} file: {str(error).strip().splitlines()[0][:200]}"
        raise DataRefused.one("E-DATA-003", path, wrong, "write the file again") from None
