"""The right to do one thing alone, for a time. Ends by itself when the holder dies; the token fences off a late one."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.database import database_seconds, insert_once
from registry.errors import Conflict
from registry.records import LeaseRecord
from registry.tables import LeaseRow


def take(
    session: Session, name: str, holder: str, seconds: float, gone: Callable[[str], bool] = lambda _: False
) -> LeaseRecord | None:
    """The lease, or None while someone else holds it who is not `gone`. The same holder gets it again, with a new
    token."""
    insert_once(session, LeaseRow, name=name, holder="", token=0, expires_seconds=0.0)
    row = _locked(session, name)
    now_seconds = database_seconds(session)
    if row.expires_seconds > now_seconds and row.holder != holder and not gone(row.holder):
        return None
    row.holder, row.token, row.expires_seconds = holder, row.token + 1, now_seconds + seconds
    return LeaseRecord(name, holder, row.token, row.expires_seconds)


def renew(session: Session, lease: LeaseRecord, seconds: float) -> LeaseRecord:
    """More time, as long as nobody took the lease since, even if it ran out.

    Raises:
        Conflict: someone else holds or held it since; whatever was done under it may not be committed.
    """
    row = _locked(session, lease.name)
    if row.token != lease.token:
        raise _lost(row, lease)
    row.expires_seconds = database_seconds(session) + seconds
    return LeaseRecord(lease.name, lease.holder, lease.token, row.expires_seconds)


def check(session: Session, lease: LeaseRecord) -> None:
    """Let a commit pass only under the lease's own token; the lease stays locked until the commit.

    Raises:
        Conflict: someone else holds or held it since.
    """
    row = _locked(session, lease.name)
    if row.token != lease.token:
        raise _lost(row, lease)


def release(session: Session, lease: LeaseRecord) -> None:
    """Give it back early; nothing happens if it was lost."""
    row = _locked(session, lease.name)
    if row.token == lease.token:
        row.expires_seconds = 0.0


def _lost(row: LeaseRow, lease: LeaseRecord) -> Conflict:
    wrong = f"the lease is lost: {row.holder} took it (token {row.token}, yours is {lease.token})"
    return Conflict.one("E-LEDGER-040", lease.name, wrong, "stop; the other one goes on")


def _locked(session: Session, name: str) -> LeaseRow:
    return session.scalars(select(LeaseRow).where(LeaseRow.name == name).with_for_update()).one()
