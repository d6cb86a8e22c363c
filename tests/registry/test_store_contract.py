"""One contract for every store: a folder, memory, a folder by URL, and a real S3 API."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from registry.errors import DependencyDown, IntegrityError, Unknown
from registry.fingerprint import digest_of_folder
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.remote_store import RemoteStore, open_store
from registry.repair import repair
from registry.store import Store
from registry.sweep import DAY_SECONDS, sweep

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Place:
    """Where a store keeps its objects, as another program sees it."""

    url: str  # a folder, or what fsspec opens
    caches: Path

    def opened(self) -> Store:
        """The store from a machine that has seen nothing of it yet."""
        return open_store(self.url, cache=self.caches / os.urandom(4).hex())

    def file(self, digest: str, name: str) -> tuple[Any, str]:
        """(file system, path) of one stored file; what was read-only may be written."""
        system, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)
        path = f"{root}/sha256/{digest[:2]}/{digest}/{name}"
        if "file" in system.protocol and os.path.exists(path):
            os.chmod(path, 0o644)
        return system, path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server that speaks S3 on a free port."""
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "memory", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    bucket = f"bucket-{os.urandom(4).hex()}"
    if request.param == "s3":
        pytest.importorskip("s3fs", reason="s3fs is not installed")
        known = {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_server"), "AWS_DEFAULT_REGION": "us-east-1"}
        known |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "CANARY"}
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    folder = str(tmp_path / "elsewhere")
    urls = {"local": folder, "file": f"file://{folder}", "s3": f"s3://{bucket}/store"}
    return Place(urls.get(request.param, f"memory://{bucket}/store"), tmp_path / "caches")


@pytest.fixture
def store(place: Place) -> Store:
    found = place.opened()
    assert isinstance(found, RemoteStore) == ("://" in place.url)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(random.Random(7).randbytes(2000))
    (folder / "nested" / "tokenizer.json").write_text("{}")
    return folder


def test_what_comes_out_on_another_machine_is_what_went_in(place, store, folder):
    digest = store.put(folder)
    assert digest == digest_of_folder(folder) == place.opened().put(folder)
    other = place.opened()
    assert digest_of_folder(other.path(digest)) == digest
    assert (other.path(digest) / "nested" / "tokenizer.json").read_text() == "{}"
    assert {entry.path for entry in other.manifest(digest)} == {"adapter_model.safetensors", "nested/tokenizer.json"}
    assert list(other.digests()) == [digest]
    assert (other.holds(digest), other.holds("0" * 64)) == (True, False)
    with pytest.raises(IntegrityError, match="is not in the store"):
        other.path("0" * 64)


@pytest.mark.parametrize("digest", ["", "abc", "../" * 22 + "ab", "G" * 64, "A" * 64])
def test_only_a_hash_names_an_object(store, digest):
    for act in (store.path, store.holds, store.check):
        with pytest.raises(IntegrityError):
            act(digest)


def test_a_flipped_bit_is_found_on_reading_and_healed_by_putting_again(place, store, folder):
    """A03: in every file and in the manifest."""
    digest, chance = store.put(folder), random.Random(1)
    for name in [f"files/{entry.path}" for entry in store.manifest(digest)] + ["manifest.json"]:
        for _ in range(1 if place.url.startswith("s3") else 7):
            system, path = place.file(digest, name)
            bad = bytearray(system.cat_file(path))
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            system.pipe_file(path, bytes(bad))
            for read in (place.opened().path, store.check):
                with pytest.raises(IntegrityError) as refusal:
                    read(digest)
                assert name.rpartition("/")[2] in refusal.value.problems[0].where
            store.put(folder)
            assert digest_of_folder(place.opened().path(digest)) == digest


HARMS = [(at, harm) for at in ("local", "memory", "file") for harm in ("remove", "add", "truncate", "no manifest")]


@pytest.mark.parametrize(("place", "harm"), [*HARMS, ("s3", "add")], indirect=["place"])
def test_what_was_added_removed_or_cut_is_refused(place, store, folder, harm):
    digest = store.put(folder)
    system, path = place.file(digest, "manifest.json" if harm == "no manifest" else "files/nested/tokenizer.json")
    if harm == "add":
        system.pipe_file(f"{path}.bin", b"x")
    elif harm == "truncate":
        system.pipe_file(path, b"{")
    else:
        system.rm_file(path)
    for read in (place.opened().path, store.check):
        with pytest.raises(IntegrityError):
            read(digest)


