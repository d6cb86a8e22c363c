"""A PEFT folder, read strictly: what has an exact weight update is parsed, everything else is refused with its reason.

PEFT loads unmatched keys, NaN weights and contradicting ranks with a warning at most; a merge would bake them in.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.merging.parts import LowRank
from tasks.merging.scaled_file import READ_OF, scaled_config_problems, scaled_parts
from tasks.merging.tensor_file import TensorFile
from tasks.merging.value_file import FAMILY, value_config_problems, value_parts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {"CAUSAL_LM": "generation", "SEQ_CLS": "classification"}
PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# Fields that are read, or that say nothing about the update. Any other field must be empty.
READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"}
READ |= {"modules_to_save", "bias", "init_lora_weights", "peft_type", "task_type"}
INERT = {"peft_version", "base_model_name_or_path", "revision", "inference_mode", "target_modules", "exclude_modules"}
INERT |= {"lora_dropout", "layers_to_transform", "layers_pattern", "runtime_config", "loftq_config", "eva_config"}
INERT |= {"megatron_core", "qalora_group_size"}

NOT_WEIGHTS = {
    "PROMPT_TUNING": "learns virtual tokens, no weights",
    "P_TUNING": "learns virtual tokens, no weights",
    "PREFIX_TUNING": "learns attention prefixes, no weights",
    "MULTITASK_PROMPT_TUNING": "learns virtual tokens, no weights",
}
BASE_KEEPING_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")

_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.(?P<what>weight|bias)")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_RUNAWAY = re.compile(r"\)[*+{]")


@dataclass(frozen=True)
class AdapterFile:
    """A read adapter. `digest` covers everything that determines the update: tensors, scales and flags.

    Attributes:
        transposed: the base stores the adapted weights as (in, out).
        modules: by the base's own module names.
        head: full replacements (`score.weight`), by parameter name; they are not merged.
        forget: gives the memory of all tensors back until they are looked at again.
    """

    folder: Path
    kind: str
    digest: str
    transposed: bool
    modules: Mapping[str, LowRank]
    head: Mapping[str, Tensor]
    forget: Callable[[], None]


def read_adapter_file(folder: Path) -> AdapterFile:
    """The adapter of a folder.

    Raises:
        ArtifactRefused: listing everything that is missing, unknown, misshapen, not finite, or without an exact update.
    """
    config = _config(folder)
    raise_if_any(ArtifactRefused, _config_problems(folder / CONFIG, config))
    file = _opened(folder / WEIGHTS)
    tensors = {name: file.mapped(name) for name in file.tensors}
    modules, head, problems = _sorted_out(folder / WEIGHTS, config, tensors)
    raise_if_any(ArtifactRefused, problems)
    file.forget()
    transposed = bool(config.get("fan_in_fan_out"))
    flags: dict[str, Any] = {name: part.scale for name, part in modules.items()} | {"transposed": transposed}
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True).encode())
    with (folder / WEIGHTS).open("rb") as stored:
        for chunk in iter(lambda: stored.read(1 << 20), b""):
            digest.update(chunk)
    return AdapterFile(folder, KINDS[config["task_type"]], digest.hexdigest(), transposed, modules, head, file.forget)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    remedy = "a PEFT folder has adapter_config.json and adapter_model.safetensors; pickled weights are never read"
    raise_if_any(ArtifactRefused, [Problem("E-ADAPTER-101", str(folder / name), "missing", remedy) for name in missing])
    try:
        config = json.loads(path.read_bytes()[: 1 << 20])
    except ValueError as error:
        raise ArtifactRefused.one("E-ADAPTER-101", path, f"is not JSON: {error}", "restore the file") from error
    if not isinstance(config, dict):
        raise ArtifactRefused.one("E-ADAPTER-101", path, "is not a JSON object", "restore the file")
    return config


def _config_problems(path: Path, config: dict[str, Any]) -> list[Problem]:
    kind = str(config.get("peft_type"))
    if kind in READ_OF:
        unknown = config.keys() - READ_OF[kind] - INERT - {"peft_type", "task_type", "modules_to_save"}
        return [*scaled_config_problems(path, config), *_common_problems(path, config, unknown)]
    if kind == FAMILY:
        return [*value_config_problems(path, config), *_common_problems(path, config, set())]
    if kind != "LORA":
        why = NOT_WEIGHTS.get(kind, "has no exact weight update here")
        remedy = "serve it as an adapter of its own, or train the task with lora, rslora or dora"
        return [Problem("E-ADAPTER-102", f"{path}:peft_type", f"{kind} {why}", remedy)]
    found = _common_problems(path, config, config.keys() - READ - INERT)
    if config.get("bias", "none") != "none":
        remedy = "train with bias none, or lora_bias"
        found.append(Problem("E-ADAPTER-104", f"{path}:bias", "the base's own biases were trained", remedy))
    if config.get("init_lora_weights", True) not in BASE_KEEPING_STARTS:
        wrong = f"{config['init_lora_weights']!r} changes the base weights, so B A is no update of the stored base"
        remedy = "save it as plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        found.append(Problem("E-ADAPTER-105", f"{path}:init_lora_weights", wrong, remedy))
    if config.get("use_dora") and config.get("lora_bias"):
        wrong = "lora_bias together with use_dora"
        found.append(Problem("E-ADAPTER-104", f"{path}:lora_bias", wrong, "train with one of them"))
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict):
            found.append(Problem("E-ADAPTER-106", f"{path}:{field}", "is not a mapping", "map module names to numbers"))
            continue
        numbers |= {f"{field}.{key}": value for key, value in pattern.items()}
        for key in pattern:
            if len(key) > 200 or _RUNAWAY.search(key) or not _compiles(key):
                wrong = f"the pattern {key[:60]!r} is not a plain one"
                found.append(Problem("E-ADAPTER-106", f"{path}:{field}", wrong, "name the modules instead"))
    for field, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            wrong = f"is {value!r}"
            found.append(Problem("E-ADAPTER-106", f"{path}:{field}", wrong, "write a positive number"))
    return found


def _common_problems(path: Path, config: dict[str, Any], unknown: set[str]) -> list[Problem]:
    found = []
    if config.get("task_type") not in KINDS:
        wrong = f"task_type is {config.get('task_type')!r}"
        found.append(Problem("E-ADAPTER-103", f"{path}:task_type", wrong, f"write one of {', '.join(KINDS)}"))
    for name in sorted(unknown):
        if config[name]:
            wrong = f"is set to {str(config[name])[:60]!r}, and changes the update in an unknown way"
            found.append(Problem("E-ADAPTER-104", f"{path}:{name}", wrong, "train without it"))
    return found


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _opened(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ArtifactRefused.one("E-ADAPTER-107", path, f"cannot be read: {error}", "restore the file") from error


def _sorted_out(
    path: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, LowRank], dict[str, Tensor], list[Problem]]:
    """Tensors by module, the head, and what is wrong with them."""
    saved = tuple(config.get("modules_to_save") or ())
    modules: dict[str, LowRank] = {}
    read: set[str] = set()
    problems_of_scales: list[Problem] = []
    if config["peft_type"] in READ_OF:
        modules, read, problems_of_scales = scaled_parts(path, config, tensors, PREFIX)
    head: dict[str, Tensor] = {}
    if config["peft_type"] == FAMILY:
        modules, head, problems_of_scales = value_parts(path, config, tensors)
        read = set(tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    found = [*problems_of_scales]
    for key, tensor in sorted(tensors.items()):
        name = key.removeprefix(PREFIX)
        place = f"{path}:{key}"
        if tensor.dtype not in FLOATS:
            found.append(Problem("E-ADAPTER-109", place, f"is {tensor.dtype}", "store floats of 16 or 32 bits"))
        elif bad := int((~torch.isfinite(tensor)).sum()):
            wrong = f"{bad} of {tensor.numel()} values are NaN or infinite"
            found.append(Problem("E-ADAPTER-110", place, wrong, "train again with a lower rate"))
        if key in read:
            continue
        matrix, magnitude = _MATRIX.fullmatch(name), _MAGNITUDE.fullmatch(name)
        if key == name:
            found.append(Problem("E-ADAPTER-108", place, f"does not start with {PREFIX}", "save it with PEFT"))
        elif matrix and not (matrix["side"] == "A" and matrix["what"] == "bias"):
            slot = matrix["side"] if matrix["what"] == "weight" else "bias"
            parts.setdefault(matrix["module"], {})[slot] = tensor
        elif magnitude:
            parts.setdefault(magnitude["module"], {})["magnitude"] = tensor
        elif any(f".{module}." in f".{name}" for module in saved):
            head[name] = tensor
        else:
            remedy = "remove the tensor, or train only linear layers"
            found.append(Problem("E-ADAPTER-108", place, "is no part of a LoRA update of a linear layer", remedy))
    if not parts and not modules and not found:
        found.append(Problem("E-ADAPTER-108", str(path), "adapts no module", "train the adapter"))
    for module, part in parts.items():
        problems = _part_problems(f"{path}:{module}", config, module, part)
        found += problems
        if not problems:
            rank = part["A"].shape[0]
            alpha = float(_pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"]))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            modules[module] = LowRank(part["B"], part["A"], scale, part.get("magnitude"), part.get("bias"))
    return modules, head, found


def _part_problems(place: str, config: dict[str, Any], module: str, part: Mapping[str, Tensor]) -> list[Problem]:
    wanted = {"A", "B"}
    wanted |= {"magnitude"} if config.get("use_dora") else set()
    wanted |= {"bias"} if config.get("lora_bias") else set()
    if part.keys() != wanted:
        wrong = f"has {', '.join(sorted(part))}; the config asks for {', '.join(sorted(wanted))}"
        return [Problem("E-ADAPTER-111", place, wrong, "restore config and weights of the same training")]
    A, B = part["A"], part["B"]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(part.items()))
    flat = [part[name] for name in ("magnitude", "bias") if name in part]
    if A.dim() != 2 or B.dim() != 2 or any(tuple(vector.shape) != (B.shape[0],) for vector in flat):
        return [Problem("E-ADAPTER-112", place, f"shapes do not fit: {shapes}", "adapt linear layers only")]
    rank = _pattern_value(config.get("rank_pattern"), module, config["r"])
    if not A.shape[0] == B.shape[1] == rank:
        wrong = f"the config says rank {rank}, the tensors are {shapes}"
        return [Problem("E-ADAPTER-112", place, wrong, "restore config and weights of the same training")]
    return []


def _pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module name at a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
