"""What a retrain replays."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

from flows.replay import judging_share, replayed
from tasks.data.examples import Example
from tasks.data.splits import side_of
from tasks.specs import RetrainSpec, SplitSpec


def test_an_old_row_that_came_again_and_judges_now_is_not_replayed() -> None:
    def data(**sides: str) -> Any:
        rows = {side: tuple(Example(key, key, "yes", 1) for key in keys) for side, keys in sides.items()}
        return SimpleNamespace(digest="", snapshot=SimpleNamespace(examples=lambda side: rows.get(side, ())))

    spec: Any = SimpleNamespace(retrain=RetrainSpec(replay_share=0.5))
    fresh, old = data(train="abcd", validation="ef", test="gh"), data(train="aegwxyz", test="v")
    assert {example.key for example in replayed(spec, fresh, [old])} == set("wxyz")


def test_where_half_of_the_fresh_rows_suffice_nearly_always_enough_of_them_judge() -> None:
    """Sides are drawn by hash; the witness counts them over 100 windows of each size."""
    for rows in (128, 140, 168, 300):
        split = SplitSpec(validation=0.1, test=judging_share(rows, 50))
        windows = [
            [hashlib.sha256(f"{rows} {turn} {row}".encode()).hexdigest() for row in range(rows)] for turn in range(100)
        ]
        judging = [sum(side_of(key, split) == "test" for key in window) for window in windows]
        assert sum(count >= 50 for count in judging) >= 95
        assert max(judging) < 0.65 * rows
