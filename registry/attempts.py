"""Who set out to make what, under which lease: a thing is made once, and a lost maker is told from a live one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.database import database_seconds, insert_once
from registry.records import AttemptRecord, LeaseRecord
from registry.tables import AttemptRow, LeaseRow, RunRow

LEASE = "make:"  # the lease of a run is named by this and its key


def begin(session: Session, run: str, lease: LeaseRecord, at: datetime) -> AttemptRecord:
    """One more attempt. Whoever was at it before lost the lease, and that is noted."""
    insert_once(session, RunRow, key=run, created_at=at)
    for row in session.scalars(select(AttemptRow).where(AttemptRow.run == run, AttemptRow.state == "running")):
        _end(row, "lost", f"its lease was taken by {lease.holder}", at)
    session.flush()
    last = session.scalar(select(func.max(AttemptRow.number)).where(AttemptRow.run == run)) or 0
    row = AttemptRow(
        run=run, number=last + 1, token=lease.token, holder=lease.holder, state="running", outcome="", started_at=at
    )
    session.add(row)
    session.flush()
    return _record(row)


def end(session: Session, attempt: AttemptRecord, state: str, outcome: str, at: datetime) -> AttemptRecord:
    """How it ended; what was noted before (that it was lost) stands."""
    query = select(AttemptRow).where(AttemptRow.run == attempt.run, AttemptRow.number == attempt.number)
    row = session.scalars(query).one()
    if row.state == "running":
        _end(row, state, outcome, at)
    return _record(row)


def of_run(session: Session, run: str) -> tuple[AttemptRecord, ...]:
    rows = session.scalars(select(AttemptRow).where(AttemptRow.run == run).order_by(AttemptRow.number))
    return tuple(map(_record, rows))


def abandoned(session: Session) -> Iterator[AttemptRow]:
    """Attempts that are noted as running while nobody holds their lease: their process died."""
    now_seconds = database_seconds(session)
    query = select(AttemptRow, LeaseRow).outerjoin(LeaseRow, LeaseRow.name == LEASE + AttemptRow.run)
    for row, lease in session.execute(query.where(AttemptRow.state == "running")):
        if lease is None or lease.token != row.token or lease.expires_seconds <= now_seconds:
            yield row


def note_lost(session: Session, at: datetime) -> int:
    """Note every abandoned attempt as lost; how many."""
    rows = list(abandoned(session))
    for row in rows:
        _end(row, "lost", "its process ended without a word", at)
    return len(rows)


def _end(row: AttemptRow, state: str, outcome: str, at: datetime) -> None:
    row.state, row.outcome, row.ended_at = state, outcome, at


def _record(row: AttemptRow) -> AttemptRecord:
    return AttemptRecord(row.run, row.number, row.holder, row.state, row.outcome, row.started_at, row.ended_at)
