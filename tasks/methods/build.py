"""Adapters on a borrowed base: put on, taken off, written and read, and nothing passes unseen.

PEFT itself loads wrong bases, unmatched keys and NaN weights with a warning at most; the door here refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.methods.catalogue import METHODS
from tasks.specs import MethodSpec
from tasks.training.base import Base, seeded, target_modules
from tasks.training.folder import first_line

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What an adapter of the catalogue says of itself. Any other setting must be at its default: some rewrite the base's own
# weights or layers, some import or unpickle what they name.
SETTINGS = {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern"}
SETTINGS |= {"alpha_pattern", "target_modules", "modules_to_save", "inference_mode", "base_model_name_or_path"}
SETTINGS |= {"revision", "peft_version", "init_lora_weights", "runtime_config"}
OTHER_BASE = "use the base that the adapter was trained on"
BASE_KEEPING_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def final_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer of a classification head, the adapter's copy if there is one: (name, module)."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    heads = [
        (name, module)
        for name, module in inner.named_modules()
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
        ArtifactRefused: naming each missing, unexpected, misshapen or non-finite tensor, and each strange setting.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_adapter(folder)
    config = read_config(folder)
    config.inference_mode = not trainable
    with ExitStack() as stack:
        try:
            model = stack.enter_context(_lent(base, config, seed=0))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            wrong = f"does not fit the base: {first_line(error)}"
            raise ArtifactRefused.one("E-ADAPTER-004", folder / ADAPTER_FILES[0], wrong, OTHER_BASE) from error
        kept = get_peft_model_state_dict(model, save_embedding_layers=False)
        expected = {name: tuple(tensor.shape) for name, tensor in kept.items()}
        raise_if_any(ArtifactRefused, _key_problems(folder, expected, weights))
        set_peft_model_state_dict(model, weights)
        if not trainable:
            model.requires_grad_(False)
        yield model


@contextmanager
def _lent(base: Base, config: Any, seed: int) -> Iterator[Any]:
    """The base wrapped by PEFT; afterwards every module of the base is the very object that it was.

    PEFT's own `unload` leaves the trained copy of a head in place, and nothing takes off what a failed start put on.
    """
    import peft

    places = [(parent, name, child) for parent in base.model.modules() for name, child in parent.named_children()]
    try:
        with seeded(base.device, seed):
            model = peft.get_peft_model(base.model, config, autocast_adapter_dtype=True)
        model.eval()
        yield model
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
        base.model.__dict__.pop("peft_config", None)
        base.model.requires_grad_(False)
        base.model.eval()


def write_adapter(model: Any, folder: Path, base_name: str) -> None:
    """A plain PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, the same bytes for the same weights.

    The base is named as the spec names it: a path of this machine would change the bytes and mean nothing elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
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


def read_config(folder: Path) -> Any:
    """The settings of an adapter folder as PEFT takes them; the initial weights are left out, for they are replaced.

    Raises:
        ArtifactRefused: it is no adapter of the catalogue's kind, or has a setting that the factory never writes.
    """
    import peft

    path = folder / ADAPTER_FILES[0]
    usual = peft.LoraConfig().to_dict()
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(asked, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        wrong = f"is not understood: {error}"
        raise ArtifactRefused.one("E-ADAPTER-004", path, wrong, "re-export the adapter") from error
    if asked.get("peft_type") != "LORA":
        wrong = f"{asked.get('peft_type')} is no method of the catalogue"
        raise ArtifactRefused.one("E-ADAPTER-004", f"{path}:peft_type", wrong, f"train with {', '.join(METHODS)}")
    strange = {name for name, value in asked.items() if name not in SETTINGS and value and value != usual.get(name)}
    if asked.get("init_lora_weights", True) not in BASE_KEEPING_STARTS:
        strange.add("init_lora_weights")
    remedy = "train without it: it may change the base, or run code"
    raise_if_any(
        ArtifactRefused,
        [
            Problem("E-ADAPTER-007", f"{path}:{name}", f"is {asked[name]!r:.60}, never written here", remedy)
            for name in sorted(strange)
        ],
    )
    try:
        known = {name: value for name, value in asked.items() if name in usual and name != "runtime_config"}
        return peft.LoraConfig(**known | {"init_lora_weights": True, "base_model_name_or_path": None})
    except (ValueError, TypeError) as error:
        wrong = f"is not understood: {first_line(error)}"
        raise ArtifactRefused.one("E-ADAPTER-004", path, wrong, "re-export the adapter") from error


def _key_problems(folder: Path, expected: dict[str, tuple[int, ...]], weights: dict[str, Tensor]) -> list[Problem]:
    path = folder / ADAPTER_FILES[1]
    found = [
        Problem("E-ADAPTER-005", f"{path}:{name}", "missing", OTHER_BASE)
        for name in sorted(expected.keys() - weights.keys())
    ]
    found += [
        Problem("E-ADAPTER-005", f"{path}:{name}", "fits no module of the base", OTHER_BASE)
        for name in sorted(weights.keys() - expected.keys())
    ]
    found += [
        Problem(
            "E-ADAPTER-006",
            f"{path}:{name}",
            f"has shape {tuple(weights[name].shape)}, the base takes {shape}",
            OTHER_BASE,
        )
        for name, shape in sorted(expected.items())
        if name in weights and tuple(weights[name].shape) != shape
    ]
    return found
