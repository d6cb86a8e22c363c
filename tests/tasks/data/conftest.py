"""Specs and files that the tests of this room share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.specs import AdapterSpec, BaseSpec, DataSpec, EvaluationSpec

Row = Mapping[str, Any]


@pytest.fixture(scope="session")
def asks() -> Callable[..., AdapterSpec]:
    """A classification spec, or a generation spec where a prompt is given; keywords are those of `data`."""

    def spec(source: Path | str, *, metric: str = "auto", seed: int = 0, **data: Any) -> AdapterSpec:
        return AdapterSpec(
            task="triage",
            kind="generation" if "prompt" in data else "classification",
            base=BaseSpec(model="/base"),
            data=DataSpec(source=str(source), **data),
            evaluation=EvaluationSpec(metric=metric),
            seed=seed,
        )

    return spec


@pytest.fixture(scope="session")
def write() -> Callable[[Path, Sequence[Row]], Path]:
    """Writes rows in the format that the name of the file says."""

    def rows_to(path: Path, rows: Sequence[Row]) -> Path:
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return path

    return rows_to


@pytest.fixture(scope="session")
def clean() -> Callable[[int], list[dict[str, Any]]]:
    """Rows of two classes, all different, none of them bad; the inputs of n rows are a prefix of those of n + 1."""

    def rows(count: int) -> list[dict[str, Any]]:
        return [{"text": f"complaint {at} about a late card", "label": ("card", "fee")[at % 2]} for at in range(count)]

    return rows
