"""A merged update on a loaded model for as long as a block lasts, so that candidates are scored without writing
them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.merging.base import BaseWeights, nf4_round_trip


def fill(model: Any, base: BaseWeights) -> None:
    """Give a dense model the weights of `base`, such as the dequantised ones that the adapters were trained on."""
    for name, parameter in model.named_parameters():
        tensor = base.tensor_name(name)
        if tensor is not None:
            parameter.data = base.tensor(tensor).to(parameter.device, parameter.dtype, copy=True)


@contextmanager
def applied(
    model: Any, updates: Mapping[str, Tensor], *, scale: float = 1.0, head: Mapping[str, Tensor] | None = None
) -> Iterator[Any]:
    """The model with W + scale * dW, and with a task's head if one is given; the old weights are back afterwards.

    Args:
        model: dense; on NF4 weights an update would be rounded away.
        updates: module name to change, as `merged_updates` gives them.
        head: parameter name to replacement, as `MergePlan.heads` has them.

    Raises:
        ArtifactRefused: the model lacks a changed weight, or has it in another shape.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    changes = {f"{name}.weight" if f"{name}.weight" in named else name: delta for name, delta in updates.items()}
    head = head or {}
    _refuse_misfits(named, {**changes, **head})
    before = {name: named[name].data for name in {**changes, **head}}
    try:
        for name, delta in changes.items():
            weight = named[name].data
            named[name].data = (weight.float() + scale * delta.to(weight.device)).to(weight.dtype)
        replace_head(model, head)
        yield model
    finally:
        for name, weight in before.items():
            named[name].data = weight


def linear_modules(model: Any, names: Collection[str]) -> tuple[str, ...]:
    """Of these modules the linear layers, in the model's own order: what answers rows of inputs with a product."""
    wanted = set(names)
    linear = ("Linear", "Conv1D")
    return tuple(name for name, module in model.named_modules() if name in wanted and type(module).__name__ in linear)


@contextmanager
def rounded(model: Any, modules: Collection[str], *, double_quant: bool = True) -> Iterator[Any]:
    """The dense model with these modules' weights rounded to NF4 and back; as before afterwards."""
    named = dict(model.named_parameters(remove_duplicate=False))
    before = {f"{name}.weight": named[f"{name}.weight"].data for name in modules if f"{name}.weight" in named}
    try:
        for name, weight in before.items():
            named[name].data = nf4_round_trip(weight, double_quant=double_quant)
        yield model
    finally:
        for name, weight in before.items():
            named[name].data = weight


def replace_head(model: Any, head: Mapping[str, Tensor]) -> None:
    """Put a task's head on a model for good.

    Raises:
        ArtifactRefused: the model lacks one of its parameters, or has it in another shape.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    _refuse_misfits(named, head)
    for name, replacement in head.items():
        named[name].data = replacement.to(named[name].device, named[name].dtype)


def _refuse_misfits(named: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    remedy = "use the base that the parents were trained on, unquantised"
    raise_if_any(
        ArtifactRefused,
        [
            Problem("E-MERGE-024", name, f"the model has no such weight of shape {tuple(tensor.shape)}", remedy)
            for name, tensor in wanted.items()
            if name not in named or named[name].shape != tensor.shape
        ],
    )
