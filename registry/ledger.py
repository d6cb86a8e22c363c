"""The truth about what was made: bases, data sets, code, versions, scores, champions, drift findings.

    ledger = Ledger.open("sqlite:///.factory/ledger.db", store=Store(".factory/store"))
    version = ledger.register(draft)                      # all or nothing; the same key gives the same version
    ledger.promote("triage", version.number, expected=8, decision=...)   # or: champion is v9 now (you expected v8)
    ledger.version("triage@champion")

Every method is one transaction. Moments come from `clock`; order comes from the database's own sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self, cast

from sqlalchemy import select

from registry import evaluations, findings, leases, outbox, promotions, versions
from registry.database import Database, insert_once
from registry.errors import DraftRefused, RegistryError
from registry.failpoint import failpoint
from registry.fingerprint import canonical
from registry.lineage import Direction, Lineage, neighbourhood, walk
from registry.names import challenger_row, champion_row, find_content, find_version, unknown_name
from registry.records import (
    BaseRecord,
    ClaimRecord,
    CodeRecord,
    DatasetRecord,
    EvaluationRecord,
    FindingRecord,
    LeaseRecord,
    OutboxRecord,
    PromotionRecord,
    Purpose,
    VersionDraft,
    VersionRecord,
)
from registry.store import Store
from registry.tables import BaseRow, CodeRow, DatasetRow, NameRow, VersionRow

ANY = -1  # rollback: whoever is champion now


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """One database and the store whose bytes it vouches for. Use from one thread or many, and after a fork."""

    def __init__(self, database: Database, store: Store | None, clock: Callable[[], datetime]) -> None:
        self.database = database
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, url: str, *, store: Store | None = None, clock: Callable[[], datetime] = _now) -> Self:
        """Connect, building or upgrading the schema where needed. Without a store the ledger can only be read.

        Raises:
            Unknown: a URL that names no database we speak to.
            DependencyDown: the database does not answer.
            IntegrityError: it is no ledger, or a newer one.
        """
        return cls(Database.open(url), store, clock)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What versions are made from ------------------------------------------------------------------------------------

    def remember_base(self, record: BaseRecord) -> BaseRecord:
        """The first record of a digest stands and is returned."""
        with self.database.writing() as session:
            insert_once(session, BaseRow, **vars(record), created_at=self._clock())
        return self.base(record.digest)

    def remember_dataset(self, record: DatasetRecord) -> DatasetRecord:
        """The first record of a digest stands and is returned. The snapshot has to be in the store, and whole.

        Raises:
            DraftRefused: rows in != accepted + quarantined + deduplicated.
            IntegrityError: the snapshot is not in the store, or not what its digest says.
        """
        accepted = sum(record.counts.values())
        if record.rows_in != accepted + record.quarantined + record.deduplicated:
            wrong = (
                f"{record.rows_in} rows came in, but {accepted} accepted + {record.quarantined} quarantined"
                f" + {record.deduplicated} deduplicated are {accepted + record.quarantined + record.deduplicated}"
            )
            raise DraftRefused.one("E-LEDGER-008", f"dataset:{record.digest[:12]}", wrong, "count every row once")
        self._verify(record.digest)
        values = {**vars(record), "counts": dict(record.counts), "accepted": accepted}
        with self.database.writing() as session:
            insert_once(session, DatasetRow, **values, created_at=self._clock())
        return self.dataset(record.digest)

    def remember_code(self, record: CodeRecord) -> CodeRecord:
        with self.database.writing() as session:
            values = {"packages": dict(record.packages), "versions": dict(record.versions)}
            insert_once(session, CodeRow, digest=record.digest, **values, created_at=self._clock())
        return record

    def base(self, digest: str) -> BaseRecord:
        """A base by its digest, or by twelve or more digits of it."""
        with self.database.reading() as session:
            row = find_content(session, "base", digest.removeprefix("base:"))
            return BaseRecord(row.digest, row.name, row.revision, row.architecture, row.parameters)

    def dataset(self, digest: str) -> DatasetRecord:
        """A data set by its digest, or by twelve or more digits of it."""
        with self.database.reading() as session:
            return _dataset(find_content(session, "dataset", digest.removeprefix("dataset:")))

    def datasets(self, task: str | None = None) -> tuple[DatasetRecord, ...]:
        """Data sets of a task, or all, oldest first."""
        query = select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.digest)
        with self.database.reading() as session:
            return tuple(
                _dataset(row) for row in session.scalars(query if task is None else query.filter_by(task=task))
            )

    # Versions -------------------------------------------------------------------------------------------------------

    def register(self, draft: VersionDraft) -> VersionRecord:
        """The version of this draft: the next number of its name, or the one that has its key already.

        Row, lineage, scores and the word to MLflow are one transaction, begun only after every file verified.

        Raises:
            DraftRefused: with everything that is forgotten, unknown or contradictory.
            IntegrityError: the artifact or the figures are not in the store, or not what their digest says.
            Conflict: the key is registered under another name.
        """
        versions.check(draft)
        known = self.by_key(draft.version_key)
        if known is not None and known.name == draft.name:
            return known
        for digest in (draft.artifact, draft.figures):
            if digest is not None:
                self._verify(digest)
        with self.database.writing() as session:
            row, _ = versions.insert(session, draft, self._clock())
            (record,) = versions.records(session, [row])
            failpoint("ledger.before_commit")
        failpoint("ledger.after_commit")
        return record

    def version(self, ref: str) -> VersionRecord:
        """`triage:3`, `triage@champion`, `triage@challenger`, or `triage` for the newest.

        Raises:
            Unknown: naming the nearest known.
        """
        with self.database.reading() as session:
            return versions.records(session, [find_version(session, ref)])[0]

    def by_key(self, version_key: str) -> VersionRecord | None:
        """The version with this identity, if it was made before."""
        with self.database.reading() as session:
            row = versions.row_by_key(session, version_key)
            return None if row is None else versions.records(session, [row])[0]

    def names(self) -> tuple[str, ...]:
        """Every name that has versions, sorted."""
        with self.database.reading() as session:
            return tuple(session.scalars(select(NameRow.name).where(NameRow.last_number > 0).order_by(NameRow.name)))

    def versions(self, name: str | None = None) -> tuple[VersionRecord, ...]:
        """The versions of a name, or of all names, in the order in which they were registered."""
        query = select(VersionRow).order_by(VersionRow.id)
        with self.database.reading() as session:
            rows = session.scalars(query if name is None else query.filter_by(name=name)).all()
            if name is not None and not rows:
                raise unknown_name(session, name)
            return versions.records(session, rows)

    def lineage(self, ref: str, direction: Direction = "up") -> Lineage:
        """What `ref` was made from (up) or what was made from it (down); also of `dataset:<digest>`."""
        with self.database.reading() as session:
            return walk(session, ref, direction)

    def neighbourhood(self, ref: str) -> Lineage:
        """What a version was made from and what was made from it, one step each way."""
        with self.database.reading() as session:
            return neighbourhood(session, ref)

    # Scores ---------------------------------------------------------------------------------------------------------

    def remember_evaluations(self, records: Sequence[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
        """What stands in the ledger for these questions, in their order: the first answer to each.

        Raises:
            DraftRefused: outcomes are missing, doubled or not numbers.
            Unknown: a subject or data set that was not remembered.
        """
        with self.database.writing() as session:
            ids = evaluations.remember(session, records, self._clock())
            return evaluations.by_ids(session, ids)

    def evaluations(self, subject: str) -> tuple[EvaluationRecord, ...]:
        """All scores of a version (any reference) or base (`base:<digest>`), oldest first."""
        with self.database.reading() as session:
            return evaluations.of_subject(session, subject)

    # Champions ------------------------------------------------------------------------------------------------------

    def champion(self, name: str) -> VersionRecord | None:
        """The version that is served, if one was promoted."""
        return self._standing(name, champion_row)

    def challenger(self, name: str) -> VersionRecord | None:
        """The newest version, if it is newer than the champion and never was champion."""
        return self._standing(name, challenger_row)

    def promote(
        self,
        name: str,
        number: int,
        *,
        expected: int | None,
        decision: Mapping[str, Any],
        actor: str = "",
        reason: str = "",
    ) -> PromotionRecord:
        """Make `number` the champion, if the champion is still `expected` (None: there is none yet).

        Raises:
            Conflict: "champion is v9 now (you expected v8)".
            IntegrityError: the version's files do not verify; a champion's always do.
            Unknown: for a name or number that is not in the ledger.
        """
        canonical(decision)
        self._verify(self.version(f"{name}:{number}").artifact)
        note: dict[str, Any] = {"decision": decision, "actor": actor, "reason": reason, "at": self._clock()}
        with self.database.writing() as session:
            return promotions.append(session, name, number, expected=expected, move="promote", **note)

    def rollback(self, name: str, *, expected: int = ANY, actor: str = "", reason: str = "") -> PromotionRecord:
        """Back to the champion before this one, as a new link of the chain.

        Raises:
            Unknown: there was no earlier champion.
            Conflict: the champion is not `expected`, or moved meanwhile.
            IntegrityError: the earlier champion's files do not verify.
        """
        links = self.history(name)
        target = promotions.rollback_target(links)
        if target is None:
            raise promotions.no_way_back(name)
        self._verify(self.version(f"{name}:{target}").artifact)
        champion = links[-1].number if expected == ANY else expected
        note: dict[str, Any] = {"decision": {}, "actor": actor, "reason": reason, "at": self._clock()}
        with self.database.writing() as session:
            seen = links[-1].seq
            return promotions.append(session, name, target, expected=champion, seen=seen, move="rollback", **note)

    def history(self, name: str) -> tuple[PromotionRecord, ...]:
        """Every promotion and rollback of a name, first to last."""
        with self.database.reading() as session:
            if session.get(NameRow, name) is None:
                raise unknown_name(session, name)
            return promotions.chain(session, name)

    # Drift ----------------------------------------------------------------------------------------------------------

    def remember_finding(self, record: FindingRecord) -> FindingRecord:
        """The verdict that stands for this version and window: the first one."""
        with self.database.writing() as session:
            return findings.remember(session, record, self._clock())

    def findings(self, task: str | None = None) -> tuple[FindingRecord, ...]:
        """Verdicts on a task's traffic, or on all, oldest first."""
        with self.database.reading() as session:
            return findings.of_task(session, task)

    def claim_retrain(self, finding: FindingRecord, *, claimant: str) -> bool:
        """Whether `claimant` may retrain on this window: one may, and may try again; everyone else is told False."""
        with self.database.writing() as session:
            return findings.claim(session, finding, claimant, self._clock())

    def retrain_claims(self, task: str) -> tuple[ClaimRecord, ...]:
        """Which windows were taken up, by whom and when; for cooldowns."""
        with self.database.reading() as session:
            return findings.claims_of(session, task)

    # Doing things once ----------------------------------------------------------------------------------------------

    def take_lease(self, name: str, *, holder: str, seconds: float) -> LeaseRecord | None:
        """The right to do `name` alone for so long, or None while someone else has it."""
        with self.database.writing() as session:
            return leases.take(session, name, holder, seconds)

    def renew_lease(self, lease: LeaseRecord, *, seconds: float) -> LeaseRecord:
        """More time.

        Raises:
            Conflict: someone took the lease since.
        """
        with self.database.writing() as session:
            return leases.renew(session, lease, seconds)

    def release_lease(self, lease: LeaseRecord) -> None:
        with self.database.writing() as session:
            leases.release(session, lease)

    def pending(self) -> tuple[OutboxRecord, ...]:
        """What MLflow has still to be told, in order."""
        with self.database.reading() as session:
            return outbox.pending(session)

    def mark_delivered(self, records: Sequence[OutboxRecord]) -> None:
        with self.database.writing() as session:
            outbox.mark_delivered(session, [record.id for record in records], self._clock())

    # ----------------------------------------------------------------------------------------------------------------

    def _standing(self, name: str, find: Callable[..., VersionRow | None]) -> VersionRecord | None:
        with self.database.reading() as session:
            row = find(session, name)
            return None if row is None else versions.records(session, [row])[0]

    def _verify(self, digest: str) -> None:
        if self._store is None:
            raise RegistryError.one(
                "E-LEDGER-015", self.database.shown, "was opened without a store", "open it with one"
            )
        self._store.path(digest)


def _dataset(row: DatasetRow) -> DatasetRecord:
    return DatasetRecord(
        digest=row.digest,
        task=row.task,
        source=row.source,
        source_digest=row.source_digest,
        rows_in=row.rows_in,
        counts=row.counts,
        quarantined=row.quarantined,
        deduplicated=row.deduplicated,
        purpose=cast(Purpose, row.purpose),
    )
