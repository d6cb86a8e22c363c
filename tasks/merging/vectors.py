"""The exact change that an adapter makes to each weight of its base.

    LoRA     dW = s B A, s = alpha / r                                   Hu et al. 2021, arXiv:2106.09685
    rsLoRA   the same with s = alpha / sqrt(r)                           Kalajdzievski 2023, arXiv:2312.03732
    DoRA     dW = m (W + s B A) / ||W + s B A||_row - W                  Liu et al. 2024, arXiv:2402.09353
    bias     db = s b, where lora_B was trained with a bias
    VeRA     dW = diag(b) B diag(d) A                                    Kopiczko et al. 2023, arXiv:2310.11454
    IA3      dW = (l - 1) W by rows, db = (l - 1) b; by columns in feed-forward modules, without the bias
                                                                         Liu et al. 2022, arXiv:2205.05638
    values   dW = W' - W, where the base's own norms, biases or all weights were trained

One adapter at weight 1 gives the logits of the attached adapter; that is what the tests of this room hold first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tasks.errors import ArtifactRefused, Problem, raise_if_any
from tasks.merging.adapter_file import read_adapter_file
from tasks.merging.parts import LowRank

BLOCK_ENTRIES = 1 << 19
"""Entries of a row block: 2 MiB in float32. Smaller ones fit a cache better, and have threads wait for each other."""

BIAS = ".bias"
EVERY = slice(None)


class Reader(Protocol):
    """Rows of a change, or some columns of them, in memory of their own or where they are wanted."""

    def __call__(self, block: slice, out: Tensor | None = None, columns: slice = EVERY) -> Tensor: ...


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive row ranges of about `BLOCK_ENTRIES` entries. One partition per shape, so that every pass over a
    module computes the same bits.

    >>> list(row_blocks(5, 1 << 18))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK_ENTRIES // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def reader_of_product(B: Tensor, A: Tensor) -> Reader:
    """A reader of B A."""
    return lambda block, out=None, columns=EVERY: torch.mm(B[block], A[:, columns], out=out)


def reader_of(rows: Callable[[slice], Tensor]) -> Reader:
    """A reader from a function that gives whole rows."""

    def read(block: slice, out: Tensor | None = None, columns: slice = EVERY) -> Tensor:
        found = rows(block)[:, columns]
        return found if out is None else out.copy_(found)

    return read


@dataclass(frozen=True)
class Update:
    """All weight changes of one adapter, in float32, computed when asked for.

    Names are those of the base's weights without ".weight"; a bias stands under "<module>.bias" with shape (out, 1).
    Shapes are (out, in) also where the base stores (in, out); `transposed` says so. `forget` gives back the memory of
    what was read of the adapter's file.
    """

    folder: Path
    kind: str
    digest: str
    transposed: bool
    head: Mapping[str, Tensor]
    parts: Mapping[str, LowRank] = field(repr=False)
    base_weight: Callable[[str], Tensor] | None = field(repr=False)
    scaled_biases: tuple[str, ...] = ()
    forget: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def vectors(self) -> frozenset[str]:
        """What the base stores with one axis; its shape here is (out, 1)."""
        replaced = {name for name, part in self.parts.items() if part.is_vector}
        return frozenset(replaced | {name for name in self.modules if self._is_bias(name)})

    @property
    def replaces(self) -> bool:
        """Whether it holds new values of the base's own parameters, norms and embeddings perhaps among them."""
        return any(part.value is not None for part in self.parts.values())

    @property
    def modules(self) -> tuple[str, ...]:
        biases = [f"{name}{BIAS}" for name, part in self.parts.items() if part.bias is not None]
        return tuple(sorted([*self.parts, *biases, *self.scaled_biases]))

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of the change."""
        part = self._part(name)
        return part.B.shape[0], 1 if self._is_bias(name) else part.A.shape[1]

    def has_factors(self, name: str) -> bool:
        """Whether the change has a low rank."""
        part = self._part(name)
        return self._is_bias(name) or part.is_vector or part.is_product

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(s B, A) in float64 with dW = s B A, or None where the change has no low rank (DoRA)."""
        part = self._part(name)
        if self._is_bias(name):
            return self._bias(name).double()[:, None], torch.ones(1, 1, dtype=torch.float64)
        if part.is_vector:
            return self.delta(name).double(), torch.ones(1, 1, dtype=torch.float64)
        return (part.scale * part.B.double(), part.A.double()) if self.has_factors(name) else None

    def inputs_read(self, name: str) -> Tensor:
        """(rank, in): rows span the inputs that the low-rank part reads; where there is none, their mean direction."""
        part = self._part(name)
        if self._is_bias(name) or part.is_vector:
            return torch.ones(1, 1)
        whole = part.gain is not None or part.value is not None
        return self.delta(name).mean(0, keepdim=True) if whole else part.A.float()

    def rows(self, name: str) -> Reader:
        """A function from a row range to that part of dW, float32 (rows, in); written to its second argument, if there
        is one. Some columns of it may differ in the last bit from those of the whole rows."""
        part = self._part(name)
        if part.is_product and not self._is_bias(name):
            return reader_of_product((part.scale * part.B.double()).float(), part.A.float())
        return reader_of(self._other_rows(name, part))

    def _other_rows(self, name: str, part: LowRank) -> Callable[[slice], Tensor]:
        if self._is_bias(name):
            column = self._bias(name).float()[:, None]
            return lambda block: column[block]
        if part.value is not None:
            W, value = self._weight(name), part.value
            return lambda block: (value[block].float() - W[block]).reshape(len(value[block]), -1)
        if part.gain is not None:
            W, gain = self._weight(name), part.gain.float() - 1
            return lambda block: W[block] * (gain if part.of_inputs else gain[block, None])
        assert part.magnitude is not None
        B, A = (part.scale * part.B.double()).float(), part.A.float()
        W, magnitude = self._weight(name), part.magnitude.float()
        return lambda block: _dora(W[block], B[block] @ A, magnitude[block])

    def delta(self, name: str) -> Tensor:
        """dW, float32 (out, in)."""
        rows = self.rows(name)
        return torch.cat([rows(block) for block in row_blocks(*self.shape(name))])

    def _bias(self, name: str) -> Tensor:
        """The change of a bias (out,), float64."""
        part = self._part(name)
        if part.gain is not None:
            assert self.base_weight is not None
            return (part.gain.double() - 1) * self.base_weight(name).double()
        assert part.bias is not None
        return part.scale * part.bias.double()

    def _is_bias(self, name: str) -> bool:
        return name not in self.parts and name.endswith(BIAS)

    def _part(self, name: str) -> LowRank:
        return self.parts[name] if name in self.parts else self.parts[name.removesuffix(BIAS)]

    def _weight(self, name: str) -> Tensor:
        """The base weight as (out, in) float32.

        Raises:
            ArtifactRefused: the update needs it (DoRA, IA3, new values) and no base was given.
        """
        if self.base_weight is None:
            wrong = "the update depends on the base weight, and no base was given"
            raise ArtifactRefused.one("E-ADAPTER-113", f"{self.folder}:{name}", wrong, "give the base")
        weight = self.base_weight(name).float()
        return weight.T if self.transposed else weight


