"""One pass over a frozen base for the rows of several adapters, each through its own A and B.

The rows of all stand one after another as tokens, without padding between them. A frozen product reads its weights,
and unpacks them from NF4, once for all; attention, dropout and the low-rank products are each adapter's own, with the
shapes and the chance that they have in a run of its own. So its gradients are those of its own run up to the rounding
of the frozen products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.training.attention import use_attention_apart
from tasks.training.base import Base
from tasks.training.encoding import IGNORED, collate
from tasks.training.lowrank import LowRankUpdates, Span, dropped_share, factors_of, is_plain
from tasks.training.part import Part


class NotTogether(Exception):
    """Why adapters cannot share a pass."""


def twin_of(base: Base) -> Base:
    """The same base for another borrower: modules of its own around the very same weights."""
    model = base.model
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    shared += [state for module in model.modules() if (state := getattr(module, "quant_state", None)) is not None]
    return replace(base, model=copy.deepcopy(model, {id(thing): thing for thing in shared}))


class Several:
    """A twin of a base under the adapters of several runs.

    Raises:
        NotTogether: with the reason.
    """

    def __init__(self, base: Base, parts: Sequence[Part]) -> None:
        if wrong := next(filter(None, [refusal_of(base), *map(_refusal_of_run, parts)]), ""):
            raise NotTogether(wrong)
        models = [part.model for part in parts]
        self.base = twin_of(base)
        self._batches: list[_Rows] = []
        for name in sorted(set(chain.from_iterable(map(_layers, models)))):
            adapters = {id(model): layers[name] for model in models if name in (layers := _layers(model))}
            above, _, own = name.rpartition(".")
            parent = self.base.model.get_submodule(above)
            setattr(parent, own, _Shared(getattr(parent, own), adapters, self._batches))
        use_attention_apart(self.base.model)

    def backward(self, parts: Sequence[Part], chances: Sequence[torch.Generator]) -> list[float]:
        """Add the gradient of each part to its own adapter's; their summed losses.

        Args:
            chances: where each adapter's dropout is drawn from.
        """
        collated, start = [collate(part.base, part.rows) for part in parts], 0
        self._batches.clear()
        for part, chance, (_, labels) in zip(parts, chances, collated, strict=True):
            self._batches.append(_Rows(id(part.model), start, start + labels.numel(), chance))
            start += labels.numel()
        labels = torch.cat([labels.flatten() for _, labels in collated])
        positions = [torch.arange(labels.shape[1]).repeat(len(labels)) for _, labels in collated]
        with self.base.autocast():
            hidden = self.base.model.get_decoder()(
                input_ids=torch.cat([inputs["input_ids"].flatten() for inputs, _ in collated])[None],
                position_ids=torch.cat(positions)[None],
                batches=[tuple(labels.shape) for _, labels in collated],
                use_cache=False,
            ).last_hidden_state[0]
            logits = self.base.model.get_output_embeddings()(hidden[labels != IGNORED]).float()
            learned = [int((labels != IGNORED).sum()) for _, labels in collated]
            wanted = labels[labels != IGNORED]
            losses = [
                F.cross_entropy(said, right, reduction="sum")
                for said, right in zip(logits.split(learned), wanted.split(learned), strict=True)
            ]
        torch.stack([loss / part.learned for loss, part in zip(losses, parts, strict=True)]).sum().backward()
        return [float(loss.detach()) for loss in losses]


class _Rows:
    """Tokens [start, stop) of the adapter of a model."""

    def __init__(self, model: int, start: int, stop: int, chance: torch.Generator) -> None:
        self.model, self.start, self.stop, self.chance = model, start, stop, chance


class _Shared(nn.Module):
    """A frozen product, and the update of each adapter that has one here on its own rows."""

    def __init__(self, product: nn.Module, adapters: dict[int, Any], batches: list[_Rows]) -> None:
        super().__init__()
        self.product, self._adapters, self._batches_now = product, adapters, batches

    def forward(self, x: Tensor) -> Tensor:
        spans, factors = [], []
        for rows in self._batches_now:
            if layer := self._adapters.get(rows.model):
                A, B, scale = factors_of(layer)
                spans.append(Span(rows.start, rows.stop, scale, dropped_share(layer), rows.chance))
                factors += [A, B]
        y = self.product(x)
        return LowRankUpdates.apply(x, y, tuple(spans), *factors) if spans else y


def refusal_of(base: Base) -> str:
    """Why no adapters on this base can share a pass; empty if they may."""
    config, decoder = base.model.config, getattr(base.model, "get_decoder", lambda: None)()
    if base.kind != "generation" or decoder is None:
        return "only decoders that generate share a pass"
    if base.device.type != "cpu":
        return "on a GPU each adapter computes in PEFT's own layers"
    if config._attn_implementation.split("_")[0] != "sdpa":
        return "the base's attention is not torch's"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the base attends within a window"
    if any(isinstance(module, nn.Dropout) and module.p for module in base.model.modules()):
        return "the base drops out by itself"
    return ""


def _refusal_of_run(part: Part) -> str:
    own = {id(parameter) for layer in _layers(part.model).values() for parameter in layer.parameters()}
    strange = [name for name, p in part.model.named_parameters() if p.requires_grad and id(p) not in own]
    if strange:
        return f"{strange[0]} is trained, and is no low-rank update of a linear layer"
    return "" if part.answer.__name__ == "short_way" else "the base does more to its logits than its output layer"


def _layers(model: Any) -> dict[str, Any]:
    """The low-rank layers of a model by the names of the base's modules."""
    return {
        name.removeprefix("base_model.model."): module for name, module in model.named_modules() if is_plain(module)
    }
