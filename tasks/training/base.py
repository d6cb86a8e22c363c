"""The frozen base: loaded and quantised once per process, and lent to one adapter after another.

NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3) through bitsandbytes, on a GPU and on a CPU alike.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.memory import AMX_FROM_HIDDEN
from tasks.methods.targets import HEAD_NAMES, chosen_targets
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.attention import use_float32_attention
from tasks.training.folder import first_line, local_folder
from tasks.training.fused import use_fused_kernels

NO_COMPILER = "TORCHDYNAMO_DISABLE"


@dataclass(frozen=True)
class Base:
    """A loaded base. `model` has no adapter while nobody borrows it.

    Attributes:
        model: the transformers model, frozen, linear layers in NF4 when the spec asks for it.
        tokenizer: its tokenizer; `end_id` closes every completion.
        labels: class names in the order of the head's outputs; empty for generation.
        compute_reason: why the matrix products run in `compute_dtype`.
    """

    model: Any
    tokenizer: Any
    spec: BaseSpec
    kind: str
    labels: tuple[str, ...]
    device: torch.device
    compute_dtype: torch.dtype
    compute_reason: str
    end_id: int
    pad_id: int

    def autocast(self) -> Any:
        """Matrix products in the compute type; a no-op for float32."""
        half = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=half)


def device_for(asked: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        SpecRefused: `cuda` was asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise SpecRefused.one(
            "E-SPEC-009", "resources.device", "cuda was asked for, no GPU is visible", "use auto or cpu"
        )
    on_gpu = asked != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def compute_dtype_for(asked: str, device: torch.device, hidden: int) -> tuple[torch.dtype, str]:
    """The type of the matrix products and the reason for it.

    A CPU gains from bfloat16 if it multiplies tiles of it (AMX), and then from hidden size 128 on: 1.2 times the speed
    there, 1.5 at 256, 2.2 at 1024. Without tiles float32 is faster at every size. `benchmarks/training_throughput.py
    --dtypes` measures it again.
    """
    if asked != "auto":
        return getattr(torch, asked), f"{asked} was asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU computes in bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.float32, "without bfloat16 tiles (AMX) a CPU is faster in float32"
    if hidden < AMX_FROM_HIDDEN:
        return torch.float32, f"at hidden size {hidden} the casts to bfloat16 cost more than its products save"
    return torch.bfloat16, f"the CPU multiplies bfloat16 tiles (AMX) and hidden size {hidden} is enough to gain"


def load_base(spec: BaseSpec, *, kind: str, labels: tuple[str, ...] = (), device: str = "auto") -> Base:
    """The base of a spec, from memory if this process has loaded it before.

    Raises:
        ArtifactRefused: the folder is no model, has no safetensors weights, or its config runs code of its own.
        DependencyDown: the hub cannot be reached.
        SpecRefused: the device is not there.
    """
    return _load_base(spec, kind, labels, device_for(device))


@contextmanager
def _no_compiler() -> Iterator[None]:
    """bitsandbytes has functions compiled that neither its CPU nor its CUDA kernels use; asking for that alone loads
    torch's compiler, a quarter of all that there is to load. What is compiled later is compiled as ever."""
    import torch._dynamo  # noqa: F401 (reads the variable once, for good)

    before = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_COMPILER)
        if before is not None:
            os.environ[NO_COMPILER] = before


