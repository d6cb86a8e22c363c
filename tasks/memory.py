"""What a run will need in memory, by cause, before anything is loaded; torch-free.

Shapes come from the headers of the safetensors files (a few KiB), so a model of any size is planned in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.activations import Step, held
from tasks.base_config import read_config
from tasks.errors import ArtifactRefused, Problem, SpecRefused
from tasks.fitting import fitting_changes, in_words, may_share_base, rows_at_once
from tasks.headers import header_of
from tasks.methods.catalogue import EXTRA, METHODS, trainable_parameters
from tasks.methods.targets import HEAD_NAMES, chosen_targets
from tasks.specs import AdapterSpec

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
GIB = 1024**3
AMX_FROM_HIDDEN = 128  # from this size on a CPU with tiles of bfloat16 gains from them
WEIGHTS = ("weights in 4 bit", "quantisation constants", "weights in 16 bit", "weights in 32 bit")
BEFORE_THE_RUN = (*WEIGHTS, "loading", "cuda context")
SHOWN_REMEDIES = 4
EMBEDDINGS = ("wte", "wpe")  # beside all that is called so
STORED_ACROSS = ("gpt2", "openai-gpt")  # (in, out), and no torch linear layer before it is quantised
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")  # without which nothing can be planned


@dataclass(frozen=True)
class Shapes:
    """A base as its files describe it: linear layers of the body (out, in), all other parameters, and the config.

    `biases` are those of the other parameters that the body adds to something; None where nothing says.
    """

    linear: Mapping[str, tuple[int, int]]
    other_parameters: int
    stored_bytes: int
    config: Mapping[str, Any]
    biases: int | None = None

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.linear.values()) + self.other_parameters


@dataclass(frozen=True)
class Correction:
    """What turns planned bytes above the loaded base into measured ones, as the middle of so many runs has it.

    A factor; or, where runs are so small that most of what a process takes is compiled kernels and the like, bytes
    besides. Of too few runs neither.
    """

    factor: float = 1.0
    besides: int = 0
    runs: int = 0

    def of(self, planned: int) -> int:
        """Bytes to add to planned ones; what is left is not less than none."""
        return max(round((self.factor - 1) * planned) + self.besides, -planned)

    @property
    def sentence(self) -> str:
        """What the earlier runs took."""
        took = f"{self.besides / 2**20:+.0f} MiB besides" if self.besides else f"{self.factor:.2f} of"
        return f"{self.runs} earlier runs took {took} their plan"


NOTHING_LEARNED = Correction()


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by cause, their sum, and what there is.

    `remedies` are changes of the spec with which it would fit, the cheapest first; see `tasks.fitting`. Without
    `has_targets` the base as loaded has no layer that the method could adapt, and no memory is enough.
    """

    causes: Mapping[str, int]
    available_bytes: int
    trainable: int
    parameters: int
    micro_batch: int
    tokens: int
    remedies: tuple[Mapping[str, Any], ...] = ()
    has_targets: bool = True

    @property
    def peak_bytes(self) -> int:
        return sum(self.causes.values())

    @property
    def weight_bytes(self) -> int:
        """The base's weights in all their precisions."""
        return sum(self.causes.get(cause, 0) for cause in WEIGHTS)

    @property
    def above_base(self) -> Mapping[str, int]:
        """What a run takes beside the loaded base, by cause."""
        return {cause: size for cause, size in self.causes.items() if cause not in BEFORE_THE_RUN}

    @property
    def fits(self) -> bool:
        return self.has_targets and self.peak_bytes <= self.available_bytes


