"""Scores with the outcome of every single example, so that two subjects can be compared row by row later."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from registry.database import insert_once
from registry.errors import DraftRefused, Problem, Unknown, raise_if_any
from registry.fingerprint import fingerprint
from registry.names import find_content, find_version
from registry.records import EvaluationRecord, base_ref
from registry.tables import BaseRow, EvaluationRow, OutboxRow, RowSetRow, VersionRow


def record_problems(record: EvaluationRecord) -> Iterator[Problem]:
    """An evaluation names its rows once each and gives an outcome for every one."""
    where = f"{record.subject or 'this version'} {record.side}/{record.metric}"
    if not (len(record.keys) == len(record.outcomes) == record.n >= 1) or len(record.confidences) not in (0, record.n):
        counts = f"n={record.n}, {len(record.keys)} keys, {len(record.outcomes)} outcomes, "
        counts += f"{len(record.confidences)} confidences"
        yield Problem("E-LEDGER-007", where, f"counts disagree: {counts}", "give one outcome per example")
    if len(set(record.keys)) < len(record.keys):
        yield Problem("E-LEDGER-007", where, "an example is scored twice", "score distinct rows")
    numbers = (record.score, record.low, record.high, *record.outcomes, *record.confidences)
    if not all(math.isfinite(number) for number in numbers) or record.low > record.high:
        yield Problem("E-LEDGER-007", where, "score or interval is not a number", "leave out what was not measured")


def remember(
    session: Session, records: Sequence[EvaluationRecord], at: datetime, *, registering: VersionRow | None = None
) -> tuple[int, ...]:
    """Rows for all records, ids in their order. A question that was answered before keeps its first answer.

    Raises:
        DraftRefused: with all inconsistent records.
        Unknown: for a subject or data set that was not remembered.
    """
    raise_if_any(DraftRefused, (problem for record in records for problem in record_problems(record)))
    return tuple(_remember_one(session, record, at, registering) for record in records)


def of_subject(session: Session, subject: str) -> tuple[EvaluationRecord, ...]:
    """All evaluations of a version or base, oldest first, with their outcomes; keys are sorted."""
    version_id, base, shown = _subject(session, subject, None)
    ours = EvaluationRow.version_id == version_id if base is None else EvaluationRow.base == base
    query = select(EvaluationRow, RowSetRow).join(RowSetRow).where(ours).order_by(EvaluationRow.id)
    return tuple(
        _record(row, rows, shown) for row, rows in session.execute(query.options(undefer(EvaluationRow.outcomes)))
    )


def by_ids(session: Session, ids: Sequence[int]) -> tuple[EvaluationRecord, ...]:
    found = []
    for row_id in ids:
        row = session.get_one(EvaluationRow, row_id)
        version = session.get(VersionRow, row.version_id) if row.version_id else None
        shown = base_ref(row.base or "") if version is None else f"{version.name}:{version.number}"
        found.append(_record(row, session.get_one(RowSetRow, row.row_set), shown))
    return tuple(found)


def row_set_digest(keys: Sequence[str]) -> str:
    """The identity of a set of examples, whatever their order."""
    return fingerprint(sorted(keys))


def packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), 6)


def unpacked(data: bytes) -> list:
    return list(json.loads(zlib.decompress(data)))


def _remember_one(session: Session, record: EvaluationRecord, at: datetime, registering: VersionRow | None) -> int:
    version_id, base, _ = _subject(session, record.subject, registering)
    dataset = find_content(session, "dataset", record.dataset).digest
    order = sorted(range(record.n), key=lambda place: record.keys[place])
    keys = [record.keys[place] for place in order]
    row_set = row_set_digest(keys)
    insert_once(session, RowSetRow, digest=row_set, n=record.n, keys=packed(keys))
    question = {
        "version_id": version_id, "base": base, "dataset": dataset,
        "side": record.side, "metric": record.metric, "row_set": row_set,
    }  # fmt: skip
    outcomes = [float(record.outcomes[place]) for place in order]
    confidences = [float(record.confidences[place]) for place in order] if record.confidences else []
    answer = {"score": float(record.score), "n": record.n, "low": float(record.low), "high": float(record.high)}
    blob = packed([outcomes, confidences])
    new = insert_once(session, EvaluationRow, **question, **answer, outcomes=blob, created_at=at)
    if new and version_id is not None and registering is None:
        version = session.get_one(VersionRow, version_id)
        session.add(OutboxRow(topic="evaluation", name=version.name, number=version.number, created_at=at))
    return session.scalars(select(EvaluationRow.id).filter_by(**question)).one()


def _subject(session: Session, subject: str, registering: VersionRow | None) -> tuple[int | None, str | None, str]:
    """(version id, None) or (None, base digest), and the subject as it is shown."""
    if not subject:
        if registering is None:
            raise Unknown.one(
                "E-LEDGER-007", "evaluation", "names no subject", "set subject to name:number or base:digest"
            )
        return registering.id, None, f"{registering.name}:{registering.number}"
    if subject.startswith("base:"):
        base: BaseRow = find_content(session, "base", subject.removeprefix("base:"))
        return None, base.digest, base_ref(base.digest)
    version = find_version(session, subject)
    return version.id, None, f"{version.name}:{version.number}"


def _record(row: EvaluationRow, rows: RowSetRow, subject: str) -> EvaluationRecord:
    outcomes, confidences = unpacked(row.outcomes)
    return EvaluationRecord(
        dataset=row.dataset,
        side=row.side,
        metric=row.metric,
        score=row.score,
        n=row.n,
        low=row.low,
        high=row.high,
        keys=tuple(unpacked(rows.keys)),
        outcomes=tuple(outcomes),
        confidences=tuple(confidences),
        subject=subject,
    )
