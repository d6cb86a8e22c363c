"""One module in all the parents that change it: what a merge rule sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.merging.algebra import Kept, kept_entries
from tasks.merging.selection import kth_magnitude

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.merging.vectors import Reader, Update


@dataclass(frozen=True)
class Stack:
    """The changes of one module, in the plan's order of parents.

    Attributes:
        shape: (out, in) of the module.
        members: places of these parents among all parents of the merge.
        weights: their weights; `total_weight` is that of all parents, those that leave the module alone included, and
            `parents` how many of those have a weight.
        streams: per parent, what keys its random draws.
    """

    name: str
    shape: tuple[int, int]
    members: tuple[int, ...]
    updates: tuple[Update, ...]
    weights: tuple[float, ...]
    total_weight: float
    streams: tuple[int, ...]
    parents: int

    def blocks(self) -> Iterator[slice]:
        from tasks.merging.vectors import row_blocks

        return row_blocks(*self.shape)

    def rows(self) -> Callable[[slice], Tensor]:
        """A function from a row range to each model's change there, float32 (models, rows, in). What it gave before is
        overwritten: memory that is asked for anew costs as much as the products that fill it."""
        import torch

        readers = [update.rows(self.name) for update in self.updates]
        held = torch.empty(len(readers), max(block.stop - block.start for block in self.blocks()), self.shape[1])

        def read(block: slice) -> Tensor:
            found = held[:, : block.stop - block.start]
            for reader, into in zip(readers, found, strict=True):
                reader(block, into)
            return found

        return read

    @property
    def low_rank(self) -> bool:
        """Whether every parent's change here has factors."""
        return all(update.has_factors(self.name) for update in self.updates)

    def factors(self) -> list[tuple[Tensor, Tensor]] | None:
        """(s B, A) of each parent in float64, or None if one of them has no low rank."""
        found = [update.factors(self.name) for update in self.updates]
        return None if any(pair is None for pair in found) else [pair for pair in found if pair is not None]

    def thresholds(self, density: float, kept: Kept) -> list[float]:
        """Per parent, the magnitude from which its entries in this module are kept."""
        entries = self.shape[0] * self.shape[1]
        count = kept_entries(entries, density, kept=kept)
        if count == entries:
            return [0.0] * len(self.updates)
        return self.magnitudes_of_rank(count)

    def magnitudes_of_rank(self, kept: int) -> list[float]:
        """Per parent, its `kept`-th largest magnitude in this module."""
        blocks = list(self.blocks())
        return [kth_magnitude(update.rows(self.name), self.shape, blocks, kept) for update in self.updates]


@dataclass(frozen=True)
class Held:
    """A change that is in memory already, such as a parent's coordinates in a shared basis."""

    value: Tensor  # (out, in) float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape[0], self.value.shape[1]

    def rows(self, name: str) -> Reader:
        from tasks.merging.vectors import reader_of

        return reader_of(self.value.__getitem__)

    def delta(self, name: str) -> Tensor:
        return self.value

    def has_factors(self, name: str) -> bool:
        return False

    def factors(self, name: str) -> None:
        return None


@dataclass(frozen=True)
class Thin:
    """The same as a product of two factors, which is computed where it is read."""

    B: Tensor  # (out, rank) float32
    A: Tensor  # (rank, in) float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def rows(self, name: str) -> Reader:
        from tasks.merging.vectors import reader_of_product

        return reader_of_product(self.B, self.A)

    def delta(self, name: str) -> Tensor:
        return self.B @ self.A

    def has_factors(self, name: str) -> bool:
        return False

    def factors(self, name: str) -> None:
        return None


def stream_of(digest: str, copy: int, module: str) -> int:
    """The 64-bit key of a parent's draws in a module: by content, so that neither names nor order matter; `copy` tells
    equal parents apart."""
    return int.from_bytes(hashlib.sha256(f"{digest}:{copy}:{module}".encode()).digest()[:8], "big")
