"""Each further rule against an independent form of it: dense SVDs, plain formulas, and the code of mergekit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from tasks.errors import SpecRefused
from tasks.merging.algebra import disjoint_merge, drawn, drop, keep_chances, kept_entries, magnitude_of_rank, trim
from tasks.merging.catalogue import ENTRYWISE, RULES
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates
from tasks.merging.vectors import exact_updates

WEIGHTS = {"a": 1.0, "b": 0.5, "c": 2.0}


@pytest.fixture(scope="module")
def folders(adapter: Callable[..., Path]) -> list[Path]:
    return [adapter(80), adapter(81, r=6), adapter(82, r=3, target_modules=["q_proj", "up_proj"])]


@pytest.fixture(scope="module")
def plan(folders: list[Path]) -> MergePlan:
    return planned(folders)


def planned(folders: list[Path]) -> MergePlan:
    return check_parents(
        [Parent(f"{task}:1", task, path, "digest") for task, path in zip("abc", folders, strict=False)]
    )


def dense(folders: list[Path], name: str) -> list[np.ndarray]:
    """Each parent's update in float64, zero where it leaves the module alone."""
    updates = [exact_updates(folder) for folder in folders]
    pairs = [update.factors(name) if name in update.modules else None for update in updates]
    shape = next(update.shape(name) for update in updates if name in update.modules)
    return [np.zeros(shape) if pair is None else (pair[0] @ pair[1]).numpy() for pair in pairs]


def relative(found: Any, expected: Any) -> float:
    return float(
        np.linalg.norm(np.asarray(found) - np.asarray(expected)) / max(np.linalg.norm(np.asarray(expected)), 1e-9)
    )


@pytest.fixture
def mergekit() -> Any:
    return pytest.importorskip("mergekit", reason="mergekit is not installed, its rows are held against formulas alone")


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_walks_the_great_circle_between_two_updates(t: float, folders: list[Path]) -> None:
    weights = {"a": 1 - t, "b": t} if 0 < t < 1 else {"a": 1 - t + 1e-12, "b": t + 1e-12}
    for name, delta in merged_updates(planned(folders[:2]), "slerp", weights=weights):
        one, two = dense(folders[:2], name)
        angle = math.acos(float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)))
        expected = (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)
        assert relative(delta, expected) < 1e-6


def test_slerp_of_two_unit_updates_has_unit_norm_where_their_mean_is_shorter(folders: list[Path]) -> None:
    for name, delta in merged_updates(planned(folders[:2]), "slerp", weights={"a": 0.4, "b": 0.6}):
        one, two = dense(folders[:2], name)
        low, high = sorted((np.linalg.norm(one), np.linalg.norm(two)))
        assert low * 0.99 < float(delta.norm()) < high * 1.01
        assert float(delta.norm()) > np.linalg.norm(0.4 * one + 0.6 * two)


def test_slerp_is_mergekits(folders: list[Path], mergekit: Any) -> None:
    from mergekit.merge_methods.nuslerp import nuslerp

    for name, delta in merged_updates(planned(folders[:2]), "slerp", weights={"a": 0.7, "b": 0.3}):
        one, two = (torch.from_numpy(change) for change in dense(folders[:2], name))
        assert relative(delta, nuslerp(0.3, one, two, flatten=True)) < 1e-6


def test_slerp_merges_two_parents_and_no_other_number(plan: MergePlan) -> None:
    with pytest.raises(SpecRefused, match="merges 2 parents, 3 take part"):
        next(merged_updates(plan, "slerp"))
    assert len(dict(merged_updates(plan, "slerp", weights={"c": 0.0}))) == 14


def test_model_stock_keeps_what_the_parents_share(folders: list[Path], plan: MergePlan) -> None:
    for name, delta in merged_updates(plan, "model_stock"):
        changes = dense(folders, name)
        norms = [np.linalg.norm(change) for change in changes]
        cosines = [
            float((changes[i] * changes[j]).sum() / (norms[i] * norms[j])) if norms[i] and norms[j] else 0.0
            for i, j in itertools.combinations(range(3), 2)
        ]
        factor = 3 * np.mean(cosines) / (1 + 2 * np.mean(cosines))
        assert relative(delta, factor * np.mean(changes, 0)) < 1e-5


