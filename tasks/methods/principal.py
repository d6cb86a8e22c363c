"""EVA: each A starts at the directions in which its own inputs vary most, as training rows show them; B stays zero.

Paischer et al. 2024, arXiv:2410.07170, section 3.2: singular vectors of the activations, found batch by batch. Ranks
are left equal, so that the adapter is a plain LoRA of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

SPARE = 8  # directions that are carried along beside those that are wanted


class Principal:
    """The strongest `count` directions of all rows seen so far.

    >>> seen = Principal(1, spare=1)
    >>> seen.add(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> [round(abs(float(x)), 3) for x in seen.directions()[0]]
    [1.0, 0.0]
    """

    def __init__(self, count: int, spare: int = SPARE) -> None:
        self.count, self._kept = count, count + spare
        self._scaled: Tensor | None = None  # (kept, in): singular values times directions

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, in); what is weakest of all is let go."""
        rows = rows.detach().float().cpu()
        stacked = rows if self._scaled is None else torch.cat([self._scaled, rows])
        _, values, directions = torch.linalg.svd(stacked, full_matrices=False)
        self._scaled = values[: self._kept, None] * directions[: self._kept]

    def directions(self) -> Tensor:
        """(count, in), orthonormal rows, the strongest first; fewer where fewer were seen."""
        assert self._scaled is not None
        return torch.nn.functional.normalize(self._scaled[: self.count], dim=1)


def start_at_principal_inputs(model: Any, batches: Iterable[Callable[[], Any]]) -> int:
    """Set every A of a fresh LoRA to the principal directions of what its module reads; how many were set.

    Args:
        batches: each runs the model on some rows, without a gradient.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: m for name, m in model.named_modules() if isinstance(m, LoraLayer) and "default" in m.lora_A
    }
    seen = {name: Principal(layer.lora_A["default"].weight.shape[0]) for name, layer in layers.items()}

    def reading(name: str) -> Callable[..., None]:
        return lambda module, inputs: seen[name].add(inputs[0].reshape(-1, inputs[0].shape[-1]))

    hooks = [layer.register_forward_pre_hook(reading(name)) for name, layer in layers.items()]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                batch()
            for name, layer in layers.items():
                found, A = seen[name].directions(), layer.lora_A["default"].weight
                A[: len(found)] = found.to(A)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return len(layers)
