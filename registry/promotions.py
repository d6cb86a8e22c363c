"""Who is served: an append-only chain per name, moved by compare-and-swap."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import Conflict, Unknown
from registry.failpoint import failpoint
from registry.names import find_version, last_promotion, unknown_name
from registry.records import Move, PromotionRecord
from registry.tables import NameRow, OutboxRow, PromotionRow
from registry.withdrawals import refuse_withdrawn


def append(
    session: Session,
    name: str,
    number: int,
    *,
    expected: int | None,
    seen: int | None = None,
    move: Move,
    decision: Mapping[str, Any],
    actor: str,
    reason: str,
    at: datetime,
) -> PromotionRecord:
    """One more link, if the champion is still the `expected` one; the name stays locked until the commit.

    `seen` is the last link that the caller looked at, where more than the champion was decided by.

    Raises:
        Conflict: the champion is another one by now, or `number` is champion already.
        IntegrityError: the version is withdrawn.
        Unknown: for a name or number that is not in the ledger.
    """
    _lock(session, name)
    last = last_promotion(session, name)
    champion = last.number if last is not None else None
    if champion != expected or (last is not None and seen not in (None, last.seq)):
        raise _stale(name, champion, expected)
    refuse_withdrawn(session, [find_version(session, f"{name}:{number}").id])
    if number == champion:
        raise _conflict(name, f"v{number} is the champion already", "nothing to do", champion)
    failpoint("promote.before_link")
    row = PromotionRow(
        name=name,
        seq=1 if last is None else last.seq + 1,
        prior_seq=None if last is None else last.seq,
        move=move,
        previous=champion,
        number=number,
        decision=dict(decision),
        actor=actor,
        reason=reason,
        created_at=at,
    )
    session.add(row)
    session.flush()
    session.add(OutboxRow(topic="promotion", name=name, number=number, created_at=at))
    return _record(row)


def chain(session: Session, name: str) -> tuple[PromotionRecord, ...]:
    """Every link, first to last."""
    rows = session.scalars(select(PromotionRow).where(PromotionRow.name == name).order_by(PromotionRow.seq))
    return tuple(_record(row) for row in rows)


def rollback_target(links: Sequence[PromotionRecord], withdrawn: Collection[int] = ()) -> int | None:
    """The champion before the present one: a rollback undoes the last promotion that was not undone yet.

    So two rollbacks in a row go back two champions; they do not swing back to the one that was rejected. Champions that
    were withdrawn are stepped over.
    """
    standing: list[int] = []
    for link in links:
        if link.move == "promote":
            standing.append(link.number)
            continue
        standing.pop()
        while standing and standing[-1] != link.number:
            standing.pop()
    champion = standing[-1] if standing else None
    return next((n for n in reversed(standing[:-1]) if n != champion and n not in withdrawn), None)


def no_way_back(name: str) -> Unknown:
    return Unknown.one("E-LEDGER-022", name, "has no earlier champion", "promote a version instead")


def _lock(session: Session, name: str) -> None:
    if session.scalars(select(NameRow).where(NameRow.name == name).with_for_update()).one_or_none() is None:
        raise unknown_name(session, name)


def _stale(name: str, champion: int | None, expected: int | None) -> Conflict:
    now = "there is no champion" if champion is None else f"champion is v{champion} now"
    then = "none" if expected is None else f"v{expected}"
    return _conflict(
        name, f"{now} (you expected {then})", "compare with the present champion and decide again", champion
    )


def _conflict(name: str, wrong: str, remedy: str, champion: int | None) -> Conflict:
    conflict = Conflict.one("E-LEDGER-020", name, wrong, remedy)
    conflict.champion = champion
    return conflict


def _record(row: PromotionRow) -> PromotionRecord:
    return PromotionRecord(
        name=row.name,
        seq=row.seq,
        move=cast(Move, row.move),
        previous=row.previous,
        number=row.number,
        decision=row.decision,
        actor=row.actor,
        reason=row.reason,
        created_at=row.created_at,
    )
