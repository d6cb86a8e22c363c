"""Identity is content: a SHA-256 over bytes that are the same in every process, or a refusal.

JSON with sorted keys, no spaces, UTF-8, and floats in their shortest exact form. A value whose bytes depend on the
process (a set's order, an object's address) or that JSON cannot say (NaN, a key that is not text) is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import IntegrityError, Problem, Unstable, raise_if_any


class FileEntry(NamedTuple):
    """One line of a manifest; `path` is relative, with slashes."""

    path: str
    bytes: int
    sha256: str


def canonical(value: Any) -> bytes:
    """The bytes of a value made of None, bool, int, float, str, sequences and mappings with text keys.

    >>> canonical({"b": [1, 2.5], "a": None})
    b'{"a":null,"b":[1,2.5]}'

    Raises:
        Unstable: naming every place that has no stable bytes.
    """
    raise_if_any(Unstable, _unstable(value, "value"))
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical bytes, in hex. The order of keys does not matter; the order of a list does.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    >>> fingerprint([1]) == fingerprint([1.0])
    False
    """
    return hashlib.sha256(canonical(value)).hexdigest()


def version_key(
    *,
    kind: str,
    spec: Any,
    base: str,
    parents: Sequence[tuple[str, str]],
    evaluation: Sequence[str],
    code: str,
    seed: int,
) -> str:
    """The identity of a version: everything that determines its bytes and its scores, and nothing else.

    `parents` are (role, content hash) pairs: a data set's digest, another version's artifact; in any order.
    """
    return fingerprint(
        {
            "kind": kind,
            "spec": spec,
            "base": base,
            "parents": sorted([role, ref] for role, ref in parents),
            "evaluation": sorted(evaluation),
            "code": code,
            "seed": seed,
        }
    )


def digest_of_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(folder: Path | str) -> str:
    """The digest under which the store would keep this folder: SHA-256 of its manifest's bytes.

    Raises:
        IntegrityError: for an empty folder, or one with links, devices or unspeakable names.
    """
    return digest_of_manifest(manifest_of(Path(folder)))


def digest_of_manifest(entries: Sequence[FileEntry]) -> str:
    return hashlib.sha256(manifest_bytes(entries)).hexdigest()


def manifest_bytes(entries: Sequence[FileEntry]) -> bytes:
    return canonical([entry._asdict() for entry in sorted(entries)])


def manifest_of(folder: Path) -> tuple[FileEntry, ...]:
    """Every regular file below `folder`, sorted by path. Empty folders have no bytes and do not count."""
    return tuple(
        FileEntry(path, (folder / path).stat().st_size, digest_of_file(folder / path)) for path in files_of(folder)
    )


def files_of(folder: Path) -> tuple[str, ...]:
    """Relative paths of all files, sorted; only what can be copied byte for byte and named on every system.

    Raises:
        IntegrityError: naming every link, device, FIFO and unspeakable name, or an empty or missing folder.
    """
    if not folder.is_dir():
        raise IntegrityError.one("E-STORE-004", folder, "is not a folder", "name the folder that holds the files")
    found: list[str] = []
    problems: list[Problem] = []
    for path, mode in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if not stat.S_ISREG(mode):
            problems.append(Problem("E-STORE-004", repr(name), "is a link or a special file", "store plain files only"))
        elif not name.isprintable() or "\\" in name:
            problems.append(
                Problem("E-STORE-004", repr(name), "is not a name that every system can write", "rename it")
            )
        else:
            found.append(name)
    if not found and not problems:
        problems.append(Problem("E-STORE-004", str(folder), "has no files", "store a folder that holds something"))
    raise_if_any(IntegrityError, problems)
    return tuple(sorted(found))


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Everything below that is not a plain folder, with its mode; links are not followed."""
    for entry in os.scandir(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path), mode


def _unstable(value: Any, where: str) -> Iterator[Problem]:
    if value is None or isinstance(value, bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(
                "E-LEDGER-030", where, f"{value} is not a number that JSON can say", "leave it out or use null"
            )
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            yield Problem(
                "E-LEDGER-030", where, "text holds half a character (a lone surrogate)", "decode it correctly"
            )
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _unstable(inner, f"{where}.{key}")
            else:
                yield Problem(
                    "E-LEDGER-030", where, f"key {key!r} is {type(key).__name__}, not text", "name it by text"
                )
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _unstable(inner, f"{where}[{place}]")
    else:
        remedy = "give a sorted list" if isinstance(value, set | frozenset) else "give text, numbers, lists or mappings"
        yield Problem("E-LEDGER-030", where, f"{type(value).__name__} has no stable bytes", remedy)


def _plain(value: Any) -> Any:
    """Mappings of any make as dicts, so that frozen views serialise too."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
