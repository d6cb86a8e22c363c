"""What a retrain replays."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows.fresh import judging_rows, judging_share, labelled_rows
from flows.replay import asked_spec, filled_up, passed_over, replayed
from tasks.data.examples import Example, key_of
from tasks.data.splits import side_of
from tasks.promotion import gains_on_fresh
from tasks.specs import AdapterSpec, GateSpec, RetrainSpec, SplitSpec
from tasks.training.loop import number_of_steps


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


@pytest.mark.parametrize(
    ("start", "rows", "training", "steps"),
    [
        ("base", 60, {"epochs": 3}, 100),  # 60 and as many old ones: 8 steps an epoch
        ("base", 60, {"epochs": 20}, 160),
        ("base", 900, {"epochs": 3}, 339),
        ("base", 60, {"steps": 40}, 40),  # somebody chose
        ("champion", 60, {"epochs": 3}, 24),
    ],
)
def test_a_fresh_adapter_passes_over_few_rows_more_often(
    start: str, rows: int, training: dict[str, int], steps: int
) -> None:
    def data(name: str) -> Any:
        some = tuple(Example(f"{name} {n}", f"{name} {n}", "yes", n) for n in range(rows))
        return SimpleNamespace(
            digest="", snapshot=SimpleNamespace(examples=lambda side: some if side == "train" else ())
        )

    tree = {
        "task": "mood",
        "kind": "classification",
        "base": {"model": "/nowhere"},
        "data": {"source": "rows.jsonl"},
        "training": {"batch_size": 16, **training},
        "retrain": {"start": start},
    }
    spec = passed_over(AdapterSpec.model_validate(tree), data("new"), [data("old")])
    assert number_of_steps(spec, 2 * rows) == steps
    assert passed_over(spec, data("new"), [data("old")]) == spec


def test_rare_answers_are_replayed_as_often_as_frequent_ones() -> None:
    def data(**counts: int) -> Any:
        rows = [Example(f"{name} {n}", f"{name} {n}", name, n) for name, count in counts.items() for n in range(count)]
        return SimpleNamespace(digest="", snapshot=SimpleNamespace(examples=lambda side: rows * (side == "train")))

    spec: Any = SimpleNamespace(retrain=RetrainSpec(replay_share=0.5))
    chosen = replayed(spec, data(new=60), [data(often=500, seldom=30, once=1)])
    assert Counter(example.target for example in chosen) == {"often": 30, "seldom": 29, "once": 1}


def hashed(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


@pytest.mark.parametrize(("rows", "judging"), [(100, 50), (140, 53), (460, 53), (460, 138), (7, 0), (7, 7)])
def test_exactly_as_many_rows_judge_as_are_asked_for(rows: int, judging: int) -> None:
    """Sides are drawn by hash; the witness counts them, over windows of other rows."""
    for turn in range(20):
        keys = [hashed(turn, row) for row in range(rows)]
        split = SplitSpec(validation=0.0, test=judging_share(keys, judging))
        assert sum(side_of(key, split) == "test" for key in keys) == judging


def test_few_rows_judge_where_much_is_expected_and_never_fewer_than_the_gates_want() -> None:
    gates = GateSpec(min_rows=50)
    for rows in (100, 200, 500, 1000):
        judging = [judging_rows(rows, gates, expected) for expected in (0.9, 0.4, 0.2, 0.1, 0.01, 0.0, -0.2, None)]
        assert judging == sorted(judging)
        assert judging[0] == min(53, rows // 2)
        assert set(judging[-3:]) == {max(judging[0], round(0.3 * rows))}


@pytest.mark.parametrize("expected", [0.15, 0.25, 0.4])
def test_as_many_rows_as_judge_show_the_expected_gain_in_nine_of_ten_cases(expected: float) -> None:
    """The witness is the gate: its bound over paired rows, of which every one changes, as badly as can be."""
    gates, turns, chance = GateSpec(min_rows=1), 200, np.random.default_rng(3)
    count = judging_rows(100_000, gates, expected)
    passed = 0
    for _ in range(turns):
        better = (chance.random(count) < (1 + expected) / 2).astype(float)
        passed += gains_on_fresh(better.tolist(), (1 - better).tolist(), gates).passed
    assert passed >= 0.84 * turns


def test_a_retrain_starts_as_the_task_s_own_spec_says_whatever_an_earlier_one_had_to_do(tmp_path: Path) -> None:
    """The second version had to begin at the base, for a class was new; the third goes on from it again."""

    def version(ref: str, start: str, labels: list[str], *parents: tuple[str, str], epochs: float = 3.0) -> Any:
        spec = {
            "task": "mood",
            "kind": "classification",
            "base": {"model": "/nowhere"},
            "data": {"source": "rows.jsonl", "text": "text", "label": "label", "labels": labels},
            "training": {"epochs": epochs},
            "retrain": {"start": start},
        }
        return SimpleNamespace(ref=ref, kind="adapter", spec=spec, parents=parents)

    first = version("mood:1", "champion", ["a", "b"], ("dataset", "dataset:1"))
    second = version("mood:2", "base", ["a", "b", "c"], ("window", "dataset:2"), ("previous", "mood:1"), epochs=9.5)
    home: Any = SimpleNamespace(ledger=SimpleNamespace(version={"mood:1": first, "mood:2": second}.__getitem__))
    path = tmp_path / "rows.jsonl"

    def start(champion: Any, labels: str, asked: str | None = None) -> str:
        rows = [
            {"id": f"{n}", "time": 1.7e9 + n, "text": f"row {n}", "label": labels[n % len(labels)]} for n in range(60)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = asked_spec(home, champion, str(path), labelled_rows(champion, str(path))[0], start=asked)
        assert spec.training.epochs == 3.0
        return spec.retrain.start

    assert start(second, "abc") == "champion"
    assert start(second, "abcd") == "base"
    assert start(second, "abc", "base") == "base"
    assert start(first, "ab") == "champion"
    assert start(version("mood:3", "base", ["a", "b"], ("dataset", "dataset:3")), "ab") == "base"


def test_of_the_fresh_rows_as_many_choose_as_in_the_task_s_own_spec_and_a_tenth_at_most(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"{n}", "time": 1.7e9 + n, "text": f"row {n}", "label": "ab"[n % 2]} for n in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for own, chosen in ((0.03, 0.03), (0.1, 0.1), (0.3, 0.1)):
        tree = {
            "task": "mood",
            "kind": "classification",
            "base": {"model": "/nowhere"},
            "data": {"source": "rows.jsonl", "labels": ["a", "b"], "split": {"validation": own}},
        }
        champion: Any = SimpleNamespace(ref="mood:1", kind="adapter", spec=tree, parents=())
        rows, _ = labelled_rows(champion, str(path))
        home: Any = None
        split = asked_spec(home, champion, str(path), rows, expected=0.5).data.split
        keys = [key_of(str(line["text"])) for line in lines]
        assert split.validation == chosen
        assert sum(side_of(key, split) == "test" for key in keys) == 53
