"""The header of a safetensors file: names, types and shapes of its tensors in a few KiB; torch-free."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused

MAX_HEADER_BYTES = 100_000_000


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of length, then that many bytes.

    Raises:
        ArtifactRefused: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("header is no object")
        for name, entry in header.items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if name != "__metadata__" and not (
                isinstance(shape, list)
                and all(type(length) is int and length >= 0 for length in shape)
                and isinstance(entry.get("dtype"), str)
            ):
                raise ValueError(f"entry '{name:.60}' has no dtype and shape")
        return header
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise ArtifactRefused.one("E-BASE-007", path, f"is no safetensors file: {error}", "restore the file") from error
