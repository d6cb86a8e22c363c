"""An admitted set as files whose bytes depend on the set alone: no clock, no machine, no path.

examples.parquet    every accepted example with its key, side, row and file
quarantine.jsonl    every row kept out: row, field, reason, record
suite.json          the Great Expectations suite
near.jsonl          pairs of inputs that are nearly the same, the first of each kind
report.json         counts, checks, reasons, labels, lengths, histograms, digests: all that a report shows
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.data.admission import Admission, Check
from tasks.data.examples import Example
from tasks.errors import ArtifactRefused
from tasks.specs import SIDES, Side

FORMAT = 2
_COLUMNS = ("key", "side", "input", "target", "row", "file")
_REASON_ROWS = 5


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot's report says; the examples are read when asked for. `source` is a name without its folder."""

    folder: Path
    task: str
    kind: str
    source: str
    source_digest: str
    columns: tuple[str, ...]
    row_unit: str
    rows_in: int
    filtered: int
    quarantined: int
    deduplicated: int
    truncated: int
    counts: Mapping[Side, int]
    labels: tuple[str, ...]
    label_counts: Mapping[Side, Mapping[str, int]]
    lengths: Mapping[Side, Mapping[str, Mapping[str, int]]]
    histograms: Mapping[str, Mapping[str, int]]
    reasons: tuple[Mapping[str, Any], ...]
    checks: tuple[Check, ...]

    def quarantine(self, most: int | None = None) -> list[dict[str, Any]]:
        """Rows that were kept out, in the order of the source: row, field, reason, record, guard, file."""
        with (self.folder / "quarantine.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in islice(file, most)]

    def near_pairs(self) -> list[dict[str, Any]]:
        """The first pairs of inputs that are nearly the same, as `NearPair` names their parts."""
        with (self.folder / "near.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @property
    def suite(self) -> dict[str, Any]:
        """The Great Expectations suite that the rows were held against."""
        return json.loads((self.folder / "suite.json").read_text("utf-8"))

    def examples(self, side: Side) -> tuple[Example, ...]:
        """Examples of one side in the order of the source."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / "examples.parquet", columns=list(_COLUMNS), filters=[("side", "=", side)])
        cells = [table.column(name).to_pylist() for name in ("key", "input", "target", "row", "file")]
        return tuple(Example(*row) for row in zip(*cells, strict=True))


def write_snapshot(admission: Admission, folder: Path) -> None:
    """Write the five files into a folder that is new or empty.

    Raises:
        FileExistsError: if the folder already holds something; a snapshot is never changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; a snapshot is never written over")
    rows = [(example, side) for side in SIDES for example in admission.examples[side]]
    schema = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in _COLUMNS])
    cells = [[side if name == "side" else getattr(example, name) for example, side in rows] for name in _COLUMNS]
    table = pa.table(dict(zip(_COLUMNS, cells, strict=True)), schema=schema)
    pq.write_table(table, folder / "examples.parquet", compression="zstd")
    (folder / "quarantine.jsonl").write_text("".join(_line(asdict(bad)) for bad in admission.quarantined), "utf-8")
    (folder / "near.jsonl").write_text("".join(_line(pair._asdict()) for pair in admission.near), "utf-8")
    (folder / "suite.json").write_text(_page(admission.suite), "utf-8")
    (folder / "report.json").write_text(_page(report_of(admission)), "utf-8")


def read_snapshot(folder: Path) -> Snapshot:
    """The snapshot in a folder.

    Raises:
        ArtifactRefused: if a file is missing or is not what `write_snapshot` writes.
    """
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
        if report.pop("format") != FORMAT or not (folder / "examples.parquet").is_file():
            raise ValueError("another format, or no examples.parquet")
        report.pop("accepted")
        report["checks"] = tuple(Check(**{**check, "samples": tuple(check["samples"])}) for check in report["checks"])
        sequences = {name: tuple(report[name]) for name in ("columns", "labels", "reasons")}
        return Snapshot(folder=folder, **{**report, **sequences})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactRefused.one(
            "E-STORE-021", folder, f"not a data snapshot: {error}", "validate the data again"
        ) from None


def report_of(admission: Admission) -> dict[str, Any]:
    """All that a report shows, as plain values."""
    return {
        "format": FORMAT,
        "task": admission.task,
        "kind": admission.kind,
        "source": Path(admission.source).name if Path(admission.source).is_absolute() else admission.source,
        "source_digest": admission.source_digest,
        "columns": list(admission.columns),
        "row_unit": admission.row_unit,
        "rows_in": admission.rows_in,
        "filtered": admission.filtered,
        "accepted": admission.accepted,
        "quarantined": len(admission.quarantined),
        "deduplicated": admission.deduplicated,
        "truncated": admission.truncated,
        "counts": admission.counts,
        "labels": list(admission.labels),
        "label_counts": admission.label_counts,
        "lengths": admission.lengths,
        "histograms": admission.histograms,
        "reasons": _reasons(admission),
        "checks": [asdict(check) for check in admission.checks],
    }


def _reasons(admission: Admission) -> list[dict[str, Any]]:
    """Quarantined rows by the check and field that kept them out, most frequent first, with the first rows of each."""
    counts = Counter((bad.guard, bad.field) for bad in admission.quarantined)
    table = []
    for (guard, field), rows in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        first = [bad for bad in admission.quarantined if (bad.guard, bad.field) == (guard, field)][:_REASON_ROWS]
        named = [{"file": bad.file, "row": bad.row, "reason": bad.reason} for bad in first]
        table.append({"guard": guard, "field": field, "rows": rows, "first": named})
    return table


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=repr) + "\n"


def _page(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
