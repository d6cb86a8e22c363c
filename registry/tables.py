"""The ledger's tables. What may not be forgotten or bent is a constraint, so that no writer can get around it.

- numbers: UNIQUE (name, number), UNIQUE version_key; versions, edges, specs, splits, promotions, withdrawals and
  signatures refuse UPDATE and DELETE (triggers).
- edges: exactly one target; a parent came before its child (parent_id < child_id), so no cycle can be written.
- promotions: row seq points at row seq - 1 of the same name *and* at its number, so the chain has no gap and no fork.
- data sets: rows_in = accepted + quarantined + deduplicated; a window of traffic is judged, claimed, and named once.
- attempts: numbered 1..n within their run; one that has ended says when and how.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

DIGEST = String(64)
ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only under INTEGER PRIMARY KEY


class Utc(TypeDecorator[datetime]):
    """A moment with its zone; SQLite forgets the zone, so it is given back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class BaseRow(Table):
    __tablename__ = "bases"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    revision: Mapped[str | None] = mapped_column(Text)
    architecture: Mapped[str] = mapped_column(Text)
    parameters: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Utc)


class DatasetRow(Table):
    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("rows_in = accepted + quarantined + deduplicated", name="rows_are_conserved"),
        CheckConstraint("purpose IN ('training', 'traffic')", name="purpose"),
    )
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    task: Mapped[str] = mapped_column(Text, index=True)
    source: Mapped[str] = mapped_column(Text)
    source_digest: Mapped[str] = mapped_column(Text)
    rows_in: Mapped[int] = mapped_column(BigInteger)
    accepted: Mapped[int] = mapped_column(BigInteger)
    quarantined: Mapped[int] = mapped_column(BigInteger)
    deduplicated: Mapped[int] = mapped_column(BigInteger)
    purpose: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Utc)


class SplitRow(Table):
    """How many rows of a data set lie on one side."""

    __tablename__ = "splits"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.digest"), primary_key=True)
    side: Mapped[str] = mapped_column(String(32), primary_key=True)
    place: Mapped[int] = mapped_column(Integer)  # order in the record
    rows: Mapped[int] = mapped_column(BigInteger)


class SpecRow(Table):
    """What was asked for; `digest` is the fingerprint of `body`, so a spec that made many versions stands once."""

    __tablename__ = "specs"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    body: Mapped[dict[str, Any]] = mapped_column(JSON)


class CodeRow(Table):
    __tablename__ = "codes"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    packages: Mapped[dict[str, str]] = mapped_column(JSON)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Utc)


class NameRow(Table):
    """One task or merged model. The row is locked by whoever gives out a number or moves the champion."""

    __tablename__ = "names"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    last_number: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(Utc)


class VersionRow(Table):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("name", "number"),
        CheckConstraint("number >= 1", name="numbers_start_at_one"),
        CheckConstraint("kind IN ('adapter', 'merged')", name="kind"),
    )
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    name: Mapped[str] = mapped_column(ForeignKey("names.name"))
    number: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16))
    version_key: Mapped[str] = mapped_column(DIGEST, unique=True)
    artifact: Mapped[str] = mapped_column(DIGEST, index=True)
    base: Mapped[str] = mapped_column(ForeignKey("bases.digest"))
    code: Mapped[str] = mapped_column(ForeignKey("codes.digest"))
    spec: Mapped[str] = mapped_column(ForeignKey("specs.digest"))
    manifest: Mapped[str] = mapped_column(DIGEST)  # what binds artifact, base, spec and code, in the store
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    figures: Mapped[str | None] = mapped_column(DIGEST)
    run: Mapped[str | None] = mapped_column(Text)
    flow_run: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


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
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    child_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    place: Mapped[int] = mapped_column(Integer)  # order in the draft
    role: Mapped[str] = mapped_column(String(32))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    base: Mapped[str | None] = mapped_column(ForeignKey("bases.digest"), index=True)
    dataset: Mapped[str | None] = mapped_column(ForeignKey("datasets.digest"), index=True)
    code: Mapped[str | None] = mapped_column(ForeignKey("codes.digest"), index=True)


class RowSetRow(Table):
    """Which examples were scored, once for all evaluations on them. Compressed JSON: a list of keys."""

    __tablename__ = "row_sets"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    n: Mapped[int] = mapped_column(Integer)
    keys: Mapped[bytes] = mapped_column(LargeBinary)


