"""Traffic taken in: requests and, now or later, their labels, from files or a pipe into the store of their task."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from flows.progress import voice
from flows.wiring import Home, opened
from registry.errors import Conflict
from registry.failpoint import failpoint
from registry.fingerprint import digest_of_file
from registry.records import VersionRecord
from registry.traffic import Aside, Batch, Event, IngestRecord, TrafficStore, batches
from tasks.data.examples import input_columns, target_columns
from tasks.drift.traffic import SetAside, traffic_rows
from tasks.drift.traffic_files import SUFFIXES
from tasks.errors import DataRefused, Problem
from tasks.specs import AdapterSpec

BATCH_ROWS = 5000
LEASE_SECONDS = 120
PIECE_BYTES = 2**20


@dataclass(frozen=True)
class TakenIn:
    """What came of one file, and how many requests of the task are known now."""

    ingest: IngestRecord
    known: int

    @property
    def sentence(self) -> str:
        """The counts in one line: rows in = new + repeated + set aside."""
        i = self.ingest
        late = f" ({i.late:,} of them brought what was missing)" if i.late else ""
        return (
            f"{i.rows_in:,} rows in = {i.accepted:,} new + {i.repeated:,} repeated{late} + {i.set_aside:,} set aside;"
            f" {self.known:,} requests of {i.task} are known"
        )


def traffic_add(task: str, source: str) -> TakenIn:
    """Take in a file, or standard input (JSONL) for `-`.

    Raises:
        DataRefused: no version is served; or the file is missing, of another kind, or lacks a column altogether.
        Conflict: another process takes in traffic of the task.
    """
    home = opened()
    champion = served(home, task)
    if source != "-":
        return taken_in(home, champion, Path(source))
    with tempfile.TemporaryDirectory(dir=home.scratch()) as folder:
        spool = Path(folder) / "stdin.jsonl"
        with spool.open("wb") as file:
            _copy(sys.stdin.buffer, file)
        return taken_in(home, champion, spool)


def taken_in(home: Home, champion: VersionRecord, path: Path) -> TakenIn:
    """A file's rows into the store of the champion's task, in batches; one that was interrupted goes on."""
    task, store = champion.name, TrafficStore(home.ledger.database)
    spec = AdapterSpec.model_validate(champion.spec)
    if not path.is_file():
        raise DataRefused.one("E-DRIFT-003", path, "there is no such file", "check the path")
    digest = digest_of_file(path)
    lease = home.ledger.take_lease(f"traffic:{task}", holder=f"{digest} {datetime.now(UTC)}", seconds=LEASE_SECONDS)
    if lease is None:
        raise Conflict.one("E-DRIFT-022", task, "another process takes in its traffic", "run again when it is done")
    try:
        ingest = store.begin(task, digest, path.name)
        if not ingest.finished:
            if ingest.through:
                voice.say(f"  {path.name}: going on after row {ingest.through:,}")
            for batch in batches(_events(spec, path), BATCH_ROWS, after=ingest.through):
                lease = home.ledger.renew_lease(lease, seconds=LEASE_SECONDS)
                ingest = store.add(ingest, batch)
                failpoint("traffic.after_batch")
            ingest = store.add(ingest, Batch([], [], ingest.through), last=True)
        return TakenIn(ingest, store.rows(task))
    finally:
        home.ledger.release_lease(lease)


def inbox_taken_in(home: Home, champion: VersionRecord) -> tuple[Problem, ...]:
    """Every file of the task's inbox that was not taken in yet; what is wrong with those that are refused, which keep
    no other from being taken in. Where another process takes in the task's traffic, they wait for the next time."""
    wrong: list[Problem] = []
    for path in inbox(home, champion.name):
        try:
            before = ingested(home, champion.name, path)
            if before is None or not before.finished:
                voice.say(f"  {path.name}: {taken_in(home, champion, path).sentence}")
        except DataRefused as refused:
            wrong += refused.problems
        except Conflict as busy:
            voice.say(f"  {path.name}: {busy.problems[0].wrong}, so it is taken in next time")
        except (FileNotFoundError, PermissionError) as error:
            wrong.append(Problem("E-DRIFT-003", str(path), f"it cannot be opened ({error.strerror})", "check the file"))
    return tuple(wrong)


def inbox(home: Home, task: str) -> list[Path]:
    """The traffic files that lie in a task's inbox, by name: files are named by their time."""
    folder = home.settings.home / "traffic" / task
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


def served(home: Home, task: str) -> VersionRecord:
    """The champion whose spec says what a request consists of.

    Raises:
        DataRefused: there is none, or it is a merged model.
    """
    champion = home.ledger.champion(task)
    if champion is None or champion.kind != "adapter":
        wrong = "no version is served" if champion is None else "is no adapter"
        raise DataRefused.one("E-DRIFT-021", task, wrong, "promote an adapter first: its spec names the columns")
    return champion


def ingested(home: Home, task: str, path: Path) -> IngestRecord | None:
    """How far a file was taken in before, by its content; None if it never was."""
    digest = digest_of_file(path)
    return next((one for one in TrafficStore(home.ledger.database).ingests(task) if one.digest == digest), None)


def known_events(
    home: Home, champion: VersionRecord, count: int, *, labelled: bool = False, capped: bool = True
) -> tuple[Event, ...]:
    """The newest requests of a task, oldest first; `capped` bounds the share of one sender as the spec says."""
    spec = AdapterSpec.model_validate(champion.spec)
    cap = max(1, int(spec.drift.per_source * count)) if capped else None
    truth: Sequence[str] = target_columns(spec) if labelled else ()
    return TrafficStore(home.ledger.database).newest(champion.name, count, per_source=cap, with_columns=truth)


def _events(spec: AdapterSpec, path: Path) -> Iterator[tuple[int, Event] | Aside]:
    for row in traffic_rows(path, inputs=input_columns(spec), now=datetime.now(UTC), truth=target_columns(spec)):
        if isinstance(row, SetAside):
            yield Aside(row.row, row.field, row.reason, row.time, row.id)
        else:
            yield row[0], Event(row[1].id, row[1].time, row[1].source, row[1].columns)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while piece := source.read(PIECE_BYTES):
        target.write(piece)
