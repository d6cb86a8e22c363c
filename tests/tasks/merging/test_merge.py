"""Laws of merging whole adapters: order, threads and gauge do not show, and every rule has an independent witness."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.merging import vectors
from tasks.merging.algebra import disjoint_merge, magnitude_of_rank, trim
from tasks.merging.base import open_base
from tasks.merging.catalogue import RULES
from tasks.merging.factors import reduce_dense, reduce_factors, relative_error, thin_svd
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates, reduced_updates
from tasks.merging.vectors import exact_updates

MIXED: tuple[dict[str, Any], ...] = (
    {"r": 4},
    {"r": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 3, "alpha_pattern": {"q_proj": 1}, "target_modules": ["q_proj", "k_proj", "up_proj"]},
)
ANY_NUMBER = [name for name, row in RULES.items() if row.parents is None]
# model stock leaves nothing of a module that one parent alone changes
FACTORED = [name for name in ANY_NUMBER if RULES[name].factored and name != "model_stock"]


def parent_of(folder: Path, task: str, **settings: Any) -> Parent:
    return Parent(f"{task}:1", task, folder, "digest", **settings)


@pytest.fixture(scope="module")
def folders(adapter: Callable[..., Path]) -> list[Path]:
    return [adapter(seed, **settings) for seed, settings in enumerate(MIXED, 20)]


@pytest.fixture(scope="module")
def plan(folders: list[Path]) -> MergePlan:
    return check_parents([parent_of(folder, task) for folder, task in zip(folders, "abc", strict=True)])


def digest(updates: Mapping[str, torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for name, delta in sorted(updates.items()):
        whole.update(name.encode() + delta.contiguous().numpy().tobytes())
    return whole.hexdigest()


def dense(folders: list[Path], name: str) -> list[np.ndarray]:
    """Each parent's update of a module in float64, zero where it leaves the module alone."""
    updates = [exact_updates(folder) for folder in folders]
    shape = next(update.shape(name) for update in updates if name in update.modules)
    pairs = [update.factors(name) if name in update.modules else None for update in updates]
    return [np.zeros(shape) if pair is None else (pair[0] @ pair[1]).numpy() for pair in pairs]


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected)))


@pytest.mark.parametrize("rule", ANY_NUMBER)
def test_the_order_and_the_names_of_parents_do_not_change_a_byte(rule: str, folders: list[Path]) -> None:
    weights = {0: 1.0, 1: 0.5, 2: 2.0}
    found = set()
    for order, names in itertools.product(((0, 1, 2), (2, 0, 1), (1, 2, 0)), ("abc", "zyx")):
        parents = [parent_of(folders[place], names[place], weight=weights[place]) for place in order]
        found.add(digest(dict(merged_updates(check_parents(parents), rule, density=0.4, seed=3))))
    assert len(found) == 1


@pytest.mark.parametrize("rule", ANY_NUMBER)
def test_threads_and_workers_do_not_change_a_byte(rule: str, plan: MergePlan) -> None:
    found = set()
    before = torch.get_num_threads()
    try:
        for threads, workers in ((1, 1), (2, 1), (2, 3)):
            torch.set_num_threads(threads)
            found.add(digest(dict(merged_updates(plan, rule, density=0.4, seed=3, workers=workers))))
            assert torch.get_num_threads() == threads, "the caller's setting is left as it was"
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("rule", ["ties", "ties_paper", "magnitude_prune", "breadcrumbs", "dare", "dare_ties", "della"])
def test_where_a_block_ends_does_not_matter(rule: str, plan: MergePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dict(merged_updates(plan, rule, density=0.4, seed=3))
    monkeypatch.setattr(vectors, "BLOCK_ENTRIES", 5 * 32)
    for name, delta in merged_updates(plan, rule, density=0.4, seed=3):
        torch.testing.assert_close(delta, whole[name], rtol=0, atol=1e-6)


def test_one_module_is_computed_at_a_time(adapter: Callable[..., Path], llama: Path) -> None:
    base, read = open_base(llama), []

    class Watched:
        shape = staticmethod(base.shape)

        @staticmethod
        def weight(name: str) -> torch.Tensor:
            read.append(name)
            return base.weight(name)

    plan = check_parents([parent_of(adapter(30, use_dora=True), "a")], Watched)  # type: ignore[arg-type]
    stream = merged_updates(plan, "average")
    assert read == []
    first, _ = next(stream)
    assert set(read) == {first}


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.25), (1.0, -1.0, 2.0)])
def test_linear_rules_are_the_weighted_sums_of_dense_updates(
    weights: tuple[float, ...], folders: list[Path], plan: MergePlan
) -> None:
    by_task = dict(zip("abc", weights, strict=True))
    for rule, over in (("task_arithmetic", 1.0), ("average", sum(weights))):
        for name, delta in merged_updates(plan, rule, weights=by_task):
            expected = sum(weight * change for weight, change in zip(weights, dense(folders, name), strict=True)) / over
            assert relative(delta, expected) < 1e-6


