"""What an adapter costs where it serves: time per pass, and what the base forgets of its own language."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.methods.build import attached
from tasks.training.base import Base, seeded
from tasks.training.encoding import Encoded, collate
from tasks.training.losses import answer_logits_of, validation_loss

TEXTS, TEXT_TOKENS = 24, 40
PASSES = 5


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


def pass_seconds(
    base: Base, model: Any, rows: Sequence[Encoded], clock: Callable[[], float] = time.perf_counter
) -> float:
    """The shortest of five forward passes over a batch; the shortest is the one that nothing else disturbed."""
    inputs, _ = collate(base, rows)
    model.eval()
    found = []
    with torch.no_grad(), base.autocast():
        model(**inputs)
        for _ in range(PASSES):
            began = clock()
            model(**inputs)
            if base.device.type == "cuda":
                torch.cuda.synchronize(base.device)
            found.append(clock() - began)
    return min(found)


def merged_copy(base: Base, folder: Path) -> Any | None:
    """A copy of the base with an adapter of PEFT's in its weights, for timing; None where there is no such form."""
    with attached(base, folder) as model:
        if not hasattr(model, "merge_and_unload"):
            return None
        apart = copy.deepcopy(model)
    try:
        return apart.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
