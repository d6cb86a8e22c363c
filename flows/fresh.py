"""What of a task's traffic is news to its champion, and whether it is enough for a candidate to be judged on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flows.learn import datasets_of
from flows.progress import voice
from flows.traffic import known_events
from flows.validate import remembered_dataset
from flows.wiring import Home
from registry.durable import make_folders, replace_file
from registry.records import VersionRecord
from registry.traffic import Event
from tasks.data.examples import example_of, input_columns, target_columns
from tasks.data.formats import MAX_LINE_BYTES
from tasks.data.splits import position
from tasks.drift.power import rows_to_show
from tasks.drift.traffic import SetAside, TrafficRow, read_traffic
from tasks.errors import DataRefused
from tasks.specs import SIDES, AdapterSpec, GateSpec

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

    def is_news(event: Event) -> bool:
        if event.at is None or (since is not None and event.at < since):
            return False
        if not event.columns.keys() >= set(input_columns(spec)):  # taken in when the task asked for other columns
            return False
        example = example_of(spec, event.columns, 0)
        return (example.key, example.target) not in met

    return tuple(filter(is_news, known_events(home, champion, spec.retrain.fresh_rows, labelled=True)))


def fresh_rows(
    home: Home, champion: VersionRecord, source: str | None = None, since: datetime | None = None
) -> tuple[list[TrafficRow], Sequence[SetAside]]:
    """The labelled requests that a retrain may learn from, and the rows of the file that were malformed.

    Args:
        source: a traffic file; by default what the store holds that is news to the champion.
        since: only those that came at this moment or later.

    Raises:
        DataRefused: no such request is labelled; or the file is missing, of another kind, or cannot be read.
    """
    if source is None:
        events = fresh_events(home, champion, since)
        rows = [TrafficRow(e.id, e.at, e.source, dict(e.columns)) for e in events]
        aside: Sequence[SetAside] = ()
    else:
        rows, aside = labelled_rows(champion, source, since)
    rows = without_longest(rows)
    if not rows:
        wrong = "no request is labelled" if source else "no request is labelled that it has not met"
        wrong += f" since {since:%Y-%m-%d %H:%M}" if since else ""
        wrong += _malformed(aside)
        raise DataRefused.one("E-DRIFT-023", champion.name, wrong, "add labelled traffic with `factory traffic add`")
    return rows, aside


def labelled_rows(
    champion: VersionRecord, source: str, since: datetime | None = None
) -> tuple[list[TrafficRow], Sequence[SetAside]]:
    """The rows of a traffic file whose answer is known, in a row of its own or not, and those that were malformed."""
    spec = AdapterSpec.model_validate(champion.spec)
    truth = target_columns(spec)
    found = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC), truth=truth)
    known = [row for row in found.rows if all(row.columns.get(column) for column in truth)]
    return [row for row in known if since is None or (row.time is not None and row.time >= since)], found.set_aside


def without_longest(rows: Sequence[TrafficRow]) -> list[TrafficRow]:
    """The rows but for those that are longer than a line of data may be: one is no reason to learn from no other."""
    short = [row for row in rows if len(_line(row)) <= MAX_LINE_BYTES]
    if len(short) < len(rows):
        voice.say(f"  {len(rows) - len(short)} requests are longer than {MAX_LINE_BYTES:,} bytes, and are left out")
    return short


def window_file(home: Home, task: str, rows: Sequence[TrafficRow]) -> str:
    """These rows and nothing else as a file that is named by its content, for a retrain to learn from."""
    text = b"".join(map(_line, rows))
    folder = home.settings.home / "traffic" / task / "windows"
    make_folders(folder)
    path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.jsonl"
    replace_file(path, text)
    return str(path)


def _line(row: TrafficRow) -> bytes:
    values = {**row.columns, "id": row.id, "time": row.time and row.time.isoformat(), "source": row.source}
    return json.dumps(values, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def rows_needed(spec: AdapterSpec) -> int:
    """How many labelled rows a retrain begins with: of fewer, too few would judge for any gate to open."""
    return math.ceil(spec.evaluation.gates.min_rows / MOST_JUDGING)


def refuse_too_few(champion: VersionRecord, rows: Sequence[TrafficRow], aside: Sequence[SetAside]) -> None:
    """Before anything is claimed, frozen or trained.

    Raises:
        DataRefused: fewer labelled rows than a candidate could be judged on.
    """
    needed = rows_needed(AdapterSpec.model_validate(champion.spec))
    if len(rows) < needed:
        wrong = f"{len(rows)} fresh rows are labelled, {needed} are needed for a candidate to be judged on half of them"
        wrong += _malformed(aside)
        raise DataRefused.one("E-DRIFT-024", champion.name, wrong, "label more of its requests; the champion stays")


def _malformed(aside: Sequence[SetAside]) -> str:
    return f"; {len(aside)} are malformed (row {aside[0].row}: {aside[0].field} {aside[0].reason})" if aside else ""


def expected_gain(home: Home, champion: VersionRecord) -> float | None:
    """What the newest finding on a champion promises of a retrain; None where nothing was found, or nothing graded."""
    found = [one.report for one in home.ledger.findings(champion.name) if one.version == champion.ref]
    return found[-1].get("expected_gain") if found else None


def judging_rows(rows: int, gates: GateSpec, expected: float | None) -> int:
    """How many of `rows` judge, so that all others are learned from: as many as show the gain that is `expected`, three
    in ten at most; never fewer than the gates want, and no more than half.

    Differences of mean g lie in [-1, 1], so their variance is 1 - g^2 at most. A twentieth is added to what the gates
    want, for rows that the door sets aside.

    >>> [judging_rows(460, GateSpec(), gain) for gain in (None, 0.15, 0.3, 0.8)], judging_rows(100, GateSpec(), 0.8)
    ([138, 138, 87, 53], 50)
    """
    share = JUDGING * rows
    if expected is not None and expected > 0:
        share = min(share, rows_to_show(expected, 1 - expected**2, gates.confidence))
    return min(round(MOST_JUDGING * rows), math.ceil(max(share, 1.05 * gates.min_rows)))


def judging_share(keys: Collection[str], count: int) -> float:
    """The share of the hashes' range below which `count` of the keys lie: exactly so many judge.

    >>> round(judging_share(["1" * 64, "3" * 64, "5" * 64, "f" * 64], 2), 3)
    0.267
    """
    places = [*sorted(position(key) for key in set(keys)), 1.0]
    return sum(places[max(0, count - 1) : count + 1]) / 2 if count else 0.0