def test_model_stock_is_mergekits(folders: list[Path], plan: MergePlan, mergekit: Any) -> None:
    from mergekit.merge_methods import model_stock

    function = model_stock.model_stock_merge_method.implementation
    for name, delta in merged_updates(plan, "model_stock"):
        changes = [torch.from_numpy(change) for change in dense(folders, name)]
        base = torch.zeros_like(changes[0])
        group = SimpleNamespace(
            base=SimpleNamespace(tensor=base), non_base=[SimpleNamespace(tensor=change) for change in changes]
        )
        assert relative(delta, function(group)) < 1e-5


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.25), (3.0, 1.0, 1.0), (1.0, -0.5, 1.0)])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5])
def test_the_mergekit_dialect_is_mergekits_ties(weights: tuple[float, ...], density: float, mergekit: Any) -> None:
    from mergekit.merge_methods.generalized_task_arithmetic import ConsensusMethod, GeneralizedTaskArithmeticMerge
    from mergekit.sparsify import SparsificationMethod

    deltas = torch.randn(3, 24, 17, generator=torch.Generator().manual_seed(7))
    method = GeneralizedTaskArithmeticMerge(
        ConsensusMethod.sum, SparsificationMethod.magnitude, True, False, "ties", None, None
    )
    by_place = dict(enumerate(weights))
    group = SimpleNamespace(
        base=SimpleNamespace(tensor=torch.zeros(24, 17)),
        non_base=[SimpleNamespace(tensor=delta, id=place) for place, delta in enumerate(deltas)],
    )
    densities = dict.fromkeys(by_place, density)
    asked = {"weight": by_place, "density": densities, "normalize": True, "rescale": False, "int8_mask": False}
    theirs = method.merge_group(group, **asked, **{"lambda": 1.0})
    dialect = RULES["ties_mergekit"].dialect
    count = kept_entries(24 * 17, density, kept=dialect["kept"])
    kept = trim(deltas, [magnitude_of_rank(delta.abs().reshape(-1).numpy().copy(), count) for delta in deltas])
    assert dialect["draw"] == "plus"
    ours = disjoint_merge(kept, weights, vote=dialect["vote"], divisor=dialect["divisor"], draw=1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.995, 1.0])
def test_breadcrumbs_keeps_the_band_below_the_outliers(density: float, folders: list[Path], plan: MergePlan) -> None:
    for name, delta in merged_updates(plan, "breadcrumbs", density=density):
        expected = np.zeros(delta.shape)
        for change in dense(folders, name):
            order = np.sort(np.abs(change).ravel())[::-1]
            count = math.ceil(change.size * density - 1e-9)
            out = min(int(0.01 * change.size), change.size - count)
            low, high = order[out + count - 1], order[out - 1] if out else math.inf
            expected += np.where((np.abs(change) >= low * (1 - 1e-6)) & (np.abs(change) < high * (1 - 1e-6)), change, 0)
        assert relative(delta, expected) < 1e-5


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_breadcrumbs_is_mergekits_where_its_count_is_whole(density: float, mergekit: Any) -> None:
    from mergekit.sparsify import magnitude_outliers

    from tasks.merging.consensus import Ask
    from tasks.merging.stack import Held, Stack

    delta = torch.randn(20, 50, generator=torch.Generator().manual_seed(3))
    stack = Stack("layer", (20, 50), (0,), (Held(delta),), (1.0,), 1.0, (0,), 1)  # type: ignore[arg-type]
    ours = RULES["breadcrumbs"].dense(stack, Ask(density))
    assert torch.equal(ours, magnitude_outliers(delta, density, gamma=0.01))


@pytest.mark.parametrize(("density", "spread"), [(0.5, 0.15), (0.3, 0.1), (0.8, 0.15)])
def test_dellas_chances_are_mergekits(
    density: float, spread: float, mergekit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit.sparsify import della_magprune

    delta = torch.randn(6, 31, generator=torch.Generator().manual_seed(4))
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "bernoulli", lambda chances: (asked.append(chances), torch.ones_like(chances))[1])
    della_magprune(delta, density, spread)
    torch.testing.assert_close(keep_chances(delta, density, spread), asked[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.95, 1.0])
def test_dellas_drop_keeps_the_mean_and_the_density(density: float) -> None:
    delta = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    chances = keep_chances(delta, density, 0.15)
    assert float(chances.mean()) == pytest.approx(density, abs=1e-6)
    assert bool(((chances >= 0) & (chances <= 1)).all())
    draws = 4000
    total = torch.zeros_like(delta).double()
    for seed in range(draws):
        keep = torch.from_numpy(drawn(seed, 0, 0, 120, chances.numpy().reshape(-1))).reshape(3, 40)
        total += drop(delta, keep, chances)
    possible = chances > 0.02  # what is hardly ever kept has a mean that hardly ever shows
    spread = delta.abs() * ((1 - chances) / chances.clamp_min(1e-9) / draws).sqrt()
    assert bool(((total / draws - delta).abs() <= 5 * spread + 1e-5)[possible].all())


