"""A store elsewhere that refuses, is late, loses its answer or stops half-way, at every single call."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from registry.errors import DependencyDown, IntegrityError
from registry.fingerprint import digest_of_folder
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.remote_store import RemoteStore
from registry.store import Store
from registry.sweep import DAY_SECONDS, sweep

READS = ("open", "cat_file", "get_file")
CALLS = (*READS, "put_file", "makedirs", "exists", "find", "glob", "modified", "du", "rm_file", "rm")
REFUSALS = {  # what may come of each kind of fault
    "refuses": (DependencyDown,),
    "loses the answer": (DependencyDown,),
    "is late": (),
    "stops half-way": (DependencyDown, IntegrityError),
}
DELAY_SECONDS = 0.005


class Faulty(LocalFileSystem):
    """A folder behind `faulty://`; the call number `turn` goes wrong in its `kind` of way."""

    protocol = "faulty"
    kind, turn = "", 0
    calls: list[str] = []  # noqa: RUF012 (of the class: every instance is the same other side)
    inside = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.replace("faulty://", "file://"))

    @classmethod
    def disturbed(cls, kind: str, turn: int) -> None:
        cls.kind, cls.turn, cls.calls = kind, turn, []


def faulty(name: str) -> Callable[..., Any]:
    """The call, counted where it comes from outside, and disturbed when its turn has come."""
    real = getattr(LocalFileSystem, name)

    def call(self: Faulty, *arguments: Any, **named: Any) -> Any:
        if Faulty.inside:
            return real(self, *arguments, **named)
        Faulty.calls.append(name)
        mine = len(Faulty.calls) == Faulty.turn
        if mine and (Faulty.kind == "refuses" or (Faulty.kind == "stops half-way" and name not in READS)):
            if Faulty.kind != "refuses" and name == "rm":  # a folder is many requests, one after the other
                real(self, sorted(LocalFileSystem().find(arguments[0]))[0])
            raise ConnectionResetError(f"{name} was cut off")
        if mine and Faulty.kind == "is late":
            time.sleep(DELAY_SECONDS)
        Faulty.inside = True
        try:
            answer = real(self, *arguments, **named)
            if not mine or Faulty.kind == "is late":
                return answer
        finally:
            Faulty.inside = False
        if Faulty.kind == "loses the answer":
            raise TimeoutError(f"{name} was done, and nobody heard of it")
        if name == "get_file":
            Path(arguments[1]).write_bytes(Path(arguments[1]).read_bytes()[:-1])
            return None
        return answer[:-1] if name == "cat_file" else io.BytesIO(answer.read()[:-1])

    return call


for each in CALLS:
    setattr(Faulty, each, faulty(each))


@pytest.fixture(autouse=True)
def other_side() -> None:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.disturbed("", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "nested" / "tokenizer.json").write_text("{}")
    return folder


def undisturbed(act: Callable[[], object]) -> int:
    """How many calls it takes when nothing goes wrong."""
    Faulty.disturbed("", 0)
    act()
    return len(Faulty.calls)


def disturbed(act: Callable[[], object], kind: str, turn: int) -> None:
    """The act with one call disturbed: late is no fault; what is down is exit 7, what is torn exit 7 or 4."""
    Faulty.disturbed(kind, turn)
    with suppress(*REFUSALS[kind]):
        act()
    Faulty.disturbed("", 0)


@pytest.mark.parametrize("kind", REFUSALS)
def test_an_upload_is_there_whole_or_not_at_all_and_a_retry_completes_it(tmp_path, folder, kind):
    def upload(place: str) -> None:
        RemoteStore(f"faulty://{tmp_path}/{place}", tmp_path / f"cache {place}").put(folder)

    calls = undisturbed(lambda: upload("clean"))
    assert calls > 5
    for turn in range(1, calls + 1):
        place = f"{turn}"
        disturbed(lambda at=place: upload(at), kind, turn)
        other = RemoteStore(f"faulty://{tmp_path}/{place}", tmp_path / f"another {place}")
        for digest in other.digests():
            other.check(digest)
        upload(place)
        assert list(other.digests()) == [digest_of_folder(folder)]
        assert digest_of_folder(other.path(digest_of_folder(folder))) == digest_of_folder(folder)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_download_hands_out_the_very_bytes_or_nothing(tmp_path, folder, kind):
    url = f"faulty://{tmp_path}/store"
    digest = RemoteStore(url, tmp_path / "cache").put(folder)
    calls = undisturbed(lambda: RemoteStore(url, tmp_path / "clean").path(digest))
    assert calls > 5
    for turn in range(1, calls + 1):
        cache = tmp_path / f"cache {turn}"
        disturbed(lambda to=cache: RemoteStore(url, to).path(digest), kind, turn)
        for found in Store(cache).digests():
            assert found == digest_of_folder(Store(cache).path(found))  # a fault leaves no wrong copy either
        assert digest_of_folder(RemoteStore(url, cache).path(digest)) == digest


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_sweep_that_is_cut_short_leaves_no_torn_object_and_the_next_one_ends_it(
    tmp_path, folder, sqlite_url, make_workshop, kind
):
    later = time.time() + 2 * DAY_SECONDS

    def swept(place: str) -> tuple[RemoteStore, Callable[[], object]]:
        store = RemoteStore(f"faulty://{tmp_path}/{place}", tmp_path / f"cache {place}")
        store.put(folder)
        return store, lambda: sweep(ledger, store, now_seconds=later)

    with Ledger.open(sqlite_url) as ledger:
        calls = undisturbed(swept("clean")[1])
        assert calls > 5
        for turn in range(1, calls + 1):
            store, act = swept(f"{turn}")
            disturbed(act, kind, turn)
            for digest in store.digests():
                store.check(digest)
            act()
            assert list(store.digests()) == list(store.litter(later)) == []


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_registration_beside_any_fault_is_whole_or_absent_and_a_retry_gives_the_same_version(
    tmp_path, sqlite_url, make_workshop, kind
):
    store = RemoteStore(f"faulty://{tmp_path}/store", tmp_path / "cache")
    workshop = make_workshop(sqlite_url, store)
    drafts = (workshop.draft("triage", place) for place in range(40))
    calls = undisturbed(lambda: workshop.ledger.register(next(drafts)))
    assert calls > 5
    for number, turn in enumerate(range(1, calls + 1), 2):
        draft = next(drafts)
        disturbed(lambda new=draft: workshop.ledger.register(new), kind, turn)
        assert fsck(workshop.ledger, store) == ()
        assert workshop.ledger.register(draft).number == number
        assert fsck(workshop.ledger, store) == ()
