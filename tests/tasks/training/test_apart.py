"""A training in a process of its own is that training, and its memory is its own whatever was computed before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DependencyDown, SpecRefused
from tasks.specs import MethodSpec
from tasks.training.apart import train_apart
from tasks.training.base import load_base
from tasks.training.interruption import Stopped
from tasks.training.loop import train_adapter

Make = Callable[..., Any]


def test_it_is_the_same_training_and_every_time_a_whole_peak(
    tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path
) -> None:
    spec, rows = make_spec("generation", tiny_base, steps=3), make_rows("generation", 24)
    here = train_adapter(load_base(spec.base, kind="generation"), spec, rows, rows[:8], tmp_path / "here")
    heard: dict[str, list[Any]] = {"on_step": [], "on_look": []}
    hear = {name: found.append for name, found in heard.items()}
    there = [train_apart(spec, rows, rows[:8], tmp_path / name, **hear) for name in ("first", "second")]
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        wanted = (tmp_path / "here" / file).read_bytes()
        assert [(done.folder / file).read_bytes() for done in there] == [wanted, wanted]
    assert [step.loss for step in heard["on_step"]] == [step.loss for step in here.curve.steps] * 2
    assert [look.loss for look in heard["on_look"]] == [look.loss for look in here.curve.looks] * 2
    assert [done.peak_is_whole for done in there] == [True, True]
    first, second = (done.peak_above_start_bytes for done in there)
    assert second == pytest.approx(first, rel=0.1)


def test_what_goes_wrong_there_is_raised_here(
    tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path
) -> None:
    rows = make_rows("generation", 16)
    wide = make_spec("generation", tiny_base, method=MethodSpec(rank=4096))
    with pytest.raises(SpecRefused, match=r"E-SPEC-012 method.rank: rank 4096 is above the dimension"):
        train_apart(wide, rows, rows[:8], tmp_path / "wide")
    long = make_spec("generation", tiny_base, steps=5000, validations=1)
    began: list[Any] = []
    with pytest.raises(Stopped, match="E-TRAIN-003"):
        train_apart(long, rows, rows[:8], tmp_path / "long", stop=lambda: bool(began), on_step=began.append)

    def kill(step: Any) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DependencyDown, match=r"E-TRAIN-007 triage: its process ended with code -9"):
        train_apart(long, rows, rows[:8], tmp_path / "killed", on_step=kill)
    assert multiprocessing.active_children() == []
