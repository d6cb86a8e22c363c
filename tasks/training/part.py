"""A run asks for the gradient of one part of its batch after another; whoever drives it computes it.

The loop is a generator: it yields parts and is sent their losses. So a run does not know whether it is alone or one of
several whose rows share a pass over the base (`tasks.training.together`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from tasks.training.base import Base
from tasks.training.encoding import Encoded, collate, width_of
from tasks.training.losses import summed_loss
from tasks.training.state import RunState
from tasks.training.team import ALONE, Team

P = ParamSpec("P")
R = TypeVar("R")
Run = Generator["Part", float, R]


class Halted(Exception):
    """A stop was asked for between two parts of a batch."""


class Cramped(Exception):
    """A step needs more memory than one process of several has, while the others wait for its part of the base.

    All must begin again, from the newest checkpoint, with so many rows at once.
    """

    def __init__(self, step: int, rows: int) -> None:
        super().__init__(f"out of memory at step {step}")
        self.step, self.rows = step, rows


@dataclass(frozen=True)
class Part:
    """Rows of one run that are computed at once.

    Attributes:
        base: the run's own, under its adapter; `model` is both, `answer` their logits.
        learned: tokens (or rows, for classes) that the whole batch learns; its loss is the mean over them.
        counts: False for a row that stands in for none, so that all processes of a team take as many passes.
        steps_left: optimiser steps of the run from here, this one included.
    """

    base: Base
    model: Any
    answer: Callable[..., Tensor]
    rows: Sequence[Encoded]
    learned: int
    state: RunState
    steps_left: int = 1
    counts: bool = True

    @classmethod
    def of(
        cls,
        base: Base,
        model: Any,
        answer: Callable[..., Tensor],
        rows: Sequence[Encoded],
        state: RunState,
        left: int = 1,
    ) -> Part:
        """A whole batch."""
        learned = len(rows) if base.kind == "classification" else max(1, sum(len(row.target) for row in rows))
        return cls(base, model, answer, rows, learned, state, left)

    @property
    def tokens(self) -> int:
        """What is computed, padding included."""
        return len(self.rows) * width_of(self.base, self.rows)


def backward(part: Part) -> float:
    """Add the gradient of a part to its adapter's; the part's summed loss."""
    inputs, labels = collate(part.base, part.rows)
    with part.base.autocast():
        loss, _ = summed_loss(part.base, part.answer, inputs, labels)
    (loss * part.counts / part.learned).backward()
    return float(loss.detach())


def gradients(
    batch: Part, micro_batch: int | None, stop: Callable[[], bool], team: Team = ALONE
) -> Run[tuple[float, int, float]]:
    """Gradients of this process's share of a batch: (its part of the mean loss, tokens of the batch, tokens that this
    process computed, padding included).

    Raises:
        Halted: `stop` said so between two parts.
    """
    total, width, rows = 0.0, 0.0, batch.rows
    for number, (piece, counts) in enumerate(team.pieces(rows, micro_batch or -(-len(rows) // team.size))):
        if number and stop():
            raise Halted
        part = replace(batch, rows=piece, counts=counts)
        total += (yield part) * counts
        width += part.tokens * counts
    tokens = sum(len(row.prompt) if batch.base.kind == "classification" else row.length for row in rows)
    return total / batch.learned, tokens, width


def driven(run: Callable[P, Run[R]]) -> Callable[P, R]:
    """The run as a plain function, for one that is alone."""

    @wraps(run)
    def whole(*args: P.args, **kwargs: P.kwargs) -> R:
        return alone(run(*args, **kwargs))

    return whole


def alone(run: Run[R]) -> R:
    """Compute what a run asks for until it ends; an error of a part is raised where the run waits for it."""
    try:
        part = next(run)
        while True:
            try:
                loss = backward(part)
            except BaseException as error:
                part = run.throw(error)
            else:
                part = run.send(loss)
    except StopIteration as end:
        return end.value