class EvaluationRow(Table):
    """One subject, one data set, one side, one metric, one set of rows: one score. The first answer stands."""

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("(version_id IS NULL) <> (base IS NULL)", name="one_subject"),
        CheckConstraint("n >= 1 AND low <= high", name="interval"),
        UniqueConstraint("version_id", "dataset", "side", "metric", "row_set"),
        UniqueConstraint("base", "dataset", "side", "metric", "row_set"),
    )
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    base: Mapped[str | None] = mapped_column(ForeignKey("bases.digest"))
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.digest"), index=True)
    side: Mapped[str] = mapped_column(String(32))
    metric: Mapped[str] = mapped_column(String(64))
    score: Mapped[float]
    n: Mapped[int] = mapped_column(Integer)
    low: Mapped[float]
    high: Mapped[float]
    row_set: Mapped[str] = mapped_column(ForeignKey("row_sets.digest"))
    outcomes: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)  # compressed JSON: outcomes and confidences
    created_at: Mapped[datetime] = mapped_column(Utc)


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
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    name: Mapped[str] = mapped_column(ForeignKey("names.name"))
    seq: Mapped[int] = mapped_column(Integer)
    prior_seq: Mapped[int | None] = mapped_column(Integer)
    move: Mapped[str] = mapped_column(String(16))
    previous: Mapped[int | None] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(Integer)
    decision: Mapped[dict[str, Any]] = mapped_column(JSON)
    actor: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


class WindowRow(Table):
    """A stretch of a task's traffic, by the rows that are in it."""

    __tablename__ = "windows"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)
    task: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    rows: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


class FindingRow(Table):
    __tablename__ = "findings"
    __table_args__ = (
        UniqueConstraint("version_id", "window_digest"),
        ForeignKeyConstraint(["task", "window_digest"], ["windows.task", "windows.digest"]),
    )
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    task: Mapped[str] = mapped_column(Text, index=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    window_digest: Mapped[str] = mapped_column(DIGEST)
    verdict: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Utc)


class ClaimRow(Table):
    """A window that was taken up for retraining: the primary key lets it happen once, whichever version was judged."""

    __tablename__ = "retrain_claims"
    __table_args__ = (ForeignKeyConstraint(["task", "window_digest"], ["windows.task", "windows.digest"]),)
    task: Mapped[str] = mapped_column(Text, primary_key=True)
    window_digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    finding_id: Mapped[int] = mapped_column(ForeignKey("findings.id"))
    claimant: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


class LeaseRow(Table):
    """`token` only ever rises, so that a holder whose time ran out can be told from its successor."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    token: Mapped[int] = mapped_column(BigInteger)
    expires_seconds: Mapped[float]  # since 1970, by the database's clock


class RunRow(Table):
    """Something to be made once: `key` is the version key that it will have."""

    __tablename__ = "runs"
    key: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Utc)


class AttemptRow(Table):
    """One process that set out to make it, under the lease whose token it holds."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("run", "number"),
        CheckConstraint("state IN ('running', 'done', 'failed', 'lost')", name="state"),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
    )
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.key"))
    number: Mapped[int] = mapped_column(Integer)
    token: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class WithdrawalRow(Table):
    """A version that may not be used any more, because of itself or of what it was made from."""

    __tablename__ = "withdrawals"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True, autoincrement=False)
    cause_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    actor: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


class SignatureRow(Table):
    """A version's manifest signed with one key; `seal` is the digest in the store of manifest and signature."""

    __tablename__ = "signatures"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(DIGEST, primary_key=True)  # SHA-256 of the public key
    seal: Mapped[str] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = mapped_column(Utc)


class TrafficRow(Table):
    """One request that a served task was asked; `at` is NULL while only its label has come."""

    __tablename__ = "traffic"
    __table_args__ = (Index("ix_traffic_task_at", "task", "at"),)
    task: Mapped[str] = mapped_column(Text, primary_key=True)
    event: Mapped[str] = mapped_column(Text, primary_key=True)
    at: Mapped[datetime | None] = mapped_column(Utc)
    source: Mapped[str] = mapped_column(Text)
    columns: Mapped[dict[str, str]] = mapped_column(JSON)


class TrafficIngestRow(Table):
    """How far one file of traffic is taken in; `through` is the number of its last row that is."""

    __tablename__ = "traffic_ingests"
    __table_args__ = (
        CheckConstraint("rows_in = accepted + repeated + set_aside", name="rows_are_conserved"),
        CheckConstraint("late <= repeated", name="late"),
    )
    task: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    through: Mapped[int] = mapped_column(BigInteger)
    rows_in: Mapped[int] = mapped_column(BigInteger)
    accepted: Mapped[int] = mapped_column(BigInteger)
    repeated: Mapped[int] = mapped_column(BigInteger)
    late: Mapped[int] = mapped_column(BigInteger)
    set_aside: Mapped[int] = mapped_column(BigInteger)
    finished: Mapped[bool] = mapped_column(Boolean)


class TrafficAsideRow(Table):
    """A row of such a file that was not taken, and why."""

    __tablename__ = "traffic_set_aside"
    __table_args__ = (ForeignKeyConstraint(["task", "digest"], ["traffic_ingests.task", "traffic_ingests.digest"]),)
    task: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    row: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    field: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)


class OutboxRow(Table):
    __tablename__ = "outbox"
    __table_args__ = (CheckConstraint("topic IN ('version', 'promotion', 'evaluation', 'withdrawal')", name="topic"),)
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    topic: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(Text)
    number: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Utc)
    delivered_at: Mapped[datetime | None] = mapped_column(Utc, index=True)
