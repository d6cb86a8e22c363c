"""Safetensors shards written tensor by tensor, in any order and by several threads, a row block at a time.

Layout (safetensors format): a little-endian 64-bit header length, a JSON header with every tensor's dtype, shape and
byte range, then the bytes. All of that is known from names and shapes, so the files are laid out first and filled
afterwards.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from tasks.errors import ArtifactRefused

INDEX = "model.safetensors.index.json"
JOURNAL = ".written"
FLUSH_BYTES = 256 << 20  # work that an interruption may cost
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, and what must be written there."""

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """All files of a model before a byte is written. `headers` maps a file to its first bytes, `sizes` to its
    length."""

    places: Mapping[str, Place]
    headers: Mapping[str, bytes] = field(repr=False)
    sizes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(place.bytes for place in self.places.values())


def laid_out(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], max_shard_bytes: int) -> Layout:
    """Tensors in their given order, cut into files of at most `max_shard_bytes` of weights; a larger tensor has its
    own.

    >>> four = {name: (torch.float32, (1,)) for name in "abcd"}
    >>> [place.file for place in laid_out(four, 8).places.values()][::2]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    places: dict[str, Place] = {}
    headers, sizes = {}, {}
    for number, names in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        headers[file], sizes[file] = _header(file, names, tensors, places)
    return Layout({name: places[name] for name in tensors}, headers, sizes)


class ShardWriter:
    """Fills a layout inside a folder. Leaving the block writes the index and flushes every file to the disk.

    Tensors that are on the disk for good are listed in a journal; a writer of the same layout that finds one goes on
    from there, and `left` says what nobody has begun to write. Threads may share it, each with tensors of its own.

    Raises (on leaving):
        ArtifactRefused: a tensor of the layout was never written.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.left = set(layout.places)
        self._files: dict[str, IO[bytes]] = {}
        self._unflushed: list[str] = []
        self._open, self._turn = ExitStack(), Lock()

    def __enter__(self) -> Self:
        done = self._journal()
        for file, header in self.layout.headers.items():
            handle = self._open.enter_context((self.folder / file).open("r+b" if done else "wb", buffering=0))
            if not done:
                handle.truncate(self.layout.sizes[file])
                _put(handle.fileno(), memoryview(header), 0)
            self._files[file] = handle
        self.left -= done
        return self

    def _journal(self) -> set[str]:
        """Names of tensors that an earlier writer of this layout has put on the disk; empty if its files differ."""
        try:
            listed = (self.folder / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be torn
            for file, header in self.layout.headers.items():
                with (self.folder / file).open("rb") as handle:
                    if (
                        handle.read(len(header)) != header
                        or os.fstat(handle.fileno()).st_size != self.layout.sizes[file]
                    ):
                        return set()
        except OSError:
            return set()
        return set(listed) & set(self.layout.places)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor at its place.

        Raises:
            ArtifactRefused: it is not the announced shape, was written before, or holds values that are not finite.
        """
        self.write_rows(name, tuple(tensor.shape), [tensor])

    def write_rows(self, name: str, shape: tuple[int, ...], blocks: Iterable[Tensor]) -> None:
        """Put a tensor of this shape at its place, given in consecutive row blocks.

        Raises:
            ArtifactRefused: as `write`.
        """
        place = self.layout.places[name]
        with self._turn:
            if shape != place.shape or name not in self.left:
                wrong = f"shape {shape} for {place.shape}" if name in self.left else "two updates change it"
                raise ArtifactRefused.one("E-MERGE-031", name, wrong, "merge adapters of this base")
            self.left.discard(name)
        file, at = self._files[place.file].fileno(), place.offset
        for block in blocks:
            value = block.to(place.dtype).contiguous()
            if value.is_floating_point() and not _all_finite(value):
                wrong = f"holds NaN or infinite values as {str(place.dtype).removeprefix('torch.')}"
                raise ArtifactRefused.one("E-MERGE-032", name, wrong, "lower the scale, or write float32")
            at = _put(file, value.reshape(-1).view(torch.uint8).numpy().data, at)
        with self._turn:
            self._unflushed.append(name)
            if sum(self.layout.places[own].bytes for own in self._unflushed) >= FLUSH_BYTES:
                self._flush()

    def _flush(self) -> None:
        """What was written is on the disk, and then the journal says so."""
        for handle in self._files.values():
            os.fsync(handle.fileno())
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write("".join(f"{name}\n" for name in self._unflushed))
            journal.flush()
            os.fsync(journal.fileno())
        self._unflushed.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if kind is not None:
                return
            if self.left:
                wrong = f"{len(self.left)} tensors were never written"
                raise ArtifactRefused.one("E-MERGE-033", min(self.left), wrong, "report this as a bug")
            for handle in self._files.values():
                os.fsync(handle.fileno())
            (self.folder / JOURNAL).unlink(missing_ok=True)
        if len(self.layout.headers) > 1:
            weight_map = {name: place.file for name, place in sorted(self.layout.places.items())}
            index = {"metadata": {"total_size": self.layout.total_bytes}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _put(file: int, memory: memoryview, at: int) -> int:
    """Bytes into an open file at a place; the place behind them."""
    while memory:
        written = os.pwrite(file, memory, at)
        memory, at = memory[written:], at + written
    return at


def _all_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum is neither where none of its terms is, and takes a tenth of the time
    of a look at each; one that overflows is looked at entry by entry."""
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def _header(
    file: str,
    names: Sequence[str],
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    places: dict[str, Place],
) -> tuple[bytes, int]:
    """Header and length of one file; adds its tensors to `places`. Wide types first, so that each is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    relative, at = {}, 0
    for name in sorted(names, key=lambda name: -tensors[name][0].itemsize):
        dtype, shape = tensors[name]
        end = at + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        relative[name], at = at, end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places |= {name: Place(file, start + offset, *tensors[name]) for name, offset in relative.items()}
    return struct.pack("<Q", len(text)) + text, start + at
