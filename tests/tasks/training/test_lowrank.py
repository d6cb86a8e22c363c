"""LoRA in few passes, against PEFT's own layers and against dropout's definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.methods.build import fresh_adapter
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.base import Base, load_base
from tasks.training.encoding import collate, encode
from tasks.training.lowrank import compute_in_few_passes, kept_by_dropout, updated

LABELS = ("card", "loan", "theft")
Make = Callable[..., Any]


def base_of(folder: Path, kind: str = "generation", **spec: Any) -> Base:
    return load_base(BaseSpec(model=str(folder), **spec), kind=kind, labels=LABELS if kind == "classification" else ())


def gradients(base: Base, model: Any, rows: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a batch and the gradient of a loss that uses all of them, by parameter."""
    inputs, _ = collate(base, rows)
    with base.autocast():
        logits = model(**inputs).logits.float()
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return logits.detach(), found


@pytest.mark.parametrize(("kind", "which"), [("generation", "tiny_base"), ("classification", "tiny_encoder")])
@pytest.mark.parametrize(("name", "quantization"), [("lora", "nf4"), ("rslora", "none")])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_logits_and_gradients_are_those_of_peft(
    dtype: str, tolerance: float, name: str, quantization: str, kind: str, which: str, request: Any, make_rows: Make
) -> None:
    base = base_of(request.getfixturevalue(which), kind, compute_dtype=dtype, quantization=quantization)
    rows = encode(base, make_rows(kind, 6))
    draw = torch.Generator().manual_seed(3)
    with fresh_adapter(base, MethodSpec(name=name, rank=4, dropout=0.0), seed=1) as model:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
        logits, expected = gradients(base, model, rows)
        assert compute_in_few_passes(model) == len([n for n in expected if "lora_A" in n])
        again, found = gradients(base, model, rows)
    assert (again - logits).norm() < tolerance * logits.norm()
    assert found.keys() == expected.keys()
    for parameter, grad in expected.items():
        assert grad.norm() > 0
        assert (found[parameter] - grad).norm() < tolerance * grad.norm(), parameter
        assert found[parameter].dtype == grad.dtype


def operands(rows: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, y, A and B of a small layer."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, rows, 5), (2, rows, 6), (3, 5), (6, 3)]
    return [torch.randn(shape, generator=draw, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_gradient_is_the_derivative(share: float) -> None:
    def update(*tensors: Tensor) -> Tensor:
        torch.manual_seed(2)  # the same elements are dropped at every call
        return updated(*tensors, 1.7, share)

    assert torch.autograd.gradcheck(update, operands())


def test_dropout_is_that_of_its_definition() -> None:
    x, y, A, B = operands()
    torch.manual_seed(5)
    found = updated(x, y, A, B, 1.7, 0.4)
    torch.manual_seed(5)
    kept = kept_by_dropout((14, 5), 0.4).view(2, 7, 5)
    assert torch.allclose(found, y + 1.7 * (x * kept / 0.6) @ A.T @ B.T)


def test_no_gradient_is_computed_for_an_input_that_wants_none() -> None:
    x, y, A, B = operands()
    updated(x.detach(), y, A, B, 1.0, 0.0).sum().backward()
    assert x.grad is None
    assert A.grad is not None
    assert torch.equal(y.grad, torch.ones_like(y))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_as_many_elements_are_dropped_as_asked_for_and_independently(share: float) -> None:
    torch.manual_seed(0)
    kept = kept_by_dropout((1000, 1001), share)  # no multiple of four
    assert kept.shape == (1000, 1001)
    assert set(kept.unique().tolist()) == {0, 1}
    dropped = 1 - kept.double()
    n = dropped.numel()
    assert dropped.mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 2**-15)
    for shift in (1, 2, 3, 4, 1001):  # neighbours, those of one draw, and those of the row above
        flat = dropped.flatten()
        both = (flat[shift:] * flat[:-shift]).mean().item()
        assert both == pytest.approx(share**2, abs=5 * share / n**0.5)


def test_no_element_is_dropped_at_nought_and_draws_come_from_torchs_seed() -> None:
    assert kept_by_dropout((64, 64), 0.0).all()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(kept_by_dropout((64, 64), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_is_for_training_only(tiny_base: Path) -> None:
    base = base_of(tiny_base)
    ids = torch.arange(4, 24)[None]
    with fresh_adapter(base, MethodSpec(rank=4, dropout=0.5), seed=1) as model, torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        expected = model(ids).logits
        compute_in_few_passes(model)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        model.train()
        assert not torch.allclose(model(ids).logits, model(ids).logits, atol=1e-3)


def test_a_variant_keeps_pefts_way(tiny_base: Path) -> None:
    with fresh_adapter(base_of(tiny_base), MethodSpec(name="dora", rank=4), seed=1) as model:
        assert compute_in_few_passes(model) == 0


def kept_bytes(base: Base, model: Any, rows: Any) -> int:
    """Bytes of distinct tensors that the backward pass of a batch waits for."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs, _ = collate(base, rows)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs).logits.sum()
    return sum(seen.values())


def test_less_is_kept_for_the_backward_pass_than_by_peft(tiny_base: Path, make_rows: Make) -> None:
    base = base_of(tiny_base, quantization="none")
    rows = encode(base, make_rows("generation", 16))
    with fresh_adapter(base, MethodSpec(rank=4, dropout=0.05), seed=1) as model:
        model.train()
        before = kept_bytes(base, model, rows)
        compute_in_few_passes(model)
        assert kept_bytes(base, model, rows) < 0.75 * before


@pytest.mark.parametrize("which", ["tiny_base", "tiny_encoder"])
def test_attention_in_float32_inside_bfloat16_is_closer_to_float32_and_only_where_a_gradient_is_wanted(
    which: str, request: pytest.FixtureRequest, make_rows: Make
) -> None:
    kind = "generation" if which == "tiny_base" else "classification"
    base = base_of(request.getfixturevalue(which), kind, compute_dtype="bfloat16", quantization="none")
    assert base.model.config._attn_implementation == "sdpa_float32"
    inputs, _ = collate(base, encode(base, make_rows(kind, 6)))
    kinds: list[torch.dtype] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *others: Any, **named: Any) -> Tensor:
        kinds.append(query.dtype)
        return kernel(query, *others, **named)

    logits = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        for wanted in (False, True):
            with base.autocast(), nullcontext() if wanted else torch.no_grad():
                logits[wanted] = base.model(**inputs).logits.float()
    assert kinds == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert (logits[True] - logits[False]).norm() < 0.05 * logits[False].norm()
