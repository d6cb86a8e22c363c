"""A short training without labels brings a merged body nearer to its experts, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tasks.merging.distillation import distilled
from tasks.merging.merge import merged_updates
from tasks.merging.plan import MergePlan, Parent, check_parents
from tasks.specs import BaseSpec
from tasks.training.base import Base
from tasks.training.encoding import Encoded

LABELS = {"mood": 3, "topic": 2}


def rows(seed: int, low: int, high: int, target: Callable[[Random], tuple[int, ...]], count: int = 40) -> list[Encoded]:
    draw = Random(seed)
    return [
        Encoded(tuple(draw.randrange(low, high) for _ in range(draw.randint(4, 9))), target(draw)) for _ in range(count)
    ]


@pytest.fixture
def writer(llama: Path, tiny: Any, adapter: Callable[..., Path]) -> tuple[Base, MergePlan, dict[str, list[Encoded]]]:
    """Two adapters of the tiny Llama, each with inputs of its own."""
    model = tiny.loaded(llama, "generation").requires_grad_(False)
    base = Base(
        model,
        None,
        BaseSpec(model=str(llama), quantization="none"),
        "generation",
        (),
        torch.device("cpu"),
        torch.float32,
        "",
        2,
        0,
    )
    plan = check_parents([Parent(f"{task}:1", task, adapter(110 + seed), "base") for seed, task in enumerate("ab")])
    answer = lambda draw: tuple(draw.randrange(3, 48) for _ in range(3))  # noqa: E731 - one line, used twice
    return base, plan, {"a": rows(1, 3, 20, answer), "b": rows(2, 28, 48, answer)}


@pytest.fixture
def sorter(tiny_encoder: Path, tiny: Any, tmp_path: Path) -> tuple[Base, MergePlan, dict[str, list[Encoded]]]:
    """Two classifiers on the tiny encoder, with heads of different sizes."""
    parents = []
    for seed, (task, labels) in enumerate(LABELS.items()):
        model = tiny.loaded(tiny_encoder, "classification", labels)
        settings = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
        tiny.random_adapter(model, seed, **settings).save_pretrained(tmp_path / task)
        parents.append(Parent(f"{task}:1", task, tmp_path / task, "base"))
    model = tiny.loaded(tiny_encoder, "classification", 3).requires_grad_(False)
    spec = BaseSpec(model=str(tiny_encoder), quantization="none")
    names = tuple("xyz")
    base = Base(model, None, spec, "classification", names, torch.device("cpu"), torch.float32, "", 2, 0)
    asked = {task: rows(3, 3, 40, lambda draw, n=n: (draw.randrange(n),)) for task, n in LABELS.items()}
    return base, check_parents(parents), asked


def losses(base: Base, plan: MergePlan, asked: dict[str, list[Encoded]], start: Any, **settings: Any) -> list[float]:
    found: list[float] = []
    distilled(base, plan, asked, start, on_step=lambda step, steps, loss: found.append(loss), **settings)
    return found


@pytest.mark.parametrize("kind", ["writer", "sorter"])
def test_it_comes_nearer_to_the_experts(kind: str, request: pytest.FixtureRequest) -> None:
    base, plan, asked = request.getfixturevalue(kind)
    start = dict(merged_updates(plan, "average"))
    said = losses(base, plan, asked, start, steps=60, rate=3e-3)
    assert sum(said[-6:]) < 0.5 * sum(said[:6])


def test_the_result_is_a_plain_update_that_answers_like_the_trained_model(request: pytest.FixtureRequest) -> None:
    """Put on by itself, it starts where the training ended."""
    base, plan, asked = request.getfixturevalue("writer")
    start = dict(merged_updates(plan, "average"))
    done = distilled(base, plan, asked, start, steps=40, rate=3e-3)
    again = losses(base, plan, asked, done, steps=4, rate=0.0)
    before = losses(base, plan, asked, start, steps=4, rate=0.0)
    assert sum(again) < 0.6 * sum(before)


def test_no_label_is_read(sorter: tuple[Base, MergePlan, dict[str, list[Encoded]]]) -> None:
    base, plan, asked = sorter
    start = dict(merged_updates(plan, "average"))
    one = distilled(base, plan, asked, start, steps=5)
    wrong = {task: [replace(row, target=((row.target[0] + 1) % 2,)) for row in own] for task, own in asked.items()}
    other = distilled(base, plan, wrong, start, steps=5)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_order_of_the_parents_does_not_matter_and_the_base_is_as_before(
    writer: tuple[Base, MergePlan, dict[str, list[Encoded]]],
) -> None:
    base, plan, asked = writer
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    start = dict(merged_updates(plan, "average"))
    turned = check_parents(plan.parents[::-1])
    one, other = (distilled(base, order, asked, start, steps=4) for order in (plan, turned))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_one_parent_that_starts_as_itself_stays(writer: tuple[Base, MergePlan, dict[str, list[Encoded]]]) -> None:
    base, plan, asked = writer
    alone = check_parents(plan.parents[:1])
    own = {name: alone.updates[0].delta(name) for name in alone.modules}
    assert max(losses(base, alone, asked, own, steps=6)) < 1e-3


def test_a_body_on_another_device_is_corrected_there_and_the_result_lies_here(
    sorter: tuple[Base, MergePlan, dict[str, list[Encoded]]], elsewhere: Callable[[Base], Base]
) -> None:
    base, plan, asked = sorter
    start = dict(merged_updates(plan, "average"))
    done = distilled(elsewhere(base), plan, asked, start, steps=2)
    assert {delta.device.type for delta in done.values()} == {"cpu"}
