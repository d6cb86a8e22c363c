"""What MLflow has still to be told. Written in the transaction that made it true; delivered later, in order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry.records import OutboxRecord
from registry.tables import OutboxRow


def pending(session: Session) -> tuple[OutboxRecord, ...]:
    rows = session.scalars(select(OutboxRow).where(OutboxRow.delivered_at.is_(None)).order_by(OutboxRow.id))
    return tuple(OutboxRecord(row.id, row.topic, row.name, row.number) for row in rows)


def mark_delivered(session: Session, ids: Sequence[int], at: datetime) -> None:
    """Take rows off the list; a row that is delivered stays as it was."""
    news = update(OutboxRow).where(OutboxRow.id.in_(ids), OutboxRow.delivered_at.is_(None))
    session.execute(news.values(delivered_at=at))
