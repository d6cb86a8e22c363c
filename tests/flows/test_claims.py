from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

TASKS = int(os.environ.get("FACTORY_TASKS", "20"))  # that drift at once; `make races` takes 100
FACTS = {"verdict": "performance loss", "action": "retrain with replay"}


@pytest.fixture
def asking(factory: Any, intent: Any) -> Any:
    """Findings on windows of intent, and the event of each."""
    from flows.wiring import opened
    from registry.records import FindingRecord

    with factory.active():
        ledger = opened().ledger
        champion = ledger.champion("intent")

        def event(window: str) -> dict[str, Any]:
            digest = (window * 64)[:64]
            ledger.remember_finding(FindingRecord("intent", champion.ref, digest, *FACTS.values(), {}))
            return {"task": "intent", "version": champion.ref, "window": digest, "verdict": FACTS["verdict"]}

        yield champion, event


def test_a_thousand_duplicate_and_shuffled_events_cause_one_run(factory: Any, asking: Any) -> None:
    """K06: ten windows of one task, each reported a hundred times, by eight workers: the cooldown holds the others."""
    from flows.claims import claim
    from flows.wiring import opened
    from registry.errors import RegistryError
    from tasks.errors import FactoryError

    champion, event = asking
    events = [event(f"{n}a") for n in range(10)] * 100
    Random(0).shuffle(events)
    taken: list[str] = []
    reasons: set[str] = set()
    mine = threading.local()

    def work(one: dict[str, Any]) -> None:
        mine.home = getattr(mine, "home", None) or opened()
        try:
            claim(mine.home, champion, one)
            taken.append(one["window"])
        except (FactoryError, RegistryError) as refused:
            reasons.add(refused.problems[0].code)

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, events))
    assert len(taken) == 1
    assert factory.sql("SELECT window_digest FROM retrain_claims WHERE task = 'intent'") == [(taken[0],)]
    assert {"E-GATE-002", "E-GATE-003"} <= reasons <= {"E-GATE-002", "E-GATE-003", "E-GATE-004"}


def test_an_event_about_a_window_that_was_judged_otherwise_since_is_over(factory: Any, asking: Any) -> None:
    from flows.claims import claim
    from flows.wiring import opened
    from registry.records import FindingRecord
    from tasks.errors import GateRefused

    champion, event = asking
    asked = event("0d")
    fault = FindingRecord("intent", champion.ref, asked["window"], "pipeline fault", "stop and look", {})
    opened().ledger.remember_finding(fault)
    with pytest.raises(GateRefused, match=r"E-GATE-006 .*judged again: pipeline fault, stop and look"):
        claim(opened(), champion, asked)
    assert factory.sql("SELECT count(*) FROM retrain_claims WHERE window_digest = ?", asked["window"]) == [(0,)]


def test_an_event_about_a_version_that_is_not_served_any_more_is_over(factory: Any, asking: Any) -> None:
    from flows.claims import claim
    from flows.wiring import opened
    from tasks.errors import GateRefused

    champion, event = asking
    with pytest.raises(GateRefused, match="not served any more"):
        claim(opened(), champion, {**event("be"), "version": "intent:99"})


def test_a_task_that_was_taught_just_now_is_told_when_it_may_be_again(factory: Any, asking: Any) -> None:
    from flows.claims import claim, held_back
    from flows.wiring import opened
    from tasks.errors import GateRefused

    champion, event = asking
    if held_back(opened(), champion) is None:
        claim(opened(), champion, event("c0"))
    with pytest.raises(GateRefused, match="cooldown of 48 h is not over") as refused:
        claim(opened(), champion, event("c1"))
    assert "wait until 20" in refused.value.problems[0].remedy


