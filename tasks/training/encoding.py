"""Examples as tokens: the prompt is read, the completion is learned, and the end token is part of what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from tasks.data.examples import Example
from tasks.data.talks import turns_of, without_system
from tasks.training.base import Base

IGNORED = -100
WIDTH_STEP = 8
VIRTUAL_ROOM = 128  # positions left to virtual tokens before the text


@dataclass(frozen=True)
class Encoded:
    """One example in tokens. `target` is the completion's tokens (generation) or the class index (classification)."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.target)


def encode(base: Base, examples: Sequence[Example]) -> list[Encoded]:
    """Examples as tokens of the base's tokenizer; nothing is truncated here, the door has refused what is too long.

    With a chat template the prompt becomes the turns that it writes out, a plain one the user's, and the completion the
    assistant's.
    """
    if not examples:
        return []
    prompts = prompt_tokens(base.tokenizer, [example.input for example in examples])
    if base.kind == "classification":
        index = {name: i for i, name in enumerate(base.labels)}
        return [Encoded(tuple(p), (index[e.target],)) for p, e in zip(prompts, examples, strict=True)]
    targets = base.tokenizer([example.target for example in examples], add_special_tokens=False)["input_ids"]
    return [Encoded(tuple(p), (*t, base.end_id)) for p, t in zip(prompts, targets, strict=True)]


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts as the model will meet them when it serves."""
    if not prompts:
        return []
    if getattr(tokenizer, "chat_template", None):
        return tokenizer([_templated(tokenizer, prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    ids = tokenizer(list(prompts))["input_ids"]
    # a tokenizer that closes every text would close the prompt before the answer
    ending = tokenizer.eos_token_id
    is_encoder = tokenizer.sep_token_id is not None and tokenizer.cls_token_id is not None
    return ids if is_encoder else [row[:-1] if len(row) > 1 and row[-1] == ending else row for row in ids]


def _templated(tokenizer: Any, prompt: str) -> str:
    turns = turns_of(prompt)
    template = partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
    try:
        return template(turns)
    except TemplateError:  # some templates refuse a system's turn
        return template(without_system(turns))


def collate(base: Base, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], Tensor]:
    """A batch padded on the right.

    Returns:
        The model's inputs (batch, time), and labels: next tokens (batch, time) with -100 where nothing is learned,
        or class indexes (batch,).
    """
    classify, width = base.kind == "classification", width_of(base, rows)
    ids = torch.full((len(rows), width), base.pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        tokens = row.prompt if classify else row.prompt + row.target
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        if not classify:  # position t predicts token t + 1
            labels[i, len(row.prompt) - 1 : len(tokens) - 1] = torch.tensor(row.target)
    if classify:
        labels = torch.tensor([row.target[0] for row in rows])
    inputs = {"input_ids": ids.to(base.device), "attention_mask": mask.to(base.device)}
    return inputs, labels.to(base.device)


def width_of(base: Base, rows: Sequence[Encoded]) -> int:
    """Tokens to which the rows of a batch are padded: as many as the longest has, in 16 bit up to a multiple of eight.

    Kernels in 16 bit are compiled for a shape and kept: fewer widths take less memory and no more time on a CPU (peaks
    above the start of 274 and 655 MiB at 41.8 and 45.1 CPU seconds, 300 steps of the embedded base), and the tiles of
    a GPU are multiples of eight.
    """
    longest = max(len(row.prompt) if base.kind == "classification" else row.length for row in rows)
    rounded = -(-longest // WIDTH_STEP) * WIDTH_STEP
    positions = getattr(base.model.config, "max_position_embeddings", 0) - VIRTUAL_ROOM
    return rounded if base.compute_dtype != torch.float32 and rounded <= positions else longest


def length_grouped(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch of batches of row indexes, of near-equal lengths inside a batch and random order outside.

    Rows are shuffled, sorted by length within pools of 32 batches, cut into batches, and the batches shuffled: padding
    is hardly computed, and no batch is tied to a place in the epoch.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = batch_size * 32
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda row: lengths[row])
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
