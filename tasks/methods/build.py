"""Adapters on a borrowed base: put on, taken off, written and read, and nothing passes unseen.

PEFT itself loads wrong bases, unmatched keys and NaN weights with a warning at most; the door here refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.methods.allocation import as_lora, is_allocated
from tasks.methods.catalogue import EXTRA, METHODS, TRAINED, Method
from tasks.methods.own import FAMILY, OwnMethod, own_method, settings_of
from tasks.specs import MethodSpec
from tasks.training.base import Base, seeded, target_modules
from tasks.training.folder import first_line

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What an adapter of the catalogue says of itself. Any other setting must be at its default: some rewrite the base's own
# weights or layers, some import or unpickle what they name.
COMMON = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version"}
COMMON |= {"runtime_config", "target_modules", "modules_to_save"}
VIRTUAL = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
SETTINGS: Mapping[str, set[str]] = {
    "LORA": COMMON
    | {
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
    },
    "VERA": COMMON | {"r", "vera_dropout", "projection_prng_key", "save_projection", "d_initial", "init_weights"},
    "IA3": COMMON | {"feedforward_modules", "fan_in_fan_out", "init_ia3_weights"},
    "PREFIX_TUNING": COMMON | VIRTUAL | {"encoder_hidden_size", "prefix_projection"},
    "PROMPT_TUNING": COMMON | VIRTUAL | {"prompt_tuning_init"},
    "P_TUNING": COMMON
    | VIRTUAL
    | {"encoder_hidden_size", "encoder_num_layers", "encoder_dropout"}
    | {"encoder_reparameterization_type"},
}
SHARED_SEED = 0  # of the frozen A that all shared-a adapters of a base have in common
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
    row, classify = METHODS[method.name], base.kind == "classification"
    modules = target_modules(base.model, method) if row.takes_targets else {}
    head = final_linear(base.model)[0].split(".")[0] if classify else ""
    if row.family == EXTRA:
        settings = settings_of(method.name, base.model, modules, method.rank, head)
        settings["task_type"] = "SEQ_CLS" if classify else "CAUSAL_LM"
        with seeded(base.device, seed), own_method(base.model, settings, base.device) as own:
            yield own
        return
    config = _config(base, method, row, list(modules), head)
    with _lent(base, config, SHARED_SEED if method.name == "shared-a" else seed) as model:
        yield train_only_what_it_says(model, method)


def train_only_what_it_says(model: Any, method: MethodSpec) -> Any:
    """The model with what its method keeps frozen frozen: PEFT itself always trains both A and B."""
    for name, parameter in model.named_parameters():
        if method.name == "shared-a" and "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def _config(base: Base, method: MethodSpec, row: Method, modules: list[str], head: str) -> Any:
    """PEFT's config of a fresh adapter."""
    import peft

    kind = "SEQ_CLS" if head else "CAUSAL_LM"
    if not row.takes_targets:
        virtual: dict[str, Any] = {"task_type": kind, "num_virtual_tokens": method.rank}
        if row.family == "P_TUNING":
            virtual["encoder_hidden_size"] = int(base.model.config.hidden_size)
        classes = {
            "PREFIX_TUNING": peft.PrefixTuningConfig,
            "PROMPT_TUNING": peft.PromptTuningConfig,
            "P_TUNING": peft.PromptEncoderConfig,
        }
        return classes[row.family](**virtual, **row.config)
    common: dict[str, Any] = {"task_type": kind, "target_modules": modules, "modules_to_save": [head] if head else None}
    if row.family == "VERA":
        return peft.VeraConfig(r=method.rank, vera_dropout=method.dropout, **common, **row.config)
    if row.family == "IA3":
        return peft.IA3Config(**common, **row.config)
    if row.family == "ADALORA":  # the schedule is set when the steps are known, see tasks.methods.allocation
        common |= {"target_r": method.rank, "init_r": row.rank_while_training(method.rank), "total_step": 1}
        common |= {"lora_alpha": method.alpha_value, "lora_dropout": method.dropout}
        return peft.AdaLoraConfig(**common)
    return peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha_value,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        **common,
        **row.config,
    )


