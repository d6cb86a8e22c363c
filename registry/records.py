"""What is remembered: frozen, plain values that cross the border of this package. Imports nothing heavy.

A reference names one thing in the ledger:

    triage:3                the third version of triage          (pinned: what lineage is made of)
    triage@champion         the version that is served           (moves)
    triage                  the newest version                   (moves)
    base:<digest>           a base model's weights
    dataset:<digest>        a snapshot of rows
    code:<digest>           the program that did the work
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

Kind = Literal["adapter", "merged"]
Purpose = Literal["training", "traffic"]
Move = Literal["promote", "rollback"]
SHORT = 12


def base_ref(digest: str) -> str:
    """`base:` and the first twelve hex digits, as evaluations and lineage name a base.

    >>> base_ref("0123456789abcdef" * 4)
    'base:0123456789ab'
    """
    return f"base:{digest[:SHORT]}"


def dataset_ref(digest: str) -> str:
    return f"dataset:{digest[:SHORT]}"


def code_ref(digest: str) -> str:
    return f"code:{digest[:SHORT]}"


class Parent(NamedTuple):
    """One edge of the lineage: what the thing was made from, and as what.

    Roles in use: dataset, replay, window (of a data set); parent (merged from), previous (the champion that it was
    retrained to replace), start (trained on from), trimmed (cut to a smaller rank). The edges to base and code are
    drawn by the ledger.
    """

    role: str
    ref: str


@dataclass(frozen=True)
class BaseRecord:
    """Weights that adapters share, by content. `digest` covers weights, configuration and tokenizer."""

    digest: str
    name: str
    revision: str | None
    architecture: str
    parameters: int


@dataclass(frozen=True)
class DatasetRecord:
    """A snapshot of rows. `digest` is what the store gave for the snapshot's folder.

    rows_in == sum(counts) + quarantined + deduplicated, or the record is refused.
    """

    digest: str
    task: str
    source: str
    source_digest: str
    rows_in: int
    counts: Mapping[str, int]  # side -> rows
    quarantined: int
    deduplicated: int
    purpose: Purpose = "training"


@dataclass(frozen=True)
class CodeRecord:
    """The program: a digest over `packages` (name -> digest of its files) and `versions` (distribution -> version)."""

    digest: str
    packages: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationRecord:
    """One subject scored on named rows. `outcomes[i]` (and `confidences[i]`) belong to the example `keys[i]`.

    `subject` is a pinned version, or a base; empty means the version that is being registered.
    """

    dataset: str  # digest
    side: str
    metric: str
    score: float
    n: int
    low: float
    high: float
    keys: tuple[str, ...] = ()
    outcomes: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    subject: str = ""


@dataclass(frozen=True)
class VersionDraft:
    """A version that asks to be registered: everything that it was made from, and what it can do."""

    name: str
    kind: Kind
    version_key: str
    artifact: str  # digest in the store
    base: str  # digest
    code: str  # digest
    spec: Mapping[str, Any]
    parents: tuple[Parent | tuple[str, str], ...]
    binds: Mapping[str, Any] = field(default_factory=dict)  # further content for the manifest, by name
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[EvaluationRecord, ...] = ()
    figures: str | None = None  # digest in the store of a folder of images
    run: str | None = None  # key of the tracker's run
    flow_run: str | None = None  # id of the Prefect flow run


@dataclass(frozen=True)
class VersionRecord:
    """A version that stands in the ledger. Nothing in it ever changes."""

    name: str
    number: int
    kind: Kind
    version_key: str
    artifact: str
    base: str
    code: str
    spec: Mapping[str, Any]
    manifest: str
    parents: tuple[Parent, ...]
    metrics: Mapping[str, float]
    figures: str | None
    run: str | None
    flow_run: str | None
    created_at: datetime

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.number}"


@dataclass(frozen=True)
class PromotionRecord:
    """One link of a name's chain: `previous` is the number of the link before, None at the first."""

    name: str
    seq: int
    move: Move
    previous: int | None
    number: int
    decision: Mapping[str, Any]
    actor: str
    reason: str
    created_at: datetime

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.number}"


@dataclass(frozen=True)
class FindingRecord:
    """The verdict on one window of traffic against one served version."""

    task: str
    version: str  # pinned reference
    window_digest: str
    verdict: str
    action: str
    report: Mapping[str, Any]
    created_at: datetime | None = None
    rows: int = 0  # of the window
    source: str = ""  # of the window


@dataclass(frozen=True)
class ClaimRecord:
    """A window that was taken up for retraining, and by whom."""

    task: str
    window_digest: str
    claimant: str
    created_at: datetime


@dataclass(frozen=True)
class LeaseRecord:
    """The right to do one thing until `expires_seconds` (the database's clock). A later token fences off an earlier."""

    name: str
    holder: str
    token: int
    expires_seconds: float


@dataclass(frozen=True)
class AttemptRecord:
    """One process that set out to make the version of `run` (a version key)."""

    run: str
    number: int
    holder: str
    state: str  # running, done, failed, lost
    outcome: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class WithdrawalRecord:
    """A version that may not be used any more; `cause` is itself, or the version in it that was withdrawn."""

    version: str
    cause: str
    actor: str
    reason: str
    created_at: datetime


@dataclass(frozen=True)
class SignatureRecord:
    """A version's manifest, signed: `key` is the SHA-256 of the public key, `seal` the store's digest."""

    version: str
    key: str
    seal: str
    created_at: datetime


@dataclass(frozen=True)
class OutboxRecord:
    """Something that MLflow has still to be told, written in the transaction that made it true."""

    id: int
    topic: str  # version, promotion, evaluation, withdrawal
    name: str
    number: int | None
