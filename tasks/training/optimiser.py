"""AdamW on what is trained, and its rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import torch

from tasks.methods.targets import HEAD_NAMES
from tasks.specs import TrainingSpec
from tasks.training.base import Base


def rate_factor(step: int, steps: int, training: TrainingSpec) -> float:
    """Share of the peak rate at a step, 1-based: a linear rise, then the schedule's fall to a tenth (or none).

    >>> rate_factor(1, 100, TrainingSpec(warmup=0.1)), rate_factor(10, 100, TrainingSpec(warmup=0.1))
    (0.1, 1.0)
    """
    rise = max(1, round(training.warmup * steps))
    if step <= rise:
        return step / rise
    done = (step - rise) / max(1, steps - rise)
    if training.schedule == "constant":
        return 1.0
    fall = (1 - done) if training.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return 0.1 + 0.9 * fall


def optimizer_of(
    model: Any, training: TrainingSpec, base: Base, rate: float, b_rate: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW on the adapter; a classification head learns faster than the adapter, for it starts coarser.

    Args:
        b_rate: rate of LoRA's B over the rate of the rest. Hayou et al. 2024, arXiv:2402.12354: about 16.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in named if base.kind == "classification" and _is_head(name)]
    faster = [p for name, p in named if b_rate != 1 and "lora_B" in name]
    taken = {id(p) for p in (*head, *faster)}
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if id(p) not in taken], "lr": rate}]
    groups += [{"params": faster, "lr": min(1.0, rate * b_rate)}] if faster else []
    groups += [{"params": head, "lr": min(1.0, rate * training.head_rate)}] if head else []
    paged = training.optimizer == "paged_adamw_8bit" or (training.optimizer == "auto" and base.device.type == "cuda")
    if paged:
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(groups, weight_decay=training.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=True)


def _is_head(name: str) -> bool:
    return "modules_to_save" in name or any(part in HEAD_NAMES for part in name.split("."))
