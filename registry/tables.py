"""The ledger's tables. What may not be forgotten or bent is a constraint, so that no writer can get around it.

- numbers: UNIQUE (name, number), UNIQUE version_key; versions, edges, specs, splits, promotions, withdrawals and
  signatures refuse UPDATE and DELETE (triggers).
- edges: exactly one target; a parent came before its child (parent_id < child_id), so no cycle can be written.
- promotions: row seq points at row seq - 1 of the same name *and* at its number, so the chain has no gap and no fork.
- data sets: rows_in = accepted + quarantined + deduplicated; a window of traffic is named and claimed once.
- attempts: numbered 1..n within their run; one that has ended says when and how.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import DIGEST, Count, Digest, DigestKey, RowId, Side, Table, TextKey, Word


class BaseRow(Table):
    __tablename__ = "bases"
    digest: Mapped[DigestKey]
    name: Mapped[str]
    revision: Mapped[str | None]
    architecture: Mapped[str]
    parameters: Mapped[Count]
    created_at: Mapped[datetime]


class DatasetRow(Table):
    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("rows_in = accepted + quarantined + deduplicated", name="rows_are_conserved"),
        CheckConstraint("purpose IN ('training', 'traffic')", name="purpose"),
    )
    digest: Mapped[DigestKey]
    task: Mapped[str] = mapped_column(index=True)
    source: Mapped[str]
    source_digest: Mapped[str]
    rows_in: Mapped[Count]
    accepted: Mapped[Count]
    quarantined: Mapped[Count]
    deduplicated: Mapped[Count]
    purpose: Mapped[Word]
    created_at: Mapped[datetime]


class SplitRow(Table):
    """How many rows of a data set lie on one side."""

    __tablename__ = "splits"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.digest"), primary_key=True)
    side: Mapped[str] = mapped_column(String(32), primary_key=True)
    place: Mapped[int]  # order in the record
    rows: Mapped[Count]


class SpecRow(Table):
    """What was asked for; `digest` is the fingerprint of `body`, so a spec that made many versions stands once."""

    __tablename__ = "specs"
    digest: Mapped[DigestKey]
    body: Mapped[dict[str, Any]]


class CodeRow(Table):
    __tablename__ = "codes"
    digest: Mapped[DigestKey]
    packages: Mapped[dict[str, str]]
    versions: Mapped[dict[str, str]]
    created_at: Mapped[datetime]


class NameRow(Table):
    """One task or merged model. The row is locked by whoever gives out a number or moves the champion."""

    __tablename__ = "names"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    last_number: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class VersionRow(Table):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("name", "number"),
        CheckConstraint("number >= 1", name="numbers_start_at_one"),
        CheckConstraint("kind IN ('adapter', 'merged')", name="kind"),
    )
    id: Mapped[RowId]
    name: Mapped[str] = mapped_column(ForeignKey("names.name"))
    number: Mapped[int]
    kind: Mapped[Word]
    version_key: Mapped[str] = mapped_column(DIGEST, unique=True)
    artifact: Mapped[str] = mapped_column(DIGEST, index=True)
    base: Mapped[str] = mapped_column(ForeignKey("bases.digest"))
    code: Mapped[str] = mapped_column(ForeignKey("codes.digest"))
    spec: Mapped[str] = mapped_column(ForeignKey("specs.digest"))
    manifest: Mapped[Digest]  # what binds artifact, base, spec and code, in the store
    metrics: Mapped[dict[str, float]]
    figures: Mapped[Digest | None]
    run: Mapped[str | None]
    flow_run: Mapped[str | None]
    created_at: Mapped[datetime]


class EdgeRow(Table):
    """`child` was made from exactly one of: another version, a base, a data set, the code."""

    __tablename__ = "edges"
    __table_args__ = (
        CheckConstraint(
            "(CASE WHEN parent_id IS NULL THEN 0 ELSE 1 END) + (CASE WHEN base IS NULL THEN 0 ELSE 1 END)"
            " + (CASE WHEN dataset IS NULL THEN 0 ELSE 1 END) + (CASE WHEN code IS NULL THEN 0 ELSE 1 END) = 1",
            name="one_target",
        ),
        CheckConstraint("parent_id IS NULL OR parent_id < child_id", name="parents_come_first"),
        UniqueConstraint("child_id", "place"),
    )
    id: Mapped[RowId]
    child_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    place: Mapped[int]  # order in the draft
    role: Mapped[str] = mapped_column(String(32))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    base: Mapped[str | None] = mapped_column(ForeignKey("bases.digest"), index=True)
    dataset: Mapped[str | None] = mapped_column(ForeignKey("datasets.digest"), index=True)
    code: Mapped[str | None] = mapped_column(ForeignKey("codes.digest"), index=True)


class RowSetRow(Table):
    """Which examples were scored, once for all evaluations on them. Compressed JSON: a list of keys."""

    __tablename__ = "row_sets"
    digest: Mapped[DigestKey]
    n: Mapped[int]
    keys: Mapped[bytes]


class EvaluationRow(Table):
    """One subject, one data set, one side, one metric, one set of rows: one score. The first answer stands."""

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("(version_id IS NULL) <> (base IS NULL)", name="one_subject"),
        CheckConstraint("n >= 1 AND low <= high", name="interval"),
        UniqueConstraint("version_id", "dataset", "side", "metric", "row_set"),
        UniqueConstraint("base", "dataset", "side", "metric", "row_set"),
    )
    id: Mapped[RowId]
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    base: Mapped[str | None] = mapped_column(ForeignKey("bases.digest"))
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.digest"), index=True)
    side: Mapped[Side]
    metric: Mapped[str] = mapped_column(String(64))
    score: Mapped[float]
    n: Mapped[int]
    low: Mapped[float]
    high: Mapped[float]
    row_set: Mapped[str] = mapped_column(ForeignKey("row_sets.digest"))
    outcomes: Mapped[bytes] = mapped_column(deferred=True)  # compressed JSON: outcomes and confidences
    created_at: Mapped[datetime]


class PromotionRow(Table):
    __tablename__ = "promotions"
    __table_args__ = (
        UniqueConstraint("name", "seq"),
        UniqueConstraint("name", "seq", "number"),
        ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
        ForeignKeyConstraint(
            ["name", "prior_seq", "previous"], ["promotions.name", "promotions.seq", "promotions.number"]
        ),
        CheckConstraint(
            "(seq = 1 AND prior_seq IS NULL AND previous IS NULL)"
            " OR (seq > 1 AND prior_seq = seq - 1 AND prior_seq IS NOT NULL AND previous IS NOT NULL)",
            name="no_gap",
        ),
        CheckConstraint("previous IS NULL OR previous <> number", name="something_moves"),
        CheckConstraint("move IN ('promote', 'rollback')", name="move"),
    )
    id: Mapped[RowId]
    name: Mapped[str] = mapped_column(ForeignKey("names.name"))
    seq: Mapped[int]
    prior_seq: Mapped[int | None]
    move: Mapped[Word]
    previous: Mapped[int | None]
    number: Mapped[int]
    decision: Mapped[dict[str, Any]]
    actor: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[datetime]


class WindowRow(Table):
    """A stretch of a task's traffic, by the rows that are in it."""

    __tablename__ = "windows"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)
    task: Mapped[TextKey]
    digest: Mapped[DigestKey]
    rows: Mapped[Count]
    source: Mapped[str]
    created_at: Mapped[datetime]


