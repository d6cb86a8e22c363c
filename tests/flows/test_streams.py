from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np

from flows.streams import streamed
from registry.records import FindingRecord
from tasks.drift.online import DETECTORS, Detector

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Told:
    """A ledger that remembers findings as JSON, as the real one does."""

    found: list[FindingRecord] = field(default_factory=list)

    def findings(self, task: str) -> tuple[FindingRecord, ...]:
        return tuple(self.found)

    def keep(self, online: dict[str, Any], version: str = "triage:1") -> None:
        report = json.loads(json.dumps({"online": online}))
        self.found.append(FindingRecord("triage", version, str(len(self.found)), "no drift", "nothing", report))


def requests(seed: int, *parts: tuple[float, int]) -> list[tuple[datetime, float]]:
    chance = np.random.default_rng(seed)
    outcomes = [float(value) for share, rows in parts for value in (chance.random(rows) < share)]
    return [(START + timedelta(minutes=place), outcome) for place, outcome in enumerate(outcomes)]


def test_windows_that_overlap_tell_every_request_once_and_in_order() -> None:
    """The witness is told the whole stream at once."""
    rows, ledger = requests(0, (0.93, 400), (0.6, 200)), Told()
    home, champion = SimpleNamespace(ledger=ledger), SimpleNamespace(name="triage", ref="triage:1")
    for end in range(100, 601, 50):
        window = rows[max(0, end - 120) : end]
        ledger.keep(streamed(home, champion, 0.93, window[::-1]))  # type: ignore[arg-type]
    last = ledger.found[-1].report["online"]
    for kept in last["detectors"]:
        whole = Detector.named(kept["name"], usual=0.93).after([outcome for _, outcome in rows])
        assert (kept["seen"], kept["alarm_at"]) == (600, whole.alarm_at)
        if whole.alarm_at is not None:
            assert last["since"][kept["name"]] == rows[whole.alarm_at][0].isoformat()
    assert "cusum" in last["since"]
    assert last["through"] == rows[-1][0].isoformat()


def test_another_champion_begins_with_new_detectors() -> None:
    ledger = Told()
    home = SimpleNamespace(ledger=ledger)
    ledger.keep(streamed(home, SimpleNamespace(name="triage", ref="triage:1"), 0.9, requests(1, (0.2, 60))))  # type: ignore[arg-type]
    fresh = streamed(home, SimpleNamespace(name="triage", ref="triage:2"), 0.9, requests(2, (0.9, 40)))  # type: ignore[arg-type]
    assert {one["seen"] for one in fresh["detectors"]} == {40}
    assert fresh["since"] == {}
    assert {one["name"] for one in fresh["detectors"]} == set(DETECTORS)


def test_requests_of_one_time_are_told_in_the_order_in_which_they_came() -> None:
    """Had the wrong ones of each second been told first, a detector would ring at another request."""
    home, champion = SimpleNamespace(ledger=Told()), SimpleNamespace(name="triage", ref="triage:1")
    outcomes = [outcome for _, outcome in requests(3, (0.9, 60), (0.5, 120))]
    rows = [(START + timedelta(seconds=place // 10), outcome) for place, outcome in enumerate(outcomes)]
    for kept in streamed(home, champion, 0.9, rows)["detectors"]:  # type: ignore[arg-type]
        whole = asdict(Detector.named(kept["name"], usual=0.9).after(outcomes))
        assert json.dumps(kept) == json.dumps(whole)


def test_a_label_that_comes_after_later_requests_were_told_is_never_told() -> None:
    ledger, champion = Told(), SimpleNamespace(name="triage", ref="triage:1")
    rows = requests(4, (0.9, 60))
    home = SimpleNamespace(ledger=ledger)
    ledger.keep(streamed(home, champion, 0.9, [*rows[:20], *rows[30:50]]))  # type: ignore[arg-type]
    seen = streamed(home, champion, 0.9, rows)["detectors"]  # type: ignore[arg-type]
    assert {one["seen"] for one in seen} == {40 + 10}
