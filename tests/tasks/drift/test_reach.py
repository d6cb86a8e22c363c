from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tasks.drift.observed import Observed
from tasks.drift.paired import paired
from tasks.drift.reach import gain_in_reach, nearest_class
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

DRIFT = DriftSpec(min_rows=50)
SKEWED = (0.45, 0.25, 0.1, 0.1, 0.05, 0.05)


def placed(seen: Observed, seed: int, spread: float = 0.3) -> Observed:
    """Rows with an embedding near their topic's corner."""
    names = sorted({label for label in seen.labels if label})
    corners = np.eye(8)[[names.index(label or names[0]) for label in seen.labels]]
    points = corners + np.random.default_rng(seed).normal(0, spread, corners.shape)
    return replace(seen, points=tuple(points / np.linalg.norm(points, axis=1, keepdims=True)))


@pytest.mark.parametrize(("skill", "action"), [(0.4, "retrain with replay"), (0.97, "watch")])
def test_where_the_base_told_the_labels_answers_surely_better_a_retrain_is_asked_for(
    skill: float, action: str, desk: Any
) -> None:
    """The mix moved and the score did not fall: a poor adapter is taught again, a good one is watched."""
    for seed in range(3):
        reference = placed(desk(skill=skill).seen(200, seed), seed)
        window = placed(desk(skill=skill, mix=SKEWED).seen(300, 50 + seed), 50 + seed)
        report = judge(reference, window, DRIFT, seed=seed)
        assert (report.verdict, report.action) == ("label shift", action), report.sentence
        assert report.reach is not None
        assert report.expected_gain is not None
        assert report.expected_gain >= report.reach.mean
        assert ("the untouched base, told these labels, gains 0." in report.sentence) == (skill == 0.4)
        blind = judge(replace(reference, points=()), replace(window, points=()), DRIFT, seed=seed)
        assert blind.reach is None


def test_labels_that_have_nothing_to_do_with_the_inputs_promise_nothing(desk: Any) -> None:
    """The served adapter is right by chance, one time in six, and nobody can do better."""
    chance = np.random.default_rng(5)
    for seed in range(5):
        reference = placed(desk(skill=1 / 6).seen(200, seed), seed)
        window = placed(desk(skill=1 / 6).seen(300, 50 + seed), 50 + seed)
        mixed = tuple(window.labels[place] for place in chance.permutation(300))
        pair = paired(reference, replace(window, labels=mixed), np.random.default_rng(0))
        found = gain_in_reach(pair, seed=seed, least=50)
        assert found is not None
        assert found.low < 0.05


def test_a_row_that_comes_again_is_never_its_own_teacher(desk: Any) -> None:
    """Each request comes twice with an answer of its own, at points that say nothing: only its twin could tell it."""
    chance = np.random.default_rng(1)
    half = placed(desk(skill=0.0).seen(100, 1), 1)
    points = tuple(chance.normal(0, 1, (100, 400)))
    twice = replace(half, points=points).at([*range(100), *range(100)])
    reference = replace(placed(desk().seen(60, 2), 2), points=tuple(chance.normal(0, 1, (60, 400))))
    found = gain_in_reach(paired(reference, twice, chance), seed=0, least=50)
    assert found is not None
    assert found.mean < 0.35  # one in six by chance; all of them, if a twin were asked


def test_the_nearest_class_mean_is_the_one_that_a_loop_finds() -> None:
    chance = np.random.default_rng(0)
    points, labels, asked = (
        chance.normal(0, 1, (40, 5)),
        chance.choice(["a", "b", "c"], 40),
        chance.normal(0, 1, (9, 5)),
    )
    means = {name: np.mean([p for p, n in zip(points, labels, strict=True) if n == name], axis=0) for name in "abc"}
    wanted = [min(means, key=lambda name: float(np.linalg.norm(row - means[name]))) for row in asked]
    assert nearest_class(points, labels, asked).tolist() == wanted


@pytest.mark.parametrize("rows", [0, 49])
def test_too_few_graded_rows_promise_nothing(rows: int, desk: Any) -> None:
    reference, window = placed(desk().seen(200, 0), 0), placed(desk(skill=0.1).seen(300, 1), 1)
    labels = tuple(label if place < rows else None for place, label in enumerate(window.labels))
    some = replace(
        window,
        labels=labels,
        outcomes=tuple(one if label else None for one, label in zip(window.outcomes, labels, strict=True)),
    )
    assert gain_in_reach(paired(reference, some, np.random.default_rng(0)), seed=0, least=50) is None
