from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.merge_stale import Stale

MARKS = (
    Stale("desk:1", "triage:1", "triage:2"),
    Stale("desk:1", "reply:1", "reply:2"),
    Stale("all:3", "triage:1", "triage:2"),
)


def test_a_promotion_sends_one_event_for_each_merge_that_contains_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.refresh as flow

    heard: list[Any] = []
    monkeypatch.setattr(flow, "stale_merges", lambda home: MARKS)
    monkeypatch.setattr(flow, "emit_event", lambda name, **event: heard.append((name, event)))
    assert flow.told_stale(SimpleNamespace(), "triage") == (MARKS[0], MARKS[2])  # type: ignore[arg-type]
    assert [(name, event["resource"]["prefect.resource.name"]) for name, event in heard] == [
        ("merged.stale", "all"),
        ("merged.stale", "desk"),
    ]
    heard.clear()
    assert flow.told_stale(SimpleNamespace(), "tone") == ()  # type: ignore[arg-type]
    assert heard == []


def test_a_refresh_merges_what_is_stale_and_nothing_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.refresh as flow

    asked: list[Any] = []

    def again(home: Any, marked: Any) -> tuple[str, ...]:
        asked.append(marked)
        return ("done",)

    monkeypatch.setattr(flow, "opened", SimpleNamespace)
    monkeypatch.setattr(flow, "merged_again", again)
    monkeypatch.setattr(flow, "stale_merges", lambda home: ())
    assert (flow.refresh.fn(), asked) == ((), [])
    monkeypatch.setattr(flow, "stale_merges", lambda home: MARKS)
    assert (flow.refresh.fn(), asked) == (("done",), [MARKS])