def test_a_retrain_that_was_stopped_leaves_its_window_open_and_one_that_was_refused_does_not(
    factory: Any, intent: Any
) -> None:
    from flows.claims import ASKS, claimed, interrupted
    from flows.wiring import opened
    from registry.errors import Conflict
    from registry.records import FindingRecord, VersionDraft
    from tasks.errors import DataRefused, GateRefused

    same = {name: getattr(intent.outcome.version, name) for name in ("artifact", "base", "code", "parents")}
    with factory.active():
        home, window = opened(), "f" * 64
        spec = {**intent.outcome.version.spec, "task": "stopped"}
        champion = home.ledger.register(
            VersionDraft(name="stopped", kind="adapter", version_key="7" * 64, spec=spec, **same)
        )
        home.ledger.promote("stopped", champion.number, expected=None, decision={})
        home.ledger.remember_finding(FindingRecord("stopped", champion.ref, window, "performance loss", ASKS, {}))
        event = {"version": champion.ref, "window": window, "verdict": "performance loss"}
        for stop in (KeyboardInterrupt(), Conflict.one("E-LEDGER-040", "x", "the lease is lost", "run again")):
            with pytest.raises(type(stop)), claimed(home, champion, event):  # within the cooldown of the first one
                raise stop
            assert interrupted(home, "stopped", window)
        with pytest.raises(DataRefused), claimed(home, champion, event):
            raise DataRefused.one("E-DATA-001", "rows", "are bad", "mend them")
        assert not interrupted(home, "stopped", window)
        with pytest.raises(GateRefused, match="has caused a retrain already"), claimed(home, champion, event):
            raise AssertionError("it was taken up again")
        from flows.claims import _key

        states = factory.sql("SELECT state FROM attempts WHERE run = ? ORDER BY number", _key("stopped", window))
    assert states == [("failed",), ("failed",), ("done",)]
    assert factory.sql("SELECT count(*) FROM retrain_claims WHERE task = 'stopped'") == [(1,)]


def test_many_tasks_at_once_hold_no_more_slots_than_there_are(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.policy import on_gpu

    monkeypatch.setenv("PREFECT_API_URL", server)
    lock, inside, most, done = threading.Lock(), 0, 0, 0

    def retrain_one(number: int) -> int:
        nonlocal inside, most, done
        with lock:
            inside += 1
            most = max(most, inside)
        with lock:
            inside -= 1
            done += 1
        return number

    step = on_gpu(retrain_one)
    with ThreadPoolExecutor(20) as workers:
        assert sorted(workers.map(step, range(TASKS))) == list(range(TASKS))
    assert (most, done) == (1, TASKS)


def test_rows_near_a_frozen_row_never_enter_training(factory: Any, intent: Any, desk: Any) -> None:
    """Frozen rows come back with one letter more; the witness compares five-letter pieces, row by row."""
    from flows.fresh import labelled_rows
    from flows.replay import apart, asked_spec
    from flows.validate import frozen_examples, validated
    from flows.wiring import opened

    def pieces(text: str) -> set[str]:
        folded = " ".join(text.lower().split()) + "____"
        return {folded[i : i + 5] for i in range(len(folded) - 4)}

    with factory.active():
        home = opened()
        champion = home.ledger.champion("intent")
        frozen = [example.input for example, _ in frozen_examples(home, "intent")]
        shop = desk["intent"].rows(ROWS_FRESH, seed=91)
        near = [
            {"text": text.removesuffix(" intent:") + "s", "label": desk["intent"].labels[0]} for text in frozen[:40]
        ]
        near = [row for row in near if len(row["text"]) > 24]
        traffic = factory.traffic("near.jsonl", [*shop, *near])
        spec = asked_spec(home, champion, str(traffic), labelled_rows(champion, str(traffic))[0])
        data = validated(home, spec, purpose="traffic")
        learned = [e.input for side in ("train", "validation") for e in apart(home, spec, data, side)]
    known = [pieces(text) for text in frozen]
    assert len(learned) > 60
    near_ones = [t for t in learned for other in known if len(pieces(t) & other) >= 0.8 * len(pieces(t) | other)]
    assert near_ones == []
    assert data.record.quarantined > 0


ROWS_FRESH = 140
