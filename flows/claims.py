"""Who may teach a task again, and when: one event causes one retrain, and a task is left in peace between two.

A retrain that was stopped or killed came to nothing, so its window is open again: whoever takes it up goes on from the
checkpoints, and no cooldown holds it back a second time. One that a gate refused did come to its end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from flows.keep import sole
from flows.wiring import Home, flow_run_id
from registry.attempts import LEASE
from registry.errors import Conflict, RegistryError
from registry.fingerprint import fingerprint
from registry.records import FindingRecord, VersionRecord
from registry.tracking import SIGNALS_FROM
from tasks.drift.pacing import Alarm, Begun, Hold, hold, in_vain
from tasks.errors import FactoryError, GateRefused
from tasks.specs import AdapterSpec

ASKS = "retrain with replay"
LEASE_SECONDS = 60
ANOTHER_TIME = (6, 7, 8)  # exit codes: someone was faster, something is down, no space


def held_back(home: Home, champion: VersionRecord) -> Hold | None:
    """Why a retrain of this champion would have to wait now, by claims and findings; None if it may begin."""
    spec = AdapterSpec.model_validate(champion.spec)
    return hold(
        [begun for _, begun in begun_by_window(home, champion)],
        champion=champion.ref,
        alarm=alarm_of(home, champion),
        now=datetime.now(UTC),
        retrain=spec.retrain,
    )


def vain_retrains(home: Home, champion: VersionRecord) -> int:
    """How many retrains of this champion ended since its traffic began to move, and left it the champion."""
    ended = [begun for window, begun in begun_by_window(home, champion) if _ended(home, champion.name, window)]
    return in_vain(ended, champion=champion.ref, alarm=alarm_of(home, champion))


def begun_by_window(home: Home, champion: VersionRecord) -> list[tuple[str, Begun]]:
    """The retrains of a task that events caused, and the window of each."""
    claims, findings = home.ledger.retrain_claims(champion.name), home.ledger.findings(champion.name)
    accused = {finding.window_digest: finding.version for finding in findings if finding.action == ASKS}
    return [(one.window_digest, Begun(one.created_at, accused.get(one.window_digest, ""))) for one in claims]


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


def interrupted(home: Home, task: str, window: str) -> bool:
    """Whether the retrain that took up this window ended without having come to anything, by a signal or a crash."""
    home.ledger.note_lost_attempts()
    attempts = home.ledger.attempts(_key(task, window))
    return bool(attempts) and attempts[-1].state in ("failed", "lost")


@contextmanager
def claimed(home: Home, champion: VersionRecord, finding: Mapping[str, Any] | None) -> Iterator[None]:
    """The block in which the retrain that a finding asked for is made; how it ended is noted.

    Raises:
        GateRefused, Conflict: as `claim` says.
    """
    if not finding:
        yield
        return
    claim(home, champion, finding)
    window = str(finding["window"])
    key = _key(champion.name, window)
    with sole(home, LEASE + key, why="the same retrain is being made") as lease:
        if lease is None or _ended(home, champion.name, window):
            raise _claimed(champion.name, window)
        attempt = home.ledger.begin_attempt(key, lease)
        try:
            yield
        except BaseException as error:
            code = getattr(error, "exit_code", 0)
            open_again = not isinstance(error, Exception) or code in ANOTHER_TIME or code > SIGNALS_FROM
            state = "failed" if open_again else "done"  # a refusal is an answer: this window would be refused again
            with suppress(RegistryError):  # the error that counts is the one that ended it
                home.ledger.end_attempt(attempt, state=state, outcome=f"{type(error).__name__}: {error}"[:300])
            raise
        home.ledger.end_attempt(attempt, state="done")


def claim(home: Home, champion: VersionRecord, finding: Mapping[str, Any]) -> None:
    """Take up the finding that asked for this run. A person who asks without a finding is not held back.

    The same run may take it up again, so that its retry goes on; so may any run, where the one before was interrupted.

    Raises:
        GateRefused: another run has taken it up; the task was taught too recently or too often; another version is
            served by now; or the window was judged otherwise since.
        Conflict: another event of the task is being weighed at this moment; a retry is safe.
    """
    who, window = flow_run_id() or uuid.uuid4().hex, str(finding["window"])
    taken = claimant_of(home, champion.name, window)
    if taken == who:
        return
    if taken is not None and not interrupted(home, champion.name, window):
        raise _claimed(champion.name, window)
    if str(finding["version"]) != champion.ref:
        wrong = f"the event is about {finding['version']}, which is not served any more"
        raise GateRefused.one("E-GATE-005", champion.ref, wrong, "nothing to do: watch judges the new champion")
    if taken is not None:
        return
    findings = home.ledger.findings(champion.name)
    judged = [one for one in findings if (one.version, one.window_digest) == (champion.ref, window)]
    if judged and judged[-1].action != ASKS:
        wrong = f"window {window[:12]} was judged again: {judged[-1].verdict}, {judged[-1].action}"
        raise GateRefused.one("E-GATE-006", champion.ref, wrong, "nothing to do: the newest verdict stands")
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


def _ended(home: Home, task: str, window: str) -> bool:
    """Whether a retrain on account of this window came to its end."""
    return any(attempt.state == "done" for attempt in home.ledger.attempts(_key(task, window)))


def _key(task: str, window: str) -> str:
    """The name under which the attempts at the retrain of a window stand in the ledger."""
    return fingerprint(["retrain", task, window])
