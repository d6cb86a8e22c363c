"""A merged update as a plain PEFT adapter of fixed rank, which PEFT and adapter servers load like any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.errors import SpecRefused
from tasks.merging.adapter_file import CONFIG, KINDS, PREFIX, WEIGHTS
from tasks.merging.factors import Reduced
from tasks.merging.vectors import BIAS


def write_merged_adapter(
    folder: Path,
    reduced: Iterable[tuple[str, Reduced]],
    *,
    kind: str,
    base_name: str,
    scale: float = 1.0,
    transposed: bool = False,
    head: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Write (module, B A) pairs, as `reduced_updates` gives them, times `scale`.

    Every module gets the same rank, filled with zeros where its own is smaller: servers take one rank per adapter,
    and PEFT cannot reload a merged adapter with a rank pattern.

    Args:
        head: classification: the head of the one task that this adapter answers, by parameter name.

    Returns:
        The largest share of a module's squared norm that was cut off.

    Raises:
        SpecRefused: the folder is not empty, there is nothing to write, or a bias was changed, which a plain adapter
            has not.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SpecRefused.one("E-MERGE-030", folder, "is there already", "name a new folder, or remove this one")
    parts = dict(reduced)
    biased = [name for name in parts if name.endswith(BIAS)]
    if biased or not parts:
        wrong = f"changes the bias {biased[0]}" if biased else "changes nothing"
        raise SpecRefused.one("E-MERGE-037", folder, wrong, "export it as a transformers model")
    rank = max(part.rank for part in parts.values())
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        A, B = torch.zeros(rank, part.A.shape[1]), torch.zeros(part.B.shape[0], rank)
        A[: part.rank], B[:, : part.rank] = part.A, scale * part.B
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A.to(dtype), f"{PREFIX}{name}.lora_B.weight": B.to(dtype)}
    tensors |= {f"{PREFIX}{name}": tensor.to(dtype).contiguous() for name, tensor in (head or {}).items()}
    config = {
        "peft_type": "LORA",
        "task_type": next(task for task, name in KINDS.items() if name == kind),
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "modules_to_save": sorted({name.split(".")[0] for name in head or {}}) or None,
        "target_modules": sorted(parts),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return max(part.lost for part in parts.values())
