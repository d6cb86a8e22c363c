"""What watching costs: a million requests taken in, and 100,000 requests judged; both on one thread.

    .venv/bin/python benchmarks/drift_speed.py [--rows 1000000] [--judged 100000]

Ends with one line of JSON. Memory is the growth of the process's peak while the rows come in.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from registry.ledger import Ledger
from registry.traffic import Aside, Batch, Event, TrafficStore, batches
from tasks.drift.observed import Observed
from tasks.drift.traffic import SetAside, traffic_rows
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("al", "en", "ir", "os", "un", "ay", "ek")]


def text(draw: Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(5, 15)))


def written(path: Path, rows: int) -> None:
    draw, start = Random(0), datetime(2026, 1, 1, tzinfo=UTC)
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            moment = (start + timedelta(seconds=n)).isoformat()
            row = {"id": f"r{n}", "time": moment, "source": f"shop {n % 40}", "text": text(draw), "label": "x"}
            file.write(json.dumps(row) + "\n")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def taken_in(folder: Path, rows: int) -> dict[str, float]:
    path = folder / "traffic.jsonl"
    written(path, rows)
    ledger = Ledger.open(f"sqlite:///{folder}/ledger.db")
    store = TrafficStore(ledger.database)
    ingest = store.begin("desk", "a" * 64, path.name)
    before, began = peak_mib(), time.perf_counter()
    now = datetime.now(UTC)
    found = (
        Aside(row.row, row.field, row.reason)
        if isinstance(row, SetAside)
        else (row[0], Event(row[1].id, row[1].time, row[1].source, row[1].columns))
        for row in traffic_rows(path, inputs=("text",), now=now, truth=("label",))
    )
    for batch in batches(found, 5000):
        ingest = store.add(ingest, batch)
    ingest = store.add(ingest, Batch([], [], ingest.through), last=True)
    seconds, grown = time.perf_counter() - began, peak_mib() - before
    assert ingest.rows_in == ingest.accepted == rows
    began = time.perf_counter()
    assert len(store.newest("desk", 300, per_source=150)) == 300
    window_seconds = time.perf_counter() - began
    return {"ingest_seconds": seconds, "ingest_mib": grown, "window_seconds": window_seconds}


def judged(rows: int) -> float:
    """Seconds for one verdict on so many rows."""
    draw = Random(1)

    def seen(count: int) -> Observed:
        inputs = tuple(text(draw) for _ in range(count))
        labels = tuple(draw.choice("abcdef") for _ in range(count))
        said = tuple(label if draw.random() < 0.9 else "a" for label in labels)
        sure = tuple(draw.random() for _ in range(count))
        right = tuple(float(a == b) for a, b in zip(said, labels, strict=True))
        return Observed(inputs, ((),) * count, sure, said, labels, right)

    reference = seen(5000)
    window = seen(rows)
    began = time.perf_counter()
    judge(reference, replace(window), DriftSpec(), seed=0)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--judged", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = taken_in(Path(folder), asked.rows)
    found |= {"judge_seconds": judged(asked.judged), "judge_seconds_tenth": judged(asked.judged // 10)}
    print(json.dumps({"rows": asked.rows, "judged": asked.judged, **{k: round(v, 2) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
