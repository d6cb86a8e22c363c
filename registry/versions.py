"""Registering a version: its row, its number, its lineage, its scores and the word to MLflow, all or nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Select, Text, select
from sqlalchemy.orm import Session, aliased

from registry import evaluations
from registry.database import insert_once
from registry.errors import Conflict, DraftRefused, Problem, RegistryError, raise_if_any
from registry.fingerprint import canonical, fingerprint
from registry.names import CONTENT, find_content, find_version, name_problem
from registry.records import Kind, Parent, VersionDraft, VersionRecord
from registry.tables import EdgeRow, NameRow, OutboxRow, SpecRow, VersionRow
from registry.withdrawals import NOT_CONTAINED, refuse_withdrawn

DRAWN_BY_LEDGER = ("base", "code")
ROWS_AT_ONCE = 500


def draft_problems(draft: VersionDraft) -> Iterator[Problem]:
    """What is wrong with a draft whatever the ledger holds."""
    problem = name_problem(draft.name)
    if problem is not None:
        yield problem
    if draft.kind not in ("adapter", "merged"):
        yield Problem("E-LEDGER-006", "kind", f"{draft.kind!r} is not a kind of version", "write adapter or merged")
    for field in ("version_key", "artifact", "base", "code"):
        value = getattr(draft, field)
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            yield Problem("E-LEDGER-006", field, f"{value!r} is not a SHA-256 in hex", "give the 64 digits")
    for name, value in draft.metrics.items():
        if not math.isfinite(value):
            yield Problem(
                "E-LEDGER-006", f"metrics.{name}", f"{value} is not a number", "leave out what was not measured"
            )
    needed, role = ("dataset:", "a data set") if draft.kind == "adapter" else ("", "a parent version")
    refs = [ref for _, ref in draft.parents]
    versions = [ref for ref in refs if ref.partition(":")[0] not in CONTENT]
    if not (any(ref.startswith(needed) for ref in refs) if needed else versions):
        yield Problem("E-LEDGER-006", "parents", f"{role} is not named", "lineage is closed: say what it was made from")
    for ref in versions:
        if ":" not in ref:
            yield Problem("E-LEDGER-006", "parents", f"{ref} can move to another version", "pin it: name:number")
    for evaluation in draft.evaluations:
        yield from evaluations.record_problems(evaluation)


def insert(session: Session, draft: VersionDraft, manifest: str, at: datetime) -> tuple[VersionRow, bool]:
    """The row for this draft and whether it is new: with its key already there, that version stands.

    The name's row stays locked until the commit, so numbers are given out one after the other and none twice.

    Raises:
        DraftRefused: naming every parent, base, code or data set that the ledger does not know.
        IntegrityError: a version that it contains is withdrawn.
        Conflict: the key belongs to a version of another name.
    """
    insert_once(session, NameRow, name=draft.name, last_number=0, created_at=at)
    name = session.scalars(select(NameRow).where(NameRow.name == draft.name).with_for_update()).one()
    standing = row_by_key(session, draft.version_key)
    if standing is not None:
        if standing.name != draft.name:
            wrong = f"the same key is registered as {standing.name}:{standing.number}"
            raise Conflict.one("E-LEDGER-021", draft.name, wrong, "use that version; one identity has one name")
        return standing, False
    targets = _targets(session, draft)
    contained = [t["parent_id"] for role, t in targets if "parent_id" in t and role not in NOT_CONTAINED]
    refuse_withdrawn(session, contained)
    spec = fingerprint(draft.spec)
    insert_once(session, SpecRow, digest=spec, body=dict(draft.spec))
    name.last_number += 1
    row = VersionRow(
        name=draft.name,
        number=name.last_number,
        kind=draft.kind,
        version_key=draft.version_key,
        artifact=draft.artifact,
        base=draft.base,
        code=draft.code,
        spec=spec,
        manifest=manifest,
        metrics={key: float(value) for key, value in draft.metrics.items()},
        figures=draft.figures,
        run=draft.run,
        flow_run=draft.flow_run,
        created_at=at,
    )
    session.add(row)
    session.flush()
    for place, (role, target) in enumerate(targets):
        session.add(EdgeRow(child_id=row.id, place=place, role=role, **target))
    session.flush()
    evaluations.remember(session, draft.evaluations, at, registering=row)
    session.add(OutboxRow(topic="version", name=row.name, number=row.number, created_at=at))
    return row, True


def row_by_key(session: Session, version_key: str) -> VersionRow | None:
    return session.scalars(select(VersionRow).where(VersionRow.version_key == version_key)).one_or_none()


def records(session: Session, rows: Sequence[VersionRow]) -> tuple[VersionRecord, ...]:
    """The rows as values, their edges and specs read in one query each."""
    bodies = dict(
        session.execute(select(SpecRow.digest, SpecRow.body).where(SpecRow.digest.in_({r.spec for r in rows})))
        .tuples()
        .all()
    )
    parents: dict[int, list[Parent]] = {row.id: [] for row in rows}
    for child_id, role, ref in edges_of(session, list(parents)):
        if role not in DRAWN_BY_LEDGER:
            parents[child_id].append(Parent(role, ref))
    return tuple(_record(row, bodies[row.spec], tuple(parents[row.id])) for row in rows)


def refs(session: Session, ids: Select[Any]) -> tuple[str, ...]:
    """The versions whose ids are asked for as `name:number`, in the order of registration.

    Text put together by the database and fetched in parts: ten thousand row objects at once would set off Python's
    collector, which takes longer than the question.
    """
    row = VersionRow.__table__.c
    query = select(row.name + ":" + row.number.cast(Text)).where(row.id.in_(ids)).order_by(row.id)
    return tuple(session.scalars(query, execution_options={"yield_per": ROWS_AT_ONCE}))


def edges_of(session: Session, child_ids: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """(child id, role, reference of the target with its full digest) in the order of the drafts."""
    parent = aliased(VersionRow)
    query = (
        select(
            EdgeRow.child_id, EdgeRow.role, *(getattr(EdgeRow, kind) for kind in CONTENT), parent.name, parent.number
        )
        .outerjoin(parent, EdgeRow.parent_id == parent.id)
        .where(EdgeRow.child_id.in_(child_ids))
        .order_by(EdgeRow.child_id, EdgeRow.place)
    )
    for child_id, role, *digests, name, number in session.execute(query):
        content = (f"{kind}:{digest}" for kind, digest in zip(CONTENT, digests, strict=True) if digest is not None)
        yield child_id, role, next(content, f"{name}:{number}")


def _targets(session: Session, draft: VersionDraft) -> list[tuple[str, dict[str, Any]]]:
    """Each edge's role and target column; all that cannot be found is listed at once."""
    problems: list[Problem] = []
    wanted = [("base", f"base:{draft.base}"), ("code", f"code:{draft.code}"), *draft.parents]
    targets: list[tuple[str, dict[str, Any]]] = []
    for role, ref in wanted:
        try:
            target = _target(session, ref)
        except RegistryError as error:
            problems.extend(error.problems)
            continue
        if (role, target) not in targets:
            targets.append((role, target))
    bases = {target["base"] for _, target in targets if "base" in target}
    if len(bases) > 1:
        found = ", ".join(sorted(digest[:12] for digest in bases))
        problems.append(
            Problem("E-LEDGER-006", "parents", f"several bases are named: {found}", "a version has one base")
        )
    problems.extend(_foreign_parents(session, draft, targets))
    raise_if_any(DraftRefused, problems)
    return targets


