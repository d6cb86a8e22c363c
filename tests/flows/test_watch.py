from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    heard: list[Any] = []
    monkeypatch.setattr("flows.watch.emit_event", lambda name, **event: heard.append((name, event)))
    return heard


def findings(factory: Any, task: str) -> list[Any]:
    return factory.sql("SELECT window_digest, verdict, action FROM findings WHERE task = ? ORDER BY id", task)


def test_quiet_traffic_is_no_drift_and_calls_nobody(factory: Any, intent: Any, desk: Any, events: list[Any]) -> None:
    from flows.watch import watch

    quiet = factory.traffic("quiet.jsonl", desk["intent"].rows(90, seed=21))
    with factory.active():
        (seen,) = watch("intent", str(quiet))
    assert (seen.report.verdict, seen.report.action) == ("no drift", "nothing")
    assert seen.report.graded == seen.report.n == 90
    assert findings(factory, "intent")[-1][1:] == ("no drift", "nothing")
    assert events == []


def test_traffic_without_its_truth_is_judged_by_what_is_known_and_never_graded(
    factory: Any, intent: Any, desk: Any, events: list[Any]
) -> None:
    from flows.watch import watch

    rows = desk["intent"].rows(90, seed=22)
    with factory.active():
        (seen,) = watch("intent", str(factory.traffic("unlabelled.jsonl", rows, labelled=False)))
    assert (seen.report.n, seen.report.graded) == (90, 0)
    assert seen.report.score_window is None
    assert (seen.report.verdict, seen.report.action) == ("no drift", "nothing")
    assert events == []


def test_what_a_model_says_does_not_depend_on_whether_the_truth_is_known(factory: Any, hasty: Any, desk: Any) -> None:
    """An adapter that learned nothing shows it: it writes for as long as it may."""
    from flows.watch import observed
    from tasks.data.examples import Example, key_of
    from tasks.specs import AdapterSpec

    version, _ = hasty
    long = " ".join(desk["intent"].fillers)
    prompts = [f"{row['text']} intent:" for row in desk["intent"].rows(4, seed=23)]
    known = [Example(key_of(prompt), prompt, f" {long}", place) for place, prompt in enumerate(prompts)]
    unknown = [Example(key_of(prompt), prompt, " ", place) for place, prompt in enumerate(prompts)]
    folder = next(iter(factory.files(version.artifact).values())).parent
    first, second = observed(AdapterSpec.model_validate(version.spec), folder, known, unknown)
    assert first.predictions == second.predictions
    assert max(map(len, first.predictions)) > len(long) / 4


def test_moved_traffic_is_remembered_with_its_cost_and_calls_for_a_retrain(factory: Any, moved: Any) -> None:
    report = moved.watched.report
    assert report.action == "retrain with replay"
    assert report.score_window < 0.3 < 0.8 < report.score_reference
    window, verdict, action = findings(factory, "topic")[0]
    assert (verdict, action) == (report.verdict, report.action)
    ((stored,),) = factory.sql("SELECT report FROM findings WHERE window_digest = ?", window)
    assert json.loads(stored)["sentence"] == report.sentence
    assert moved.event["name"] == "adapter.drift.detected"
    assert moved.event["resource"]["prefect.resource.name"] == "topic"
    assert moved.event["payload"]["window"] == window
    assert moved.event["payload"]["version"] == "topic:1"


