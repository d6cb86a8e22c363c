"""The untouched base as a yardstick: what an adapter must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tasks.data.examples import Example
from tasks.methods.build import final_linear
from tasks.training.base import Base
from tasks.training.encoding import encode
from tasks.training.head import start_head_from_class_means


@contextmanager
def untouched(base: Base, train: Sequence[Example] = ()) -> Iterator[Any]:
    """The base without an adapter. A classifier without a head answers nothing, so it gets the nearest class mean of
    its own frozen features over the training rows, which is also where every adapter starts."""
    if base.kind != "classification":
        yield base.model
        return
    _, head = final_linear(base.model)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    start_head_from_class_means(base, base.model, encode(base, train))
    try:
        yield base.model
    finally:
        with torch.no_grad():
            head.load_state_dict(before)
