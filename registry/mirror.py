"""From the ledger to MLflow: the ledger wins, and saying it twice changes nothing.

`mirror` tells what the outbox holds; `reconcile` compares everything. Both write only where MLflow differs, so a mirror
that was killed goes on where it stopped. MLflow gives out its own version numbers; told in order they are ours, and the
tag factory.version says ours where someone deleted one by hand.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from registry.convergence import Convergence
from registry.errors import Conflict, DependencyDown, Problem
from registry.failpoint import failpoint
from registry.ledger import Ledger
from registry.mlflow_access import saying_when_it_is_down, shown
from registry.pages import version_parents
from registry.records import LeaseRecord, OutboxRecord, VersionRecord
from registry.store import Store
from registry.tracking import Tracker

LEASE_SECONDS = 300.0
MOVES_SECONDS = 30.0  # a pass over moves alone is short, and whoever asked for it may leave before it ends


class Mirrored(NamedTuple):
    """What a pass did: versions looked at, writes to MLflow, entries that still wait, and why."""

    versions: int
    changes: int
    pending: int
    problem: Problem | None


def mirror(ledger: Ledger, store: Store, tracker: Tracker, *, moves_of: str | None = None) -> Mirrored:
    """Tell MLflow what the outbox holds, or only how the champion of one name moved, whatever else waits.

    Never raises because MLflow is down: that is in the report.
    """
    entries = tuple(e for e in ledger.pending() if moves_of is None or (e.topic, e.name) == ("promotion", moves_of))
    if not entries:
        return Mirrored(0, 0, 0, None)
    seconds = LEASE_SECONDS if moves_of is None else MOVES_SECONDS
    return _run_pass(ledger, store, tracker, entries, everything=False, seconds=seconds)


def reconcile(ledger: Ledger, store: Store, tracker: Tracker) -> Mirrored:
    """Deliver waiting journals, then compare every version and alias with MLflow and set right what differs."""
    delivered = tracker.deliver()
    report = _run_pass(ledger, store, tracker, ledger.pending(), everything=True, seconds=LEASE_SECONDS)
    return report._replace(changes=report.changes + delivered.events, problem=report.problem or delivered.problem)


def _run_pass(
    ledger: Ledger,
    store: Store,
    tracker: Tracker,
    entries: tuple[OutboxRecord, ...],
    *,
    everything: bool,
    seconds: float,
) -> Mirrored:
    tracker.client()  # the slow import comes before the lease
    lease = ledger.take_lease("mirror", holder=uuid.uuid4().hex, seconds=seconds)
    if lease is None:
        busy = Problem(
            "E-MLFLOW-003", shown(tracker.uri), "another mirror is at work", "wait for it; it tells everything"
        )
        return Mirrored(0, 0, len(entries), busy)
    work = Pass(ledger, store, tracker, lease)
    problem: Problem | None = None
    try:
        with saying_when_it_is_down(tracker.uri):
            work.converge(entries, everything=everything)
    except (DependencyDown, Conflict) as error:
        problem = error.problems[0]
    except _refusal() as error:
        problem = Problem(
            "E-MLFLOW-002", work.at, f"MLflow refuses it ({_first_line(error)})", "see what the MLflow server says"
        )
    finally:
        ledger.release_lease(work.lease)
    return Mirrored(len(work.seen), work.convergence.changes, len(ledger.pending()), problem)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refusal() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


class Pass:
    """One pass over some versions, under a lease that is renewed at every version."""

    def __init__(self, ledger: Ledger, store: Store, tracker: Tracker, lease: LeaseRecord) -> None:
        self.lease = lease
        self.at = ""
        self.seen: set[str] = set()
        self.convergence = Convergence(ledger, store, tracker.client(), tracker.artifacts)
        self._ledger = ledger

    def converge(self, entries: tuple[OutboxRecord, ...], *, everything: bool) -> None:
        """Versions in the order of registration, so that MLflow numbers them as we do; then parents and aliases."""
        if everything:
            names = set(self._ledger.names())
            versions = self._ledger.versions()
        else:
            names = {entry.name for entry in entries}
            told = dict.fromkeys(f"{entry.name}:{entry.number}" for entry in entries if entry.topic != "promotion")
            versions = tuple(self._ledger.version(ref) for ref in told)
        for version in versions:
            self._begin(version)
            self.convergence.version(version)
        for ref in dict.fromkeys(ref for version in versions for ref in version_parents(version)):
            if ref not in self.seen:  # its page shows a new child
                parent = self._ledger.version(ref)
                self._begin(parent)
                self.convergence.page(parent)
        for name in sorted(names):
            self.at = name
            self.convergence.name(name)
        failpoint("mirror.before_delivered")
        self._ledger.mark_delivered(entries)

    def _begin(self, version: VersionRecord) -> None:
        self.at = version.ref
        self.seen.add(version.ref)
        self.lease = self._ledger.renew_lease(self.lease, seconds=LEASE_SECONDS)
