"""Plans side by side, the largest batch, and the rewrite of a spec with which it fits; torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.architecture import shapes_of_config
from tasks.base_config import read_config
from tasks.memory import MemoryPlan, Shapes, read_shapes
from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec

MOST_ROWS = 1 << 14
NAMES = {"lora": ("LoRA", "QLoRA"), "dora": ("DoRA", "QDoRA")}  # on weights as stored, and on NF4
Planner = Callable[[AdapterSpec], MemoryPlan]


@dataclass(frozen=True)
class Variant:
    """One way to train the same task: full, LoRA or QLoRA. `largest_batch` is 0 where not even one row fits.

    Attributes:
        activations_kept: bytes of activations without gradient checkpointing, `activations_again` with it.
    """

    name: str
    plan: MemoryPlan
    largest_batch: int
    activations_kept: int
    activations_again: int


def shapes_of(folder: Path) -> Shapes:
    """From the headers of the weights, or from the config alone where there are none.

    Raises:
        ArtifactRefused: neither says enough.
    """
    if any(folder.glob("*.safetensors")):
        return read_shapes(folder)
    path = folder / "config.json"
    return shapes_of_config(read_config(path), str(path))


def full_static_bytes(parameters: int) -> int:
    """What full fine-tuning holds without any activation: weights and gradients in 16 bit, two moments in 32 bit.

    Dettmers et al. 2023, arXiv:2305.14314, abstract: more than 780 GB for 65 billion parameters.

    >>> full_static_bytes(65_000_000_000) // 10**9, full_static_bytes(7_000_000_000) // 10**9
    (780, 84)
    """
    return parameters * (2 + 2 + 4 + 4)


def variants(spec: AdapterSpec, planner: Planner) -> tuple[Variant, ...]:
    """Full fine-tuning, an adapter on the weights as stored, and one on NF4, each with the batch of the spec.

    The adapter is the spec's own where that is a kind of LoRA, else LoRA itself.
    """
    method = spec.method.name if METHODS[spec.method.name].is_low_rank else "lora"
    stored, packed = NAMES.get(method, (method, f"{method} on NF4"))
    found = []
    for name, how, quantization in (("full", "full", "none"), (stored, method, "none"), (packed, method, "nf4")):
        everywhere = {"targets": "all-linear", "layers": None} if how == "full" else {}
        made = spec.method.model_copy(update={"name": how, **everywhere})
        base = spec.base.model_copy(update={"quantization": quantization})
        changed = spec.model_copy(update={"method": made, "base": base})
        activations = tuple(_activations(changed, planner, again) for again in (False, True))
        found.append(Variant(name, planner(changed), largest_batch(changed, planner), *activations))
    return tuple(found)


def _activations(spec: AdapterSpec, planner: Planner, again: bool) -> int:
    training = spec.training.model_copy(update={"gradient_checkpointing": again})
    return planner(spec.model_copy(update={"training": training})).causes["activations"]


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
    """The cheapest changes with which a spec fits, as {"training.micro_batch": 2, ...}; empty if it fits as it is.

    Raises:
        LookupError: no changes are enough.
    """
    plan = planner(spec)
    if plan.fits:
        return {}
    if not plan.remedies:
        raise LookupError("no change of the spec is enough")
    return plan.remedies[0]


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
