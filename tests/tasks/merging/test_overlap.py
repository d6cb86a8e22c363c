"""The forecast's numbers are what a direct look at the dense updates gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.merging.merge import Parent, check_parents
from tasks.merging.overlap import forecast, overlaps, summary
from tasks.merging.vectors import exact_updates


def parents(*folders: Path) -> list[Parent]:
    return [Parent(f"{task}:1", task, folder, "digest") for task, folder in zip("abc", folders, strict=False)]


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_each_number_is_that_of_the_dense_updates(density: float, adapter: Callable[..., Path]) -> None:
    folders = {"a": adapter(80), "b": adapter(81, r=6, use_rslora=True, target_modules=["q_proj", "down_proj"])}
    dense = {task: exact_updates(folder) for task, folder in folders.items()}
    found = list(overlaps(check_parents(parents(*folders.values())), density=density))
    assert {overlap.module for overlap, _ in found} == set(dense["b"].modules)
    for overlap, weight in found:
        one, two = (dense[task].delta(overlap.module).double().numpy() for task in (overlap.first, overlap.second))
        norms = np.linalg.norm(one), np.linalg.norm(two)
        assert overlap.cosine == pytest.approx((one * two).sum() / norms[0] / norms[1], abs=1e-5)
        assert overlap.norm_ratio == pytest.approx(min(norms) / max(norms), rel=1e-5)
        assert weight == pytest.approx(norms[0] * norms[1], rel=1e-5)
        counts = int(np.ceil(one.size * density))
        large = [np.abs(d) >= np.sort(np.abs(d).ravel())[-counts] for d in (one, two)]
        common = large[0] & large[1]
        assert overlap.conflict_share == pytest.approx((one * two < 0)[common].mean(), abs=0.01)
        spaces = [np.linalg.svd(d)[2][: np.linalg.matrix_rank(d, tol=1e-4)] for d in (one, two)]
        shared = np.linalg.norm(spaces[0] @ spaces[1].T) ** 2 / min(map(len, spaces))
        assert overlap.input_overlap == pytest.approx(shared, abs=1e-4)


def test_an_adapter_agrees_with_itself_and_opposes_its_negative(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder, negative = adapter(82), tmp_path / "negative"
    shutil.copytree(folder, negative)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: -2 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()},
        negative / "adapter_model.safetensors",
    )
    (same,) = forecast(check_parents(parents(folder, folder)))
    assert (same.conflict_share, same.cosine, same.norm_ratio) == pytest.approx((0, 1, 1), abs=1e-5)
    (opposed,) = forecast(check_parents(parents(folder, negative)))
    assert (opposed.conflict_share, opposed.cosine) == pytest.approx((1, -1), abs=1e-5)
    assert (opposed.norm_ratio, opposed.input_overlap) == pytest.approx((0.5, 1), abs=1e-5)


def test_adapters_that_read_different_inputs_share_none(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for place, keep in enumerate((slice(0, 16), slice(16, 32))):
        copy = tmp_path / str(place)
        shutil.copytree(adapter(83 + place, target_modules=["q_proj"]), copy)
        tensors = load_file(copy / "adapter_model.safetensors")
        for name in [name for name in tensors if "lora_A" in name]:
            masked = torch.zeros_like(tensors[name])
            masked[:, keep] = tensors[name][:, keep]
            tensors[name] = masked
        save_file(tensors, copy / "adapter_model.safetensors")
        folders.append(copy)
    (pair,) = forecast(check_parents(parents(*folders)))
    assert pair.input_overlap == pytest.approx(0, abs=1e-6)
    assert pair.cosine == pytest.approx(0, abs=1e-6)


def test_unrelated_adapters_pull_apart_in_half_of_their_common_entries(adapter: Callable[..., Path]) -> None:
    plan = check_parents(parents(adapter(85), adapter(86), adapter(87)))
    pairs = forecast(plan)
    assert [(pair.first, pair.second) for pair in pairs] == sorted((pair.first, pair.second) for pair in pairs)
    assert len(pairs) == 3
    assert all(abs(pair.conflict_share - 0.5) < 0.1 and abs(pair.cosine) < 0.1 for pair in pairs)
    text = summary(pairs)
    assert text.count("\n") == 2
    assert json.dumps(text).isascii()


def test_parents_that_never_meet_are_said_to(adapter: Callable[..., Path]) -> None:
    plan = check_parents(parents(adapter(88, target_modules=["q_proj"]), adapter(89, target_modules=["up_proj"])))
    assert forecast(plan) == ()
    assert "no two parents" in summary(())
