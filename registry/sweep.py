"""Taking out the rubbish: stored objects that nothing refers to, and what killed writers left, when a day has passed.

A run stores its files first and registers them last, so whatever is young may still be on its way into the ledger. An
object that is stored again is young again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from registry.database import hold_history
from registry.failpoint import failpoint
from registry.ledger import Ledger
from registry.references import referenced
from registry.store import Store

DAY_SECONDS = 86_400.0


class Rubbish(NamedTuple):
    """One thing that nobody needs."""

    kind: str  # object, litter
    name: str  # digest, or path
    bytes: int
    age_seconds: float


def rubbish(
    ledger: Ledger,
    store: Store,
    *,
    now_seconds: float,
    older_seconds: float = DAY_SECONDS,
    workshops: Sequence[Path] = (),
) -> tuple[Rubbish, ...]:
    """What a sweep would take away now; nothing is touched.

    Args:
        now_seconds: the time since 1970, by the clock that dates the store's files.
        workshops: further folders in which only work in progress lies.
    """
    with ledger.database.reading() as session:
        needed = referenced(session)
    objects = []
    for digest in store.digests():
        with suppress(FileNotFoundError):  # another sweep took it just now
            if digest not in needed:
                age = store.age_seconds(digest, now_seconds)
                objects.append(Rubbish("object", digest, store.bytes_of(digest), age))
    left = []
    for name, age in (*store.litter(now_seconds), *_contents(workshops, now_seconds)):
        with suppress(FileNotFoundError):
            left.append(Rubbish("litter", name, _bytes_below(Path(name)), age))
    return tuple(item for item in (*objects, *left) if item.age_seconds > older_seconds)


def sweep(
    ledger: Ledger,
    store: Store,
    *,
    now_seconds: float,
    older_seconds: float = DAY_SECONDS,
    workshops: Sequence[Path] = (),
) -> tuple[Rubbish, ...]:
    """Take it away, and say what it was. Nobody registers while objects are taken out of sight, and each is looked at
    again: what came to be referred to, or was stored again meanwhile, stays."""
    found = rubbish(ledger, store, now_seconds=now_seconds, older_seconds=older_seconds, workshops=workshops)
    taken: list[Rubbish] = []
    with ledger.database.writing() as session:
        hold_history(session, alone=True)
        needed = referenced(session)
        for item in found:
            if item.kind == "object" and item.name not in needed:
                with suppress(FileNotFoundError):  # gone, or somebody replaces what was damaged just now
                    if store.age_seconds(item.name, now_seconds) > older_seconds:
                        store.hide(item.name)
                        taken.append(item)
        failpoint("gc.before_commit")
    failpoint("gc.after_commit")
    store.erase_hidden()
    for item in found:
        if item.kind == "litter":
            store.discard(item.name)
            taken.append(item)
    return tuple(taken)


def _contents(folders: Sequence[Path], now_seconds: float) -> Iterator[tuple[str, float]]:
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # whoever worked there is done
                yield str(path), now_seconds - path.stat().st_mtime


def _bytes_below(path: Path) -> int:
    """Of a folder or file here; 0 for what lies elsewhere."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
