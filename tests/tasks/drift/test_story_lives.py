"""What a story's lives come to, told over those that the cache holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path("benchmarks").resolve()))
    spec = importlib.util.spec_from_file_location("drift_story", Path("benchmarks/drift_story.py").resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "drift_story", module)
    spec.loader.exec_module(module)
    return module


def test_a_life_is_lived_once_and_only_if_it_was_asked_for(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived: list[str] = []

    def one(arm: str, stage: Any) -> Any:
        lived.append(arm)
        return story.Life(new=[0.5], old=[0.75], retrains=1)

    monkeypatch.setattr(story, "lived", one)
    stage = SimpleNamespace(story={"name": "mood"}, seed=0, task="mood")
    assert story.remembered(tmp_path, "ours", stage, asked=False) is None
    assert lived == []
    first = story.remembered(tmp_path, "ours", stage, asked=True)
    assert story.remembered(tmp_path, "ours", stage, asked=False) == first
    assert story.remembered(tmp_path, "ours", stage, asked=True) == first
    assert lived == ["ours"]


def test_figures_are_over_the_seeds_of_which_both_lives_are_known(story: Any, capsys: Any) -> None:
    """The oracle of seed 1 and the first adapter's life of seed 0 were never lived."""

    def life(new: float, old: float, retrains: int = 0) -> Any:
        return story.Life(new=[new, new], old=[0.5, old], retrains=retrains)

    lives = {
        "never": {1: life(0.1, 0.6)},
        "schedule": {},
        "naive": {},
        "ours": {0: life(0.8, 0.9, 1), 1: life(0.2, 0.7, 2)},
        "oracle": {0: life(0.9, 0.9)},
    }
    figures = story.told("mood", lives, (10, 10))
    assert {name: round(figure, 6) for name, figure in figures.items()} == {"gap": 10.0, "forgot": -10.0, "share": 0.75}
    table = capsys.readouterr().out
    assert "schedule" not in table
    assert "ours           2" in table