def read_shapes(folder: Path) -> Shapes:
    """The shapes of a base folder, without its weights.

    Raises:
        ArtifactRefused: a header cannot be read, or the config does not say how large the model is.
    """
    linear: dict[str, tuple[int, int]] = {}
    other = stored = biases = vocabulary = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in header_of(path).items():
            if name == "__metadata__":
                continue
            shape = tuple(entry["shape"])
            size = 1
            for length in shape:
                size *= length
            stored += size * DTYPE_BYTES.get(entry["dtype"], 4)
            module = name.removesuffix(".weight")
            is_embedding = "embed" in name or module.rsplit(".", 1)[-1] in EMBEDDINGS
            is_linear = len(shape) == 2 and name.endswith(".weight") and not is_embedding
            vocabulary = max(vocabulary, shape[0]) if is_embedding and len(shape) == 2 else vocabulary
            is_head = any(part in HEAD_NAMES for part in module.split("."))
            biases += size if name.endswith(".bias") and not is_head else 0
            if is_linear and not is_head:
                linear[module] = (shape[0], shape[1])
            else:
                other += size
    path = folder / "config.json"
    config = {"vocab_size": vocabulary} | read_config(path)
    if unsaid := [name for name in SIZES if not config.get(name)]:
        raise ArtifactRefused.one("E-BASE-010", path, f"does not say {', '.join(unsaid)}", "name a complete config")
    if config.get("model_type") in STORED_ACROSS:
        linear = {name: (out, into) for name, (into, out) in linear.items()}
    return Shapes(linear, other, stored, config, biases)


