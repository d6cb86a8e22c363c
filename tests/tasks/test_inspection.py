"""What is found inside an update, against updates that were planted, and against dense linear algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.inspection import CUTTABLE, Inside, advice, inspected, similarities, similarity
from tasks.merging.parts import LowRank
from tasks.merging.vectors import Update
from tasks.methods.catalogue import METHODS

DRAW = torch.Generator().manual_seed(0)
WEIGHTS = {name: torch.randn(24, 16, generator=DRAW) for name in ("a", "b")}


def update_of(**factors: tuple[torch.Tensor, torch.Tensor]) -> Update:
    parts = {name: LowRank(B, A, scale=2.0) for name, (B, A) in factors.items()}
    return Update(Path("here"), "LORA", "0", False, {}, parts, None)


def random_factors(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(24, rank, generator=DRAW), torch.randn(rank, 16, generator=DRAW)


def test_the_spectrum_norm_and_amplification_are_those_of_the_dense_change() -> None:
    B, A = random_factors(4)
    (found,) = inspected(update_of(a=(B, A)), WEIGHTS.__getitem__)
    dense = 2.0 * (B.double() @ A.double())
    U, values, Vt = torch.linalg.svd(dense)
    assert found.values == pytest.approx(values[:4].tolist())
    assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(dense)))
    of_base = torch.linalg.matrix_norm(U[:, :4].T @ WEIGHTS["a"].double() @ Vt[:4].T)
    assert found.amplification == pytest.approx(found.norm / float(of_base))


@pytest.mark.parametrize("true_rank", [1, 2, 3])
def test_a_planted_rank_is_found_under_a_larger_one(true_rank: int) -> None:
    B, A = random_factors(true_rank)
    wide = torch.cat([B, 1e-4 * torch.randn(24, 8 - true_rank, generator=DRAW)], 1)
    tall = torch.cat([A, torch.randn(8 - true_rank, 16, generator=DRAW)])
    (found,) = inspected(update_of(a=(wide, tall)), WEIGHTS.__getitem__)
    assert found.rank_at(0.9999) == true_rank
    assert found.effective_rank <= true_rank + 0.05
    assert advice([found], 0.9999)[0] == f"rank {true_rank} of 8 keeps 99.99% of every module's update"


def test_equal_singular_values_have_their_number_as_effective_rank() -> None:
    left, right = torch.linalg.qr(random_factors(5)[0])[0], torch.linalg.qr(random_factors(5)[1].T)[0].T
    (found,) = inspected(update_of(a=(left, right)), WEIGHTS.__getitem__)
    assert found.effective_rank == pytest.approx(5, rel=1e-5)


def test_an_update_lies_in_itself_and_hardly_in_another_drawn_apart() -> None:
    B, A = random_factors(3)
    one, same_inputs = update_of(a=(B, A)), update_of(a=(random_factors(3)[0], torch.randn(3, 3, generator=DRAW) @ A))
    apart = update_of(a=(B, torch.linalg.svd(A.double())[2][3:6].float()))
    assert similarity(one, one, "a") == pytest.approx(1)
    assert similarity(one, same_inputs, "a") == pytest.approx(1, abs=1e-4)
    assert similarity(one, apart, "a") == pytest.approx(0, abs=1e-6)
    assert similarity(one, one, "a", 1, 3) == pytest.approx(1)


def test_a_module_that_carries_nothing_is_named() -> None:
    B, A = random_factors(2)
    found = inspected(update_of(a=(B, A), b=(torch.zeros_like(B), A)), WEIGHTS.__getitem__)
    assert found[1] == Inside("b", (0.0,), 0.0, 0.0, 0.0)
    assert advice(found)[-1] == "1 of 2 modules carry nothing: b"


def test_the_grid_of_phi_is_that_of_every_pair_and_its_mean_over_modules() -> None:
    one = update_of(a=random_factors(3), b=random_factors(3))
    other = update_of(a=random_factors(5), b=random_factors(4))
    grid = similarities(one, other, ["a", "b"])
    assert grid.shape == (3, 4)  # as many as every module has
    for i in range(1, 4):
        for j in range(1, 5):
            wanted = sum(similarity(one, other, name, i, j) for name in "ab") / 2
            assert float(grid[i - 1, j - 1]) == pytest.approx(wanted)
    assert similarities(one, other, ["a"], most=2).shape == (2, 2)


def test_the_share_of_energy_is_that_of_the_best_approximation_of_the_rank() -> None:
    B, A = random_factors(4)
    (found,) = inspected(update_of(a=(B, A)), WEIGHTS.__getitem__)
    dense = 2.0 * (B.double() @ A.double())
    U, values, Vt = torch.linalg.svd(dense)
    for rank in range(1, 5):
        rest = dense - U[:, :rank] @ torch.diag(values[:rank]) @ Vt[:rank]
        lost = float(torch.linalg.matrix_norm(rest) ** 2 / torch.linalg.matrix_norm(dense) ** 2)
        assert found.energy_at(rank) == pytest.approx(1 - lost)


def test_no_smaller_rank_is_advised_where_none_can_be_cut() -> None:
    (found,) = inspected(update_of(a=random_factors(1)), WEIGHTS.__getitem__)
    wide = Inside("a", (*found.values, 0.0, 0.0), 1.0, found.norm, 1.0)
    assert advice([wide])[0] == "rank 1 of 3 keeps 99% of every module's update"
    for method in ("dora", "ia3", "full"):
        assert advice([wide], method=method)[0].startswith(
            f"{method} changes every weight: its update has no rank to cut"
        )
    assert all(METHODS[name].is_low_rank for name in CUTTABLE)