def test_the_event_reaches_prefect_as_the_trigger_expects_it(factory: Any, moved: Any) -> None:
    """Sent for real and read back; the deployment's own trigger matches it and its templates fill the parameters."""
    import jinja2
    from prefect.client.orchestration import get_client
    from prefect.events import emit_event
    from prefect.events.filters import EventFilter, EventNameFilter
    from ruamel.yaml import YAML

    event = emit_event(moved.event["name"], resource=moved.event["resource"], payload=dict(moved.event["payload"]))
    assert event is not None
    wanted = EventFilter(event=EventNameFilter(name=[moved.event["name"]]))
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        found: list[Any] = []
        while not found and time.monotonic() < deadline:
            body = {"filter": wanted.model_dump(mode="json"), "limit": 50}
            found = client.request("POST", "/events/filter", json=body).json()["events"]
    assert found[0]["payload"] == json.loads(json.dumps(moved.event["payload"]))
    root = next(path for path in Path(__file__).parents if (path / "prefect.yaml").is_file())
    deployments = YAML(typ="safe").load(root / "prefect.yaml")["deployments"]
    (trigger,) = next(row for row in deployments if row["name"] == "retrain")["triggers"]
    assert found[0]["event"] in trigger["expect"]
    task = jinja2.Template(trigger["parameters"]["task"]).render(
        event={"resource": {"name": found[0]["resource"]["prefect.resource.name"]}}
    )
    finding = jinja2.Template(trigger["parameters"]["finding"]["value"]["template"]).render(event=found[0])
    assert task == "topic"
    assert json.loads(finding)["traffic"] == str(moved.traffic)


def test_the_same_window_twice_is_one_finding_however_its_file_is_ordered(
    factory: Any, intent: Any, desk: Any, events: list[Any]
) -> None:
    from flows.watch import watch

    rows = factory.traffic("twice.jsonl", desk["intent"].rows(60, seed=24)).read_text().splitlines()
    again = factory.folder / "twice again.jsonl"
    again.write_text("\n".join([*reversed(rows), rows[0]]) + "\n")
    with factory.active():
        watch("intent", str(factory.folder / "twice.jsonl"))
        before = findings(factory, "intent")
        watch("intent", str(again))
    assert findings(factory, "intent") == before


def test_files_in_the_inbox_are_taken_in_once_and_the_newest_requests_are_judged(
    factory: Any, intent: Any, desk: Any
) -> None:
    """The files are given in the wrong order of time; the window is the newest rows, whichever file they came in."""
    inbox = factory.home / "traffic" / "intent"
    inbox.mkdir(parents=True)
    for place, month in enumerate(("2026-02", "2026-01")):
        rows = desk["intent"].rows(200, seed=30 + place)
        path = factory.traffic(f"{month}.jsonl", rows)
        path.write_text(path.read_text().replace('"time": "2026-01-01', f'"time": "{month}-01'))
        path.rename(inbox / path.name)
    first, second = (factory.run("--json", "watch", "intent") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    ((seen,), (again,)) = (json.loads(said.out)["result"] for said in (first, second))
    assert seen["report"]["n"] == 300
    assert seen["finding"]["window_digest"] == again["finding"]["window_digest"]
    assert factory.sql(
        "SELECT source, rows_in, accepted FROM traffic_ingests WHERE task = 'intent' ORDER BY source"
    ) == [
        ("2026-01.jsonl", 200, 200),
        ("2026-02.jsonl", 200, 200),
    ]
    ((oldest,),) = factory.sql("SELECT min(at) FROM (SELECT at FROM traffic ORDER BY at DESC LIMIT 300)")
    assert oldest.startswith("2026-01-01")


def test_a_label_that_comes_late_makes_it_another_window_with_another_finding(
    factory: Any, intent: Any, desk: Any, events: list[Any]
) -> None:
    from flows.watch import watch

    rows = desk["intent"].rows(90, seed=44)
    unknown, known = (factory.traffic("late.jsonl", rows, labelled=flag).read_text() for flag in (False, True))
    with factory.active():
        (before,) = watch("intent", str(factory.rows("late.jsonl", map(json.loads, unknown.splitlines()))))
        (after,) = watch("intent", str(factory.rows("late.jsonl", map(json.loads, known.splitlines()))))
    assert before.finding.window_digest != after.finding.window_digest
    assert (before.report.graded, after.report.graded) == (0, 90)
    assert after.finding.report["score_window"] is not None


def test_a_task_that_is_not_served_cannot_be_watched(factory: Any, intent: Any, desk: Any) -> None:
    said = factory.run("watch", "nobody", "--traffic", factory.traffic("no.jsonl", desk["intent"].rows(40, seed=3)))
    assert said.code == 3
    assert said.lines[-1].startswith("E-DRIFT-021 nobody: no version is served -> ")
