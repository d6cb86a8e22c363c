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
from pathlib import Path
from typing import Any, Self

from registry import attempts, evaluations, findings, leases, outbox, promotions, versions, withdrawals
from registry.database import Database, hold_history, insert_once
from registry.errors import DraftRefused, IntegrityError, RegistryError, Unknown, raise_if_any
from registry.failpoint import failpoint
from registry.fingerprint import canonical
from registry.ledger_reading import LedgerReading
from registry.manifest import MANIFEST, binding_of, binding_problems
from registry.names import find_version
from registry.records import (
    AttemptRecord,
    BaseRecord,
    CodeRecord,
    DatasetRecord,
    EvaluationRecord,
    FindingRecord,
    LeaseRecord,
    OutboxRecord,
    PromotionRecord,
    VersionDraft,
    VersionRecord,
    WithdrawalRecord,
)
from registry.signing import Signer, unsigned
from registry.store import Store
from registry.tables import BaseRow, CodeRow, DatasetRow, SignatureRow, SplitRow

ANY = -1  # rollback: whoever is champion now


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger(LedgerReading):
    """One database, the store whose bytes it vouches for, and the key with which it signs, where there is one."""

    def __init__(
        self, database: Database, store: Store | None, clock: Callable[[], datetime], signer: Signer | None = None
    ) -> None:
        super().__init__(database)
        self._store = store
        self._clock = clock
        self._signer = signer

    @property
    def signer(self) -> Signer | None:
        """The key that vouches for versions here, where one is configured."""
        return self._signer

    @classmethod
    def open(
        cls,
        url: str,
        *,
        store: Store | None = None,
        signer: Signer | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> Self:
        """Connect, building or upgrading the schema where needed. Without a store the ledger can only be read.

        Raises:
            Unknown: a URL that names no database we speak to.
            DependencyDown: the database does not answer.
            IntegrityError: it is no ledger, or a newer one.
        """
        return cls(Database.open(url), store, clock, signer)

    # What versions are made from --------------------------------------------------------------------------------------

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
        store = self._verified(record.digest)
        values = {name: value for name, value in vars(record).items() if name != "counts"}
        with self.database.writing() as session:
            hold_history(session)
            store.refuse_missing(record.digest)
            if insert_once(session, DatasetRow, **values, accepted=accepted, created_at=self._clock()):
                for place, (side, rows) in enumerate(record.counts.items()):
                    session.add(SplitRow(dataset=record.digest, side=side, place=place, rows=rows))
        return self.dataset(record.digest)

    def remember_code(self, record: CodeRecord) -> CodeRecord:
        with self.database.writing() as session:
            values = {"packages": dict(record.packages), "versions": dict(record.versions)}
            insert_once(session, CodeRow, digest=record.digest, **values, created_at=self._clock())
        return record

    # Versions ---------------------------------------------------------------------------------------------------------

    def register(self, draft: VersionDraft, *, lease: LeaseRecord | None = None) -> VersionRecord:
        """The version of this draft: the next number of its name, or the one that has its key already.

        Row, lineage, scores, signature and the word to MLflow are one transaction, begun only after every file
        verified. Under a lease it commits only while nobody else took that lease.

        Raises:
            DraftRefused: with everything that is forgotten, unknown or contradictory.
            IntegrityError: the artifact or the figures are not in the store, or not what their digest says; or a
                version that it contains is withdrawn.
            Conflict: the key is registered under another name; or the lease is lost.
        """
        versions.check(draft)
        known = self.by_key(draft.version_key)
        if known is not None and known.name == draft.name:
            return known
        store = self._verified(draft.artifact, *filter(None, [draft.figures]))
        binding = binding_of(draft, store.manifest(draft.artifact))
        manifest = store.put_files({MANIFEST: binding})
        failpoint("register.after_manifest")
        seal = self._signer.seal(store, binding) if self._signer else None
        failpoint("register.after_seal")
        with self.database.writing() as session:
            hold_history(session)
            if lease is not None:
                leases.check(session, lease)
            store.refuse_missing(*filter(None, [draft.artifact, draft.figures, manifest, seal]))
            row, new = versions.insert(session, draft, manifest, self._clock())
            if new and self._signer is not None and seal is not None:
                session.add(SignatureRow(version_id=row.id, key=self._signer.key, seal=seal, created_at=self._clock()))
                session.flush()
            (record,) = versions.records(session, [row])
            failpoint("register.before_commit")
        failpoint("register.after_commit")
        return record

    def sign(self, ref: str) -> VersionRecord:
        """Sign the manifest of a version that was registered without, after every byte of it was verified.

        Raises:
            Unknown: no private key is configured.
            IntegrityError: its files or its manifest do not verify.
        """
        version = self.version(ref)
        if self._signer is None:
            raise Unknown.one("E-SIGN-001", ref, "no key is configured", "set FACTORY_SIGNING_KEY")
        store = self._verified(version.artifact, version.manifest)
        raise_if_any(IntegrityError, binding_problems(version, store.path(version.manifest)))
        seal = self._signer.seal(store, (store.path(version.manifest) / MANIFEST).read_bytes())
        with self.database.writing() as session:
            hold_history(session)
            store.refuse_missing(seal)
            row = find_version(session, version.ref)
            values = {"version_id": row.id, "key": self._signer.key, "seal": seal}
            insert_once(session, SignatureRow, **values, created_at=self._clock())
        return version

    def files(self, ref: str) -> Path:
        """The folder of a version's files, to load, merge or export it: verified, signed where a key is configured.

        Raises:
            IntegrityError: a byte differs, the signature is missing or wrong, or the version is withdrawn.
        """
        version = self.version(ref)
        with self.database.reading() as session:
            withdrawals.refuse_withdrawn(session, [find_version(session, version.ref).id])
        self._vouch(version)
        return self._verified(version.artifact).path(version.artifact)

    def withdraw(self, ref: str, *, actor: str = "", reason: str = "") -> tuple[WithdrawalRecord, ...]:
        """Mark a version and all that contain it as not to be used any more. Those that are newly marked.

        Raises:
            Unknown: for a version that is not in the ledger.
        """
        with self.database.writing() as session:
            hold_history(session, alone=True)
            found = withdrawals.withdraw(session, ref, actor, reason, self._clock())
            failpoint("withdraw.before_commit")
        return found

    # Scores -----------------------------------------------------------------------------------------------------------

    def remember_evaluations(self, records: Sequence[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
        """What stands in the ledger for these questions, in their order: the first answer to each.

        Raises:
            DraftRefused: outcomes are missing, doubled or not numbers.
            Unknown: a subject or data set that was not remembered.
        """
        with self.database.writing() as session:
            ids = evaluations.remember(session, records, self._clock())
            return evaluations.by_ids(session, ids)

    # Champions --------------------------------------------------------------------------------------------------------

    def promote(
        self,
        name: str,
        number: int,
        *,
        expected: int | None,
        decision: Mapping[str, Any],
        actor: str = "",
        reason: str = "",
        lease: LeaseRecord | None = None,
    ) -> PromotionRecord:
        """Make `number` the champion, if the champion is still `expected` (None: there is none yet).

        Under a lease it commits only while nobody else took that lease.

        Raises:
            Conflict: "champion is v9 now (you expected v8)"; or the lease is lost.
            IntegrityError: the version's files or signature do not verify, or it is withdrawn.
            Unknown: for a name or number that is not in the ledger.
        """
        canonical(decision)
        self._vouch(self.version(f"{name}:{number}"))
        note: dict[str, Any] = {"decision": decision, "actor": actor, "reason": reason, "at": self._clock()}
        with self.database.writing() as session:
            hold_history(session)
            if lease is not None:
                leases.check(session, lease)
            link = promotions.append(session, name, number, expected=expected, move="promote", **note)
            failpoint("promote.before_commit")
        failpoint("promote.after_commit")
        return link

    def rollback(self, name: str, *, expected: int = ANY, actor: str = "", reason: str = "") -> PromotionRecord:
        """Back to the last champion before this one that is not withdrawn, as a new link of the chain.

        Raises:
            Unknown: there was no earlier champion.
            Conflict: the champion is not `expected`, or moved meanwhile.
            IntegrityError: the earlier champion's files or signature do not verify.
        """
        links = self.history(name)
        with self.database.reading() as session:
            target = promotions.rollback_target(links, withdrawals.withdrawn_numbers(session, name))
        if target is None:
            raise promotions.no_way_back(name)
        self._vouch(self.version(f"{name}:{target}"))
        champion = links[-1].number if expected == ANY else expected
        note: dict[str, Any] = {"decision": {}, "actor": actor, "reason": reason, "at": self._clock()}
        with self.database.writing() as session:
            hold_history(session)
            seen = links[-1].seq
            link = promotions.append(session, name, target, expected=champion, seen=seen, move="rollback", **note)
            failpoint("promote.before_commit")
        failpoint("promote.after_commit")
        return link

    # Drift ------------------------------------------------------------------------------------------------------------

    def remember_finding(self, record: FindingRecord) -> FindingRecord:
        """The verdict that stands for this version and window from now on: this one, or the same said before."""
        with self.database.writing() as session:
            return findings.remember(session, record, self._clock())

    def claim_retrain(self, finding: FindingRecord, *, claimant: str) -> bool:
        """Whether `claimant` may retrain on this window: one may, and may try again; everyone else is told False."""
        with self.database.writing() as session:
            return findings.claim(session, finding, claimant, self._clock())

    # Doing things once ------------------------------------------------------------------------------------------------

    def take_lease(
        self, name: str, *, holder: str, seconds: float, gone: Callable[[str], bool] = lambda _: False
    ) -> LeaseRecord | None:
        """The right to do `name` alone for so long, or None while someone else has it.

        Args:
            gone: whether a holder is known to have died; its lease is taken without waiting for its end.
        """
        with self.database.writing() as session:
            return leases.take(session, name, holder, seconds, gone)

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

    def begin_attempt(self, run: str, lease: LeaseRecord) -> AttemptRecord:
        """Note that the holder of the lease sets out to make the version of key `run`.

        Raises:
            Conflict: the lease is lost.
        """
        with self.database.writing() as session:
            leases.check(session, lease)
            return attempts.begin(session, run, lease, self._clock())

    def end_attempt(self, attempt: AttemptRecord, *, state: str, outcome: str = "") -> AttemptRecord:
        """Note how it ended: done or failed."""
        with self.database.writing() as session:
            return attempts.end(session, attempt, state, outcome, self._clock())

    def note_lost_attempts(self) -> int:
        """Note the attempts whose process died without a word; how many."""
        with self.database.writing() as session:
            return attempts.note_lost(session, self._clock())

    def mark_delivered(self, records: Sequence[OutboxRecord]) -> None:
        with self.database.writing() as session:
            outbox.mark_delivered(session, [record.id for record in records], self._clock())

    # ----------------------------------------------------------------------------------------------------------------

    def _verified(self, *digests: str) -> Store:
        """The store, after these objects were read and found whole."""
        if self._store is None:
            raise RegistryError.one(
                "E-LEDGER-015", self.database.shown, "was opened without a store", "open it with one"
            )
        for digest in digests:
            self._store.path(digest)
        return self._store

    def _vouch(self, version: VersionRecord) -> None:
        """Files and manifest verify and agree with the ledger; where a key is configured, its signature stands."""
        store = self._verified(version.artifact, version.manifest)
        raise_if_any(IntegrityError, binding_problems(version, store.path(version.manifest)))
        if self._signer is None:
            return
        seals = {signature.key: signature.seal for signature in self.signatures(version.ref)}
        if self._signer.key not in seals:
            raise IntegrityError(unsigned(version.ref, self._signer.key))
        binding = (store.path(version.manifest) / MANIFEST).read_bytes()
        self._signer.check(store, seals[self._signer.key], binding, version.ref)
