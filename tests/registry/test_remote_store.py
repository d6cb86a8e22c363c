"""A store by URL keeps the contract of the local one: in memory, in a folder, and over a real S3 API."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    place = f"bucket-{os.urandom(4).hex()}"
    if request.param == "s3":
        pytest.importorskip("s3fs", reason="s3fs is not installed")
        known = {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_server"), "AWS_DEFAULT_REGION": "us-east-1"}
        known |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "CANARY"}
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(place)
        return f"s3://{place}/store"
    return f"memory://{place}/store" if request.param == "memory" else f"file://{tmp_path}/elsewhere"


@pytest.fixture
def store(url: str, tmp_path: Path) -> RemoteStore:
    found = open_store(url, cache=tmp_path / "cache")
    assert isinstance(found, RemoteStore)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(random.Random(7).randbytes(2000))
    (folder / "nested" / "tokenizer.json").write_text("{}")
    return folder


def elsewhere(store: RemoteStore, digest: str, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """One file as another program sees it."""
    system, root = fsspec.core.url_to_fs(store.url, skip_instance_cache=True, use_listings_cache=False)
    return system, f"{root}/sha256/{digest[:2]}/{digest}/{name}"


def fresh(store: RemoteStore, tmp_path: Path) -> RemoteStore:
    """The same store from a machine that has seen nothing of it yet."""
    return RemoteStore(store.url, tmp_path / f"cache-{os.urandom(4).hex()}")


def test_what_comes_out_on_another_machine_is_what_went_in(store, folder, tmp_path):
    digest = store.put(folder)
    assert digest == digest_of_folder(folder) == Store(tmp_path / "local").put(folder)
    other = fresh(store, tmp_path)
    found = other.path(digest)
    assert (found / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert {e.path for e in other.manifest(digest)} == {"adapter_model.safetensors", "nested/tokenizer.json"}
    assert list(other.digests()) == [digest]
    assert other.holds(digest)
    assert not other.holds("0" * 64)
    with pytest.raises(IntegrityError, match="is not in the store"):
        other.path("0" * 64)


def test_a_flipped_bit_elsewhere_is_found_on_reading_and_healed_by_putting_again(store, folder, tmp_path):
    """A03 for what lies elsewhere: 20 flips in files and manifest."""
    digest, chance = store.put(folder), random.Random(1)
    for name in [f"files/{entry.path}" for entry in store.manifest(digest)] + ["manifest.json"]:
        for _ in range(1 if store.url.startswith("s3") else 7):
            system, path = elsewhere(store, digest, name)
            good = system.cat_file(path)
            bad, place = bytearray(good), chance.randrange(len(good))
            bad[place] ^= 1 << chance.randrange(8)
            system.pipe_file(path, bytes(bad))
            for read in (fresh(store, tmp_path).path, store.check):
                with pytest.raises(IntegrityError) as refusal:
                    read(digest)
                assert name.rpartition("/")[2] in refusal.value.problems[0].where
            store.put(folder)
            assert fresh(store, tmp_path).path(digest).is_dir()


def test_what_was_added_or_removed_elsewhere_is_refused(store, folder, tmp_path):
    digest = store.put(folder)
    system, path = elsewhere(store, digest, "files/pickle.bin")
    system.pipe_file(path, b"x")
    with pytest.raises(IntegrityError, match="not in the manifest"):
        fresh(store, tmp_path).path(digest)
    system.rm_file(path)
    system.rm_file(elsewhere(store, digest, "files/nested/tokenizer.json")[1])
    with pytest.raises(IntegrityError, match="found nothing"):
        fresh(store, tmp_path).path(digest)


STEPS = ("remote.before_file", "remote.before_manifest", "remote.after_manifest")


OVER_S3 = ("kill", "s3")  # the slow one; a folder tries every kind


@pytest.mark.parametrize(
    ("kind", "url"), [*((kind, "file") for kind in ("kill", "errno:5", "sleep:0.01")), OVER_S3], indirect=["url"]
)
@pytest.mark.parametrize("step", STEPS)
def test_a_disturbed_upload_publishes_the_whole_object_or_none(store, folder, tmp_path, step, kind):
    """C06 elsewhere: an object is there when its manifest is, and then it is whole; a retry completes it."""

    def work() -> None:
        os.environ["FACTORY_FAILPOINT"] = f"{step}={kind}"
        try:
            fresh(store, tmp_path).put(folder)
        except (DependencyDown, OSError):
            os._exit(7)

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == {"kill": -9, "errno:5": 7, "sleep:0.01": 0}[kind]
    there = list(store.digests())
    assert len(there) == (1 if step == "remote.after_manifest" or kind == "sleep:0.01" else 0)
    for digest in there:
        store.check(digest)
    digest = store.put(folder)
    assert fresh(store, tmp_path).path(digest).is_dir()


def test_a_ledger_on_it_registers_promotes_checks_sweeps_and_repairs(store, sqlite_url, make_workshop, tmp_path):
    workshop = make_workshop(sqlite_url, store)
    version = workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.promote("triage", 1, expected=None, decision={})
    orphan = store.put_files({"weights": b"x"})
    other = fresh(store, tmp_path)
    with Ledger.open(sqlite_url, store=other) as ledger:
        assert fsck(ledger, other) == ()
        taken = sweep(ledger, other, now_seconds=time.time() + 2 * DAY_SECONDS)
        assert orphan in [item.name for item in taken]
        assert not other.holds(orphan)
        system, path = elsewhere(store, version.artifact, "files/adapter_config.json")
        system.pipe_file(path, b"damaged")
        assert [p.code for p in fsck(ledger, other)] == ["E-STORE-002"]
        good = store.root / "sha256" / version.artifact[:2] / version.artifact / "files"
        assert len(repair(ledger, other, lambda digest: [good])) == 1
        assert fsck(ledger, other) == ()


def test_uploads_that_never_ended_are_litter_after_a_day(store, folder, sqlite_url, make_workshop):
    workshop = make_workshop(sqlite_url, store)
    digest = store.put(folder)
    system, path = elsewhere(store, digest, "manifest.json")
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


@pytest.mark.parametrize("url", ["nonsense://x/y"], indirect=False)
def test_a_url_that_nothing_speaks_is_exit_2(url, tmp_path):
    with pytest.raises(Unknown, match="no installed library speaks nonsense"):
        open_store(url, cache=tmp_path)