class FindingRow(Table):
    """A verdict on a window; `turn` is 1 for the first, and one more whenever it was judged otherwise."""

    __tablename__ = "findings"
    __table_args__ = (
        UniqueConstraint("version_id", "window_digest", "turn"),
        ForeignKeyConstraint(["task", "window_digest"], ["windows.task", "windows.digest"]),
    )
    id: Mapped[RowId]
    task: Mapped[str] = mapped_column(index=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    window_digest: Mapped[Digest]
    turn: Mapped[int]
    verdict: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ClaimRow(Table):
    """A window that was taken up for retraining: the primary key lets it happen once, whichever version was judged."""

    __tablename__ = "retrain_claims"
    __table_args__ = (ForeignKeyConstraint(["task", "window_digest"], ["windows.task", "windows.digest"]),)
    task: Mapped[TextKey]
    window_digest: Mapped[DigestKey]
    finding_id: Mapped[int] = mapped_column(ForeignKey("findings.id"))
    claimant: Mapped[str]
    created_at: Mapped[datetime]


class LeaseRow(Table):
    """`token` only ever rises, so that a holder whose time ran out can be told from its successor."""

    __tablename__ = "leases"
    name: Mapped[TextKey]
    holder: Mapped[str]
    token: Mapped[Count]
    expires_seconds: Mapped[float]  # since 1970, by the database's clock


class RunRow(Table):
    """Something to be made once: `key` is the version key that it will have."""

    __tablename__ = "runs"
    key: Mapped[DigestKey]
    created_at: Mapped[datetime]


class AttemptRow(Table):
    """One process that set out to make it, under the lease whose token it holds."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("run", "number"),
        CheckConstraint("state IN ('running', 'done', 'failed', 'lost')", name="state"),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
    )
    id: Mapped[RowId]
    run: Mapped[str] = mapped_column(ForeignKey("runs.key"))
    number: Mapped[int]
    token: Mapped[Count]
    holder: Mapped[str]
    state: Mapped[Word]
    outcome: Mapped[str]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class WithdrawalRow(Table):
    """A version that may not be used any more, because of itself or of what it was made from."""

    __tablename__ = "withdrawals"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True, autoincrement=False)
    cause_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    actor: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[datetime]


class SignatureRow(Table):
    """A version's manifest signed with one key; `seal` is the digest in the store of manifest and signature."""

    __tablename__ = "signatures"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True, autoincrement=False)
    key: Mapped[DigestKey]  # SHA-256 of the public key
    seal: Mapped[Digest]
    created_at: Mapped[datetime]


