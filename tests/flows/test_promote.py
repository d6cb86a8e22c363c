from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest


def chain(factory: Any, name: str) -> list[tuple[Any, ...]]:
    return factory.sql("SELECT move, previous, number FROM promotions WHERE name = ? ORDER BY seq", name)


def gates_of(factory: Any, ref: str, **changed: float) -> dict[str, Any]:
    """The gates of a version that stand between it and what is served, had its spec `changed` them."""
    from flows.promote import judged_from_ledger
    from flows.wiring import opened

    with factory.active():
        home = opened()
        version = home.ledger.version(ref)
        asked = version.spec["evaluation"]
        spec = {**version.spec, "evaluation": {**asked, "gates": {**asked["gates"], **changed}}}
        return {gate.name: gate for gate in judged_from_ledger(home, replace(version, spec=spec)).gates}


def without(dataset: str, scores: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The scores of all but what is on trial, as if they had not been made on a data set."""

    def known(home: Any, subject: str, metric: str | None = None) -> dict[str, Any]:
        found = scores(home, subject, metric)
        return found if subject == "topic:4" else {data: one for data, one in found.items() if data != dataset}

    return known


def test_rollback_serves_the_champion_before_and_promote_brings_it_back_through_the_gates(
    factory: Any, moved: Any, at_its_word: None, monkeypatch: pytest.MonkeyPatch
) -> None:

    promotion = sys.modules["flows.promote"]
    assert chain(factory, "topic") == [("promote", None, 1), ("promote", 1, 4)]
    back = factory.run("rollback", "topic")
    assert (back.code, back.out) == (0, "topic:1 is champion again (was 4)\n")
    assert str(factory.mlflow().get_model_version_by_alias("topic", "champion").version) == "1"
    gates, stubborn = gates_of(factory, "topic:4"), gates_of(factory, "topic:4", min_gain_on_fresh=0.99)
    ((window,),) = factory.sql("SELECT digest FROM datasets WHERE task = 'topic' AND purpose = 'traffic'")
    assert gates["gain on fresh rows"].passed
    assert not stubborn["gain on fresh rows"].passed
    assert not any(window[:8] in name for name in gates if name.startswith("kept"))
    with monkeypatch.context() as unscored:  # the retrain was stopped before its champion was asked about the window
        unscored.setattr(promotion, "scores_on_tests", without(window, promotion.scores_on_tests))
        assert not gates_of(factory, "topic:4")["gain on fresh rows"].passed
    again = factory.run("promote", "topic:4")
    assert (again.code, again.out) == (0, "topic:4 is champion (was 1)\n")
    assert chain(factory, "topic")[2:] == [("rollback", 4, 1), ("promote", 1, 4)]
    assert str(factory.mlflow().get_model_version_by_alias("topic", "champion").version) == "4"


def test_what_failed_its_gates_cannot_be_promoted_by_hand(factory: Any, moved: Any) -> None:
    before = chain(factory, "topic")
    said = factory.run("promote", "topic:2")
    assert said.code == 5
    assert all(line.startswith("E-GATE-001 topic:2: ") for line in said.lines)
    assert any("kept on test of " in line for line in said.lines)
    assert chain(factory, "topic") == before


def test_the_champion_itself_is_a_conflict_not_a_second_promotion(factory: Any, intent: Any, at_its_word: None) -> None:
    before = chain(factory, "intent")
    said = factory.run("promote", "intent:1")
    assert said.code == 6
    assert "v1 is the champion already" in said.lines[-1]
    assert chain(factory, "intent") == before


def test_a_version_that_was_never_scored_is_not_promoted(factory: Any, intent: Any) -> None:
    from flows.wiring import opened
    from registry.records import VersionDraft

    version = intent.outcome.version
    with factory.active():
        opened().ledger.register(
            VersionDraft(
                name="unscored",
                kind="adapter",
                version_key="0" * 64,
                artifact=version.artifact,
                base=version.base,
                code=version.code,
                spec={**version.spec, "task": "unscored"},
                parents=version.parents,
            )
        )
    said = factory.run("promote", "unscored:1")
    assert said.code == 5
    assert said.lines[-1].startswith("E-GATE-001 unscored:1: scored on test rows")
    assert chain(factory, "unscored") == []


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("promote", "intnt"), 2, "the nearest name is intent"),
        (("promote", "intent:99"), 2, "the newest is v"),
        (("rollback", "intnt"), 2, "the nearest name is intent"),
        (("rollback", "intent"), 2, "has no earlier champion"),
    ],
)
def test_a_name_that_means_nothing_is_refused(
    factory: Any, intent: Any, words: tuple[str, ...], code: int, expected: str
) -> None:
    before = factory.remembered()
    said = factory.run(*words)
    assert said.code == code
    assert expected in said.lines[-1]
    assert factory.remembered() == before