def load_libraries() -> Any:
    """Transformers, with what a base and an adapter need of it and of PEFT in memory: seconds, once per process."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says on every CPU that an optional kernel is missing
    with _no_compiler():
        import peft  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig  # noqa: F401

    # PEFT asks every model for what transformers has given another name
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@cache
def _load_base(spec: BaseSpec, kind: str, labels: tuple[str, ...], device: torch.device) -> Base:
    transformers = load_libraries()
    folder = local_folder(spec)
    with _refused_if_broken(folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    dtype, reason = compute_dtype_for(
        spec.compute_dtype, device, int(getattr(config.get_text_config(), "hidden_size", 0))
    )
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    arguments["ignore_mismatched_sizes"] = True  # they are listed in the report, and refused below but for the head
    if spec.quantization == "nf4":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=spec.double_quant,
            bnb_4bit_compute_dtype=dtype,
            # a head with a bias would be quantised too, and 4-bit weights cannot be trained
            llm_int8_skip_modules=list(HEAD_NAMES) if kind == "classification" else None,
        )
        arguments["device_map"] = {"": device.index or 0 if device.type == "cuda" else "cpu"}
    kind_of_model: Any = transformers.AutoModelForCausalLM
    if kind == "classification":
        kind_of_model = transformers.AutoModelForSequenceClassification
        names = dict(enumerate(labels))
        arguments |= {"num_labels": len(labels), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    with _refused_if_broken(folder), seeded(device, 0):  # what the files lack (a head, a pooler) is drawn
        model, report = kind_of_model.from_pretrained(folder, output_loading_info=True, **arguments)
    _refuse_missing_weights(folder, report, HEAD_NAMES if kind == "classification" else ())
    if spec.quantization == "none":
        model.to(device)
    for name, child in model.named_children():
        if kind == "classification" and name in HEAD_NAMES:
            child.float()  # a head is trained, and 16 bit would round its small steps away
    if device.type == "cpu" and dtype == torch.bfloat16:
        use_float32_attention(model)
    _keep_quantized_weights_fixed(model)
    model.requires_grad_(False)
    model.eval()
    if told := use_fused_kernels(model, device):
        reason += f"; {told}"
    end_id = _end_id(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id
    model.config.pad_token_id = pad_id
    if kind == "generation":  # greedily: a base may ask for beams or punish repetition, and its answers would not score
        model.generation_config = transformers.GenerationConfig(eos_token_id=end_id, pad_token_id=pad_id)
    return Base(model, tokenizer, spec, kind, labels, device, dtype, reason, end_id, pad_id)


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the body by name; heads and embeddings are left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in HEAD_NAMES for part in name.split("."))
    }


def target_modules(model: nn.Module, method: MethodSpec) -> dict[str, tuple[int, int]]:
    """The modules that a method adapts, with their (out, in) shapes.

    Raises:
        SpecRefused: for a target that names nothing, layers out of range, or a rank above a module's dimension.
    """
    linear: dict[str, Any] = {name: (m.out_features, m.in_features) for name, m in linear_modules(model).items()}
    return chosen_targets(linear, method)


def dense_weights(base: Base) -> dict[str, Tensor]:
    """All parameters and their names as float32 on the CPU; NF4 weights as the adapters see them (dequantised).

    Merging happens here: adding an update to the 4-bit weights would round it away.
    """
    dense = {}
    for name, parameter in base.model.named_parameters():
        if parameter.__class__.__name__ == "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            value = dequantize_4bit(parameter.data, parameter.quant_state)
        else:
            value = parameter.data
        dense[name] = value.detach().to("cpu", torch.float32)
    return dense


def _keep_quantized_weights_fixed(model: nn.Module) -> None:
    """Bitsandbytes repacks 4-bit weights in place at the first evaluation on a CPU with bfloat16 products, rounding
    their scales: the base would change between two adapters, could not be dequantised, and odd widths raise."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _end_id(model: Any, tokenizer: Any) -> int:
    """The token that ends an answer: what the base itself ends a text with."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    candidates = configured if isinstance(configured, list) else [configured]
    for token in [*candidates, tokenizer.eos_token_id, tokenizer.sep_token_id]:
        if token is not None:
            return int(token)
    raise ArtifactRefused.one(
        "E-BASE-006", tokenizer.name_or_path, "no end token", "set eos_token_id in generation_config"
    )


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Chance drawn from a seed; the caller's random state is as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _refused_if_broken(folder: Path) -> Iterator[None]:
    """A damaged folder makes transformers raise almost anything; all of it means that the folder is no base."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ArtifactRefused.one(
            "E-BASE-004", folder, f"cannot be loaded: {first_line(error)}", "name a complete transformers folder"
        ) from error


def _refuse_missing_weights(folder: Path, report: dict[str, Any], fresh: tuple[str, ...]) -> None:
    """A fresh classification head is expected; any other weight that the file lacks would be random."""
    missing = [key for key in report["missing_keys"] if "pooler" not in key]  # encoders are often published without it
    missing += [f"{key} {tuple(stored)} for {tuple(built)}" for key, stored, built in report["mismatched_keys"]]
    missing = sorted(key for key in missing if not any(part in fresh for part in key.split(" ")[0].split(".")))
    if missing:
        what = ", ".join(missing[:3])
        raise ArtifactRefused.one(
            "E-BASE-004", folder, f"weights are missing or misshapen: {what}", "name a complete folder"
        )


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Torch limited to a number of CPU threads while the block runs; all that the process may use by default."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
