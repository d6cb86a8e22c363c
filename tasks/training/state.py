"""Where a run is: all that must be known to go on as if nothing had happened, as JSON values and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tasks.methods.allocation import Allocation
from tasks.training.checkpoint import Checkpoint
from tasks.training.curve import Look, Step


@dataclass
class RunState:
    """A run between two optimiser steps. Batches are drawn from the seed, so `step` is also the place in the data.

    Attributes:
        micro_batch: rows at once, after what memory has forced; None for the whole batch.
        random: the generators' states at the end of `step`.
        probe: answers of the adapter before the first step; at the end they must have changed.
        together: whether its rows share passes over the base with other adapters' rows, as was measured; None where it
            was not; and why.
    """

    step: int = 0
    steps: list[Step] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    start_loss: float | None = None
    lowest: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    micro_batch: int | None = None
    random: dict[str, Tensor] = field(default_factory=dict)
    probe: Tensor | None = None
    together: bool | None = None
    together_reason: str = ""

    def note_chance(self, device: torch.device) -> None:
        """Remember the generators as they are now."""
        self.random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            self.random["cuda"] = torch.cuda.get_rng_state(device)

    def restore_chance(self, device: torch.device) -> None:
        """Set the generators back to where they were noted."""
        torch.set_rng_state(self.random["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.random["cuda"], device)

    def packed(
        self, model: Any, optimizer: torch.optim.Optimizer, allocation: Allocation | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The run as (JSON values, tensors)."""
        plain = {name: getattr(self, name) for name in ("step", "start_loss", "tokens", "padded", "seconds")}
        plain |= {"together": self.together, "together_reason": self.together_reason}
        plain |= {"micro_batch": self.micro_batch, "lowest": None if math.isinf(self.lowest) else self.lowest}
        plain |= {"steps": [asdict(step) for step in self.steps], "looks": [asdict(look) for look in self.looks]}
        tensors = {f"now/{name}": parameter for name, parameter in trained_tensors(model)}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"random/{name}": tensor for name, tensor in self.random.items()}
        if self.probe is not None:
            tensors["probe/answers"] = self.probe
        if allocation is not None:
            tensors |= {f"allocation/{name}": tensor for name, tensor in allocation.state().items()}
        leaves = dict(_leaves(optimizer.state_dict()["state"]))
        tensors |= {f"optimizer/{path}": value for path, value in leaves.items() if isinstance(value, Tensor)}
        scalars = {path: value for path, value in leaves.items() if not isinstance(value, Tensor)}
        apart = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        return {**plain, "optimizer": scalars}, apart

    @classmethod
    def unpacked(
        cls, saved: Checkpoint, model: Any, optimizer: torch.optim.Optimizer, allocation: Allocation | None = None
    ) -> RunState:
        """The run of a checkpoint; model, optimiser and allocation are set to what they were."""
        plain, sections = dict(saved.state), _sections(saved.tensors)
        with torch.no_grad():
            for name, parameter in trained_tensors(model):
                parameter.copy_(sections["now"][name])
        entries = _tree({**plain.pop("optimizer"), **sections.get("optimizer", {})})
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": {int(i): found for i, found in entries.items()}, "param_groups": groups})
        if allocation is not None:
            allocation.restore(sections.get("allocation", {}))
        plain["steps"] = [Step(**step) for step in plain["steps"]]
        plain["looks"] = [Look(**look) for look in plain["looks"]]
        plain["lowest"] = math.inf if plain["lowest"] is None else plain["lowest"]
        state = cls(**plain, best=sections.get("best", {}), random=sections["random"])
        state.probe = sections.get("probe", {}).get("answers")
        return state


def trained_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """What training changes: the parameters with a gradient, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _leaves(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as (path, value): 8-bit optimisers keep a mapping inside a parameter's state."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *above, last = path.split("/")
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return tree


def _sections(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        section, rest = name.split("/", 1)
        found.setdefault(section, {})[rest] = tensor
    return found
