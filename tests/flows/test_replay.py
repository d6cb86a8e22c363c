"""What a retrain replays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flows.replay import replayed
from tasks.data.examples import Example
from tasks.specs import RetrainSpec


def test_an_old_row_that_came_again_and_judges_now_is_not_replayed() -> None:
    def data(**sides: str) -> Any:
        rows = {side: tuple(Example(key, key, "yes", 1) for key in keys) for side, keys in sides.items()}
        return SimpleNamespace(digest="", snapshot=SimpleNamespace(examples=lambda side: rows.get(side, ())))

    spec: Any = SimpleNamespace(retrain=RetrainSpec(replay_share=0.5))
    fresh, old = data(train="abcd", validation="ef", test="gh"), data(train="aegwxyz", test="v")
    assert {example.key for example in replayed(spec, fresh, [old])} == set("wxyz")