def exact_updates(
    folder: Path,
    base_weight: Callable[[str], Tensor] | None = None,
    base_shape: Callable[[str], tuple[int, ...] | None] | None = None,
) -> Update:
    """The weight changes of an adapter folder; only the adapter is read now.

    Args:
        base_weight: module name to the weight that the adapter was trained on, as stored; of an NF4 base the
            dequantised weight. Asked only where the update depends on it.
        base_shape: module name (or "<module>.bias") to the stored shape, None where the base has no such weight. With
            it, modules that do not fit are refused.

    Raises:
        ArtifactRefused: the adapter is unreadable, has no exact update, or does not fit the base.
    """
    read = read_adapter_file(folder)
    parts, biases = _shaped(folder, read.modules, base_shape)
    update = Update(folder, read.kind, read.digest, read.transposed, read.head, parts, base_weight, biases, read.forget)
    if base_shape is not None:
        raise_if_any(ArtifactRefused, _misfits(update, base_shape))
    return update


def _shaped(
    folder: Path, parts: Mapping[str, LowRank], base_shape: Callable[[str], tuple[int, ...] | None] | None
) -> tuple[dict[str, LowRank], tuple[str, ...]]:
    """The parts in the shapes of the base, and the biases that IA3's factors scale too.

    Raises:
        ArtifactRefused: an adapter that does not say its modules' shapes, and no base, or one that it does not fit.
    """
    found, biases, problems = {}, [], []
    for name, part in parts.items():
        if not part.needs_shape:
            found[name] = part
            continue
        stored = base_shape(name) if base_shape is not None else None
        if base_shape is None:
            wrong = "the adapter does not say the shapes of its modules, and no base was given"
            problems.append(Problem("E-ADAPTER-113", f"{folder}:{name}", wrong, "give the base"))
        elif stored is None or not part.fits(stored):
            wrong = f"does not fit the base's {stored if stored else 'missing weight'}"
            remedy = "use the base that the adapter was trained on"
            problems.append(Problem("E-ADAPTER-114", f"{folder}:{name}", wrong, remedy))
        else:
            found[name] = part.shaped(stored)
            if part.gain is not None and not part.of_inputs and base_shape(f"{name}{BIAS}") is not None:
                biases.append(f"{name}{BIAS}")
    raise_if_any(ArtifactRefused, problems)
    return found, tuple(biases)


def _misfits(update: Update, base_shape: Callable[[str], tuple[int, ...] | None]) -> list[Problem]:
    found = []
    for name in update.modules:
        rows, columns = update.shape(name)
        wanted = (rows,) if name in update.vectors else (columns, rows) if update.transposed else (rows, columns)
        stored = base_shape(name)
        if stored is None or tuple(stored) != wanted:
            have = "no such weight" if stored is None else f"{tuple(stored)}"
            wrong = f"the update is {wanted}, the base has {have}"
            remedy = "use the base that the adapter was trained on"
            found.append(Problem("E-ADAPTER-114", f"{update.folder}:{name}", wrong, remedy))
    return found


def _dora(W: Tensor, BA: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + s B A) / ||W + s B A||_row - W, over whole rows: the norm is the row's own."""
    moved = W + BA
    return (magnitude / torch.linalg.vector_norm(moved, dim=1))[:, None] * moved - W
