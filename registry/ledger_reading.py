"""What the ledger answers. Every method is one read; none changes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import attempts, evaluations, findings, listing, outbox, promotions, versions, withdrawals
from registry.database import Database
from registry.lineage import Direction, Lineage, neighbourhood, walk
from registry.listing import ListedRecord
from registry.names import challenger_row, champion_row, find_content, find_version, known_name
from registry.records import (
    AttemptRecord,
    BaseRecord,
    ClaimRecord,
    DatasetRecord,
    EvaluationRecord,
    FindingRecord,
    OutboxRecord,
    PromotionRecord,
    Purpose,
    SignatureRecord,
    VersionRecord,
    WithdrawalRecord,
)
from registry.tables import DatasetRow, NameRow, SignatureRow, SplitRow, VersionRow


class LedgerReading:
    """One database. Use from one thread or many, and after a fork."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What versions are made from --------------------------------------------------------------------------------------

    def base(self, digest: str) -> BaseRecord:
        """A base by its digest, or by twelve or more digits of it."""
        with self.database.reading() as session:
            row = find_content(session, "base", digest.removeprefix("base:"))
            return BaseRecord(row.digest, row.name, row.revision, row.architecture, row.parameters)

    def dataset(self, digest: str) -> DatasetRecord:
        """A data set by its digest, or by twelve or more digits of it."""
        with self.database.reading() as session:
            return _dataset(session, find_content(session, "dataset", digest.removeprefix("dataset:")))

    def datasets(self, task: str | None = None) -> tuple[DatasetRecord, ...]:
        """Data sets of a task, or all, oldest first."""
        query = select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.digest)
        with self.database.reading() as session:
            rows = session.scalars(query if task is None else query.filter_by(task=task)).all()
            return tuple(_dataset(session, row) for row in rows)

    # Versions ---------------------------------------------------------------------------------------------------------

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
            if name is not None:
                known_name(session, name)
            rows = session.scalars(query if name is None else query.filter_by(name=name)).all()
            return versions.records(session, rows)

    def lineage(self, ref: str, direction: Direction = "up") -> Lineage:
        """What `ref` was made from (up) or what was made from it (down); also of `dataset:<digest>`."""
        with self.database.reading() as session:
            return walk(session, ref, direction)

    def neighbourhood(self, ref: str) -> Lineage:
        """What a version was made from and what was made from it, one step each way."""
        with self.database.reading() as session:
            return neighbourhood(session, ref)

    def containing(self, ref: str) -> tuple[str, ...]:
        """References of the versions that a version, base, data set or code went into, in the order of registration.

        `containing("dataset:...")` are the models that learned from it; `containing("triage:3")` is what has to be made
        again if that version is withdrawn.
        """
        with self.database.reading() as session:
            return versions.refs(session, withdrawals.containing(session, ref))

    def listed(self, name: str | None = None) -> tuple[ListedRecord, ...]:
        """One short line per version of a name; or per name, with its newest version and how many there are."""
        with self.database.reading() as session:
            return listing.of_name(session, name) if name is not None else listing.of_all(session)

    def withdrawals(self) -> tuple[WithdrawalRecord, ...]:
        """Every version that may not be used any more, in the order of registration."""
        with self.database.reading() as session:
            return withdrawals.records(session)

    def withdrawal(self, ref: str) -> WithdrawalRecord | None:
        """Why and when a version was withdrawn, if it was."""
        with self.database.reading() as session:
            return next(iter(withdrawals.records(session, [find_version(session, ref).id])), None)

    def signatures(self, ref: str) -> tuple[SignatureRecord, ...]:
        """The keys with which a version's manifest was signed, oldest first."""
        with self.database.reading() as session:
            row = find_version(session, ref)
            query = select(SignatureRow).filter_by(version_id=row.id).order_by(SignatureRow.created_at)
            found = session.scalars(query).all()
            return tuple(SignatureRecord(f"{row.name}:{row.number}", s.key, s.seal, s.created_at) for s in found)

    # Scores -----------------------------------------------------------------------------------------------------------

    def evaluations(self, subject: str) -> tuple[EvaluationRecord, ...]:
        """All scores of a version (any reference) or base (`base:<digest>`), oldest first."""
        with self.database.reading() as session:
            return evaluations.of_subject(session, subject)

    # Champions --------------------------------------------------------------------------------------------------------

    def champion(self, name: str) -> VersionRecord | None:
        """The version that is served, if one was promoted."""
        return self._standing(name, champion_row)

    def challenger(self, name: str) -> VersionRecord | None:
        """The newest version, if it is newer than the champion and never was champion."""
        return self._standing(name, challenger_row)

    def history(self, name: str) -> tuple[PromotionRecord, ...]:
        """Every promotion and rollback of a name, first to last."""
        with self.database.reading() as session:
            known_name(session, name)
            return promotions.chain(session, name)

    # Drift and work ---------------------------------------------------------------------------------------------------

    def findings(self, task: str | None = None) -> tuple[FindingRecord, ...]:
        """Verdicts on a task's traffic, or on all, oldest first."""
        with self.database.reading() as session:
            return findings.of_task(session, task)

    def retrain_claims(self, task: str) -> tuple[ClaimRecord, ...]:
        """Which windows were taken up, by whom and when; for cooldowns."""
        with self.database.reading() as session:
            return findings.claims_of(session, task)

    def pending(self) -> tuple[OutboxRecord, ...]:
        """What MLflow has still to be told, in order."""
        with self.database.reading() as session:
            return outbox.pending(session)

    def attempts(self, run: str) -> tuple[AttemptRecord, ...]:
        """Who set out to make the version of this key, first to last."""
        with self.database.reading() as session:
            return attempts.of_run(session, run)

    def _standing(self, name: str, find: Callable[..., VersionRow | None]) -> VersionRecord | None:
        with self.database.reading() as session:
            row = find(session, name)
            return None if row is None else versions.records(session, [row])[0]


def _dataset(session: Session, row: DatasetRow) -> DatasetRecord:
    sides = session.scalars(select(SplitRow).where(SplitRow.dataset == row.digest).order_by(SplitRow.place))
    return DatasetRecord(
        digest=row.digest,
        task=row.task,
        source=row.source,
        source_digest=row.source_digest,
        rows_in=row.rows_in,
        counts={side.side: side.rows for side in sides},
        quarantined=row.quarantined,
        deduplicated=row.deduplicated,
        purpose=cast(Purpose, row.purpose),
    )
