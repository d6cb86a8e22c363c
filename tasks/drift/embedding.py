"""Texts as points: the mean of an encoder's last hidden states, of unit length; near points say nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BATCH = 64


def embedded(texts: Sequence[str], folder: Path, *, longest: int = 128, threads: int | None = None) -> np.ndarray:
    """One point a text, (texts, width) float32 of length 1, from the encoder or causal model in `folder`.

    Texts are cut at `longest` tokens. The mean runs over the tokens that are there (Reimers & Gurevych 2019,
    arXiv:1908.10084, section 3). A text without any token lies at the origin.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    if threads is not None:
        torch.set_num_threads(threads)
    rows = [ids[:longest] for ids in tokenizer(list(texts))["input_ids"]] if len(texts) else []
    points = np.zeros((len(rows), int(model.config.hidden_size)), np.float32)
    order = sorted((i for i, ids in enumerate(rows) if ids), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        width = max(len(rows[i]) for i in batch)
        ids, mask = torch.zeros((len(batch), width), dtype=torch.long), torch.zeros((len(batch), width))
        for line, i in enumerate(batch):
            ids[line, : len(rows[i])] = torch.tensor(rows[i])
            mask[line, : len(rows[i])] = 1
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        points[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return points
