"""What served tasks were asked: one row per event id, whatever order events and their labels come in.

Files are taken in batch by batch. A batch's rows, its quarantine and the place that was reached in the file are one
transaction, so a killed ingest goes on where it stopped, and rows in = accepted + repeated + set aside at every moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, func, insert, select
from sqlalchemy.orm import Session

from registry.database import Database, insert_once
from registry.tables import TrafficAsideRow, TrafficIngestRow, TrafficRow

ASKED_AT_ONCE = 500  # ids in one question to the database; its limit is on parameters
LOOKED_AT = 20  # times the rows of a window: how far back a window looks where one sender fills the newest rows


class Event(NamedTuple):
    """One request. `at` is None while only its label has come. `columns` are text; what is unknown is absent."""

    id: str
    at: datetime | None
    source: str
    columns: Mapping[str, str]


class Aside(NamedTuple):
    """A row of a file that was not taken, and why; `at` is about when it came, `event` its id where that is known."""

    row: int
    field: str
    reason: str
    at: datetime | None = None
    event: str = ""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file; `through` is the number of the last one, `rows` how many were read."""

    events: Sequence[tuple[int, Event]]
    aside: Sequence[Aside]
    through: int

    @property
    def rows(self) -> int:
        return len(self.events) + len(self.aside)


@dataclass(frozen=True)
class IngestRecord:
    """How far one file is taken in. `late` of the `repeated` rows brought a value that was still missing."""

    task: str
    digest: str
    source: str
    through: int = 0
    rows_in: int = 0
    accepted: int = 0
    repeated: int = 0
    late: int = 0
    set_aside: int = 0
    finished: bool = False
    reasons: Mapping[str, int] = field(default_factory=dict, compare=False)


