"""From what a person writes to the row it means: `triage@champion`, `triage:3`, `triage`, `base:<digest>`, ..."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.columns import Table
from registry.errors import Problem, Unknown
from registry.records import SHORT
from registry.tables import BaseRow, CodeRow, DatasetRow, NameRow, PromotionRow, VersionRow, WithdrawalRow

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SHOWN_NAMES = 6
REFERENCE = re.compile(rf"(?P<name>{NAME.pattern})(?:@(?P<alias>[a-z]+)|:(?P<number>[1-9][0-9]{{0,8}}))?")
CONTENT: dict[str, type[BaseRow] | type[DatasetRow] | type[CodeRow]] = {
    "base": BaseRow,
    "dataset": DatasetRow,
    "code": CodeRow,
}
Row = TypeVar("Row", bound=Table)


def name_problem(name: str) -> Problem | None:
    """Why a name cannot be given to versions; `base`, `dataset` and `code` begin references to content.

    >>> name_problem("triage") is None, name_problem("dataset") is None
    (True, False)
    """
    if NAME.fullmatch(name) and name not in CONTENT:
        return None
    return Problem(
        "E-LEDGER-004", repr(name), "cannot be a name", "use a-z, 0-9 and -, at most 63; not base, dataset, code"
    )


def find_version(session: Session, ref: str) -> VersionRow:
    """The version that a reference means now.

    Raises:
        Unknown: naming the nearest name, the numbers there are, or what has to happen first.
    """
    parts = REFERENCE.fullmatch(ref)
    if parts is None:
        raise Unknown.one("E-LEDGER-004", repr(ref), "is not a reference", "write name, name:3 or name@champion")
    name, alias, number = parts["name"], parts["alias"], parts["number"]
    if session.get(NameRow, name) is None:
        raise unknown_name(session, name)
    if number is not None:
        row = version_row(session, name, int(number))
        if row is None:
            newest = session.get_one(NameRow, name).last_number
            raise Unknown.one(
                "E-LEDGER-002", ref, f"is not in the ledger; the newest is v{newest}", "factory show " + name
            )
        return row
    if alias not in (None, "champion", "challenger"):
        raise Unknown.one("E-LEDGER-004", ref, f"@{alias} is not an alias", "write @champion or @challenger")
    row = {None: newest_row, "champion": champion_row, "challenger": challenger_row}[alias](session, name)
    if row is None:
        raise Unknown.one(
            "E-LEDGER-003", ref, f"{name} has no {alias or 'version'}", "promote or train a version first"
        )
    return row


def known_name(session: Session, name: str) -> NameRow:
    """The row of a name. What cannot be a name is not even asked for: PostgreSQL takes no text with NUL.

    Raises:
        Unknown: naming the nearest name.
    """
    row = session.get(NameRow, name) if NAME.fullmatch(name) else None
    if row is None:
        raise unknown_name(session, name)
    return row


def unknown_name(session: Session, name: str) -> Unknown:
    known = session.scalars(select(NameRow.name).order_by(NameRow.name)).all()
    near = difflib.get_close_matches(name, known, n=1)
    others = f"; the nearest name is {near[0]}" if near else f"; it has {', '.join(known[:SHOWN_NAMES])}"
    told = others + (", ..." if not near and len(known) > SHOWN_NAMES else "") if known else "; the ledger is empty"
    return Unknown.one("E-LEDGER-001", name, f"is not in the ledger{told}", "write a known name, or train it first")


def version_row(session: Session, name: str, number: int) -> VersionRow | None:
    return session.scalars(select(VersionRow).where(VersionRow.name == name, VersionRow.number == number)).one_or_none()


def newest_row(session: Session, name: str) -> VersionRow | None:
    newest = select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.number.desc()).limit(1)
    return session.scalars(newest).one_or_none()


def last_promotion(session: Session, name: str) -> PromotionRow | None:
    last = select(PromotionRow).where(PromotionRow.name == name).order_by(PromotionRow.seq.desc()).limit(1)
    return session.scalars(last).one_or_none()


def champion_row(session: Session, name: str) -> VersionRow | None:
    last = last_promotion(session, name)
    return None if last is None else version_row(session, name, last.number)


def challenger_row(session: Session, name: str) -> VersionRow | None:
    """The newest version, as long as it is newer than the champion, was never champion itself, and is not withdrawn."""
    newest, champion = newest_row(session, name), last_promotion(session, name)
    if newest is not None and session.get(WithdrawalRow, newest.id) is not None:
        return None
    if newest is None or champion is None:
        return newest
    served = select(PromotionRow.id).where(PromotionRow.name == name, PromotionRow.number == newest.number).limit(1)
    was_served = session.scalars(served).one_or_none() is not None
    return None if was_served or newest.number < champion.number else newest


def find_content(session: Session, kind: str, digest: str) -> Any:
    """A base, data set or code by its digest, or by the first twelve or more hex digits of it.

    Raises:
        Unknown: for a digest that was not remembered, or an ambiguous beginning.
    """
    table = CONTENT[kind]
    if len(digest) < SHORT or not set(digest) <= set("0123456789abcdef"):
        raise Unknown.one("E-LEDGER-004", f"{kind}:{digest}", "is not a digest", f"give at least {SHORT} hex digits")
    found = session.scalars(select(table).where(table.digest.between(digest, digest + "g")).limit(2)).all()
    if len(found) != 1:
        wrong = "means several" if found else "is not in the ledger"
        raise Unknown.one(
            "E-LEDGER-005", f"{kind}:{digest}", wrong, f"remember the {kind} first, and give its full digest"
        )
    return found[0]
