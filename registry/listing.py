"""The ledger at a glance: what people look at first, from columns alone, without a spec or a lineage being read."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from registry.names import known_name
from registry.tables import NameRow, PromotionRow, VersionRow, WithdrawalRow


class ListedRecord(NamedTuple):
    """One version; in a list of names, the newest version of each with the number of all of them."""

    name: str
    number: int
    kind: str
    artifact: str
    created_at: datetime
    champion: int | None  # the number that is served under this name
    withdrawn: bool
    versions: int


def of_all(session: Session) -> tuple[ListedRecord, ...]:
    """Every name, sorted, by its newest version."""
    newest = VersionRow.number == NameRow.last_number
    query = _listed(NameRow.last_number).join(NameRow, NameRow.name == VersionRow.name).where(newest)
    return _records(session, query.order_by(VersionRow.name))


def of_name(session: Session, name: str) -> tuple[ListedRecord, ...]:
    """Every version of a name, first to last.

    Raises:
        Unknown: naming the nearest name.
    """
    known_name(session, name)
    query = _listed(NameRow.last_number).join(NameRow, NameRow.name == VersionRow.name)
    return _records(session, query.where(VersionRow.name == name).order_by(VersionRow.number))


def _listed(count: Any) -> Select[Any]:
    columns = (VersionRow.name, VersionRow.number, VersionRow.kind, VersionRow.artifact, VersionRow.created_at)
    query: Select[Any] = select(*columns, WithdrawalRow.version_id.is_not(None), count)
    return query.outerjoin(WithdrawalRow, WithdrawalRow.version_id == VersionRow.id)


def _records(session: Session, query: Select[Any]) -> tuple[ListedRecord, ...]:
    last = select(PromotionRow.name, func.max(PromotionRow.seq).label("seq")).group_by(PromotionRow.name).subquery()
    standing = select(PromotionRow.name, PromotionRow.number).join(
        last, (PromotionRow.name == last.c.name) & (PromotionRow.seq == last.c.seq)
    )
    champions = dict(session.execute(standing).tuples().all())
    return tuple(
        ListedRecord(name, number, kind, artifact, created_at, champions.get(name), bool(withdrawn), count)
        for name, number, kind, artifact, created_at, withdrawn, count in session.execute(query)
    )
