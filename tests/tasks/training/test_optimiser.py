"""The optimiser: its rate over the steps against transformers' own schedule, clipping, and who learns how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.data.examples import Example
from tasks.specs import AdapterSpec, TrainingSpec
from tasks.training.base import load_base
from tasks.training.loop import Trained, train_adapter
from tasks.training.optimiser import rate_factor

WEIGHTS = "adapter_model.safetensors"
Make = Callable[..., Any]


def run(spec: AdapterSpec, rows: Sequence[Example], folder: Path) -> Trained:
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels if spec.kind == "classification" else ())
    return train_adapter(base, spec, rows, rows[:8], folder)


def losses(trained: Trained) -> list[float]:
    return [step.loss for step in trained.curve.steps]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (37, 0.0), (5, 1.0), (1, 0.05)])
def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth(schedule: Any, steps: int, warmup: float) -> None:
    training = TrainingSpec(schedule=schedule, warmup=warmup)
    factors = [rate_factor(step, steps, training) for step in range(1, steps + 1)]
    rise = max(1, round(warmup * steps))
    assert factors[:rise] == pytest.approx([step / rise for step in range(1, rise + 1)])
    assert max(factors) == 1.0
    assert all(later <= earlier for earlier, later in pairwise(factors[rise - 1 :]))
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" or rise == steps else 0.1)


def test_the_cosine_is_that_of_transformers() -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    witness = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 8, 80, min_lr_rate=0.1)
    training = TrainingSpec(warmup=0.1)
    for step in range(1, 81):
        optimizer.step()
        witness.step()
        assert rate_factor(step, 80, training) == pytest.approx(witness.get_last_lr()[0])


def test_the_rate_of_each_step_is_the_schedules(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=9, learning_rate=1e-3, warmup=0.3, schedule="linear")
    trained = run(spec, make_rows("generation", 16), tmp_path)
    assert [step.rate for step in trained.curve.steps] == pytest.approx(
        [1e-3 * rate_factor(step, 9, spec.training) for step in range(1, 10)]
    )


def test_the_paged_8_bit_optimizer_trains_too(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=12, optimizer="paged_adamw_8bit")
    trained = run(spec, make_rows("generation", 24), tmp_path)
    assert losses(trained)[-1] < losses(trained)[0]


def test_the_gradient_is_clipped_and_its_norm_told_unclipped(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    rows = make_rows("generation", 16)
    norms = {}
    for limit in (1e-6, 1e6):
        spec = make_spec("generation", tiny_base, steps=1, max_grad_norm=limit, quantization="none")
        norms[limit] = run(spec, rows, tmp_path).curve.steps[0].grad_norm
    assert norms[1e-6] == pytest.approx(norms[1e6])
    assert norms[1e6] > 1e-3


def test_a_head_learns_faster_than_the_adapter(
    tiny_encoder: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    moved = {}
    for head_rate in (1.0, 10.0):
        kinds = []
        for rate in (1e-12, 1e-4):
            rates = {"warmup": 0, "learning_rate": rate, "head_rate": head_rate}
            spec = make_spec("classification", tiny_encoder, steps=1, validations=1, **rates)
            run(spec, make_rows("classification", 16), tmp_path)
            kinds.append(load_file(tmp_path / WEIGHTS)["base_model.model.classifier.weight"])
        moved[head_rate] = float((kinds[1] - kinds[0]).abs().max())
    assert moved[10.0] == pytest.approx(10 * moved[1.0], rel=0.05)
