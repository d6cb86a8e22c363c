"""Several processes that train one adapter: each computes its share of every batch, all take the same step.

Data-parallel by the sum of gradients: with the loss of a batch divided by all that is learned in it, the sum over the
shares is the gradient of the whole batch, so that the adapter is the one of a single process up to rounding. The
adapter alone travels, a few MB a step; the base is loaded by each. Started by torchrun, see `tasks.training.parallel`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process's place among those that share a run; alone it does nothing at all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> Team:
        """The team that torchrun's process group is, or this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for the team."""
        return self.rank == 0

    def pieces(self, rows: Sequence[T], at_once: int) -> Iterator[tuple[list[T], bool]]:
        """This process's rows, at most `at_once` together; near-equal in number and, where sorted by length, in work.

        All processes get as many pieces, for a sharded base is passed through together: one that has no row of its own
        in the last piece gets the piece's first, and False, as it counts elsewhere.

        >>> list(Team(0, 3).pieces("abcdefg", 2)), list(Team(1, 3).pieces("abcdefg", 2))
        ([(['a', 'd'], True), (['g'], True)], [(['b', 'e'], True), (['g'], False)])
        """
        for start in range(0, len(rows), at_once * self.size):
            piece = rows[start : start + at_once * self.size]
            own = list(piece[self.rank :: self.size])
            yield (own, True) if own else ([piece[0]], False)

    def draw_apart(self, seed: int, step: int) -> None:
        """Chance of its own for each process and step, so that no two drop the same, also after a resume."""
        if self.size > 1:
            torch.manual_seed(int.from_bytes(sha256(f"{seed} {step} {self.rank}".encode()).digest()[:7], "big"))

    def summed(self, *values: float) -> tuple[float, ...]:
        """Each value summed over the team."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return tuple(total.tolist())

    def any(self, flag: bool) -> bool:
        """Whether one of the team says so; all hear the same answer."""
        return bool(self.summed(float(flag))[0])

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradients of all shares on every process, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([_gradient(parameter).flatten().float() for parameter in parameters])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _device() -> torch.device:
    """Where messages lie: NCCL speaks of GPUs, gloo of the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if dist.get_backend() == "nccl" else torch.device("cpu")
