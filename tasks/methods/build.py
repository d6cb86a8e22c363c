"""Adapters on a borrowed base: put on, taken off, written and read, and nothing passes unseen.

PEFT itself loads wrong bases, unmatched keys and NaN weights with a warning at most; the door here refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.methods.catalogue import METHODS
from tasks.specs import MethodSpec
from tasks.training.base import Base, target_modules

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def final_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer of a classification head: (name, module)."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in ("score", "classifier")
    ]
    return heads[-1]


@contextmanager
def fresh_adapter(base: Base, method: MethodSpec, seed: int) -> Iterator[Any]:
    """The base with a new, trainable adapter of the method; taken off again at the end of the block.

    LoRA's B starts at zero, so the model answers like the base (Hu et al. 2021, section 4.1).

    Raises:
        SpecRefused: the method does not fit the base's modules.
    """
    import peft

    modules = target_modules(base.model, method)
    row = METHODS[method.name]
    classify = base.kind == "classification"
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if classify else "CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha_value,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules=list(modules),
        modules_to_save=[final_linear(base.model)[0].split(".")[0]] if classify else None,
        **row.config,
    )
    with _lent(base, config, seed) as model:
        yield model


@contextmanager
def attached(base: Base, folder: Path, *, trainable: bool = False) -> Iterator[Any]:
    """The base with the adapter of a folder, every weight accounted for; taken off at the end of the block.

    Raises:
        ArtifactRefused: naming each missing, unexpected, misshapen or non-finite tensor.
    """
    import peft
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_adapter(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
    except (ValueError, TypeError, KeyError) as error:
        where = folder / ADAPTER_FILES[0]
        raise ArtifactRefused.one(
            "E-ADAPTER-004", where, f"is not understood: {error}", "re-export the adapter"
        ) from error
    with _lent(base, config, seed=0) as model:
        expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        raise_if_any(ArtifactRefused, _key_problems(folder, expected, weights))
        set_peft_model_state_dict(model, weights)
        if not trainable:
            model.requires_grad_(False)
        yield model


@contextmanager
def _lent(base: Base, config: Any, seed: int) -> Iterator[Any]:
    import peft

    devices = [base.device] if base.device.type == "cuda" else []
    originals = {name: child for name, child in base.model.named_children() if name in ("score", "classifier")}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = peft.get_peft_model(base.model, config, autocast_adapter_dtype=True)
    try:
        yield model
    finally:
        model.unload()
        for name, module in originals.items():  # PEFT leaves the trained copy of the head in place
            setattr(base.model, name, module)
        base.model.requires_grad_(False)
        base.model.eval()


def write_adapter(model: Any, folder: Path, base_name: str) -> None:
    """A plain PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, the same bytes for the same weights.

    The base is named as the spec names it: a path of this machine would change the bytes and mean nothing elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / ADAPTER_FILES[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter folder.

    Raises:
        ArtifactRefused: a file is missing or unreadable, or a weight is not finite (by name).
    """
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    raise_if_any(
        ArtifactRefused,
        [Problem("E-ADAPTER-001", str(folder / name), "missing", "a PEFT folder has both files") for name in missing],
    )
    path = folder / ADAPTER_FILES[1]
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactRefused.one("E-ADAPTER-002", path, f"cannot be read: {error}", "restore the file") from error
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    raise_if_any(
        ArtifactRefused,
        [Problem("E-ADAPTER-003", f"{path}:{name}", "holds NaN or infinite weights", "train again") for name in bad],
    )
    return weights


def _key_problems(folder: Path, expected: dict[str, tuple[int, ...]], weights: dict[str, Tensor]) -> list[Problem]:
    path = folder / ADAPTER_FILES[1]
    remedy = "use the base that the adapter was trained on"
    found = [
        Problem("E-ADAPTER-005", f"{path}:{name}", "missing", remedy)
        for name in sorted(expected.keys() - weights.keys())
    ]
    found += [
        Problem("E-ADAPTER-005", f"{path}:{name}", "fits no module of the base", remedy)
        for name in sorted(weights.keys() - expected.keys())
    ]
    found += [
        Problem(
            "E-ADAPTER-006", f"{path}:{name}", f"has shape {tuple(weights[name].shape)}, the base takes {shape}", remedy
        )
        for name, shape in sorted(expected.items())
        if name in weights and tuple(weights[name].shape) != shape
    ]
    return found