def test_the_core_is_the_updates_between_the_bases_of_their_dense_svds(folders: list[Path], plan: MergePlan) -> None:
    for name, delta in merged_updates(plan, "core_ties", weights=WEIGHTS, density=0.4):
        present = [(d, w) for d, w in zip(dense(folders, name), WEIGHTS.values(), strict=True) if np.any(d)]
        changes, weights = [d for d, _ in present], [w for _, w in present]
        U, values, _ = np.linalg.svd(np.concatenate(changes, 1), full_matrices=False)
        U = U[:, values > 1e-9 * values[0]]
        _, values, Vt = np.linalg.svd(np.concatenate(changes, 0), full_matrices=False)
        Vt = Vt[values > 1e-9 * values[0]]
        cores = [U.T @ change @ Vt.T for change in changes]
        count = math.ceil(cores[0].size * 0.4 - 1e-9)
        kept = [np.where(np.abs(c) >= np.sort(np.abs(c).ravel())[-count] * (1 - 1e-7), c, 0) for c in cores]
        votes = np.stack([weight * c for weight, c in zip(weights, kept, strict=True)])
        agreeing = np.where(np.sign(votes) == np.sign(votes.sum(0)), votes, 0)
        spread = sum(abs(weight) * (part != 0) for weight, part in zip(weights, agreeing, strict=True))
        assert relative(delta, U @ (agreeing.sum(0) / np.where(spread == 0, 1, spread)) @ Vt) < 1e-5


@pytest.mark.parametrize("space", ["knots", "core"])
def test_a_linear_rule_gains_nothing_in_a_shared_space(space: str, plan: MergePlan) -> None:
    plain = dict(merged_updates(plan, "task_arithmetic", weights=WEIGHTS))
    for name, delta in merged_updates(plan, f"{space}_magnitude_prune", weights=WEIGHTS, density=1.0):
        assert relative(delta, plain[name]) < 1e-6


def test_every_entrywise_rule_but_the_linear_ones_has_a_row_in_each_space() -> None:
    wanted = {f"{space}_{row.name}" for space in ("knots", "core") for row in ENTRYWISE if row.name != "dare"}
    assert wanted <= set(RULES)


def test_tsv_is_the_polar_factors_of_the_stacked_singular_vectors(folders: list[Path], plan: MergePlan) -> None:
    """The dense SVD of each update, and SciPy's polar decomposition of their vectors side by side."""
    for name, delta in merged_updates(plan, "tsv", weights=WEIGHTS):
        left, right, values = [], [], []
        for change, weight in zip(dense(folders, name), WEIGHTS.values(), strict=True):
            U, own, Vt = np.linalg.svd(change, full_matrices=False)
            kept = min(int((own > 1e-9 * max(own[0], 1e-9)).sum()), min(change.shape) // 3)
            left.append(U[:, :kept])
            right.append(Vt[:kept].T)
            values.append(weight * own[:kept])
        polar = [scipy.linalg.polar(np.concatenate(side, 1))[0] for side in (left, right)]
        assert relative(delta, polar[0] * np.concatenate(values) @ polar[1].T) < 1e-5


def test_a_second_copy_adds_nothing_to_tsv(folders: list[Path]) -> None:
    alone = exact_updates(folders[0])
    for name, delta in merged_updates(planned([folders[0], folders[0]]), "tsv"):
        assert relative(delta, alone.delta(name)) < 1e-6


def test_tsv_of_orthogonal_parents_is_their_sum(tmp_path: Path) -> None:
    """Nothing interferes, so nothing is changed."""
    import json

    from safetensors.torch import save_file

    frames = torch.linalg.qr(torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1)))[0]
    folders = []
    for place in range(2):
        folder = tmp_path / str(place)
        folder.mkdir()
        own = slice(4 * place, 4 * place + 4)
        tensors = {"lora_B": frames[0][:, own].contiguous(), "lora_A": frames[1][:, own].T.contiguous()}
        save_file(
            {f"base_model.model.layer.{key}.weight": t for key, t in tensors.items()},
            folder / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4 + place}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    both = planned(folders)
    summed = dict(merged_updates(both, "task_arithmetic"))
    for name, delta in merged_updates(both, "tsv"):
        assert relative(delta, summed[name]) < 1e-5
