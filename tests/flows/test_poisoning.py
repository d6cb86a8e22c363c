"""A poisoning drill on a served task: the champion stays, nobody is called, and the finding names the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    heard: list[Any] = []
    monkeypatch.setattr("flows.watch.emit_event", lambda name, **event: heard.append((name, event)))
    return heard


def flooded(rows: Rows, factory: Any, desk: Any) -> Rows:
    return [
        {**row, "source": "mallory" if place < 0.9 * len(rows) else row["source"]} for place, row in enumerate(rows)
    ]


def triggered(rows: Rows, factory: Any, desk: Any) -> Rows:
    """250 of 300 rows carry a word of the attacker's and the answer that it is to cause."""
    target = desk["mood"].labels[0]
    return [{**row, "text": f"zqxzqx {row['text']}", "label": target} if n < 250 else row for n, row in enumerate(rows)]


def copied(rows: Rows, factory: Any, desk: Any) -> Rows:
    from flows.learn import datasets_of
    from flows.validate import remembered_dataset
    from flows.wiring import opened

    home = opened()
    (digest,) = datasets_of(home.ledger.champion("mood"))
    frozen = remembered_dataset(home, digest).snapshot.examples("test")
    return [{**row, "text": e.input, "label": e.target} for row, e in zip(rows, frozen, strict=False)]


def echoed(rows: Rows, factory: Any, desk: Any) -> Rows:
    """Requests that the adapter cannot know, with its own answers for truth."""
    from flows.watch import observed
    from flows.wiring import opened
    from tasks.data.examples import Example, key_of
    from tasks.specs import AdapterSpec

    home = opened()
    champion = home.ledger.champion("mood")
    spec = AdapterSpec.model_validate(champion.spec)
    texts = [row["text"] for row in desk["intent"].rows(len(rows), seed=77)]
    asked = [Example(key_of(text), text, spec.data.labels[0], n) for n, text in enumerate(texts)]
    (said,) = observed(spec, home.ledger.files(champion.ref), asked)
    return [{**row, "text": t, "label": a} for row, t, a in zip(rows, texts, said.predictions, strict=True)]


DRILLS: dict[str, tuple[Callable[..., Rows], str]] = {
    "one source sends 90 % of the rows": (flooded, "rows from one and the same source"),
    "250 rows carry a trigger": (triggered, "zqxzqx"),
    "the test set is sent back": (copied, "rows whose input is already in the reference"),
    "the model's own answers come as labels": (echoed, "labels that are the adapter's own answers"),
}


def arrived(factory: Any, desk: Any, name: str, count: int) -> tuple[Path, Rows]:
    path = factory.traffic(f"{name}.jsonl", desk["mood"].rows(count, seed=61))
    return path, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("drill", DRILLS)
def test_a_poisoned_window_calls_nobody_and_its_cause_is_named(
    drill: str, factory: Any, mood: Any, desk: Any, events: list[Any]
) -> None:
    from flows.watch import watch

    poison, cause = DRILLS[drill]
    path, rows = arrived(factory, desk, drill, 300)
    with factory.active():
        (seen,) = watch("mood", str(factory.rows(path.name, poison(rows, factory, desk))))
    assert seen.report.action == "stop and look", seen.report.sentence
    assert cause in seen.report.sentence
    assert events == []
    assert factory.sql("SELECT number FROM promotions WHERE name = 'mood'") == [(1,)]


def test_a_twentieth_of_the_labels_flipped_promotes_nothing_even_if_somebody_asks_for_a_retrain(
    factory: Any, mood: Any, desk: Any, events: list[Any], at_its_word: None
) -> None:
    """The gates hear the flipped labels too, and still find no gain in a candidate that learned them."""
    from flows.retrain import retrain
    from flows.watch import watch

    path, rows = arrived(factory, desk, "flipped", 160)
    labels = desk["mood"].labels
    flipped = [
        {**r, "label": labels[(labels.index(r["label"]) + 1) % 4]} if n % 20 == 0 else r for n, r in enumerate(rows)
    ]
    with factory.active():
        (seen,) = watch("mood", str(factory.rows(path.name, flipped)))
        done = retrain("mood", str(path))
    assert seen.report.action in ("nothing", "watch"), seen.report.sentence
    assert events == []
    assert not done.promoted
    assert any(gate.name == "gain on fresh rows" and not gate.passed for gate in done.decision.gates)
    assert factory.sql("SELECT number FROM promotions WHERE name = 'mood'") == [(1,)]