class TrafficStore:
    """The traffic of all tasks, in the ledger's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, task: str, digest: str, source: str) -> IngestRecord:
        """The ingest of a file by its content: a new one, or the one that was begun before."""
        with self._database.writing() as session:
            insert_once(
                session, TrafficIngestRow, task=task, digest=digest, source=source, through=0, finished=False,
                rows_in=0, accepted=0, repeated=0, late=0, set_aside=0,
            )  # fmt: skip
            return _ingest(session, _row(session, task, digest))

    def add(self, ingest: IngestRecord, batch: Batch, *, last: bool = False) -> IngestRecord:
        """One more batch, whole or not at all; nothing if it was taken in before."""
        with self._database.writing() as session:
            row = _row(session, ingest.task, ingest.digest)
            if batch.through > row.through or last:
                if batch.through > row.through:
                    _take(session, row, batch)
                row.finished = last
            session.flush()
            return _ingest(session, row)

    def newest(
        self, task: str, count: int, *, per_source: int | None = None, with_columns: Sequence[str] = ()
    ) -> tuple[Event, ...]:
        """The `count` latest events, oldest first; only such as have all of `with_columns`, and at most `per_source` of
        one sender, if several occur among the twenty times `count` latest. Looks back as far as these, or at a million
        events for `with_columns`."""
        found: list[Event] = []
        sent: dict[str, int] = {}
        with self._database.reading() as session:
            if per_source is not None and _senders(session, task, LOOKED_AT * count) < 2:
                per_source = None
            for event in _latest(session, task, 1_000_000 if with_columns else LOOKED_AT * count):
                if len(found) == count:
                    break
                full = per_source is not None and sent.get(event.source, 0) >= per_source
                if not full and all(event.columns.get(name) for name in with_columns):
                    sent[event.source] = sent.get(event.source, 0) + 1
                    found.append(event)
        return tuple(reversed(found))

    def malformed(self, task: str, *, since: datetime | None = None, after: datetime | None = None) -> int:
        """How many rows of a task's files were set aside that came at `since` or later, and after `after`.

        A row that comes again at its place, in a file that has grown, counts once; one that came under its id in a row
        that was taken does not count.
        """
        row = TrafficAsideRow
        taken = select(TrafficRow.event).where(
            TrafficRow.task == task, TrafficRow.event == row.event, TrafficRow.at.is_not(None)
        )
        named = TrafficIngestRow.source  # the file's name stays where it grows
        query = select(named, row.row, row.event, row.field, row.reason).join(
            TrafficIngestRow, and_(TrafficIngestRow.task == row.task, TrafficIngestRow.digest == row.digest)
        )
        query = query.where(row.task == task, ~taken.exists())
        query = query.where(row.at.is_not(None) if since is None else row.at >= since)
        query = query if after is None else query.where(row.at > after)
        with self._database.reading() as session:
            return int(session.scalar(select(func.count()).select_from(query.distinct().subquery())) or 0)

    def rows(self, task: str) -> int:
        """How many events of a task are known."""
        with self._database.reading() as session:
            query = select(func.count()).select_from(TrafficRow).where(TrafficRow.task == task)
            return int(session.scalar(query) or 0)

    def ingests(self, task: str) -> tuple[IngestRecord, ...]:
        with self._database.reading() as session:
            rows = session.scalars(select(TrafficIngestRow).filter_by(task=task)).all()
            return tuple(_ingest(session, row) for row in rows)


def batches(rows: Iterable[tuple[int, Event] | Aside], size: int, *, after: int = 0) -> Iterator[Batch]:
    """Rows of a file in batches, those beyond the row `after`.

    >>> [batch.through for batch in batches([Aside(n, "", "") for n in range(1, 6)], 2, after=1)]
    [3, 5]
    """
    events: list[tuple[int, Event]] = []
    aside: list[Aside] = []
    number = after
    for row in rows:
        if row[0] <= after:
            continue
        number = row[0]
        if isinstance(row, Aside):
            aside.append(row)
        else:
            events.append(row)
        if len(events) + len(aside) == size:
            yield Batch(events, aside, number)
            events, aside = [], []
    if events or aside:
        yield Batch(events, aside, number)


def _take(session: Session, row: TrafficIngestRow, batch: Batch) -> None:
    known = _known(session, row.task, [event.id for _, event in batch.events])
    new: dict[str, Event] = {}
    changed: dict[str, Event] = {}
    aside = list(batch.aside)
    repeated = late = 0
    moment: datetime | None = None  # of the row before, for one that has no time
    for number, event in batch.events:
        moment = event.at or moment
        before = new.get(event.id) or changed.get(event.id) or known.get(event.id)
        if before is None:
            new[event.id] = event
            continue
        clash = _clash(before, event)
        if clash:
            at = event.at or before.at or moment or datetime.now(UTC)
            aside.append(Aside(number, clash, f"id '{event.id[:80]}' came before with another {clash}", at))
            continue
        repeated += 1
        merged = Event(
            event.id, before.at or event.at, before.source or event.source, {**before.columns, **event.columns}
        )
        if merged != before:
            late += 1
            (new if event.id in new else changed)[event.id] = merged
    place = {"task": row.task}
    plain = [{**place, "event": e.id, "at": e.at, "source": e.source, "columns": dict(e.columns)} for e in new.values()]
    if plain:
        session.execute(insert(TrafficRow), plain)
    for event in changed.values():
        stored = session.get_one(TrafficRow, (row.task, event.id))
        stored.at, stored.source, stored.columns = event.at, event.source, dict(event.columns)
    if aside:
        out = [{**place, "digest": row.digest, **a._asdict(), "event": a.event or None} for a in aside]
        session.execute(insert(TrafficAsideRow), out)
    row.through, row.rows_in = batch.through, row.rows_in + batch.rows
    row.accepted, row.repeated, row.late = row.accepted + len(new), row.repeated + repeated, row.late + late
    row.set_aside += len(aside)


def _clash(before: Event, event: Event) -> str:
    """The first field in which two rows of one id contradict each other; empty if none does."""
    if before.at and event.at and before.at != event.at:
        return "time"
    if before.source and event.source and before.source != event.source:
        return "source"
    return next((k for k, v in event.columns.items() if before.columns.get(k, v) != v), "")


def _known(session: Session, task: str, ids: Sequence[str]) -> dict[str, Event]:
    found: dict[str, Event] = {}
    for start in range(0, len(ids), ASKED_AT_ONCE):
        query = select(TrafficRow.event, TrafficRow.at, TrafficRow.source, TrafficRow.columns)
        some = query.where(TrafficRow.task == task, TrafficRow.event.in_(ids[start : start + ASKED_AT_ONCE]))
        found |= {row.event: Event(row.event, row.at, row.source, row.columns) for row in session.execute(some)}
    return found


def _latest(session: Session, task: str, most: int) -> Iterator[Event]:
    query = select(TrafficRow.event, TrafficRow.at, TrafficRow.source, TrafficRow.columns)
    query = query.where(TrafficRow.task == task, TrafficRow.at.is_not(None))
    query = query.order_by(TrafficRow.at.desc(), TrafficRow.event.desc()).limit(most)
    for row in session.execute(query.execution_options(yield_per=1000)):
        yield Event(row.event, row.at, row.source, row.columns)


def _senders(session: Session, task: str, most: int) -> int:
    """How many senders the `most` latest events have; two stand for any more."""
    latest = select(TrafficRow.source).where(TrafficRow.task == task, TrafficRow.at.is_not(None))
    latest = latest.order_by(TrafficRow.at.desc(), TrafficRow.event.desc()).limit(most)
    return len(session.scalars(select(latest.subquery().c.source).distinct().limit(2)).all())


def _row(session: Session, task: str, digest: str) -> TrafficIngestRow:
    return session.scalars(select(TrafficIngestRow).filter_by(task=task, digest=digest).with_for_update()).one()


def _ingest(session: Session, row: TrafficIngestRow) -> IngestRecord:
    names: Any = ("task", "digest", "source", "through", "rows_in", "accepted", "repeated", "late", "set_aside")
    counted = select(TrafficAsideRow.field, TrafficAsideRow.reason).filter_by(task=row.task, digest=row.digest)
    reasons: dict[str, int] = {}
    for name, reason in session.execute(counted.order_by(TrafficAsideRow.row).limit(1000)) if row.finished else ():
        line = f"{name}: {reason}" if name else reason
        reasons[line] = reasons.get(line, 0) + 1
    return IngestRecord(**{name: getattr(row, name) for name in names}, finished=row.finished, reasons=reasons)
