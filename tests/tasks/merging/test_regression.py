"""RegMean against its normal equations, written out in NumPy, and against what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from tasks.merging.plan import Parent, check_parents
from tasks.merging.regression import regression_mean
from tasks.specs import BaseSpec
from tasks.training.base import Base
from tasks.training.encoding import Encoded

Make = Callable[..., Path]


@pytest.fixture
def dense(llama: Path, tiny: Any) -> Base:
    """The Llama as a base that updates can be put on; no tokenizer is needed for rows of token ids."""
    model = tiny.loaded(llama, "generation").requires_grad_(False)
    spec = BaseSpec(model=str(llama), quantization="none")
    return Base(model, None, spec, "generation", (), torch.device("cpu"), torch.float32, "", 2, 0)


def rows(seed: int, low: int, high: int, count: int = 24) -> list[Encoded]:
    """Random rows over a range of token ids, so that two tasks have inputs of their own."""
    draw = Random(seed)
    some = lambda size: tuple(draw.randrange(low, high) for _ in range(size))  # noqa: E731 - one line, used twice
    return [Encoded(some(draw.randint(4, 9)), some(draw.randint(2, 4))) for _ in range(count)]


def parents(adapter: Make, *tasks: str) -> list[Parent]:
    return [Parent(f"{task}:1", task, adapter(seed), "base") for seed, task in enumerate(tasks, start=1)]


def test_one_parent_comes_back_where_its_rows_span_the_inputs(dense: Base, adapter: Make) -> None:
    plan = check_parents(parents(adapter, "a"))
    merged = regression_mean(dense, plan, {"a": rows(0, 3, 48, count=200)})
    inputs = torch.randint(3, 48, (4, 10), generator=torch.Generator().manual_seed(1))
    wanted = {name: plan.updates[0].delta(name) for name in plan.modules}
    found = [_logits(dense, deltas, inputs) for deltas in (wanted, merged)]
    change = (found[0] - _logits(dense, {}, inputs)).abs().max()
    assert (found[0] - found[1]).abs().max() < 2e-2 * change


def test_the_first_layer_solves_the_normal_equations(dense: Base, adapter: Make) -> None:
    """The inputs of the first layer's q_proj do not depend on any update, so NumPy can write the answer down."""
    plan = check_parents(parents(adapter, "a", "b"))
    asked = {"a": rows(1, 3, 25), "b": rows(2, 20, 48)}
    name = next(module for module in plan.modules if ".0." in module and module.endswith("q_proj"))
    merged = regression_mean(dense, plan, asked, answer_weight=5.0)[name].double().numpy()
    size = merged.shape[1]
    left, right = np.zeros((size, size)), np.zeros((size, merged.shape[0]))
    for parent, update in zip(plan.parents, plan.updates, strict=True):
        gram = np.zeros((size, size))
        for row in asked[parent.task]:
            for place, x in enumerate(_inputs_of_first_layer(dense, row)):
                answers = len(row.prompt) - 1 <= place < row.length - 1
                gram += (5.0 if answers else 1.0) * np.outer(x, x)
        gram /= np.trace(gram)
        left, right = left + gram, right + gram @ update.delta(name).double().numpy().T
    wanted = np.linalg.solve(left + 1e-6 * np.eye(size), right).T
    assert np.abs(merged - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_order_of_parents_does_not_matter(dense: Base, adapter: Make) -> None:
    both = parents(adapter, "a", "b")
    asked = {"a": rows(1, 3, 25), "b": rows(2, 20, 48)}
    one = regression_mean(dense, check_parents(both), asked)
    other = regression_mean(dense, check_parents(both[::-1]), asked)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_answers_each_task_nearer_to_its_own_adapter_than_the_sum_does(dense: Base, adapter: Make) -> None:
    plan = check_parents(parents(adapter, "a", "b"))
    asked = {"a": rows(1, 3, 20), "b": rows(2, 28, 48)}
    merged = regression_mean(dense, plan, asked)
    added = {name: sum(update.delta(name) for update in plan.updates) for name in plan.modules}
    for parent, update in zip(plan.parents, plan.updates, strict=True):
        own = {name: update.delta(name) for name in update.modules}
        inputs = torch.tensor([(*row.prompt, *row.target)[:6] for row in asked[parent.task]])
        wanted = _logits(dense, own, inputs)
        error = [(_logits(dense, deltas, inputs) - wanted).pow(2).mean() for deltas in (merged, added)]
        assert error[0] < error[1]


def test_the_base_is_as_before_afterwards(dense: Base, adapter: Make) -> None:
    before = {name: value.clone() for name, value in dense.model.state_dict().items()}
    regression_mean(dense, check_parents(parents(adapter, "a", "b")), {"a": rows(1, 3, 25), "b": rows(2, 20, 48)})
    assert all(torch.equal(value, before[name]) for name, value in dense.model.state_dict().items())


def _logits(base: Base, deltas: Any, inputs: torch.Tensor) -> torch.Tensor:
    from tasks.merging.apply import applied

    with torch.no_grad(), applied(base.model, deltas) as model:
        return model(input_ids=inputs).logits


def _inputs_of_first_layer(base: Base, row: Encoded) -> np.ndarray:
    """(time, hidden): embedded tokens after the first layer's norm."""
    body = base.model.model
    with torch.no_grad():
        embedded = body.embed_tokens(torch.tensor([row.prompt + row.target]))
        return body.layers[0].input_layernorm(embedded)[0].double().numpy()


def test_a_pooler_that_reads_one_position_is_merged_after_the_layers(tmp_path: Path, tiny: Any) -> None:
    """Of a BERT, whose one parent comes back up to what its rows do not reach."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = tiny.model(config, "classification").requires_grad_(False)
    model.save_pretrained(tmp_path / "base")
    adapted = tiny.random_adapter(
        tiny.loaded(tmp_path / "base", "classification"), 7, task_type="SEQ_CLS", target_modules=["query", "dense"]
    )
    adapted.save_pretrained(tmp_path / "adapter")
    spec = BaseSpec(model="bert", quantization="none")
    base = Base(model, None, spec, "classification", tuple("abc"), torch.device("cpu"), torch.float32, "", 2, 0)
    plan = check_parents([Parent("a:1", "a", tmp_path / "adapter", "base")])
    draw, seen = Random(3), []
    asked = [Encoded(tuple(draw.randrange(3, 48) for _ in range(6)), (1,)) for _ in range(300)]
    merged = regression_mean(base, plan, {"a": asked}, on_layer=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert "bert.pooler.dense" in merged
    inputs = torch.tensor([row.prompt for row in asked])
    wanted = _logits(base, {name: plan.updates[0].delta(name) for name in plan.modules}, inputs)
    moved = (wanted - _logits(base, {}, inputs)).abs().max()
    assert (_logits(base, merged, inputs) - wanted).abs().max() < 2e-2 * moved


def test_a_body_on_another_device_reads_its_rows_there_and_the_result_lies_here(
    dense: Base, adapter: Make, elsewhere: Callable[[Base], Base]
) -> None:
    plan = check_parents(parents(adapter, "a", "b"))
    merged = regression_mean(elsewhere(dense), plan, {"a": rows(1, 3, 25), "b": rows(2, 20, 48)})
    assert {delta.device.type for delta in merged.values()} == {"cpu"}