@pytest.mark.parametrize("dora", [False, True])
def test_ties_of_one_parent_at_density_1_is_that_parent_and_the_average_of_copies_is_the_copy(
    dora: bool, adapter: Callable[..., Path], llama: Path
) -> None:
    base = open_base(llama)
    folder = adapter(31, use_dora=dora)
    alone = exact_updates(folder, base.weight)
    one = check_parents([parent_of(folder, "a")], base)
    for name, delta in merged_updates(one, "ties", weights={"a": 0.7}):
        torch.testing.assert_close(delta, alone.delta(name), rtol=1e-6, atol=0)
    copies = check_parents([parent_of(folder, task) for task in "abcde"], base)
    for rule in ("average", "model_stock", "ties", "knots_ties", "core_ties"):
        for name, delta in merged_updates(copies, rule):
            assert relative(delta, alone.delta(name)) < 1e-6


def test_a_skill_that_was_added_can_be_removed(folders: list[Path]) -> None:
    both = check_parents([parent_of(folders[0], "a"), parent_of(folders[1], "b"), parent_of(folders[1], "c")])
    alone = exact_updates(folders[0])
    for name, delta in merged_updates(both, "task_arithmetic", weights={"a": 1, "b": 1, "c": -1}):
        if name in alone.modules:
            assert relative(delta, alone.delta(name)) < 1e-7
        else:
            assert float(delta.abs().max()) < 1e-7


def test_a_parent_of_weight_0_takes_no_part(folders: list[Path], plan: MergePlan) -> None:
    pair = check_parents([parent_of(folders[0], "a"), parent_of(folders[1], "b")])
    for rule in ANY_NUMBER:
        without = dict(merged_updates(plan, rule, weights={"c": 0.0}, density=0.5))
        only = dict(merged_updates(pair, rule, density=0.5))
        assert digest(without) == digest(only) or rule == "ties_paper"  # its share is taken of all modules


