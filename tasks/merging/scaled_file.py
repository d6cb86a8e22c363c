"""Adapters that learn factors instead of matrices, read as exact weight updates: IA3 and VeRA.

    IA3    W' = diag(l) W, b' = l b; in a feed-forward module W' = W diag(l)    Liu et al. 2022, arXiv:2205.05638
    VeRA   dW = diag(b) B diag(d) A over one random pair (B, A) for all modules  Kopiczko et al. 2023, arXiv:2310.11454

VeRA is low rank as it stands: its factors are diag(b) B and diag(d) A. IA3 has no low rank and needs the base's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import Problem
from tasks.merging.parts import LowRank

READ_OF: Mapping[str, set[str]] = {
    "IA3": {"feedforward_modules", "init_ia3_weights", "fan_in_fan_out"},
    "VERA": {"r", "d_initial", "projection_prng_key", "save_projection", "vera_dropout", "init_weights", "bias"},
}
SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


def scaled_config_problems(path: Path, config: Mapping[str, Any]) -> list[Problem]:
    """What would make the factors mean something else."""
    found = []
    if config.get("fan_in_fan_out"):
        wrong = "the base stores weights as (in, out), whose factors are not read"
        found.append(Problem("E-ADAPTER-104", f"{path}:fan_in_fan_out", wrong, "train the task with lora"))
    if config.get("bias", "none") != "none":
        found.append(Problem("E-ADAPTER-104", f"{path}:bias", "the base's own biases were trained", "train without"))
    return found


def scaled_parts(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, LowRank], set[str], list[Problem]]:
    """The modules, the keys that were read, and what is wrong with them."""
    return _ia3(path, tensors, prefix) if config["peft_type"] == "IA3" else _vera(path, tensors, prefix)


def _ia3(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, LowRank], set[str], list[Problem]]:
    parts, read, found = {}, set(), []
    for key, value in tensors.items():
        if not key.endswith(".ia3_l"):
            continue
        read.add(key)
        if value.dim() != 2 or 1 not in value.shape:
            found.append(_misshapen(path, key, value))
            continue
        of_inputs = value.shape[0] == 1 and value.shape[1] > 1
        empty = torch.zeros(0, 0)
        parts[key.removeprefix(prefix).removesuffix(".ia3_l")] = LowRank(
            empty, empty, 1.0, gain=value.reshape(-1), of_inputs=of_inputs
        )
    return parts, read, found


def _vera(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, LowRank], set[str], list[Problem]]:
    shared = {side: tensors[key] for key, side in SHARED.items() if key in tensors}
    if set(shared) != {"A", "B"}:
        wrong = "the shared random pair is not stored, and its seed gives other numbers elsewhere"
        return {}, set(), [Problem("E-ADAPTER-111", str(path), wrong, "save it with save_projection")]
    parts, read, found = {}, set(SHARED), []
    for key, b in tensors.items():
        if not key.endswith(".vera_lambda_b"):
            continue
        module = key.removesuffix(".vera_lambda_b")
        d = tensors.get(f"{module}.vera_lambda_d")
        read |= {key, f"{module}.vera_lambda_d"}
        if d is None or d.dim() != 1 or b.dim() != 1 or len(d) != len(shared["A"]) or len(b) > len(shared["B"]):
            found.append(_misshapen(path, key, b))
            continue
        B = b.float()[:, None] * shared["B"].float()[: len(b)]
        parts[module.removeprefix(prefix)] = LowRank(B, d.float()[:, None] * shared["A"].float(), 1.0, cut=True)
    return parts, read, found


def _misshapen(path: Path, key: str, value: Tensor) -> Problem:
    wrong = f"shapes do not fit: {tuple(value.shape)}"
    return Problem("E-ADAPTER-112", f"{path}:{key}", wrong, "restore config and weights of the same training")