def _target(session: Session, ref: str) -> dict[str, Any]:
    kind, _, digest = ref.partition(":")
    if kind in CONTENT:
        return {kind: find_content(session, kind, digest).digest}
    return {"parent_id": find_version(session, ref).id}


def _foreign_parents(
    session: Session, draft: VersionDraft, targets: list[tuple[str, dict[str, Any]]]
) -> Iterator[Problem]:
    """What is made from a version shares its base; updates of different weights do not add up."""
    for role, target in targets:
        if "parent_id" in target and role not in NOT_CONTAINED:
            parent = session.get_one(VersionRow, target["parent_id"])
            if parent.base != draft.base:
                wrong = f"{parent.name}:{parent.number} is on base {parent.base[:12]}, this is on {draft.base[:12]}"
                yield Problem("E-LEDGER-006", "parents", wrong, "combine adapters of one base")


def _record(row: VersionRow, spec: Mapping[str, Any], parents: tuple[Parent, ...]) -> VersionRecord:
    return VersionRecord(
        name=row.name,
        number=row.number,
        kind=cast(Kind, row.kind),
        version_key=row.version_key,
        artifact=row.artifact,
        base=row.base,
        code=row.code,
        spec=spec,
        manifest=row.manifest,
        parents=parents,
        metrics=row.metrics,
        figures=row.figures,
        run=row.run,
        flow_run=row.flow_run,
        created_at=row.created_at,
    )


def check(draft: VersionDraft) -> None:
    """Refuse what is wrong before anything is touched.

    Raises:
        DraftRefused: with all problems.
        Unstable: the spec has no stable bytes.
    """
    raise_if_any(DraftRefused, draft_problems(draft))
    canonical(draft.spec)
