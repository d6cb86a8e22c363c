"""Versions that may not be used any more, and everything that contains them.

A version contains what it was made from, along every edge but `previous` and `judged`: they only say what it was held
against.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session, aliased

from registry.errors import IntegrityError, Problem, Unknown
from registry.names import CONTENT, find_content, find_version
from registry.records import WithdrawalRecord
from registry.tables import EdgeRow, OutboxRow, VersionRow, WithdrawalRow

NOT_CONTAINED = ("previous", "judged")


def containing(session: Session, ref: str) -> Select[Any]:
    """The question for the ids of the versions that a version, base, data set or code went into.

    Raises:
        Unknown: for what is not in the ledger.
    """
    kind, _, digest = ref.partition(":")
    if kind == "base":  # whatever is made from a version has its base
        return select(VersionRow.id).where(VersionRow.base == find_content(session, kind, digest).digest)
    if kind in CONTENT:
        return _made_with(getattr(EdgeRow, kind) == find_content(session, kind, digest).digest)
    return _made_with(EdgeRow.parent_id == find_version(session, ref).id)


def withdraw(session: Session, ref: str, actor: str, reason: str, at: datetime) -> tuple[WithdrawalRecord, ...]:
    """Mark a version and all that contain it; what was marked before stays as it was. Those that are new.

    Raises:
        Unknown: for a version that is not in the ledger.
    """
    if ref.partition(":")[0] in CONTENT:
        remedy = "withdraw each version that `factory lineage --contains` names"
        raise Unknown.one("E-LEDGER-023", ref, "is not a version", remedy)
    cause = find_version(session, ref)
    ids = (cause.id, *sorted(session.scalars(containing(session, f"{cause.name}:{cause.number}"))))
    known = set(session.scalars(select(WithdrawalRow.version_id).where(WithdrawalRow.version_id.in_(ids))))
    new = [version_id for version_id in ids if version_id not in known]
    for version_id in new:
        row = session.get_one(VersionRow, version_id)
        session.add(WithdrawalRow(version_id=version_id, cause_id=cause.id, actor=actor, reason=reason, created_at=at))
        session.add(OutboxRow(topic="withdrawal", name=row.name, number=row.number, created_at=at))
    session.flush()
    return records(session, new)


def records(session: Session, ids: Sequence[int] | None = None) -> tuple[WithdrawalRecord, ...]:
    """What is withdrawn among these versions, or at all; in the order of registration."""
    cause = aliased(VersionRow)
    query = (
        select(WithdrawalRow, VersionRow.name, VersionRow.number, cause.name, cause.number)
        .join(VersionRow, WithdrawalRow.version_id == VersionRow.id)
        .join(cause, WithdrawalRow.cause_id == cause.id)
        .order_by(VersionRow.id)
    )
    if ids is not None:
        query = query.where(WithdrawalRow.version_id.in_(ids))
    return tuple(
        WithdrawalRecord(f"{name}:{number}", f"{of}:{its}", row.actor, row.reason, row.created_at)
        for row, name, number, of, its in session.execute(query)
    )


def withdrawn_numbers(session: Session, name: str) -> frozenset[int]:
    query = select(VersionRow.number).join(WithdrawalRow, WithdrawalRow.version_id == VersionRow.id)
    return frozenset(session.scalars(query.where(VersionRow.name == name)))


def withdrawn_problems(session: Session, ids: Sequence[int]) -> tuple[Problem, ...]:
    """Why these versions may not be used."""
    remedy = "use another version; `factory lineage NAME --contains` names what is to be made again"
    found = []
    for record in records(session, ids):
        of = "" if record.cause == record.version else f" with {record.cause}"
        found.append(Problem("E-LEDGER-024", record.version, f"was withdrawn{of}: {record.reason}", remedy))
    return tuple(found)


def refuse_withdrawn(session: Session, ids: Sequence[int]) -> None:
    """
    Raises:
        IntegrityError: one of these versions is withdrawn.
    """
    problems = withdrawn_problems(session, ids)
    if problems:
        raise IntegrityError(*problems)


def _made_with(first_step: ColumnElement[bool]) -> Select[Any]:
    carries = EdgeRow.role.not_in(NOT_CONTAINED)
    found = select(EdgeRow.child_id.label("id")).where(first_step, carries).cte("found", recursive=True)
    further: Any = select(EdgeRow.child_id).join(found, EdgeRow.parent_id == found.c.id).where(carries)
    return select(found.union(further).c.id)
