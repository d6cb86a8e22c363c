"""A merge that is known by its weights alone is truncated as one that is known by its rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.errors import SpecRefused
from tasks.merging.base import held_base, open_base
from tasks.merging.merge import check_parents, merged_updates, reduced_differences, reduced_updates
from tasks.merging.plan import Parent


def test_what_lies_between_the_weights_is_what_the_rule_merged(adapter: Callable[..., Path], llama: Path) -> None:
    base = open_base(llama)
    plan = check_parents(
        [Parent(f"{task}:1", task, adapter(seed), "digest") for task, seed in (("a", 140), ("b", 141))], base
    )
    tensors = {name: base.tensor(name).clone() for name in base.shapes}
    for name, delta in merged_updates(plan, "ties", density=0.5):
        tensors[f"{name}.weight"] += 0.5 * delta
    written = held_base(llama, tensors)
    by_rule = dict(reduced_updates(plan, "ties", rank=6, density=0.5))
    for name, part in reduced_differences(plan, base, written, rank=6):
        whole = tensors[f"{name}.weight"] - base.weight(name)
        cut = float((part.B @ part.A - whole).pow(2).sum() / whole.pow(2).sum())
        assert part.rank == 6
        assert part.lost == pytest.approx(cut, abs=1e-4)
        assert part.lost == pytest.approx(by_rule[name].lost, rel=0.05)
    assert all(part.lost < 1e-6 for _, part in reduced_differences(plan, base, written, energy=1.0))
    with pytest.raises(SpecRefused, match="E-MERGE-010"):
        next(reduced_differences(plan, base, written))
    torch.testing.assert_close(base.weight("model.norm"), written.weight("model.norm"))
