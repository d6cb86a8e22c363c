"""What is learned from a batch: cross entropy over the learned tokens (or the classes), computed where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.training.base import Base
from tasks.training.encoding import IGNORED, Encoded, collate
from tasks.training.team import ALONE, Team

EVALUATION_BATCH = 64


def answer_logits_of(base: Base, model: Any, probe: Sequence[Encoded]) -> Callable[..., Tensor]:
    """A function (inputs, where) -> logits at the positions in `where` (batch, time), or of the classes.

    Generation needs the vocabulary at learned positions only. The short way, body then output layer, is taken if a
    probe shows that the model does the same and nothing else; models that scale or cap their logits keep the long way.
    """
    if base.kind == "classification":
        return lambda inputs, where: model(**inputs).logits

    def long_way(inputs: dict[str, Tensor], where: Tensor) -> Tensor:
        logits = model(**inputs, use_cache=False).logits
        return logits[:, -where.shape[1] :][where]  # virtual tokens stand before the text

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if has_virtual_tokens(model) or not hasattr(inner, "get_decoder") or inner.get_decoder() is None:
        return long_way

    body, output = inner.get_decoder(), inner.get_output_embeddings()

    def short_way(inputs: dict[str, Tensor], where: Tensor) -> Tensor:
        return output(body(**inputs, use_cache=False).last_hidden_state[where])

    inputs, _ = collate(base, probe)
    passed: list[tuple[Tensor, Tensor]] = []
    hook = output.register_forward_hook(lambda module, args, result: passed.append((args[0], result)))
    was_training = model.training
    model.eval()
    with torch.no_grad(), base.autocast():
        logits = model(**inputs, use_cache=False).logits
        hidden = body(**inputs, use_cache=False).last_hidden_state
    hook.remove()
    model.train(was_training)
    read, written = passed[0]
    same = torch.equal(written.to(logits.dtype), logits) and torch.allclose(read, hidden, atol=1e-3, rtol=1e-3)
    return short_way if same else long_way


def has_virtual_tokens(model: Any) -> bool:
    """Whether learned tokens stand before the text, as in prefix, prompt and P-tuning."""
    return any(getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values())


def validation_loss(base: Base, model: Any, answer: Callable[..., Tensor], rows: Sequence[Encoded]) -> float:
    """Mean loss per learned token (or per row, for classes) without dropout."""
    return validation_reading(base, model, answer, rows)[0]


def validation_reading(
    base: Base, model: Any, answer: Callable[..., Tensor], rows: Sequence[Encoded], at_once: int = EVALUATION_BATCH
) -> tuple[float, float]:
    """(mean loss, share of right answers) per learned token, or per row for classes, without dropout."""
    total, right, count = validation_sums(base, model, answer, rows, at_once)
    return total / max(count, 1), right / max(count, 1)


def validation_sums(
    base: Base, model: Any, answer: Callable[..., Tensor], rows: Sequence[Encoded], at_once: int, team: Team = ALONE
) -> tuple[float, int, int]:
    """(loss, right answers, how many) over all learned tokens, or rows for classes, without dropout.

    In a team over this process's share of the rows.
    """
    model.eval()
    total, right, count = 0.0, 0, 0
    with torch.no_grad(), base.autocast():
        for piece, counts in team.pieces(sorted(rows, key=lambda row: row.length), at_once):
            inputs, labels = collate(base, piece)
            logits, wanted = _learned(base, answer, inputs, labels)
            if not counts:
                continue
            total += float(F.cross_entropy(logits.float(), wanted, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
            count += len(wanted)
    return total, right, count


def summed_loss(base: Base, answer: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, int]:
    """Cross entropy summed over what is learned, and how many that is."""
    logits, wanted = _learned(base, answer, inputs, labels)
    return F.cross_entropy(logits.float(), wanted, reduction="sum"), len(wanted)


def _learned(base: Base, answer: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, vocabulary or classes) where something is learned, and what it is (n)."""
    if base.kind == "classification":
        return answer(inputs, None), labels
    where = labels != IGNORED
    return answer(inputs, where), labels[where]
