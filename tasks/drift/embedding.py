"""Texts as points: the mean of a model's last hidden states, of unit length; near points say nearly the same.

Reimers & Gurevych 2019, arXiv:1908.10084, section 3, take the mean over the tokens that are there. A text without any
token lies at the origin. Texts are cut at `longest` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tasks.training.base import Base

BATCH = 64


def points_of(base: Base, texts: Sequence[str], *, longest: int = 128) -> np.ndarray:
    """One point a text, (texts, width), from a loaded base without any adapter: the same whatever it was taught."""

    def hidden(ids: Any, mask: Any) -> Any:
        with base.autocast():
            said = base.model(
                input_ids=ids.to(base.device), attention_mask=mask.to(base.device), output_hidden_states=True
            )
        return said.hidden_states[-1].float().cpu()

    base.model.eval()
    return _means(base.tokenizer, texts, longest, hidden)


def embedded(texts: Sequence[str], folder: Path, *, longest: int = 128, threads: int | None = None) -> np.ndarray:
    """One point a text, (texts, width), from the encoder or causal model in `folder`."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    if threads is not None:
        torch.set_num_threads(threads)
    return _means(
        tokenizer, texts, longest, lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state
    )


def _means(tokenizer: Any, texts: Sequence[str], longest: int, hidden: Callable[..., Any]) -> np.ndarray:
    import torch

    rows = [ids[:longest] for ids in tokenizer(list(texts))["input_ids"]] if len(texts) else []
    order = sorted((i for i, ids in enumerate(rows) if ids), key=lambda i: len(rows[i]))
    points: np.ndarray | None = None
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        width = max(len(rows[i]) for i in batch)
        ids, mask = torch.zeros((len(batch), width), dtype=torch.long), torch.zeros((len(batch), width))
        for line, i in enumerate(batch):
            ids[line, : len(rows[i])] = torch.tensor(rows[i])
            mask[line, : len(rows[i])] = 1
        with torch.inference_mode():
            states = hidden(ids, mask.long())  # (batch, width, hidden)
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        if points is None:
            points = np.zeros((len(rows), mean.shape[1]), np.float32)
        points[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return np.zeros((len(rows), 1), np.float32) if points is None else points
