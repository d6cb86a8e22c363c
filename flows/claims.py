"""Who may teach a task again, and when: one event causes one retrain, and a task is left in peace between two."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flows.wiring import Home, flow_run_id
from registry.errors import Conflict
from registry.records import FindingRecord, VersionRecord
from tasks.drift.pacing import Alarm, Begun, Hold, hold
from tasks.errors import FactoryError, GateRefused
from tasks.specs import AdapterSpec

ASKS = "retrain with replay"
LEASE_SECONDS = 60


def held_back(home: Home, champion: VersionRecord) -> Hold | None:
    """Why a retrain of this champion would have to wait now, by claims and findings; None if it may begin."""
    claims, findings = home.ledger.retrain_claims(champion.name), home.ledger.findings(champion.name)
    accused = {finding.window_digest: finding.version for finding in findings if finding.action == ASKS}
    spec = AdapterSpec.model_validate(champion.spec)
    return hold(
        [Begun(claim.created_at, accused.get(claim.window_digest, "")) for claim in claims],
        champion=champion.ref,
        alarm=alarm_of(home, champion),
        now=datetime.now(UTC),
        retrain=spec.retrain,
    )


def alarm_of(home: Home, champion: VersionRecord) -> Alarm:
    """The alarm over all windows that this champion was held against."""
    alarm, needed = Alarm(), AdapterSpec.model_validate(champion.spec).drift.calm_windows
    for finding in home.ledger.findings(champion.name):
        if finding.version == champion.ref and finding.created_at is not None:
            calm = (finding.verdict, finding.action) == ("no drift", "nothing")
            alarm = alarm.after(finding.created_at, asks=finding.action == ASKS, calm=calm, needed=needed)
    return alarm


def claimant_of(home: Home, task: str, window: str) -> str | None:
    """Who took up a window."""
    return next((c.claimant for c in home.ledger.retrain_claims(task) if c.window_digest == window), None)


def claim(home: Home, champion: VersionRecord, finding: Mapping[str, Any] | None) -> None:
    """Take up the finding that asked for this run. A person who asks without a finding is not held back.

    The same run may take it up again, so that its retry goes on.

    Raises:
        GateRefused: another run has taken it up; the task was taught too recently or too often; or another version is
            served by now.
        Conflict: another event of the task is being weighed at this moment; a retry is safe.
    """
    if not finding:
        return
    who, window = flow_run_id() or uuid.uuid4().hex, str(finding["window"])
    taken = claimant_of(home, champion.name, window)
    if taken == who:
        return
    if taken is not None:
        raise _claimed(champion.name, window)
    if str(finding["version"]) != champion.ref:
        wrong = f"the event is about {finding['version']}, which is not served any more"
        raise GateRefused.one("E-GATE-005", champion.ref, wrong, "nothing to do: watch judges the new champion")
    lease = home.ledger.take_lease(f"retrain:{champion.name}", holder=who, seconds=LEASE_SECONDS)
    if lease is None:
        wrong = "another event of this task is being weighed"
        raise Conflict.one("E-GATE-004", champion.name, wrong, "run again; a retry is safe")
    try:
        wait = held_back(home, champion)
        if wait is not None and claimant_of(home, champion.name, window) is None:
            until = f"{wait.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            remedy = f"wait until {until}, or run `factory retrain {champion.name}` yourself"
            raise GateRefused.one("E-GATE-003", champion.name, wait.because, remedy)
        if not home.ledger.claim_retrain(record_of(champion, finding), claimant=who):
            raise _claimed(champion.name, window)
    finally:
        home.ledger.release_lease(lease)


def record_of(champion: VersionRecord, finding: Mapping[str, Any]) -> FindingRecord:
    """The finding that an event is about."""
    return FindingRecord(
        champion.name, str(finding["version"]), str(finding["window"]), str(finding["verdict"]), ASKS, {}
    )


def _claimed(task: str, window: str) -> FactoryError:
    wrong = f"window {window[:12]} has caused a retrain already"
    return GateRefused.one("E-GATE-002", task, wrong, "nothing to do: one event causes one retrain")
