"""The store on S3, MinIO, GCS or any other fsspec target, under the contract of the local one.

    <root>/sha256/ab/abcdef.../files/...        uploaded first
    <root>/sha256/ab/abcdef.../manifest.json    uploaded last: an object without it is not there

Such targets have no rename, but a whole file appears at once; so the manifest is what publishes. Reading goes through a
local store: what is handed out was hashed here, in this process, whatever the other side or the way did to it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from registry.durable import CHUNK_BYTES
from registry.errors import DependencyDown, IntegrityError, Problem, RegistryError, Unknown, raise_if_any
from registry.failpoint import failpoint
from registry.fingerprint import FileEntry
from registry.mlflow_access import shown
from registry.store import MANIFEST, Store, entries_of

PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}  # what each needs installed


def open_store(place: str | Path, *, cache: Path) -> Store:
    """The store at a folder or a URL; a URL's objects are read through `cache`.

    Raises:
        Unknown: for a URL that no installed library speaks.
    """
    return RemoteStore(str(place), cache) if "://" in str(place) else Store(place)


class RemoteStore(Store):
    """A store elsewhere; `root` is the local one that everything goes through."""

    def __init__(self, url: str, cache: Path) -> None:
        super().__init__(cache)
        self.url = url
        self._local = Store(cache)
        self._systems: dict[int, tuple[Any, str]] = {}  # by process: connections do not survive a fork
        self._target()

    def put(self, folder: Path | str) -> str:
        """Keep a copy of the folder there and return its digest; what is whole there already is not sent again.

        Raises:
            IntegrityError: the folder is empty, holds links or special files, or changed while it was read.
            NoSpace: the local disk is full.
            DependencyDown: the other side does not answer; nothing was published, and a retry is safe.
        """
        digest = self._local.put(folder)
        local = self.root / "sha256" / digest[:2] / digest
        with self._saying_when_it_is_down():
            system, place = self._at(digest)
            system.makedirs(f"{place}/files", exist_ok=True)
            for entry in entries_of(local):
                target = f"{place}/files/{entry.path}"
                if not (system.exists(target) and self._sha256(target) == entry.sha256):
                    failpoint("remote.before_file")
                    system.makedirs(target.rpartition("/")[0], exist_ok=True)
                    system.put_file(str(local / "files" / entry.path), target)
            failpoint("remote.before_manifest")
            system.put_file(str(local / MANIFEST), f"{place}/{MANIFEST}")  # again, too: it makes the object young
        failpoint("remote.after_manifest")
        return digest

    def path(self, digest: str) -> Path:
        """A local folder of the files, every byte of which was hashed; fetched if it is not here yet.

        Raises:
            IntegrityError: it is not there, or a file is missing or different.
            DependencyDown: the other side does not answer.
        """
        self._place(digest)
        if not self._local.is_whole(digest):
            self._fetch(digest)
        return self._local.path(digest)

    def check(self, digest: str) -> None:
        """Hash what lies there, not the copy that lies here."""
        with self._saying_when_it_is_down():
            raise_if_any(IntegrityError, self._remote_differences(digest))

    def holds(self, digest: str) -> bool:
        with self._saying_when_it_is_down():
            system, place = self._at(digest)
            return bool(system.exists(f"{place}/{MANIFEST}"))

    def digests(self) -> Iterator[str]:
        with self._saying_when_it_is_down():
            system, root = self._target()
            found = system.glob(f"{root}/sha256/*/*/{MANIFEST}")
        yield from sorted(path.split("/")[-2] for path in found)

    def age_seconds(self, digest: str, now_seconds: float) -> float:
        with self._saying_when_it_is_down():
            system, place = self._at(digest)
            return now_seconds - float(system.modified(f"{place}/{MANIFEST}").timestamp())

    def bytes_of(self, digest: str) -> int:
        with self._saying_when_it_is_down():
            system, place = self._at(digest)
            return int(system.du(place))

    def hide(self, digest: str) -> None:
        """The manifest goes first: from then on the object is not there, however far the rest comes."""
        with self._saying_when_it_is_down():
            system, place = self._at(digest)
            failpoint("gc.before_rename")
            system.rm_file(f"{place}/{MANIFEST}")
            failpoint("gc.after_rename")
            system.rm(place, recursive=True)
        if self._local.holds(digest):
            self._local.hide(digest)

    def litter(self, now_seconds: float) -> Iterator[tuple[str, float]]:
        """Uploads that never came to their manifest, and what killed writers left here."""
        yield from self._local.litter(now_seconds)
        with self._saying_when_it_is_down():
            system, root = self._target()
            for place in system.glob(f"{root}/sha256/*/*"):
                files = system.find(place)
                if files and not system.exists(f"{place}/{MANIFEST}"):
                    newest = max(system.modified(file).timestamp() for file in files)
                    yield f"{self._protocol}://{place}", now_seconds - newest

    def discard(self, name: str) -> None:
        if "://" not in name:
            self._local.discard(name)
            return
        with self._saying_when_it_is_down():
            system, _ = self._target()
            system.rm(name.partition("://")[2], recursive=True)

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    def _target(self) -> tuple[Any, str]:
        """(file system, root on it) of this process."""
        if os.getpid() not in self._systems:
            import fsspec

            try:
                system, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)
            except (ImportError, ValueError) as error:
                needed = PROTOCOLS.get(self._protocol)
                remedy = f"pip install {needed}" if needed else "write a folder, s3://bucket/path or gs://bucket/path"
                wrong = f"no installed library speaks {self._protocol}://"
                raise Unknown.one("E-STORE-008", shown(self.url), wrong, remedy) from error
            self._systems = {os.getpid(): (system, str(root).rstrip("/"))}
        return self._systems[os.getpid()]

    def _at(self, digest: str) -> tuple[Any, str]:
        self._place(digest)  # refuses what is no digest
        system, root = self._target()
        return system, f"{root}/sha256/{digest[:2]}/{digest}"

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._target()[0].open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _remote_entries(self, digest: str) -> tuple[FileEntry, ...]:
        """The manifest that lies there, after its own hash was compared."""
        system, place = self._at(digest)
        if not system.exists(f"{place}/{MANIFEST}"):
            raise self._missing(digest)
        data = system.cat_file(f"{place}/{MANIFEST}")
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise IntegrityError(_differs(f"{digest}/{MANIFEST}", digest, found))
        return entries_of(data)

    def _remote_differences(self, digest: str) -> Iterator[Problem]:
        system, place = self._at(digest)
        entries = self._remote_entries(digest)
        present = {path.rpartition(f"{digest}/files/")[2] for path in system.find(f"{place}/files")}
        for entry in entries:
            found = self._sha256(f"{place}/files/{entry.path}") if entry.path in present else "nothing"
            if found != entry.sha256:
                yield _differs(f"{digest}/{entry.path}", entry.sha256, found)
        for path in sorted(present - {entry.path for entry in entries}):
            yield Problem(
                "E-STORE-003", f"{digest}/{path}", "is not in the manifest", "remove it; nothing may be added"
            )

    def _fetch(self, digest: str) -> None:
        with self._saying_when_it_is_down(), TemporaryDirectory(prefix="factory-") as folder:
            system, place = self._at(digest)
            raise_if_any(IntegrityError, self._remote_differences(digest))
            for entry in self._remote_entries(digest):
                target = Path(folder, entry.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(f"{place}/files/{entry.path}", str(target))
            if self._local.put(folder) != digest:
                raise IntegrityError(_differs(digest, digest, "other bytes on a second reading"))

    def _missing(self, digest: str) -> IntegrityError:
        wrong, remedy = f"is not in the store {shown(self.url)}", "restore it from a backup, or train again"
        return IntegrityError.one("E-STORE-001", digest, wrong, remedy)

    @contextmanager
    def _saying_when_it_is_down(self) -> Iterator[None]:
        """
        Raises:
            DependencyDown: instead of whatever the library behind the URL raises.
        """
        try:
            yield
        except (RegistryError, GeneratorExit):
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            wrong = f"does not answer ({type(error).__name__}: {first})"
            raise DependencyDown.one("E-STORE-007", shown(self.url), wrong, "a retry is safe") from error


def _differs(where: str, expected: str, found: str) -> Problem:
    wrong = f"expected sha256 {expected}, found {found}"
    return Problem("E-STORE-002", where, wrong, "restore it from a backup, or make the version again")
