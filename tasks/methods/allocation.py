"""AdaLoRA: one budget of singular values for all modules, cut to the asked rank while a run goes on.

    dW = (alpha / r0) B diag(E) A, r0 = ceil(3 r / 2) triplets per module, E = 0 at the start
    budget(t) = modules (r + (r0 - r) (1 - (t - t_i) / (T - t_i - t_f))^3) between t_i and T - t_f
    loss + gamma mean ||A A^T - I||_F, ||B^T B - I||_F                  Zhang et al. 2023, arXiv:2303.10512, section 3

PEFT's allocator ranks the triplets; what it remembers between two steps is handed out as tensors, for the checkpoints.
What is left at the end is a plain LoRA whose modules have ranks of their own, and is written as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

GAMMA = 0.1  # weight of the orthogonality, as in the paper's runs on MNLI and SQuAD
PREFIX = "base_model.model."


def is_allocated(model: Any) -> bool:
    """Whether the model wears an adapter whose singular values are apart."""
    return bool(_layers(model))


class Allocation:
    """The budget of one run of `steps` steps, with a first eighth before the first cut and a half after the last, about
    as the paper's runs have it (MNLI 9 and 58 %, RTE 15 and 46 %, SQuAD 17 and 33 %)."""

    def __init__(self, model: Any, steps: int) -> None:
        self._model, self._tuner = model, model.base_model
        self._config = model.peft_config["default"]
        self._config.total_step, self._config.tinit, self._config.tfinal = steps, steps // 8, steps // 2
        if steps <= 2:  # nothing can be ranked before a step was seen
            self._config.tfinal = 0

    @property
    def settled_from(self) -> int:
        """The step, 1-based, after which the adapter has its final ranks."""
        return int(self._config.total_step - self._config.tfinal)

    def add_orthogonality(self) -> None:
        """Add the gradient of gamma times the mean distance of the A and B from orthonormal ones."""
        apart = [
            torch.linalg.matrix_norm(side - torch.eye(len(side), device=side.device))
            for layer in _layers(self._model).values()
            for A, B in [(layer.lora_A["default"], layer.lora_B["default"])]
            for side in (A @ A.T, B.T @ B)
        ]
        (GAMMA * torch.stack(apart).mean()).backward()

    def after(self, step: int) -> None:
        """Rank and cut, between the optimiser's step, 1-based, and the clearing of the gradients."""
        if self._config.total_step > 1:
            self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on beside weights and optimiser."""
        ranks = self._tuner.rankallocator
        found = {f"sensitivity/{name}": value for name, value in ranks.exp_avg_ipt.items()}
        found |= {f"uncertainty/{name}": value for name, value in ranks.exp_avg_unc.items()}
        kept = self._config.rank_pattern or {}
        return found | {f"kept/{name}": torch.tensor(mask, dtype=torch.uint8) for name, mask in kept.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` said."""
        parts: dict[str, dict[str, Tensor]] = {"sensitivity": {}, "uncertainty": {}, "kept": {}}
        for path, value in state.items():
            part, _, name = path.partition("/")
            parts[part][name] = value
        places = {name: parameter.device for name, parameter in self._tuner.model.named_parameters()}
        ranks = self._tuner.rankallocator
        ranks.exp_avg_ipt = {name: value.to(places[name]) for name, value in parts["sensitivity"].items()}
        ranks.exp_avg_unc = {name: value.to(places[name]) for name, value in parts["uncertainty"].items()}
        ranks.ipt = dict(ranks.exp_avg_ipt)  # read by name only: it is computed anew before it counts
        self._config.rank_pattern = {name: mask.bool().tolist() for name, mask in parts["kept"].items()} or None


def as_lora(model: Any) -> tuple[Any, dict[str, Tensor]]:
    """(PEFT's config, weights) of the plain LoRA that answers as the model does, without modules that kept nothing.

    The singular values go into A, and the scale is the alpha / r of the spec for every module.
    """
    import peft

    config, layers = model.peft_config["default"], _layers(model)
    kept = {name: layer.lora_E["default"].detach()[:, 0] != 0 for name, layer in layers.items()}
    kept = {name: mask for name, mask in kept.items() if mask.any()} or {
        name: mask | True for name, mask in kept.items()
    }
    scale, weights = config.lora_alpha / config.target_r, dict(_heads(model))
    for name, mask in kept.items():
        layer = layers[name]
        share = layer.scaling["default"] / (layer.ranknum["default"] + 1e-5) / scale
        A = layer.lora_A["default"] * layer.lora_E["default"] * share
        weights[f"{name}.lora_A.weight"] = A[mask]
        weights[f"{name}.lora_B.weight"] = layer.lora_B["default"][:, mask]
    ranks = {name.removeprefix(PREFIX): int(mask.sum()) for name, mask in kept.items()}
    plain = peft.LoraConfig(
        r=config.target_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        task_type=config.task_type,
        target_modules=sorted(ranks),
        modules_to_save=config.modules_to_save,
        rank_pattern=ranks,
        alpha_pattern={name: scale * rank for name, rank in ranks.items()},
        inference_mode=True,
    )
    return plain, {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _layers(model: Any) -> dict[str, Any]:
    from peft.tuners.adalora import AdaLoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, AdaLoraLayer)}


def _heads(model: Any) -> Iterator[tuple[str, Tensor]]:
    """What is trained whole, by the names that PEFT stores it under."""
    for name, parameter in model.named_parameters():
        if ".modules_to_save.default." in name:
            yield name.replace(".modules_to_save.default", ""), parameter