@pytest.mark.parametrize("rule", [name for name in ANY_NUMBER if not RULES[name].draws])  # a draw is keyed by the bytes
def test_the_gauge_of_the_factors_does_not_show(
    rule: str, folders: list[Path], plan: MergePlan, tmp_path: Path
) -> None:
    """B Q and Q^-1 A are the same update, so the merge must not move."""
    turned = []
    for place, folder in enumerate(folders):
        tensors = load_file(folder / "adapter_model.safetensors")
        generator = torch.Generator().manual_seed(place)
        for name in [name for name in tensors if "lora_A" in name]:
            A, B = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            Q = torch.randn(len(A), len(A), generator=generator, dtype=torch.float64) + 2 * torch.eye(len(A))
            tensors[name] = torch.linalg.solve(Q, A).float().contiguous()
            tensors[name.replace("lora_A", "lora_B")] = (B @ Q).float().contiguous()
        copy = tmp_path / f"turned-{place}"
        copy.mkdir()
        save_file(tensors, copy / "adapter_model.safetensors")
        (copy / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
        turned.append(copy)
    other = check_parents([parent_of(folder, task) for folder, task in zip(turned, "abc", strict=True)])
    straight = dict(merged_updates(plan, rule, density=0.5))
    flips = 0
    for name, delta in merged_updates(other, rule, density=0.5):
        moved = (delta - straight[name]).abs() > 1e-4 * straight[name].abs().max()
        flips += int(moved.sum())  # an entry at the threshold, or a vote near 0, may fall to the other side
    assert flips <= 1e-3 * sum(delta.numel() for delta in straight.values())


def test_what_is_left_of_a_minus_nearly_a_is_right_to_six_digits(folders: list[Path], tmp_path: Path) -> None:
    """The factors differ in their fourth digit only; the sum is compared with exact extended-precision products."""
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    near = {
        name: tensor * (1 + 1e-4 * torch.randn(tensor.shape, generator=generator)) for name, tensor in tensors.items()
    }
    (tmp_path / "near").mkdir()
    save_file(near, tmp_path / "near" / "adapter_model.safetensors")
    (tmp_path / "near" / "adapter_config.json").write_bytes((folders[0] / "adapter_config.json").read_bytes())
    plan = check_parents([parent_of(folders[0], "a"), parent_of(tmp_path / "near", "b")])
    reduced = dict(reduced_updates(plan, "task_arithmetic", weights={"b": -1.0}, rank=8))
    assert len(reduced) == 14
    for name, delta in merged_updates(plan, "task_arithmetic", weights={"b": -1.0}):
        sides = [
            [source[f"base_model.model.{name}.lora_{side}.weight"].numpy().astype(np.longdouble) for side in "BA"]
            for source in (tensors, near)
        ]
        exact = 2 * (sides[0][0] @ sides[0][1] - sides[1][0] @ sides[1][1])  # alpha / r = 2
        assert relative(delta, exact.astype(np.float64)) < 1e-6
        assert relative(reduced[name].B @ reduced[name].A, exact.astype(np.float64)) < 1e-6, "in plain float32 too"


def test_every_rule_commutes_with_the_scale(adapter: Callable[..., Path]) -> None:
    """Updates three times as large merge to three times the merge, so a scale can be put on afterwards."""
    small = check_parents([parent_of(adapter(40 + place, lora_alpha=8), task) for place, task in enumerate("ab")])
    large = check_parents([parent_of(adapter(40 + place, lora_alpha=24), task) for place, task in enumerate("ab")])
    for rule in (row.name for row in RULES.values() if not row.draws):  # draws are keyed by content
        unscaled = dict(merged_updates(small, rule, density=0.3))
        for name, delta in merged_updates(large, rule, density=0.3):
            assert relative(delta, 3 * unscaled[name]) < 1e-5


def test_peft_at_full_rank_is_our_peft_row(adapter: Callable[..., Path], llama: Path, tiny: Any) -> None:
    """PEFT's own weighted merge of whole adapters, `ties_svd` with nothing cut off."""
    import peft

    folders = [adapter(70 + place, target_modules=["q_proj", "up_proj", "down_proj"]) for place in range(2)]
    model = peft.PeftModel.from_pretrained(tiny.loaded(llama, "generation"), folders[0], adapter_name="a")
    model.load_adapter(folders[1], "b")
    model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "both", combination_type="ties_svd", svd_rank=32, density=0.3)
    plan = check_parents([parent_of(folder, task) for folder, task in zip(folders, "ab", strict=True)])
    merged = dict(merged_updates(plan, "ties_peft", weights={"b": 0.5}, density=0.3))
    assert len(merged) == 6
    for name, delta in merged.items():
        theirs = model.base_model.model.get_submodule(name).get_delta_weight("both")
        assert relative(delta, theirs.detach()) < 1e-5


