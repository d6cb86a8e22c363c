"""How well a model answers, row by row, so that two models can be compared on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from tasks.data.examples import Example
from tasks.training.base import Base
from tasks.training.encoding import Encoded, collate, encode, prompt_tokens
from tasks.training.losses import EVALUATION_BATCH, answer_logits_of, has_virtual_tokens


@dataclass(frozen=True)
class Scores:
    """Outcomes in [0, 1] per row, in the order of `keys`."""

    metric: str
    keys: tuple[str, ...]
    outcomes: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def n(self) -> int:
        return len(self.outcomes)


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt, and how sure it was: the geometric mean of its tokens' probabilities, and the
    mean entropy of the distributions (nats) from which tokens or class were taken."""

    text: str
    confidence: float
    entropy: float = 0.0


def score(base: Base, model: Any, examples: Sequence[Example], metric: str) -> Scores:
    """The metric on every row.

    `exact_match` takes one forward pass and no generation: greedy decoding writes the target if and only if each target
    token is the most likely one after the target's earlier tokens. `token_accuracy` is the share of such tokens.
    `accuracy` is the class with the highest logit.
    """
    if not examples:
        return Scores(metric, (), ())
    rows = encode(base, examples)
    outcomes = [0.0] * len(rows)
    model.eval()
    answer = answer_logits_of(base, model, rows[:2])
    with torch.no_grad(), base.autocast():
        for batch in _by_length(rows):
            inputs, labels = collate(base, [rows[i] for i in batch])
            if base.kind == "classification":
                right = (answer(inputs, None).argmax(-1) == labels).float().tolist()
            else:
                where = labels >= 0
                hits = torch.zeros_like(labels, dtype=torch.float)
                hits[where] = (answer(inputs, where).argmax(-1) == labels[where]).float()
                counts, total = hits.sum(1), where.sum(1)
                right = ((counts / total) if metric == "token_accuracy" else (counts == total).float()).tolist()
            for i, outcome in zip(batch, right, strict=True):
                outcomes[i] = float(outcome)
    return Scores(metric, tuple(example.key for example in examples), tuple(outcomes))


def answers(base: Base, model: Any, prompts: Sequence[str], *, max_new_tokens: int = 48) -> list[Answer]:
    """What the model says: greedy decoding, or the likeliest class."""
    if base.kind == "classification":
        return _classes(base, model, prompts)
    rows = [Encoded(tuple(ids), ()) for ids in prompt_tokens(base.tokenizer, prompts)]
    said: list[Answer] = [Answer("", 0.0)] * len(rows)
    model.eval()
    for batch in _without_padding(rows) if has_virtual_tokens(model) else _by_length(rows):
        width = max(len(rows[i].prompt) for i in batch)
        ids = torch.full((len(batch), width), base.pad_id)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(batch):  # padded on the left, so that every row continues at the same place
            ids[line, width - len(rows[i].prompt) :] = torch.tensor(rows[i].prompt)
            mask[line, width - len(rows[i].prompt) :] = 1
        with torch.no_grad(), base.autocast():
            out = model.generate(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=base.end_id,
                pad_token_id=base.pad_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
        written = out.sequences[:, width:]
        logs = torch.stack([torch.log_softmax(step.float(), -1) for step in out.logits], 1)  # (batch, time, vocabulary)
        sure = logs.gather(2, written[:, :, None])[:, :, 0]  # (batch, time)
        open_to = -torch.where(logs > -torch.inf, logs * logs.exp(), 0.0).sum(-1)  # (batch, time)
        for line, i in enumerate(batch):
            tokens = written[line].tolist()
            length = tokens.index(base.end_id) + 1 if base.end_id in tokens else len(tokens)
            text = base.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            said[i] = Answer(text, float(sure[line, :length].mean().exp()), float(open_to[line, :length].mean()))
    return said


def perplexities(base: Base, model: Any, texts: Sequence[str]) -> list[float | None]:
    """How strange a causal model finds each text: exp of the mean surprise (nats) of its tokens after the first; None
    for a text of fewer than two tokens."""
    rows = [Encoded(tuple(ids), ()) for ids in prompt_tokens(base.tokenizer, texts)]
    found: list[float | None] = [None] * len(rows)
    model.eval()
    for batch in _by_length(rows):
        width = max(len(rows[i].prompt) for i in batch)
        ids = torch.full((len(batch), width), base.pad_id)
        for line, i in enumerate(batch):
            ids[line, : len(rows[i].prompt)] = torch.tensor(rows[i].prompt, dtype=torch.long)
        mask = torch.arange(width)[None] < torch.tensor([len(rows[i].prompt) for i in batch])[:, None]
        with torch.no_grad(), base.autocast():
            logits = model(input_ids=ids.to(base.device), attention_mask=mask.long().to(base.device)).logits
        logs = torch.log_softmax(logits[:, -width:].float().cpu(), -1)  # virtual tokens stand before the text
        said = logs[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]  # (batch, width - 1)
        for line, i in enumerate(batch):
            if len(rows[i].prompt) > 1:
                found[i] = float((-said[line, : len(rows[i].prompt) - 1].mean()).exp())
    return found


def _classes(base: Base, model: Any, prompts: Sequence[str]) -> list[Answer]:
    rows = [Encoded(tuple(ids), (0,)) for ids in prompt_tokens(base.tokenizer, prompts)]
    said: list[Answer] = [Answer("", 0.0)] * len(rows)
    model.eval()
    with torch.no_grad(), base.autocast():
        for batch in _by_length(rows):
            inputs, _ = collate(base, [rows[i] for i in batch])
            chances = torch.softmax(model(**inputs).logits.float(), -1)
            sure, index = chances.max(-1)
            open_to = torch.special.entr(chances).sum(-1)
            for i, p, c, h in zip(batch, sure.tolist(), index.tolist(), open_to.tolist(), strict=True):
                said[i] = Answer(base.labels[c], p, h)
    return said


def _by_length(rows: Sequence[Encoded]) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    return [order[i : i + EVALUATION_BATCH] for i in range(0, len(order), EVALUATION_BATCH)]


def _without_padding(rows: Sequence[Encoded]) -> list[list[int]]:
    """Batches of one length each: padding on the left would stand between virtual tokens and the text."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    alike = [list(group) for _, group in groupby(order, key=lambda i: rows[i].length)]
    return [group[i : i + EVALUATION_BATCH] for group in alike for i in range(0, len(group), EVALUATION_BATCH)]
