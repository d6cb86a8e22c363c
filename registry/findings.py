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
    """One finding per version and window; the first verdict stands and is returned."""
    version = find_version(session, record.version)
    window = {"task": record.task, "digest": record.window_digest, "rows": record.rows, "source": record.source}
    insert_once(session, WindowRow, **window, created_at=at)
    insert_once(
        session,
        FindingRow,
        task=record.task,
        version_id=version.id,
        window_digest=record.window_digest,
        verdict=record.verdict,
        action=record.action,
        report=dict(record.report),
        created_at=at,
    )
    return _record(*_row(session, version.id, record.window_digest), version)


def of_task(session: Session, task: str | None) -> tuple[FindingRecord, ...]:
    """Findings, oldest first; of all tasks for None."""
    query = _findings().add_columns(VersionRow).join(VersionRow).order_by(FindingRow.id)
    if task is not None:
        query = query.where(FindingRow.task == task)
    return tuple(_record(row, window, version) for row, window, version in session.execute(query))


def claim(session: Session, record: FindingRecord, claimant: str, at: datetime) -> bool:
    """True for the first who claims the window, and for the same claimant again, so that its retry can go on."""
    finding, _ = _row(session, find_version(session, record.version).id, record.window_digest)
    key = {"task": record.task, "window_digest": record.window_digest}
    insert_once(session, ClaimRow, **key, finding_id=finding.id, claimant=claimant, created_at=at)
    return session.scalars(select(ClaimRow).filter_by(**key)).one().claimant == claimant


def claims_of(session: Session, task: str) -> tuple[ClaimRecord, ...]:
    rows = session.scalars(select(ClaimRow).where(ClaimRow.task == task).order_by(ClaimRow.finding_id))
    return tuple(ClaimRecord(row.task, row.window_digest, row.claimant, row.created_at) for row in rows)


def _findings() -> Any:
    same = (FindingRow.task == WindowRow.task) & (FindingRow.window_digest == WindowRow.digest)
    return select(FindingRow, WindowRow).join(WindowRow, same)


def _row(session: Session, version_id: int, window_digest: str) -> tuple[FindingRow, WindowRow]:
    query = _findings().where(FindingRow.version_id == version_id, FindingRow.window_digest == window_digest)
    row, window = session.execute(query).one()
    return row, window


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