@contextmanager
def attached(base: Base, folder: Path, *, trainable: bool = False) -> Iterator[Any]:
    """The base with the adapter of a folder, every weight accounted for; taken off at the end of the block.

    Raises:
        ArtifactRefused: naming each missing, unexpected, misshapen or non-finite tensor, and each strange setting.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_adapter(folder)
    if (settings := _own_settings(folder)) is not None:
        with _own_attached(base, folder, settings, weights, trainable=trainable) as own:
            yield own
        return
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
def _own_attached(
    base: Base, folder: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, trainable: bool
) -> Iterator[Any]:
    """The same for the methods that are ours."""
    try:
        lent = own_method(base.model, settings, base.device)
        with ExitStack() as stack:
            model = stack.enter_context(lent)
            expected = {name: tuple(tensor.shape) for name, tensor in model.trained().items()}
            raise_if_any(ArtifactRefused, _key_problems(folder, expected, weights))
            with torch.no_grad():
                for name, parameter in model.trained().items():
                    parameter.copy_(weights[name])
            if not trainable:
                model.requires_grad_(False)
            yield model
    except AttributeError as error:
        wrong = f"does not fit the base: {first_line(error)}"
        raise ArtifactRefused.one("E-ADAPTER-004", folder / ADAPTER_FILES[0], wrong, OTHER_BASE) from error


def _own_settings(folder: Path) -> dict[str, Any] | None:
    """What the folder of one of our own methods says of it; None where it is PEFT's.

    Raises:
        ArtifactRefused: it says more, or other things, than the factory writes.
    """
    path = folder / ADAPTER_FILES[0]
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(asked, dict) or asked.get("peft_type") != FAMILY:
        return None
    known = {"method": str, "rank": int, "trains": list, "bottlenecks": dict, "task_type": str}
    strange = set(asked) - set(known) - {"peft_type", "base_model_name_or_path"}
    wrong = {name for name, kind in known.items() if not isinstance(asked.get(name), kind)} | strange
    widths = asked["bottlenecks"].values() if "bottlenecks" not in wrong else ()
    if any(type(width) is not int or not 0 < width <= 1 << 20 for width in (*widths, asked.get("rank"))):
        wrong.add("bottlenecks")
    raise_if_any(
        ArtifactRefused,
        [Problem("E-ADAPTER-007", f"{path}:{name}", "is not as written here", "train again") for name in sorted(wrong)],
    )
    return asked


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
    if isinstance(model, OwnMethod):
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in model.trained().items()}, folder / ADAPTER_FILES[1]
        )
        told = {**model.settings, "base_model_name_or_path": base_name}
        (folder / ADAPTER_FILES[0]).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return
    if is_allocated(model):
        config, weights = as_lora(model)
        config.save_pretrained(str(folder))
        save_file(weights, folder / ADAPTER_FILES[1], metadata={"format": "pt"})
    else:
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
    path = folder / ADAPTER_FILES[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    for name in ("target_modules", "feedforward_modules"):
        if config.get(name):
            config[name] = sorted(config[name])
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
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(asked, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        wrong = f"is not understood: {error}"
        raise ArtifactRefused.one("E-ADAPTER-004", path, wrong, "re-export the adapter") from error
    family = asked.get("peft_type")
    if not isinstance(family, str) or family not in SETTINGS:
        wrong = f"{family} is no method of the catalogue"
        raise ArtifactRefused.one("E-ADAPTER-004", f"{path}:peft_type", wrong, f"train with {', '.join(TRAINED)}")
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(family)]
    usual = kind().to_dict()
    strange = {n for n, value in asked.items() if n not in SETTINGS[family] and value and value != usual.get(n)}
    if family == "LORA" and asked.get("init_lora_weights", True) not in BASE_KEEPING_STARTS:
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
        fresh = {"init_lora_weights": True} if family == "LORA" else {}
        return kind(**known | fresh | {"base_model_name_or_path": None})
    except (ValueError, TypeError) as error:
        wrong = f"is not understood: {first_line(error)}"
        raise ArtifactRefused.one("E-ADAPTER-004", path, wrong, "re-export the adapter") from error


def _key_problems(
    folder: Path, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]
) -> list[Problem]:
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
