"""Plans side by side, the largest batch, and the rewrite of a spec with which it fits; torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.architecture import shapes_of_config
from tasks.memory import MemoryPlan, Shapes, may_share_base, read_shapes
from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec

MOST_ROWS = 1 << 14
Planner = Callable[[AdapterSpec], MemoryPlan]


@dataclass(frozen=True)
class Variant:
    """One way to train the same task: full, LoRA or QLoRA. `largest_batch` is 0 where not even one row fits."""

    name: str
    plan: MemoryPlan
    largest_batch: int


def shapes_of(folder: Path) -> Shapes:
    """From the headers of the weights, or from the config alone where there are none.

    Raises:
        ArtifactRefused: neither says enough.
    """
    if any(folder.glob("*.safetensors")):
        return read_shapes(folder)
    import json

    from tasks.errors import ArtifactRefused

    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactRefused.one("E-BASE-010", path, f"cannot be read: {error}", "name a model's folder") from error
    return shapes_of_config(config, str(path))


def full_static_bytes(parameters: int) -> int:
    """What full fine-tuning holds without any activation: weights and gradients in 16 bit, two moments in 32 bit.

    Dettmers et al. 2023, arXiv:2305.14314, abstract: more than 780 GB for 65 billion parameters.

    >>> full_static_bytes(65_000_000_000) // 10**9, full_static_bytes(7_000_000_000) // 10**9
    (780, 84)
    """
    return parameters * (2 + 2 + 4 + 4)


def variants(spec: AdapterSpec, planner: Planner) -> tuple[Variant, ...]:
    """Full fine-tuning, an adapter on the weights as stored, and one on NF4, each with the batch of the spec."""
    method = spec.method.name if METHODS[spec.method.name].is_low_rank else "lora"
    found = []
    for name, how, quantization in (("full", "full", "none"), ("LoRA", method, "none"), ("QLoRA", method, "nf4")):
        changed = spec.model_copy(
            update={
                "method": spec.method.model_copy(update={"name": how, "targets": "all-linear", "layers": None})
                if how == "full"
                else spec.method.model_copy(update={"name": how}),
                "base": spec.base.model_copy(update={"quantization": quantization}),
            }
        )
        found.append(Variant(name, planner(changed), largest_batch(changed, planner)))
    return tuple(found)


def largest_batch(spec: AdapterSpec, planner: Planner) -> int:
    """The most rows that one process may hold at once; the peak grows with them."""

    def fits(rows: int) -> bool:
        batch = rows * spec.resources.team_size
        training = spec.training.model_copy(update={"batch_size": batch, "micro_batch": rows})
        return planner(spec.model_copy(update={"training": training})).fits

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fitted(spec: AdapterSpec, planner: Planner) -> Mapping[str, Any]:
    """The fewest changes with which a spec fits, as {"training.micro_batch": 2, ...}; empty if it fits as it is.

    In the order of what they cost: fewer rows at once at the same effective batch, recomputed activations, a base that
    the processes share, a 4-bit base, shorter rows.

    Raises:
        LookupError: none of them together is enough.
    """
    if planner(spec).fits:
        return {}
    changes: dict[str, Any] = {}
    for path, value in (
        ("training.micro_batch", None),
        ("training.gradient_checkpointing", True),
        ("resources.shard_base", may_share_base(spec)),
        ("base.quantization", "nf4"),
        ("data.max_tokens", None),
    ):
        section, field = path.split(".")
        if path == "training.micro_batch":
            rows = largest_batch(spec, planner)
            now = spec.training.micro_batch or spec.training.batch_size
            changes = {path: min(rows, now)} if rows else {path: 1}
        elif path == "data.max_tokens":
            tokens = spec.data.max_tokens
            while tokens > 16 and not planner(_with(spec, {**changes, path: tokens})).fits:
                tokens //= 2
            changes[path] = tokens
        elif getattr(getattr(spec, section), field) != value:
            changes[path] = value
            rows = largest_batch(
                _with(spec, {k: v for k, v in changes.items() if k != "training.micro_batch"}), planner
            )
            now = spec.training.micro_batch or spec.training.batch_size
            changes["training.micro_batch"] = max(1, min(rows, now))
        if planner(_with(spec, changes)).fits:
            unchanged = (
                changes["training.micro_batch"] == spec.training.batch_size and spec.training.micro_batch is None
            )
            return {k: v for k, v in changes.items() if not (unchanged and k == "training.micro_batch")}
    raise LookupError("no change of the spec is enough")


def _with(spec: AdapterSpec, changes: Mapping[str, Any]) -> AdapterSpec:
    for path, value in changes.items():
        section, field = path.split(".")
        spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={field: value})})
    return spec


def rewritten(path: Path, changes: Mapping[str, Any]) -> str:
    """The text of a spec file with the changes; comments and the order of keys stay."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    tree = yaml.load(path.read_text(encoding="utf-8"))  # round trip: values and comments, no objects of any class
    for place, value in changes.items():
        section, field = place.split(".")
        tree.setdefault(section, {})[field] = value
    text = io.StringIO()
    yaml.dump(tree, text)
    return text.getvalue()
