"""Tensors of a safetensors file, read by row ranges straight into their own memory, or mapped.

Mapped pages count as the process's memory for as long as nobody else wants them, so a merge that maps a model has read
all of it at its end; reads of a row range hold that range, and mapped pages can be given back.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = 100 << 20  # as safetensors has it


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes begin, and what they are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """An open file. Reads are positioned, so threads may share it; it is closed with its last user."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: it cannot be read.
            ValueError: it is no safetensors file of types known here.
        """
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.tensors = self._header()

    def rows(self, name: str, block: slice | None = None) -> Tensor:
        """Rows of a tensor, or all of it.

        Raises:
            OSError: the file ends before they do.
        """
        stored = self.tensors[name]
        row = prod(stored.shape[1:])
        first, last = (block.start, block.stop) if block is not None else (0, stored.shape[0] if stored.shape else 1)
        shape = (last - first, *stored.shape[1:]) if stored.shape else ()
        value = torch.empty(shape, dtype=stored.dtype)
        size, at = stored.dtype.itemsize, stored.offset + first * row * stored.dtype.itemsize
        held: Any = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else bytearray()
        memory = memoryview(held)
        done = 0
        while done < prod(shape) * size:
            read = os.preadv(self._file.fileno(), [memory[done:]], at + done)
            if read == 0:
                raise OSError(f"{self.path} ends inside {name}")
            done += read
        return value

    def mapped(self, name: str) -> Tensor:
        """A tensor whose bytes are read when they are looked at."""
        stored = self.tensors[name]
        if not prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        found = torch.frombuffer(self._pages, dtype=stored.dtype, count=prod(stored.shape), offset=stored.offset)
        return found.reshape(stored.shape)

    def forget(self) -> None:
        """Give back the pages of mapped tensors; whoever looks at one again reads it again."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _pages(self) -> mmap.mmap:
        return mmap.mmap(
            self._file.fileno(), 0, access=mmap.ACCESS_COPY
        )  # torch wants to be able to write; nobody does

    def _header(self) -> dict[str, Stored]:
        length = os.fstat(self._file.fileno()).st_size
        first = self._file.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 0 <= size <= min(LARGEST_HEADER, length - 8):
            raise ValueError("no safetensors header")
        entries = json.loads(self._file.read(size))
        found = {}
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} has the unknown type {entry['dtype']}")
            begin, end = entry["data_offsets"]
            stored = Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + size + begin)
            if end - begin != prod(stored.shape) * stored.dtype.itemsize or min(begin, *stored.shape, 0) < 0:
                raise ValueError(f"{name} has {end - begin} bytes, which are not those of its shape")
            if 8 + size + end > length:
                raise ValueError(f"the file ends before {name} does")
            found[name] = stored
        return found
