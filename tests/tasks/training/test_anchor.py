from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.specs import AdapterSpec
from tasks.training import anchor
from tasks.training.base import load_base
from tasks.training.loop import Trained, train_adapter

Make = Callable[..., Any]


@pytest.fixture
def gone_on(
    good_run: Trained, tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path
) -> Callable[..., float]:
    """How far a run that goes on from the good one, on rows of another draw, ends from where it began."""

    def distance(pull: float) -> float:
        spec: AdapterSpec = make_spec("generation", tiny_base, steps=12, learning_rate=5e-3)
        spec = spec.model_copy(update={"retrain": spec.retrain.model_copy(update={"pull": pull})})
        folder = tmp_path / str(pull)
        base = load_base(spec.base, kind="generation")
        train_adapter(base, spec, make_rows("generation", 60, 7), [], folder, start=good_run.folder)
        before, after = (load_file(at / "adapter_model.safetensors") for at in (good_run.folder, folder))
        return float(sum((before[name] - after[name]).pow(2).sum() for name in before)) ** 0.5

    return distance


def test_the_stronger_the_pull_the_nearer_a_run_stays_to_the_champion(gone_on: Callable[..., float]) -> None:
    free, held, bound = gone_on(0.0), gone_on(40.0), gone_on(1e9)
    assert free > held > bound == 0.0
    assert held < 0.8 * free


def test_a_step_is_the_gradient_s_and_then_a_share_of_the_way_back() -> None:
    chance = torch.Generator().manual_seed(0)
    first, slope = torch.randn(5, generator=chance), torch.randn(5, generator=chance)
    weight = torch.nn.Parameter(first.clone())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    held = anchor.Anchor(optimizer, pull=2.0)
    expected = first.clone()
    for _ in range(4):
        weight.grad = slope.clone()
        optimizer.step()
        held.draw_back()
        expected = expected - 0.1 * slope
        expected = expected + 0.2 * (first - expected)
    assert torch.allclose(weight, expected)


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(anchor).failed == 0
