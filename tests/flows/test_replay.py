"""What a retrain replays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.fresh import judging_share
from flows.replay import asked_spec, filled_up, replayed
from tasks.data.examples import Example
from tasks.data.splits import side_of
from tasks.specs import AdapterSpec, RetrainSpec, SplitSpec


def test_an_old_row_that_came_again_and_judges_now_is_not_replayed() -> None:
    def data(**sides: str) -> Any:
        rows = {side: tuple(Example(key, key, "yes", 1) for key in keys) for side, keys in sides.items()}
        return SimpleNamespace(digest="", snapshot=SimpleNamespace(examples=lambda side: rows.get(side, ())))

    spec: Any = SimpleNamespace(retrain=RetrainSpec(replay_share=0.5))
    fresh, old = data(train="abcd", validation="ef", test="gh"), data(train="aegwxyz", test="v")
    assert {example.key for example in replayed(spec, fresh, [old])} == set("wxyz")


@pytest.mark.parametrize(
    ("old", "replay_rows", "asked", "steps", "replayed_rows"),
    [
        (300, 2000, 0.5, None, 300),  # few: all of them
        (950, 900, 0.5, None, 900),
        (5000, 60, 0.5, None, 100),  # the share that was asked for is more
        (5000, 0, 0.8, None, 400),
        (300, 2000, 0.0, None, 0),  # somebody wants none
        (300, 2000, 0.5, 50, 100),  # a fixed number of steps would be shared by more rows
    ],
)
def test_old_rows_are_replayed_whole_where_they_are_few_and_at_least_by_their_share(
    old: int, replay_rows: int, asked: float, steps: int | None, replayed_rows: int
) -> None:
    def data(count: int, name: str) -> Any:
        rows = tuple(Example(f"{name} {n}", f"{name} {n}", "no" if n % 2 else "yes", n) for n in range(count))
        return SimpleNamespace(digest="", snapshot=SimpleNamespace(examples={"train": rows}.get))

    tree = {
        "task": "mood",
        "kind": "classification",
        "base": {"model": "/nowhere"},
        "data": {"source": "rows.jsonl"},
        "training": {"steps": steps},
        "retrain": {"replay_rows": replay_rows, "replay_share": asked},
    }
    fresh, known = data(100, "new"), data(old, "old")
    for one in (fresh, known):
        one.snapshot = SimpleNamespace(examples=lambda side, one=one.snapshot: one.examples(side, ()))
    spec = filled_up(AdapterSpec.model_validate(tree), fresh, [known])
    assert len(replayed(spec, fresh, [known])) == replayed_rows
    assert filled_up(spec, fresh, [known]) == spec


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


def test_a_retrain_starts_as_the_task_s_own_spec_says_whatever_an_earlier_one_had_to_do(tmp_path: Path) -> None:
    """The second version had to begin at the base, for a class was new; the third goes on from it again."""

    def version(ref: str, start: str, labels: list[str], *parents: tuple[str, str]) -> Any:
        spec = {
            "task": "mood",
            "kind": "classification",
            "base": {"model": "/nowhere"},
            "data": {"source": "rows.jsonl", "text": "text", "label": "label", "labels": labels},
            "retrain": {"start": start},
        }
        return SimpleNamespace(ref=ref, kind="adapter", spec=spec, parents=parents)

    first = version("mood:1", "champion", ["a", "b"], ("dataset", "dataset:1"))
    second = version("mood:2", "base", ["a", "b", "c"], ("window", "dataset:2"), ("previous", "mood:1"))
    home: Any = SimpleNamespace(ledger=SimpleNamespace(version={"mood:1": first, "mood:2": second}.__getitem__))
    path = tmp_path / "rows.jsonl"

    def start(champion: Any, labels: str, asked: str | None = None) -> str:
        rows = [
            {"id": f"{n}", "time": 1.7e9 + n, "text": f"row {n}", "label": labels[n % len(labels)]} for n in range(60)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return asked_spec(home, champion, str(path), None, asked).retrain.start

    assert start(second, "abc") == "champion"
    assert start(second, "abcd") == "base"
    assert start(second, "abc", "base") == "base"
    assert start(first, "ab") == "champion"
    assert start(version("mood:3", "base", ["a", "b"], ("dataset", "dataset:3")), "ab") == "base"
