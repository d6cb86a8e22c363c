"""Does what the ledger says hold? Every check reads; none repairs (that is repair.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from registry.errors import IntegrityError, Problem
from registry.evaluations import row_set_digest, unpacked
from registry.fingerprint import fingerprint
from registry.ledger import Ledger
from registry.manifest import MANIFEST, binding_problems
from registry.names import CONTENT
from registry.records import base_ref
from registry.references import referenced
from registry.signing import unsigned
from registry.store import Store
from registry.tables import (
    DatasetRow,
    EdgeRow,
    EvaluationRow,
    NameRow,
    PromotionRow,
    RowSetRow,
    SpecRow,
    SplitRow,
    VersionRow,
    WithdrawalRow,
)
from registry.withdrawals import NOT_CONTAINED

RESTORE = "restore the ledger from a backup"


def fsck(ledger: Ledger, store: Store) -> tuple[Problem, ...]:
    """Everything that is wrong; empty when all invariants hold.

    - the database is whole; every file of every version, figure set and data set verifies;
    - numbers run 1..last of each name; each promotion chain runs 1..n, each link from the one before to a version that
      passed every gate of the decision that moved it;
    - from every version one walks to a base, code and data, and never in a circle;
    - rows in = accepted + quarantined + deduplicated; every evaluation has its outcomes on the rows that it names;
    - every manifest says what the ledger says; where a key is configured, champions are signed with it;
    - what contains a withdrawn version is withdrawn.
    """
    found: list[Problem] = []
    with ledger.database.reading() as session:
        for check in (_database, _numbers, _chains, _lineage, _counts, _evaluations, _specs, _withdrawals):
            found.extend(check(session))
        digests = referenced(session)
    found.extend(_artifacts(store, digests))
    found.extend(_bindings(ledger, store))
    return tuple(found)


def _database(session: Session) -> Iterator[Problem]:
    if session.get_bind().dialect.name != "sqlite":
        return
    for (said,) in session.execute(text("PRAGMA quick_check")):
        if said != "ok":
            yield Problem("E-LEDGER-101", "database", said, RESTORE)
    for table, row_id, target, _ in session.execute(text("PRAGMA foreign_key_check")):
        yield Problem("E-LEDGER-102", f"{table} row {row_id}", f"points at nothing in {target}", RESTORE)


def _numbers(session: Session) -> Iterator[Problem]:
    counted = select(VersionRow.name, func.count(), func.max(VersionRow.number)).group_by(VersionRow.name)
    standing = {name: (count, newest) for name, count, newest in session.execute(counted)}
    for name, last in session.execute(select(NameRow.name, NameRow.last_number)):
        count, newest = standing.get(name, (0, 0))
        if not count == newest == last:
            wrong = f"{count} versions up to v{newest}, but {last} numbers were given out"
            yield Problem("E-LEDGER-103", name, wrong, RESTORE)


def _chains(session: Session) -> Iterator[Problem]:
    """Link k is number k, starts where link k - 1 ended, and ends at a version that is there and passed its gates."""
    versions = set(session.execute(select(VersionRow.name, VersionRow.number)).tuples())
    before: dict[str, tuple[int, int | None]] = {}
    for row in session.scalars(select(PromotionRow).order_by(PromotionRow.name, PromotionRow.seq)):
        seq, number = before.get(row.name, (0, None))
        where = f"{row.name} promotion {row.seq}"
        if row.seq != seq + 1:
            yield Problem("E-LEDGER-104", where, f"follows promotion {seq}: there is a gap", RESTORE)
        if row.previous != number:
            yield Problem("E-LEDGER-104", where, f"starts at v{row.previous}, the chain stood at v{number}", RESTORE)
        if (row.name, row.number) not in versions:
            yield Problem("E-LEDGER-105", where, f"makes v{row.number} champion, which does not exist", RESTORE)
        for gate in row.decision.get("gates", ()):
            if not gate["passed"]:
                wrong = f"made v{row.number} champion past a gate that it failed: {gate['name']}"
                yield Problem("E-LEDGER-114", where, wrong, f"factory rollback {row.name}")
        before[row.name] = (row.seq, row.number)


def _lineage(session: Session) -> Iterator[Problem]:
    """Closed and acyclic. Parents have lower ids than children, so one pass in that order sees parents first."""
    reached: dict[int, set[str]] = {}
    edges: dict[int, list[EdgeRow]] = {}
    for edge in session.scalars(select(EdgeRow)):
        edges.setdefault(edge.child_id, []).append(edge)
    for row in session.scalars(select(VersionRow).order_by(VersionRow.id)):
        ref = f"{row.name}:{row.number}"
        kinds = reached.setdefault(row.id, set())
        for edge in edges.get(row.id, []):
            if edge.parent_id is None:
                kinds |= {kind for kind in CONTENT if getattr(edge, kind) is not None}
            elif edge.parent_id in reached and edge.parent_id != row.id:
                kinds |= reached[edge.parent_id]
            else:
                yield Problem("E-LEDGER-106", ref, f"was made from the later or missing row {edge.parent_id}", RESTORE)
        for kind in sorted(set(CONTENT) - kinds):
            yield Problem("E-LEDGER-107", ref, f"leads to no {kind}", RESTORE)


def _counts(session: Session) -> Iterator[Problem]:
    summed = select(SplitRow.dataset, func.sum(SplitRow.rows)).group_by(SplitRow.dataset)
    sides = dict(session.execute(summed).tuples().all())
    for row in session.scalars(select(DatasetRow)):
        accepted = int(sides.get(row.digest, 0))
        if not accepted == row.accepted == row.rows_in - row.quarantined - row.deduplicated:
            away = f"{row.quarantined} quarantined, {row.deduplicated} deduplicated"
            wrong = f"{row.rows_in} rows in, {accepted} accepted, {away}"
            yield Problem("E-LEDGER-108", f"dataset:{row.digest[:12]}", wrong, "import the data set again")


def _evaluations(session: Session) -> Iterator[Problem]:
    for rows in session.scalars(select(RowSetRow)):
        keys = unpacked(rows.keys)
        if len(keys) != rows.n or row_set_digest(keys) != rows.digest:
            yield Problem(
                "E-LEDGER-109", f"row set {rows.digest[:12]}", "its keys are not what their digest says", RESTORE
            )
    query = select(EvaluationRow, EvaluationRow.outcomes, RowSetRow.n, VersionRow.name, VersionRow.number)
    joined = query.join(RowSetRow).outerjoin(VersionRow, EvaluationRow.version_id == VersionRow.id)
    for row, blob, n, name, number in session.execute(joined):
        outcomes, _ = unpacked(blob)
        numbers = [row.score, row.low, row.high, *outcomes]
        if not len(outcomes) == n == row.n or not all(math.isfinite(value) for value in numbers):
            where = f"{base_ref(row.base) if row.base else f'{name}:{number}'} {row.side}/{row.metric}"
            yield Problem(
                "E-LEDGER-110", where, f"{len(outcomes)} outcomes for {row.n} of {n} rows", "evaluate it again"
            )


def _specs(session: Session) -> Iterator[Problem]:
    for digest, body in session.execute(select(SpecRow.digest, SpecRow.body)):
        if fingerprint(body) != digest:
            yield Problem("E-LEDGER-113", f"spec {digest[:12]}", "is not what its digest says", RESTORE)


def _withdrawals(session: Session) -> Iterator[Problem]:
    """Parents have lower ids than children, so one pass in that order sees them first."""
    marked = set(session.scalars(select(WithdrawalRow.version_id)))
    inner = select(EdgeRow.child_id, EdgeRow.parent_id).where(EdgeRow.parent_id.is_not(None))
    for child_id, parent_id in session.execute(
        inner.where(EdgeRow.role.not_in(NOT_CONTAINED)).order_by(EdgeRow.child_id)
    ):
        if parent_id in marked and child_id not in marked:
            marked.add(child_id)
            row = session.get(VersionRow, child_id)
            where = f"{row.name}:{row.number}" if row is not None else f"version row {child_id}"
            wrong = "contains a withdrawn version and is not withdrawn"
            yield Problem("E-LEDGER-112", where, wrong, f"factory withdraw {where} --reason ...")


def _bindings(ledger: Ledger, store: Store) -> Iterator[Problem]:
    """Manifests whose bytes verify, against the ledger; damaged ones were named with the artifacts."""
    signer = ledger.signer
    champions = {f"{name}:{row.number}" for name in ledger.names() if (row := ledger.champion(name)) is not None}
    for version in ledger.versions():
        try:
            folder = store.path(version.manifest)
            yield from binding_problems(version, folder)
            seals = {s.key: s.seal for s in ledger.signatures(version.ref)} if signer is not None else {}
            if signer is not None and signer.key in seals:
                signer.check(store, seals[signer.key], (folder / MANIFEST).read_bytes(), version.ref)
            elif signer is not None and version.ref in champions:
                yield unsigned(version.ref, signer.key)
        except IntegrityError as error:
            yield from (problem for problem in error.problems if problem.code.startswith("E-SIGN"))


def _artifacts(store: Store, digests: dict[str, str]) -> Iterator[Problem]:
    for digest, owner in digests.items():
        try:
            store.check(digest)
        except IntegrityError as error:
            for problem in error.problems:
                yield problem._replace(where=f"{owner} {problem.where}")
