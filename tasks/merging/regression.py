"""RegMean: the weight that answers each parent's inputs as the parent does, in the least-squares sense.

Jin et al. 2023, arXiv:2212.09849, section 3: per linear layer the minimiser of sum_i ||X_i W^T - X_i W_i^T||^2 is

    dW^T = (sum_i G_i)^-1 sum_i G_i dW_i^T        G_i = X_i^T X_i, scaled to trace 1

over the shared base (W_i = W + dW_i). Two choices are named: layers are merged one after the other and X_i is read from
the model as merged so far, so that later layers make up for what earlier ones lost; and positions where an answer is
written count `answer_weight` times, for a prompt is many tokens and an answer few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tasks.merging.apply import applied
from tasks.merging.plan import MergePlan
from tasks.training.base import Base
from tasks.training.encoding import IGNORED, Encoded, collate

RIDGE = 1e-6
BATCH = 64


def regression_mean(
    base: Base,
    plan: MergePlan,
    rows: Mapping[str, Sequence[Encoded]],
    *,
    answer_weight: float = 20.0,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """The merged change of every module, float32 (out, in).

    Args:
        base: the dense base, on which each parent is put in turn.
        rows: task to rows that the parent may be asked about; no test rows.

    Raises:
        KeyError: a parent has no rows.
    """
    own = {
        parent.task: {name: update.delta(name).float() for name in update.modules if not name.endswith(".bias")}
        for parent, update in zip(plan.parents, plan.updates, strict=True)
    }
    layers = _layers(plan.modules)
    merged: dict[str, Tensor] = {}
    for done, names in enumerate(layers):
        grams = {
            task: _grams(base, {**deltas, **merged}, rows[task], names, answer_weight) for task, deltas in own.items()
        }
        for name in names:
            takes_part = [task for task in own if name in own[task]]
            total = sum(grams[task][name] for task in takes_part)
            wanted = sum(grams[task][name] @ own[task][name].double().T for task in takes_part)
            ridge = RIDGE * torch.eye(len(total), dtype=torch.float64)  # type: ignore[arg-type]
            merged[name] = torch.linalg.solve(total + ridge, wanted).T.float().contiguous()
        on_layer(done + 1, len(layers))
    return merged


def _layers(modules: Mapping[str, Any]) -> list[list[str]]:
    """Module names grouped by transformer layer, in the order in which a token meets them."""
    found: dict[int, list[str]] = {}
    for name in modules:
        if not name.endswith(".bias"):
            number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
            found.setdefault(number, []).append(name)
    return [found[number] for number in sorted(found)]


@torch.no_grad()
def _grams(
    base: Base, deltas: Mapping[str, Tensor], rows: Sequence[Encoded], names: Sequence[str], answer_weight: float
) -> dict[str, Tensor]:
    """X^T X of each module's inputs, float64 (in, in), scaled to trace 1; answer positions count more."""
    grams: dict[str, Tensor] = {}
    with applied(base.model, deltas) as model, _heard(model, names) as heard:
        model.eval()
        ordered = sorted(rows, key=lambda row: row.length)
        for start in range(0, len(ordered), BATCH):
            inputs, labels = collate(base, ordered[start : start + BATCH])
            weight = inputs["attention_mask"].float()
            if labels.dim() == 2:
                weight = weight * torch.where(labels != IGNORED, answer_weight, 1.0)
            model(**inputs)
            for name in names:
                x = heard[name].reshape(-1, heard[name].shape[-1]).double() * weight.reshape(-1, 1).double().sqrt()
                grams[name] = grams.get(name, 0) + x.T @ x
    return {name: (gram / gram.trace()).cpu() for name, gram in grams.items()}


@contextmanager
def _heard(model: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The latest input of each named module while the block runs."""
    heard: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def listen(name: str) -> Any:
        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            heard[name] = inputs[0]

        return modules[name].register_forward_pre_hook(keep)

    hooks = [listen(name) for name in names]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
