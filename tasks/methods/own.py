"""Methods that PEFT does not carry: some of the base's own parameters trained, or small networks behind its modules.

The folder looks like PEFT's: `adapter_config.json` names the method, `adapter_model.safetensors` holds what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import SpecRefused
from tasks.methods.targets import HEAD_NAMES

FAMILY = "FACTORY"


class Bottleneck(nn.Module):
    """h + up(gelu(down(h))), with `up` at zero in the beginning. Houlsby et al. 2019, arXiv:1902.00751, section 2.1."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(nn.functional.gelu(self.down(h.to(self.down.weight.dtype)))).to(h.dtype)


class OwnMethod(nn.Module):
    """The base as a PEFT model looks from outside; `settings` is what its folder says of it."""

    def __init__(self, model: Any, settings: Mapping[str, Any], bottlenecks: nn.ModuleDict) -> None:
        super().__init__()
        self.model = model
        self.settings = dict(settings)
        self.bottlenecks = bottlenecks

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.model(*arguments, **named)

    def get_base_model(self) -> Any:
        return self.model

    def generate(self, *arguments: Any, **named: Any) -> Any:
        return self.model.generate(*arguments, **named)

    def trained(self) -> dict[str, Tensor]:
        """What the method changes, by the names that the folder uses."""
        found = {f"base.{name}": p for name, p in self.model.named_parameters() if name in self.settings["trains"]}
        return found | dict(self.bottlenecks.named_parameters(prefix="bottleneck"))


def settings_of(
    name: str, model: nn.Module, modules: Mapping[str, tuple[int, int]], rank: int, head: str
) -> dict[str, Any]:
    """What a fresh adapter of this method trains on this base.

    Args:
        head: name of the classification head, trained along; "" for none.

    Raises:
        SpecRefused: the base has nothing of the kind that the method trains.
    """
    named = {n: p for n, p in model.named_parameters() if not any(part in HEAD_NAMES for part in n.split("."))}
    norms = {n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    chosen = {
        "bitfit": [n for n in named if n.endswith(".bias")],
        "layernorm": [n for n in named if n.rsplit(".", 1)[0] in norms],
        "full": list(named),
        "bottleneck": [],
    }[name]
    if not chosen and name != "bottleneck":
        what = {"bitfit": "biases", "layernorm": "norms with parameters", "full": "parameters"}[name]
        raise SpecRefused.one("E-SPEC-041", "method.name", f"the base has no {what}", "choose lora, or another base")
    chosen += [n for n, _ in model.named_parameters() if head and n.split(".")[0] == head]
    if name == "full" and not head:  # an output layer that is not tied to the embeddings is a weight like all others
        chosen = [n for n, _ in model.named_parameters()]
    placed = {n: rows for n, (rows, _) in modules.items()} if name == "bottleneck" else {}
    return {"peft_type": FAMILY, "method": name, "rank": rank, "trains": sorted(chosen), "bottlenecks": placed}


@contextmanager
def own_method(model: Any, settings: Mapping[str, Any], device: torch.device) -> Iterator[OwnMethod]:
    """The base with the method on it; afterwards its weights are the very bytes that they were, and no hook stays."""
    places = {name: name.replace(".", "-") for name in settings["bottlenecks"]}
    inner = {places[n]: Bottleneck(width, settings["rank"]) for n, width in settings["bottlenecks"].items()}
    bottlenecks = nn.ModuleDict(inner).to(device)
    lent = OwnMethod(model, settings, bottlenecks)
    hooks = []
    before: dict[str, Tensor] = {}
    try:
        for name, place in places.items():
            hooks.append(model.get_submodule(name).register_forward_hook(_behind(bottlenecks[place])))
        for name, parameter in model.named_parameters():
            if name in settings["trains"]:
                before[name] = parameter.detach().to("cpu", copy=True)
                parameter.requires_grad_(True)
        lent.eval()
        yield lent
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
        model.requires_grad_(False)
        model.eval()


def _behind(bottleneck: nn.Module) -> Any:
    return lambda module, inputs, output: bottleneck(output)