def test_whole_model_trimming_keeps_the_largest_entries_of_all_modules_together(
    folders: list[Path], plan: MergePlan
) -> None:
    density, merged = 0.2, dict(merged_updates(plan, "ties_paper", density=0.2))
    stacks = {name: np.stack(dense(folders, name)).astype(np.float32) for name in merged}
    flat = np.concatenate([stack.reshape(3, -1) for stack in stacks.values()], 1)
    counts = int(flat.shape[1] * density) + 1
    kept = np.stack([np.where(np.abs(row) >= np.sort(np.abs(row))[-counts], row, 0) for row in flat])
    sign = np.sign(kept.sum(0))
    agreeing = kept * (np.sign(kept) == sign) * (sign != 0)
    expected = agreeing.sum(0) / np.maximum((agreeing != 0).sum(0), 1)
    found = np.concatenate([merged[name].numpy().reshape(-1) for name in stacks])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_exact_draw_is_won_as_the_dialect_says(adapter: Callable[..., Path], tmp_path: Path) -> None:
    """A parent and its negative draw everywhere; a third parent, elsewhere in the model, makes the majority."""
    folder, elsewhere = adapter(90, target_modules=["q_proj"]), adapter(91, target_modules=["up_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    (tmp_path / "negative").mkdir()
    negative = {name: -tensor if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(negative, tmp_path / "negative" / "adapter_model.safetensors")
    (tmp_path / "negative" / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    plan = check_parents(
        [parent_of(path, task) for path, task in zip((folder, tmp_path / "negative", elsewhere), "abc", strict=True)]
    )
    third = exact_updates(elsewhere)
    surplus = sum(float(third.delta(name).sign().sum()) for name in third.modules)
    assert surplus != 0
    alone = exact_updates(folder)
    for rule, winner in (("ties", 0.0), ("ties_peft", 1.0), ("ties_paper", np.sign(surplus))):
        merged = dict(merged_updates(plan, rule))
        for name in alone.modules:
            torch.testing.assert_close(merged[name], winner * alone.delta(name).abs(), rtol=1e-6, atol=0)


def knots_reference(deltas: list[np.ndarray], weights: list[float], density: float) -> np.ndarray:
    """SVD of the dense concatenation in float64, then TIES entry by entry on S V^T."""
    U, values, Vt = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    coordinates = np.split(values[:rank, None] * Vt[:rank], len(deltas), axis=1)
    counts = int(np.ceil(coordinates[0].size * density))
    kept = [np.where(np.abs(c) >= np.sort(np.abs(c).ravel())[-counts], c, 0) for c in coordinates]
    votes = np.stack([weight * c for weight, c in zip(weights, kept, strict=True)])
    agreeing = np.where(np.sign(votes) == np.sign(votes.sum(0)), votes, 0)
    spread = sum(abs(weight) * (part != 0) for weight, part in zip(weights, agreeing, strict=True))
    return U[:, :rank] @ (agreeing.sum(0) / np.where(spread == 0, 1, spread))


def test_knots_in_factors_is_knots_on_the_dense_svd(folders: list[Path], plan: MergePlan) -> None:
    weights = [1.0, 0.5, 2.0]
    for name, delta in merged_updates(plan, "knots_ties", weights=dict(zip("abc", weights, strict=True)), density=0.4):
        present = [(d, w) for d, w in zip(dense(folders, name), weights, strict=True) if np.any(d)]
        assert relative(delta, knots_reference([d for d, _ in present], [w for _, w in present], 0.4)) < 1e-5


def test_directions_that_a_second_copy_does_not_add_are_not_counted(folders: list[Path]) -> None:
    alone = check_parents([parent_of(folders[0], "a")])
    copies = check_parents([parent_of(folders[0], task) for task in "abc"])
    once = dict(merged_updates(alone, "knots_ties", density=0.4))
    for name, delta in merged_updates(copies, "knots_ties", density=0.4):
        assert relative(delta, once[name]) < 1e-5


def test_iso_c_has_the_directions_of_the_sum_and_one_singular_value(folders: list[Path], plan: MergePlan) -> None:
    for name, delta in merged_updates(plan, "iso_c"):
        U, values, Vt = np.linalg.svd(sum(dense(folders, name)), full_matrices=False)
        rank = int((values > 1e-9 * values[0]).sum())
        assert relative(delta, values[:rank].mean() * U[:, :rank] @ Vt[:rank]) < 1e-6


@pytest.mark.parametrize("rule", FACTORED)
def test_dense_and_factored_forms_of_a_rule_agree(rule: str, plan: MergePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    factored = dict(merged_updates(plan, rule, density=0.4))
    monkeypatch.setattr(vectors.Update, "has_factors", lambda self, name: False)
    monkeypatch.setattr(vectors.Update, "factors", lambda self, name: None)
    for name, delta in merged_updates(plan, rule, density=0.4):
        moved = (delta - factored[name]).abs() > 1e-4 * factored[name].abs().max()
        assert float(moved.float().mean()) < 0.02, (
            "dense changes are rounded to float32, so some trims fall differently"
        )
        assert relative(delta, factored[name]) < 0.05


@pytest.mark.parametrize("rule", FACTORED)
@pytest.mark.parametrize("rank", [1, 5, 64])
def test_the_low_rank_form_is_the_best_of_its_rank_and_states_its_loss(rule: str, rank: int, plan: MergePlan) -> None:
    whole = dict(merged_updates(plan, rule, density=0.4))
    for name, reduced in reduced_updates(plan, rule, rank=rank, density=0.4):
        values = np.linalg.svd(whole[name].double().numpy().reshape(len(whole[name]), -1), compute_uv=False)
        optimum = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        error = relative((reduced.B @ reduced.A).numpy(), whole[name].numpy())
        assert error <= optimum + 1e-5
        assert abs(np.sqrt(reduced.lost) - optimum) < 1e-5
        assert reduced.rank <= rank


@pytest.mark.parametrize("rank", [2, 8])
def test_a_randomised_reduction_is_within_a_thousandth_of_the_optimum(rank: int, plan: MergePlan) -> None:
    whole = dict(merged_updates(plan, "ties", density=0.4))
    for name, reduced in reduced_updates(plan, "ties", rank=rank, density=0.4):
        values = np.linalg.svd(whole[name].double().numpy(), compute_uv=False)
        optimum = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        error = relative((reduced.B @ reduced.A).numpy(), whole[name].numpy())
        assert optimum - 1e-6 <= error <= 1.001 * optimum
        assert abs(np.sqrt(reduced.lost) - error) < 1e-5, "the loss is measured, not estimated"


@pytest.mark.parametrize("started", [False, True])
def test_a_sketch_of_a_larger_merge_is_within_a_thousandth_of_the_optimum(started: bool) -> None:
    """TIES of three random rank-16 updates of 320 x 256, the worst case for a truncation."""
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(3, 16, 256, generator=generator)
    deltas = torch.randn(3, 320, 16, generator=generator) @ A
    counts = deltas[0].numel() // 5
    kept = trim(deltas, [magnitude_of_rank(delta.abs().numpy().reshape(-1), counts) for delta in deltas])
    merged = disjoint_merge(kept, [1.0, 1.0, 1.0])
    reduced = reduce_dense(merged, 16, start=A.reshape(48, 256) if started else None)
    values = np.linalg.svd(merged.double().numpy(), compute_uv=False)
    optimum = np.sqrt((values[16:] ** 2).sum() / (values**2).sum())
    error = relative(reduced.B @ reduced.A, merged)
    assert optimum <= error <= (1.001 if started else 1.01) * optimum
    assert abs(relative_error(reduced.lost) - error) < 1e-5


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_rank_by_energy_is_the_smallest_that_keeps_it(energy: float) -> None:
    generator = torch.Generator().manual_seed(1)
    B, A = torch.randn(40, 12, generator=generator), torch.randn(12, 30, generator=generator)
    for reduced in (reduce_factors(B, A, energy=energy), reduce_dense(B @ A, 30, energy=energy)):
        assert 1 - reduced.lost >= energy - 1e-6
        shares = np.cumsum(thin_svd(B, A)[1].numpy() ** 2)
        assert reduced.rank == int((shares / shares[-1] < energy).sum()) + 1
