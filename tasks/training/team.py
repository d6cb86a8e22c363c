"""Several processes that train one adapter: each computes its share of every batch, all take the same step.

Data-parallel by the sum of gradients: with the loss of a batch divided by all that is learned in it, the sum over the
shares is the gradient of the whole batch, so that the adapter is the one of a single process up to rounding. The
adapter alone travels, a few MB a step; the base is loaded by each. Started by torchrun, see `tasks.training.parallel`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
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

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's rows of a batch; near-equal in number and, as batches are sorted by length, in work.

        >>> Team(1, 3).share([0, 1, 2, 3, 4])
        [1, 4]
        """
        return list(rows[self.rank :: self.size])

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


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _device() -> torch.device:
    """Where messages lie: NCCL speaks of GPUs, gloo of the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if dist.get_backend() == "nccl" else torch.device("cpu")
