"""Making a thing once, and keeping it whole: turns under a lease, and folders that are stored or leave no trace."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from flows.holder import is_gone, myself
from flows.progress import voice
from flows.wiring import Home
from registry.attempts import LEASE
from registry.errors import Conflict, RegistryError
from registry.failpoint import failpoint
from registry.fingerprint import digest_of_file, fingerprint
from registry.records import LeaseRecord
from tasks.errors import SpecRefused

if TYPE_CHECKING:
    from tasks.specs import AdapterSpec

BASE_FILES = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.model", "vocab*", "*.jinja")
WORDS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")  # how the names of a tokenizer's files begin

LEASE_SECONDS = 60.0  # a maker that died on another machine is followed after this long
LOOK_SECONDS = 0.5  # how often someone who waits looks again


@contextmanager
def turn_to_make(home: Home, key: str) -> Iterator[LeaseRecord | None]:
    """Our turn to make the version of this key, under a lease; None where it was made while we waited.

    Of any number of processes that want the same version, on any number of machines, one makes it. If it dies, the next
    one follows: at once on the same machine, elsewhere when its lease has run out. How an attempt ended stands in the
    ledger.
    """
    with sole(home, LEASE + key, why="the same version is being made", enough=lambda: made(home, key)) as lease:
        if lease is None or made(home, key):
            yield None
            return
        attempt = home.ledger.begin_attempt(key, lease)
        try:
            yield lease
        except BaseException as error:
            with suppress(RegistryError):  # the error that counts is the one that ended it
                said = (str(error).splitlines() or [""])[0]
                home.ledger.end_attempt(attempt, state="failed", outcome=f"{type(error).__name__}: {said}"[:300])
            raise
        version = home.ledger.by_key(key)
        home.ledger.end_attempt(attempt, state="done" if version else "failed", outcome=version.ref if version else "")


@contextmanager
def sole(
    home: Home, name: str, *, why: str, enough: Callable[[], bool] = lambda: False, patience_seconds: float = 86_400.0
) -> Iterator[LeaseRecord | None]:
    """The lease of this name, renewed while the block runs; waited for while someone else has it.

    Yields None where `enough` says that waiting has come to its end without it.

    Raises:
        Conflict: someone else has it for longer than we have patience.
    """
    holder, deadline, told = myself(), time.monotonic() + patience_seconds, False
    while (lease := home.ledger.take_lease(name, holder=holder, seconds=LEASE_SECONDS, gone=is_gone)) is None:
        if enough():
            yield None
            return
        if time.monotonic() > deadline:
            raise Conflict.one("E-LEDGER-041", why, "someone else is at it", "run again when it is done")
        if not told:
            voice.say(f"  {why} by another run; waiting for it")
            told = True
        time.sleep(LOOK_SECONDS)
    done = Event()
    heart = Thread(target=_renew, args=(home, lease, done), daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        done.set()
        heart.join()
        with suppress(RegistryError):
            home.ledger.release_lease(lease)


def kept(home: Home, write: Callable[[Path], None], place: Path | None = None) -> str:
    """The digest under which the store keeps the folder that `write` fills; an interrupted write leaves no object.

    Args:
        place: where the folder is made, and left to whoever named it; by default one that is gone afterwards.
    """
    staging = place or Path(tempfile.mkdtemp(dir=home.scratch()))
    try:
        failpoint("merge.before_write")
        write(staging / "model")
        failpoint("merge.after_write")
        return home.store.put(staging / "model")
    finally:
        if place is None:
            shutil.rmtree(staging, ignore_errors=True)


def refuse_other_kind(home: Home, name: str, kind: str) -> None:
    """A name is that of an adapter or that of a merged model: either would be served in the place of the other.

    Raises:
        SpecRefused: versions of this name are of the other kind.
    """
    for version in home.ledger.versions(name) if name in home.ledger.names() else ():
        if version.kind != kind:
            article = {"adapter": "an adapter", "merged": "a merged model"}[version.kind]
            raise SpecRefused.one("E-SPEC-048", name, f"is the name of {article}, {version.ref}", "choose another name")


def made(home: Home, key: str) -> bool:
    """Whether the version of this key is registered."""
    return home.ledger.by_key(key) is not None


def bound(spec: AdapterSpec, folder: Path, artifact: Path) -> dict[str, Any]:
    """What the manifest of an adapter or of a merge binds beside its files, by content: every file of the base, its
    tokenizer and chat template, the precision of the frozen weights, and the names of the head's outputs."""
    files = base_files(folder)
    words = {name: digest for name, digest in files.items() if name.startswith(WORDS) or name.endswith(".model")}
    labels = artifact / "labels.json"
    return {
        "base": {"files": files},
        "tokenizer": fingerprint(words),
        "chat_template": chat_template(folder),
        "quantization": {"scheme": spec.base.quantization, "double_quant": spec.base.double_quant},
        "head": {"kind": spec.kind, "labels": digest_of_file(labels) if labels.is_file() else None},
    }


def base_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that make a base, by name; hashed once per process as long as they are not touched."""
    files = sorted({path for pattern in BASE_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: _digest(path, *_touched(path)) for path in files}


def chat_template(folder: Path) -> str | None:
    """SHA-256 of the chat template, wherever the base keeps it."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return digest_of_file(own)
    template = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    return None if template is None else fingerprint(template)


@cache
def _digest(path: Path, size: int, mtime_ns: int, ctime_ns: int) -> str:
    return digest_of_file(path)


def _touched(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _renew(home: Home, lease: LeaseRecord, done: Event) -> None:
    """A lease that is lost is not renewed; the commit under it is refused."""
    while not done.wait(LEASE_SECONDS / 3):
        try:
            home.ledger.renew_lease(lease, seconds=LEASE_SECONDS)
        except Conflict:
            return
        except RegistryError:  # the database is away for now: the next beat tries again
            continue