def test_a_ledger_on_it_registers_promotes_checks_sweeps_and_repairs(place, store, sqlite_url, make_workshop):
    workshop = make_workshop(sqlite_url, store)
    version = workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.promote("triage", 1, expected=None, decision={})
    orphan = store.put_files({"weights": b"x"})
    good = place.caches / "good"
    fsspec.filesystem("file").put(str(store.path(version.artifact)), str(good), recursive=True)
    other = place.opened()
    with Ledger.open(sqlite_url, store=other) as ledger:
        assert fsck(ledger, other) == ()
        taken = sweep(ledger, other, now_seconds=time.time() + 2 * DAY_SECONDS)
        assert orphan in [item.name for item in taken]
        assert not other.holds(orphan)
        system, path = place.file(version.artifact, "files/adapter_config.json")
        system.pipe_file(path, b"damaged")
        assert [p.code for p in fsck(ledger, other)] == ["E-STORE-002"]
        assert len(repair(ledger, other, lambda digest: [good])) == 1
        assert fsck(ledger, other) == ()


@pytest.mark.parametrize("place", ["local", "file"], indirect=True)
def test_eight_processes_that_put_the_same_folder_publish_it_once(place, store, folder, together):
    def work(_, ready) -> None:
        os.environ["FACTORY_FAILPOINT"] = "store.before_rename=sleep:0.02"
        ready()
        assert place.opened().put(folder) == digest_of_folder(folder)

    together(8, work)
    assert list(store.digests()) == [digest_of_folder(folder)]
    assert digest_of_folder(place.opened().path(digest_of_folder(folder))) == digest_of_folder(folder)


STEPS = {
    "local": ("store.write", "store.fsync", "store.before_rename", "store.after_rename"),
    "file": ("remote.before_file", "remote.before_manifest", "remote.after_manifest"),
}
DISTURBED = [(kind, at, step) for at, steps in STEPS.items() for step in steps for kind in ("errno:5", "sleep:0.01")]
DISTURBED += [("kill", at, step) for at, steps in STEPS.items() for step in steps]
DISTURBED += [("kill@2", "local", step) for step in STEPS["local"][:2]]  # of the second file
DISTURBED += [("kill", "s3", step) for step in STEPS["file"]]  # the slow one


@pytest.mark.parametrize(("kind", "place", "step"), DISTURBED, indirect=["place"])
def test_a_disturbed_put_publishes_the_whole_object_or_none_and_a_retry_completes_it(place, store, folder, step, kind):
    """C06: an object is there when its name or its manifest is, and then it is whole."""

    def work() -> None:
        os.environ["FACTORY_FAILPOINT"] = f"{step}={kind}"
        try:
            place.opened().put(folder)
        except (DependencyDown, OSError):
            os._exit(7)

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == {"kill": -9, "errno": 7, "sleep": 0}[re.split("[@:]", kind)[0]]
    there = list(store.digests())
    assert len(there) == (1 if ".after_" in step or kind == "sleep:0.01" else 0)
    for digest in there:
        store.check(digest)
    assert digest_of_folder(place.opened().path(store.put(folder))) == digest_of_folder(folder)


@pytest.mark.parametrize("place", ["memory", "file", "s3"], indirect=True)
def test_uploads_that_never_ended_are_litter_after_a_day(place, store, folder, sqlite_url, make_workshop):
    workshop = make_workshop(sqlite_url, store)
    digest = store.put(folder)
    system, path = place.file(digest, "manifest.json")
    system.rm_file(path)
    assert sweep(workshop.ledger, store, now_seconds=time.time()) == ()
    sweep(workshop.ledger, store, now_seconds=time.time() + 2 * DAY_SECONDS)
    assert system.find(path.rpartition("/")[0]) == []


def test_a_store_that_is_down_is_exit_7_without_its_secrets(tmp_path, monkeypatch, folder):
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    known = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed}", "AWS_DEFAULT_REGION": "us-east-1"}
    known |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "CANARY", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DependencyDown) as refusal:
        RemoteStore("s3://bucket/store", tmp_path / "cache").put(folder)
    assert refusal.value.exit_code == 7
    assert len(refusal.value.lines()) == 1
    assert "CANARY" not in str(refusal.value)


def test_a_url_that_nothing_speaks_is_exit_2(tmp_path):
    with pytest.raises(Unknown, match="no installed library speaks nonsense"):
        open_store("nonsense://x/y", cache=tmp_path)
