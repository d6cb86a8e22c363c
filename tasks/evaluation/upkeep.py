"""What an adapter costs where it serves: time per pass, and what the base forgets of its own language."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tasks.merging.apply import replace_head
from tasks.merging.base import held_weights
from tasks.merging.vectors import exact_updates
from tasks.methods.build import attached
from tasks.training.base import Base, dense_weights, seeded
from tasks.training.encoding import Encoded, collate
from tasks.training.losses import answer_logits_of, validation_loss

TEXTS, TEXT_TOKENS = 24, 40
ROUNDS, PASSES = 5, 3


def own_texts(base: Base, seed: int = 0) -> list[Encoded]:
    """Text that the untouched base writes by itself, drawn at temperature 1: its general language, with no data needed.

    The first token is given, the rest is what a loss is measured on. Empty for a classifier.
    """
    if base.kind != "generation":
        return []
    first = torch.full((TEXTS, 1), base.end_id, device=base.device)
    with seeded(base.device, seed), torch.no_grad(), base.autocast():
        written = base.model.generate(
            input_ids=first,
            attention_mask=torch.ones_like(first),
            max_new_tokens=TEXT_TOKENS,
            min_new_tokens=TEXT_TOKENS,
            do_sample=True,
            top_k=0,
            pad_token_id=base.pad_id,
        ).tolist()
    return [Encoded((row[0],), tuple(row[1:])) for row in written]


def forgetting(base: Base, model: Any, texts: Sequence[Encoded], before: float) -> float:
    """How much more the model is surprised by the base's own texts, in nats per token; `before` is the base's own."""
    return validation_loss(base, model, answer_logits_of(base, model, texts[:2]), texts) - before


def own_loss(base: Base, texts: Sequence[Encoded]) -> float:
    return validation_loss(base, base.model, answer_logits_of(base, base.model, texts[:2]), texts)


def pass_ratios(
    base: Base,
    rows: Sequence[Encoded],
    adapter: Path,
    merged: Any | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float | None]:
    """A forward pass with the adapter attached, and one of the merged copy, over the base's own: medians over rounds.

    In each round all are timed one right after another, so that what else the machine does meets all of them alike.
    """
    inputs, _ = collate(base, rows)
    beside, within = [], []
    with torch.no_grad(), base.autocast():
        for _ in range(ROUNDS):
            alone = _shortest_pass(base, base.model, inputs, clock)
            with attached(base, adapter) as model:
                beside.append(_shortest_pass(base, model, inputs, clock) / alone)
            if merged is not None:
                within.append(_shortest_pass(base, merged, inputs, clock) / alone)
    return median(beside), median(within) if within else None


def _shortest_pass(base: Base, model: Any, inputs: Mapping[str, Tensor], clock: Callable[[], float]) -> float:
    """Seconds of the shortest of a few passes after a first one: the one that nothing else disturbed."""
    model.eval()
    model(**inputs)
    found = []
    for _ in range(PASSES):
        began = clock()
        model(**inputs)
        if base.device.type == "cuda":
            torch.cuda.synchronize(base.device)
        found.append(clock() - began)
    return min(found)


def merged_copy(base: Base, folder: Path) -> Any:
    """A copy of the base with an adapter's exact update in its weights, those of an NF4 base rounded to NF4 again.

    For timing: what is served is merged without that rounding.

    Raises:
        ArtifactRefused: the adapter has no exact update.
    """
    seen = held_weights(folder, dense_weights(base))
    update = exact_updates(folder, seen.weight, seen.shape)
    apart = copy.deepcopy(base.model)
    for name in update.modules:
        place = seen.tensor_name(name)
        assert place is not None  # or the adapter would have been refused
        change = update.delta(name).T if update.transposed else update.delta(name)
        _put(base, apart, place, seen.tensor(place) + change.reshape(seen.shapes[place]))
    replace_head(apart, update.head)
    return apart


def _put(base: Base, model: Any, place: str, value: Tensor) -> None:
    """A new value for a parameter, in the form that it has."""
    parent, _, field = place.rpartition(".")
    module = model.get_submodule(parent)
    old = getattr(module, field)
    if type(old).__name__ != "Params4bit":
        old.data = value.to(old.device, old.dtype)
        return
    from bitsandbytes.nn import Params4bit

    settings = {"quant_type": "nf4", "compress_statistics": base.spec.double_quant, "module": module}
    packed: Any = Params4bit(value.to(base.compute_dtype), requires_grad=False, **settings)
    setattr(module, field, packed.to(old.device))
