"""Verdicts on windows of traffic, and the claim that lets one window cause at most one retraining."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.database import insert_once
from registry.names import find_version
from registry.records import ClaimRecord, FindingRecord
from registry.tables import ClaimRow, FindingRow, VersionRow, WindowRow


def remember(session: Session, record: FindingRecord, at: datetime) -> FindingRecord:
    """The newest verdict on a window against a version stands. Who says the same again is given that; who judges
    otherwise, because more is known of what surrounds the window, adds another finding."""
    version = find_version(session, record.version)
    window = {"task": record.task, "digest": record.window_digest, "rows": record.rows, "source": record.source}
    insert_once(session, WindowRow, **window, created_at=at)
    while True:
        found = session.execute(_on_window(version.id, record.window_digest)).first()
        if found is not None and (found[0].verdict, found[0].action) == (record.verdict, record.action):
            return _record(found[0], found[1], version)
        insert_once(  # where another writer adds the same turn, that one's verdict is looked at first
            session,
            FindingRow,
            task=record.task,
            version_id=version.id,
            window_digest=record.window_digest,
            turn=found[0].turn + 1 if found is not None else 1,
            verdict=record.verdict,
            action=record.action,
            report=dict(record.report),
            created_at=at,
        )


def of_task(session: Session, task: str | None) -> tuple[FindingRecord, ...]:
    """Findings, oldest first; of all tasks for None."""
    query = _findings().add_columns(VersionRow).join(VersionRow).order_by(FindingRow.id)
    if task is not None:
        query = query.where(FindingRow.task == task)
    return tuple(_record(row, window, version) for row, window, version in session.execute(query))


def claim(session: Session, record: FindingRecord, claimant: str, at: datetime) -> bool:
    """True for the first who claims the window, and for the same claimant again, so that its retry can go on."""
    on_window = _on_window(find_version(session, record.version).id, record.window_digest)
    asked = session.execute(on_window.where(FindingRow.action == record.action)).first()
    finding = (asked or session.execute(on_window.limit(1)).one())[0]
    key = {"task": record.task, "window_digest": record.window_digest}
    insert_once(session, ClaimRow, **key, finding_id=finding.id, claimant=claimant, created_at=at)
    return session.scalars(select(ClaimRow).filter_by(**key)).one().claimant == claimant


def claims_of(session: Session, task: str) -> tuple[ClaimRecord, ...]:
    rows = session.scalars(select(ClaimRow).where(ClaimRow.task == task).order_by(ClaimRow.finding_id))
    return tuple(ClaimRecord(row.task, row.window_digest, row.claimant, row.created_at) for row in rows)


def _findings() -> Any:
    same = (FindingRow.task == WindowRow.task) & (FindingRow.window_digest == WindowRow.digest)
    return select(FindingRow, WindowRow).join(WindowRow, same)


def _on_window(version_id: int, window_digest: str) -> Any:
    """The findings on a window against a version, the newest first."""
    query = _findings().where(FindingRow.version_id == version_id, FindingRow.window_digest == window_digest)
    return query.order_by(FindingRow.turn.desc())


def _record(row: FindingRow, window: WindowRow, version: VersionRow) -> FindingRecord:
    return FindingRecord(
        task=row.task,
        version=f"{version.name}:{version.number}",
        window_digest=row.window_digest,
        verdict=row.verdict,
        action=row.action,
        report=row.report,
        created_at=row.created_at,
        rows=window.rows,
        source=window.source,
    )
