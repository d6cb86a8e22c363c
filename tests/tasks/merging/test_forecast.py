"""The forecast is what NumPy finds on the dense updates, and its verdict follows the parent that suffers most."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tasks.merging.base import open_base
from tasks.merging.forecast import ParentForecast, foretold, verdict_on
from tasks.merging.plan import MergePlan, Parent, check_parents


def plan_of(*folders: Path, base: Path | None = None) -> MergePlan:
    parents = [Parent(f"{task}:1", task, folder, "digest") for task, folder in zip("abc", folders, strict=False)]
    return check_parents(parents, open_base(base) if base else None)


def changed(folder: Path, to: Path, factor: float) -> Path:
    """The adapter times a factor."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "adapter_model.safetensors")
    scaled = {name: factor * value if "lora_B" in name else value for name, value in tensors.items()}
    save_file(scaled, to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize("dora", [False, True])
def test_each_number_is_that_of_the_dense_updates(dora: bool, adapter: Callable[..., Path], llama: Path) -> None:
    plan = plan_of(adapter(150), adapter(151, r=6, use_dora=dora), adapter(152, target_modules=["q_proj"]), base=llama)
    found = foretold(plan)
    own, along, others, whole, cut = np.zeros(3), np.zeros(3), np.zeros(3), 0.0, 0.0
    for name, shape in plan.modules.items():
        deltas = [u.delta(name).double().numpy() if name in u.modules else np.zeros(shape) for u in plan.updates]
        total = sum(deltas)
        rank = max(u.inputs_read(name).shape[0] for u in plan.updates if name in u.modules)
        squares = np.linalg.svd(total, compute_uv=False) ** 2
        whole, cut = whole + squares.sum(), cut + squares[rank:].sum()
        for place, (delta, update) in enumerate(zip(deltas, plan.updates, strict=True)):
            if name in update.modules:
                space = np.linalg.qr(update.inputs_read(name).double().numpy().T)[0]
                own[place] += (delta**2).sum()
                along[place] += ((total - delta) * delta).sum()
                residue = (total - delta) @ space
                others[place] += (residue**2).sum()
    agreement = along / own
    residues = np.sqrt(np.maximum(others / own - agreement**2, 0))
    assert found.cut_share == pytest.approx(cut / whole, rel=0.02)
    for parent, c, residue in zip(found.parents, agreement, residues, strict=True):
        assert parent.agreement == pytest.approx(c, abs=1e-4)
        assert parent.interference == pytest.approx(residue / (1 + c), rel=1e-3)


def test_copies_do_not_interfere_at_any_size_and_a_negative_undoes(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter(153)
    twice = foretold(plan_of(folder, changed(folder, tmp_path / "twice", 2.0)))
    assert [parent.interference for parent in twice.parents] == pytest.approx([0, 0], abs=1e-3)
    assert twice.verdict == "merge"
    undone = foretold(plan_of(folder, changed(folder, tmp_path / "negative", -1.0)))
    assert [parent.interference for parent in undone.parents] == [math.inf, math.inf]
    assert undone.verdict == "serve apart"
    assert undone.summary.endswith(
        "the others undo a; truncated to one parent's rank the sum would lose 0 % of its energy"
    )


def test_a_loud_parent_interferes_with_a_quiet_one_and_not_the_other_way_round(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    loud = changed(adapter(155), tmp_path / "loud", 50.0)
    found = foretold(plan_of(adapter(154), loud))
    quiet, noisy = found.parents
    assert quiet.interference > 10 > 0.1 > noisy.interference
    assert found.verdict == "serve apart"


def test_the_verdict_is_that_of_the_worst_parent() -> None:
    told = {
        worst: verdict_on((ParentForecast("a", 0.1, 0.0), ParentForecast("b", worst, 0.0))) for worst in (0.5, 2, 9)
    }
    assert told == {0.5: "merge", 2: "merge aligned", 9: "serve apart"}


def test_a_parent_far_from_its_base_is_served_apart_though_nobody_interferes(
    adapter: Callable[..., Path], llama: Path, tmp_path: Path
) -> None:
    """Of copies, that merge without interference at any size; NumPy measures how far they are."""
    folder, base = adapter(156), open_base(llama)
    for factor, verdict in ((0.01, "merge"), (1.0, "serve apart")):
        copy = changed(folder, tmp_path / str(factor), factor)
        plan = plan_of(copy, copy)
        found = foretold(plan, base)
        moved = sum((plan.updates[0].delta(name).double().numpy() ** 2).sum() for name in plan.modules)
        whole = sum((base.weight(name).double().numpy() ** 2).sum() for name in plan.modules)
        assert [p.departure for p in found.parents] == pytest.approx([np.sqrt(moved / whole)] * 2)
        assert found.verdict == verdict
        assert foretold(plan).verdict == "merge"
    assert "serve apart: a departs from its base by " in found.summary
