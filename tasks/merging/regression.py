"""RegMean: the weight that answers each parent's inputs as the parent does, in the least-squares sense.

Jin et al. 2023, arXiv:2212.09849, section 3: per linear layer the minimiser of sum_i ||X_i W^T - X_i W_i^T||^2 is

    dW^T = (sum_i G_i)^-1 sum_i G_i dW_i^T        G_i = X_i^T X_i, scaled to trace 1

over the shared base (W_i = W + dW_i). Two choices are named: layers are merged one after the other and X_i is read from
the model as merged so far, so that later layers make up for what earlier ones lost; and positions where an answer is
written count `answer_weight` times, for a prompt is many tokens and an answer few. What is no linear layer (biases,
norms, embeddings) gets the mean of the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from tasks.merging.apply import applied, linear_modules
from tasks.merging.merge import as_stored
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
    """The merged change of every module, float32, as the base stores it.

    Args:
        base: the dense base, on which each parent is put in turn.
        rows: task to rows that the parent may be asked about; no test rows.

    Raises:
        KeyError: a parent has no rows.
    """
    own = {
        parent.task: {name: as_stored(plan, name, update.delta(name)) for name in update.modules}
        for parent, update in sorted(zip(plan.parents, plan.updates, strict=True), key=lambda pair: pair[1].digest)
    }  # by content, so that the order of the parents does not show
    linear = linear_modules(base.model, plan.modules)
    layers = _layers(linear)
    merged = {
        name: torch.stack([deltas[name] for deltas in own.values() if name in deltas]).sum(0) / len(own)
        for name in sorted(set(plan.modules) - set(linear))
    }
    for done, names in enumerate(layers):
        grams = {
            task: _grams(base, {**deltas, **merged}, rows[task], names, answer_weight) for task, deltas in own.items()
        }
        for name in names:
            takes_part = [task for task in own if name in own[task]]
            total = sum(grams[task][name] for task in takes_part)
            turned = {
                task: own[task][name] if plan.transposed else own[task][name].T for task in takes_part
            }  # (in, out)
            wanted = sum(grams[task][name] @ turned[task].double() for task in takes_part)
            ridge = RIDGE * torch.eye(len(total), dtype=torch.float64)  # type: ignore[arg-type]
            solved = torch.linalg.solve(total + ridge, wanted).float()
            merged[name] = (solved if plan.transposed else solved.T).contiguous()
        on_layer(done + 1, len(layers))
    return merged


def _layers(modules: Sequence[str]) -> list[list[str]]:
    """Modules, in the model's order, grouped by transformer layer; a pooler behind the layers is a group of its own."""
    numbered = groupby(modules, key=lambda name: next((part for part in name.split(".") if part.isdigit()), ""))
    return [list(names) for _, names in numbered]


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
                x = heard[name].double()
                if x.dim() == 3:  # a pooler reads one position of each row
                    x = (x * weight[..., None].double().sqrt()).flatten(0, 1)
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
