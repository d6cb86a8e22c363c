"""The most memory that a stretch of work held above what was held when it began."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
LARGE_BLOCK_BYTES, KEPT_BYTES = 1 << 20, 32 << 20  # the second as glibc's own threshold is after large blocks
_STRETCHES = count()
STATUS, MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Begun at `start_bytes`; on a GPU of the card, else of this process as the kernel counts it.

    Attributes:
        is_whole: whether all that the stretch needs is counted. On a CPU only a process's first: the next find blocks
            that the C library kept, and compiled kernels.
    """

    device: torch.device
    start_bytes: int
    is_whole: bool = True

    @classmethod
    def begun(cls, device: torch.device) -> Peak:
        """From here on: the high-water mark is set back to what is held now (Linux; elsewhere it stays)."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return cls(device, int(torch.cuda.memory_allocated(device)))
        with suppress(OSError):
            MARKS.write_text("5")
        return cls(device, resident("VmRSS"), is_whole=next(_STRETCHES) == 0)

    def above_start_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.start_bytes
        return max(0, resident("VmHWM") - self.start_bytes)


@contextmanager
def handing_back(device: torch.device, adapters: int = 1) -> Iterator[None]:
    """While it is entered the C library returns every block of a megabyte and more to the system when it is freed, of
    so many megabytes as adapters share a pass: their blocks are as many times as large, and new ones cost time.

    By default glibc keeps blocks of up to 32 MB for later, in pieces that the next step's tensors do not fit: a run
    on a CPU then holds up to twice what it uses. What follows a run takes its blocks anew at once, and keeps them.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        yield
        return
    _tell_glibc(MMAP_THRESHOLD, adapters * LARGE_BLOCK_BYTES)
    try:
        yield
    finally:
        _tell_glibc(MMAP_THRESHOLD, KEPT_BYTES)
        _tell_glibc(TRIM_THRESHOLD, 2 * KEPT_BYTES)


def _tell_glibc(what: int, size: int) -> None:
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(what, size)


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process; getrusage counts what a parent held when it forked."""
    if STATUS.is_file():
        return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
