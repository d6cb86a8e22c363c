"""Adapters that hold new values of the base's own parameters, read as exact weight updates: norms, biases, all weights.

    dW = W' - W                     Zhao et al. 2023, arXiv:2312.11420; Ben Zaken et al. 2021, arXiv:2106.10199

There is no low rank, and the base's weights are needed. The head that a classifier trained along is not merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import Problem
from tasks.merging.parts import LowRank
from tasks.methods.own import FAMILY
from tasks.methods.targets import HEAD_NAMES

__all__ = ["FAMILY", "value_config_problems", "value_parts"]

PREFIX, WEIGHT = "base.", ".weight"
REPLACING = ("layernorm", "bitfit", "full")


def value_config_problems(path: Path, config: Mapping[str, Any]) -> list[Problem]:
    """What has no weight update: a small network that was put behind the modules."""
    method = config.get("method")
    if method in REPLACING and not config.get("bottlenecks"):
        return []
    remedy = "serve it as an adapter of its own, or train the task with lora, rslora or dora"
    return [Problem("E-ADAPTER-102", f"{path}:method", f"{method} has no exact weight update", remedy)]


def value_parts(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, LowRank], dict[str, Tensor], list[Problem]]:
    """The modules by the base's names, the head by parameter name, and what is wrong with them."""
    parts, head, found = {}, {}, []
    classifies, empty = config.get("task_type") == "SEQ_CLS", torch.zeros(0, 0)
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        if key == name:
            remedy = "restore config and weights of the same training"
            found.append(Problem("E-ADAPTER-108", f"{path}:{key}", "is no parameter of the base", remedy))
        elif classifies and name.split(".")[0] in HEAD_NAMES:
            head[name] = value
        elif value.dim() not in (1, 2):
            wrong = f"has {value.dim()} axes, and weights of one or two are merged"
            found.append(Problem("E-ADAPTER-112", f"{path}:{key}", wrong, "train the task with lora"))
        else:
            parts[name.removesuffix(WEIGHT)] = LowRank(empty, empty, 1.0, value=value)
    return parts, head, found