def nf4_bytes(parameters: int, *, double_quant: bool = True, block: int = 64, second_block: int = 256) -> int:
    """Bytes of NF4 weights: half a byte each, and a scale per block of 64: 4 bytes, or 1 byte and 4 per 256 scales.

    Dettmers et al. 2023, arXiv:2305.14314, section 3 ("double quantization": 0.5 -> 0.127 bit per parameter).

    >>> round(nf4_bytes(65_000_000_000) / 65e9 * 8, 3)
    4.127
    """
    blocks = -(-parameters // block)
    scales = blocks + 4 * -(-blocks // second_block) if double_quant else 4 * blocks
    return -(-parameters // 2) + scales


def plan_memory(
    spec: AdapterSpec,
    shapes: Shapes,
    *,
    available_bytes: int,
    longest_tokens: int,
    on_gpu: bool,
    half: bool,
    longest_answer: int | None = None,
    correction: Correction = NOTHING_LEARNED,
) -> MemoryPlan:
    """The peak of a training run by cause.

    Args:
        longest_tokens: tokens of the longest row, as far as the spec lets it be so long.
        on_gpu: count the CUDA context and its fragmentation.
        half: the matrix products run in 16 bit.
        longest_answer: tokens of the longest completion; all of the row where it is not known.
        correction: of the bytes above the base, as earlier runs showed.

    Raises:
        SpecRefused: the method does not fit the base's modules.
    """
    trainable = trainable_of(spec, shapes)
    if spec.kind == "classification":
        trainable += int(shapes.config["hidden_size"]) * max(len(spec.data.labels), 2)

    def causes_of(changed: AdapterSpec) -> dict[str, int]:
        tokens = min(longest_tokens, changed.data.max_tokens)
        step = _step_of(changed, shapes, tokens, longest_answer or tokens, on_gpu, half)
        found = _causes(changed, shapes, trainable, step)
        above = sum(size for cause, size in found.items() if cause not in BEFORE_THE_RUN)
        if learned := correction.of(above):
            found["learned correction"] = learned
        return found

    def plan_of(changed: AdapterSpec) -> MemoryPlan:
        return MemoryPlan(
            causes=causes_of(changed),
            available_bytes=available_bytes,
            trainable=trainable,
            parameters=shapes.parameters,
            micro_batch=rows_at_once(changed),
            tokens=min(longest_tokens, changed.data.max_tokens),
            has_targets=_adapts(changed, shapes),
        )

    plan = plan_of(spec)
    if plan.fits:
        return plan
    return replace(plan, remedies=fitting_changes(spec, plan.tokens, lambda changed: plan_of(changed).fits))


def _adapts(spec: AdapterSpec, shapes: Shapes) -> bool:
    """Whether the layers that a method adapts are linear ones when the base is loaded as a spec has it."""
    across = shapes.config.get("model_type") in STORED_ACROSS
    return not (across and spec.base.quantization == "none" and METHODS[spec.method.name].takes_targets)


def trainable_of(spec: AdapterSpec, shapes: Shapes) -> int:
    """Trainable parameters of a spec's method on a base, its head excluded.

    Norms and biases are one dimension each and are counted with what the linear layers are not, from above.

    Raises:
        SpecRefused: the method does not fit the base's modules.
    """
    name, rank = spec.method.name, spec.method.rank
    hidden, layers = int(shapes.config["hidden_size"]), int(shapes.config["num_hidden_layers"])
    heads = int(shapes.config.get("num_attention_heads", 12))
    keys = int(shapes.config.get("num_key_value_heads") or heads) * int(
        shapes.config.get("head_dim") or hidden // heads
    )
    counted = {
        "full": shapes.parameters,
        "layernorm": (4 * layers + 2) * hidden,
        "bitfit": sum(rows for rows, _ in shapes.linear.values()) + (2 * layers + 1) * hidden,
        "prefix": 2 * layers * rank * keys,
        "prompt": rank * hidden,
        "ptuning": rank * hidden + 3 * (hidden * hidden + hidden),
    }
    if name == "bitfit" and shapes.biases is not None:
        if not shapes.biases:
            raise SpecRefused.one("E-SPEC-041", "method.name", "the base has no biases", "choose lora, or another base")
        return shapes.biases
    if name in counted:
        return counted[name]
    return trainable_parameters(chosen_targets(shapes.linear, spec.method), rank, name)


def _step_of(spec: AdapterSpec, shapes: Shapes, tokens: int, answers: int, on_gpu: bool, half: bool) -> Step:
    row = METHODS[spec.method.name]
    chosen = chosen_targets(shapes.linear, spec.method) if row.takes_targets else {}
    inputs, results = sum(into for _, into in chosen.values()), sum(out for out, _ in chosen.values())
    return Step(rows_at_once(spec), tokens, min(answers, tokens), inputs, results, len(chosen), on_gpu, half)


def _causes(spec: AdapterSpec, shapes: Shapes, trainable: int, step: Step) -> dict[str, int]:
    """Bytes of a run by cause."""
    sizes = [rows * columns for rows, columns in shapes.linear.values()]
    shared = spec.resources.shard_base and may_share_base(spec)
    loaded = _weights(spec, sum(sizes), shapes.other_parameters, step)
    causes = _shared_weights(spec, shapes, step) if shared else dict(loaded)
    if spec.base.quantization == "nf4":
        causes["dequantised layer"] = max(sizes, default=0) * step.width
    own_width = step.width if spec.method.name == "full" else 4  # a full run trains the weights as they are held
    wants_8_bit = spec.training.optimizer == "paged_adamw_8bit"
    eight_bit = wants_8_bit or (spec.training.optimizer == "auto" and step.on_gpu)
    whole = METHODS[spec.method.name].family == EXTRA
    causes |= {
        "adapter": 0 if spec.method.name == "full" else trainable * 4,
        "gradients": trainable * own_width,
        "optimizer": trainable * (2 if eight_bit else 8),
        # in the host's memory; with the base's own weights, where they are what is trained, to be put back
        "best so far": 0 if step.on_gpu else trainable * own_width * (2 if whole else 1),
    }
    if METHODS[spec.method.name].family == "ADALORA":  # each product with its gradient, its mean and its unrest
        causes["importances"] = trainable * 12
    causes |= held(spec, shapes.config, step)
    if step.on_gpu:
        causes["cuda context"] = GIB // 2
        causes["fragmentation"] = (causes["activations"] + causes["outputs"]) // 10
    if shared:  # it is loaded whole: once on each card, or by one process after another in the host's memory
        others = 0 if step.on_gpu else spec.resources.processes - 1
        kept = sum(causes.get(cause, 0) for cause in WEIGHTS)
        loading = (sum(loaded.values()) + others * kept) // (others + 1)
        causes["loading"] = max(0, loading - sum(causes.values()))
    return causes


def _weights(spec: AdapterSpec, linear: int, other: int, step: Step) -> dict[str, int]:
    """Bytes of so many weights of linear layers, and of others, as they are held."""
    unpacked = f"weights in {8 * step.width} bit"
    if spec.base.quantization != "nf4":
        return {unpacked: (linear + other) * step.width}
    packed = -(-linear // 2)
    scales = nf4_bytes(linear, double_quant=spec.base.double_quant) - packed
    return {"weights in 4 bit": packed, "quantisation constants": scales, unpacked: other * step.width}


def _shared_weights(spec: AdapterSpec, shapes: Shapes, step: Step) -> dict[str, int]:
    """What a process keeps of a base that its team shares, and the largest block while it is whole."""
    blocks: dict[str, int] = {}
    for name, (rows, columns) in shapes.linear.items():
        block = re.match(r".*?\.\d+(?=\.)", name)
        blocks[block[0] if block else ""] = blocks.get(block[0] if block else "", 0) + rows * columns
    kept = _weights(spec, blocks.pop("", 0), shapes.other_parameters, step)
    for cause, size in _weights(spec, sum(blocks.values()), 0, step).items():
        kept[cause] += -(-size // spec.resources.team_size)
    return {**kept, "gathered block": sum(_weights(spec, max(blocks.values(), default=0), 0, step).values())}


def refuse_if_too_large(plan: MemoryPlan, spec: AdapterSpec) -> None:
    """Refuse a run that cannot fit, with what would make it fit.

    Raises:
        SpecRefused: the plan's peak is above what is available, or there is nothing to adapt.
    """
    if plan.fits:
        return
    if not plan.has_targets:
        wrong = "the base's layers are Conv1D, which are linear layers in 4 bit alone"
        remedy = in_words(plan.remedies[:SHOWN_REMEDIES]) or "use another base"
        raise SpecRefused(Problem("E-SPEC-010", f"{spec.task}:base.quantization", wrong, remedy))
    need, have = plan.peak_bytes / GIB, plan.available_bytes / GIB
    largest = max(plan.causes, key=lambda cause: plan.causes[cause])
    wrong = f"needs {need:.2f} GiB, {have:.2f} GiB are there; most goes to {largest}"
    remedy = in_words(plan.remedies[:SHOWN_REMEDIES]) or "use a smaller base"
    raise SpecRefused(Problem("E-SPEC-013", f"{spec.task}:resources", wrong, remedy))


def free_ram_bytes() -> int:
    """Memory that the kernel could give to this process now, its cgroup's limit respected."""
    free = 8 * GIB
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def half_on_cpu(asked: str, hidden: int) -> bool:
    """Whether a CPU computes in bfloat16, as `tasks.training.base.compute_dtype_for` decides it."""
    if asked != "auto":
        return asked == "bfloat16"
    cpu = Path("/proc/cpuinfo")
    return hidden >= AMX_FROM_HIDDEN and cpu.is_file() and " amx_bf16" in cpu.read_text(encoding="utf-8")


def parse_size(text: str) -> int:
    """Bytes of a size such as 24GiB, 24G (the same), 80GB or 512MiB.

    >>> parse_size("24GiB") == parse_size("24G") == 24 * 1024**3, parse_size("80GB") == 80 * 1000**3
    (True, True)

    Raises:
        SpecRefused: it is no size, or nothing.
    """
    units = {"GIB": 1024**3, "GB": 1000**3, "MIB": 1024**2, "MB": 1000**2, "G": 1024**3, "M": 1024**2}
    for unit, factor in units.items():
        number = text.strip().upper().removesuffix(unit)
        is_number = number != text.strip().upper() and number.strip().replace(".", "", 1).isdecimal()
        if is_number and 1 <= (size := float(number) * factor) < 2**63:
            return int(size)
    raise SpecRefused(Problem("E-SPEC-016", "--device", f"{text[:40]!r} is no size", "write it as 24GiB"))