class TrafficRow(Table):
    """One request that a served task was asked; `at` is NULL while only its label has come."""

    __tablename__ = "traffic"
    __table_args__ = (Index("ix_traffic_task_at", "task", "at"),)
    task: Mapped[TextKey]
    event: Mapped[TextKey]
    at: Mapped[datetime | None]
    source: Mapped[str]
    columns: Mapped[dict[str, str]]


class TrafficIngestRow(Table):
    """How far one file of traffic is taken in; `through` is the number of its last row that is."""

    __tablename__ = "traffic_ingests"
    __table_args__ = (
        CheckConstraint("rows_in = accepted + repeated + set_aside", name="rows_are_conserved"),
        CheckConstraint("late <= repeated", name="late"),
    )
    task: Mapped[TextKey]
    digest: Mapped[DigestKey]
    source: Mapped[str]
    through: Mapped[Count]
    rows_in: Mapped[Count]
    accepted: Mapped[Count]
    repeated: Mapped[Count]
    late: Mapped[Count]
    set_aside: Mapped[Count]
    finished: Mapped[bool]


class TrafficAsideRow(Table):
    """A row of such a file that was not taken, and why; `at` is about when it came, `event` its id where known."""

    __tablename__ = "traffic_set_aside"
    __table_args__ = (ForeignKeyConstraint(["task", "digest"], ["traffic_ingests.task", "traffic_ingests.digest"]),)
    task: Mapped[TextKey]
    digest: Mapped[DigestKey]
    row: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    field: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime | None]
    event: Mapped[str | None]


class OutboxRow(Table):
    __tablename__ = "outbox"
    __table_args__ = (CheckConstraint("topic IN ('version', 'promotion', 'evaluation', 'withdrawal')", name="topic"),)
    id: Mapped[RowId]
    topic: Mapped[Word]
    name: Mapped[str]
    number: Mapped[int | None]
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None] = mapped_column(index=True)
