"""What of a task's traffic is news to its champion, and whether it is enough for a candidate to be judged on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from flows.learn import datasets_of
from flows.traffic import known_events
from flows.validate import remembered_dataset
from flows.wiring import Home
from registry.durable import make_folders, replace_file
from registry.records import VersionRecord
from registry.traffic import Event
from tasks.data.examples import example_of, input_columns, target_columns
from tasks.drift.traffic import SetAside, TrafficRow, read_traffic
from tasks.errors import DataRefused
from tasks.specs import SIDES, AdapterSpec

JUDGING, MOST_JUDGING = 0.3, 0.5  # share of the fresh rows that judge


def fresh_events(home: Home, champion: VersionRecord, since: datetime | None = None) -> tuple[Event, ...]:
    """The newest labelled requests of a task, oldest first, but for those that the champion learned from or was judged
    on with the same answer: these are replayed, and would judge nobody.

    Args:
        since: only those that came at this moment or later.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    known = [remembered_dataset(home, digest).snapshot for digest in datasets_of(champion)]
    met = {(e.key, e.target) for snapshot in known for side in SIDES for e in snapshot.examples(side)}
    blank = dict.fromkeys((*input_columns(spec), *target_columns(spec)), "")

    def is_news(event: Event) -> bool:
        example = example_of(spec, {**blank, **event.columns}, 0)
        return (example.key, example.target) not in met and (
            since is None or (event.at is not None and event.at >= since)
        )

    return tuple(filter(is_news, known_events(home, champion, spec.retrain.fresh_rows, labelled=True)))


def fresh_traffic(home: Home, champion: VersionRecord, since: datetime | None = None) -> str:
    """The fresh requests as a file that is named by its content, for a retrain to read.

    Raises:
        DataRefused: no request of the task is labelled, or none that the champion has not met.
    """
    events = fresh_events(home, champion, since)
    if not events:
        wrong = "no request is labelled that it has not met" + (f" since {since:%Y-%m-%d %H:%M}" if since else "")
        raise DataRefused.one("E-DRIFT-023", champion.name, wrong, "add labelled traffic with `factory traffic add`")
    rows = [{**e.columns, "id": e.id, "time": e.at and e.at.isoformat(), "source": e.source} for e in events]
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows).encode()
    folder = home.settings.home / "traffic" / champion.name / "windows"
    make_folders(folder)
    path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.jsonl"
    replace_file(path, text)
    return str(path)


def labelled_rows(spec: AdapterSpec, source: str) -> tuple[list[TrafficRow], Sequence[SetAside]]:
    """The rows of a traffic file whose answer is known, and those that were malformed.

    Raises:
        DataRefused: it is missing, of another kind, or cannot be read.
    """
    found = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC))
    known = [row for row in found.rows if all(row.columns.get(column) for column in target_columns(spec))]
    return known, found.set_aside


def rows_needed(spec: AdapterSpec) -> int:
    """How many labelled rows a retrain begins with: of fewer, too few would judge for any gate to open."""
    return math.ceil(spec.evaluation.gates.min_rows / MOST_JUDGING)


def refuse_too_few(champion: VersionRecord, source: str) -> None:
    """Before anything is claimed, frozen or trained.

    Raises:
        DataRefused: fewer labelled rows than a candidate could be judged on.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    (rows, aside), needed = labelled_rows(spec, source), rows_needed(spec)
    if len(rows) < needed:
        wrong = f"{len(rows)} fresh rows are labelled, {needed} are needed for a candidate to be judged on half of them"
        if aside:
            wrong += f"; {len(aside)} are malformed (row {aside[0].row}: {aside[0].field} {aside[0].reason})"
        raise DataRefused.one("E-DRIFT-024", champion.name, wrong, "label more of its requests; the champion stays")


def judging_share(rows: int, needed: int) -> float:
    """The share of `rows` that judges: three in ten, and more of few, so that nearly always as many as the gates need
    do (by hash, so two standard deviations more are aimed at); never more than half.

    >>> [round(judging_share(rows, 50), 2) for rows in (100, 160, 1000)]
    [0.5, 0.4, 0.3]
    """
    return min(MOST_JUDGING, max(JUDGING, (needed + 2 * needed**0.5) / max(rows, 1)))
