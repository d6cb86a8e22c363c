"""Outcomes as a stream: each graded request is told once to the detectors of its champion, in the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from operator import itemgetter
from typing import Any

from flows.wiring import Home
from registry.records import VersionRecord
from tasks.drift.online import DETECTORS, Detector


def streamed(
    home: Home, champion: VersionRecord, usual: float, graded: Sequence[tuple[datetime, float]]
) -> dict[str, Any]:
    """The detectors after these requests, as they are kept with the finding.

    They go on from the last finding of the same version. Requests of one time are told in the order in which they are
    given. None is told whose time is not after the last one that was: one whose label came when later requests had been
    told already is never told. `since` says at which request a detector rang.
    """
    before = next(
        (f.report["online"] for f in reversed(home.ledger.findings(champion.name))
         if f.version == champion.ref and f.report.get("online")),
        None,
    )  # fmt: skip
    through = before["through"] if before else ""
    timed = ((at.isoformat(), outcome) for at, outcome in graded)
    news = sorted((one for one in timed if one[0] > through), key=itemgetter(0))
    since: dict[str, str] = dict(before["since"]) if before else {}
    kept = []
    for name in DETECTORS:
        known = next((one for one in before["detectors"] if one["name"] == name), None) if before else None
        told = Detector(**{**known, "state": tuple(known["state"])}) if known else Detector.named(name, usual=usual)
        after = told.after([outcome for _, outcome in news])
        if told.alarm_at is None and after.alarm_at is not None:
            since[name] = news[after.alarm_at - told.seen][0]
        kept.append(asdict(after))
    return {"through": news[-1][0] if news else through, "detectors": kept, "since": since}
