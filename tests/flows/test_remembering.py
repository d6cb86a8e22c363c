"""The commands on what is remembered, as people give them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from registry.records import EvaluationRecord, VersionDraft


@pytest.fixture
def spare(factory: Any, intent: Any) -> Any:
    """A version that may be taken back: the intent adapter under another name, and a model that contains it."""
    from flows.wiring import opened

    version = intent.outcome.version
    same = {"artifact": version.artifact, "base": version.base, "code": version.code}
    with factory.active():
        ledger = opened().ledger
        spec = {**version.spec, "task": "spare"}
        draft = {"name": "spare", "kind": "adapter", "version_key": "5" * 64, "spec": spec, "parents": version.parents}
        ledger.register(VersionDraft(**draft, **same))
        parents = (("parent", "spare:1"), ("parent", version.ref))
        both = {"name": "both", "kind": "merged", "version_key": "6" * 64, "spec": {}, "parents": parents}
        ledger.register(VersionDraft(**both, **same))
    return factory


def test_what_is_withdrawn_is_named_with_all_that_contains_it_and_refused_from_then_on(spare: Any) -> None:
    assert spare.run("lineage", "spare:1", "--contains").out.split() == ["both:1"]
    said = spare.run("withdraw", "spare:1", "--reason", "learned from leaked mail")
    assert said.code == 0, said.err
    assert said.out.splitlines() == ["spare:1 is withdrawn", "both:1 is withdrawn: it contains spare:1"]
    assert spare.run("withdraw", "spare:1", "--reason", "again").out == "it was withdrawn before\n"
    shown = json.loads(spare.run("--json", "show", "both:1").out)["result"]
    assert shown["withdrawn"].endswith("with spare:1: learned from leaked mail")
    refused = spare.run("--quiet", "promote", "spare:1")
    assert refused.code in (4, 5)
    assert spare.sql("SELECT count(*) FROM promotions WHERE name = 'spare'") == [(0,)]
    assert "(merged, withdrawn)" in spare.run("lineage", "both:1").out
    assert spare.run("withdraw", "spare:1").code == 2  # without a reason
    assert spare.run("fsck").code == 0


def test_a_lineage_becomes_a_page_to_click_in(factory: Any, intent: Any) -> None:
    path = factory.folder / "pages" / "intent.html"
    said = factory.run("lineage", "intent:1", "--page", path)
    assert said.code == 0, said.err
    assert str(path) in said.out
    assert "intent:1" in path.read_text()


def test_rubbish_is_named_and_young_things_stay(factory: Any, intent: Any) -> None:
    before = sorted((factory.home / "store" / "sha256").rglob("*"))
    for words in (("gc",), ("gc", "--delete")):
        said = factory.run(*words)
        assert said.code == 0, said.err
        assert said.out.startswith("0 things, 0 bytes ")
    assert sorted((factory.home / "store" / "sha256").rglob("*")) == before


def test_a_damaged_adapter_comes_back_from_mlflow(factory: Any, intent: Any) -> None:
    path = factory.files(intent.outcome.version.artifact)["adapter_model.safetensors"]
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert factory.run("fsck").code == 4
        said = factory.run("fsck", "--repair")
        assert said.code == 0, said.err
        assert "restored from a copy with the same hash" in said.out
        assert path.read_bytes() == whole
    finally:
        path.chmod(0o644)
        path.write_bytes(whole)


def test_a_version_that_was_judged_on_rows_it_learned_from_is_found(
    factory: Any, intent: Any, moved: Any, new_factory: Callable[[], Any]
) -> None:
    """In a home of its own; the versions that were trained, moved and taught again here are none of those."""
    from flows.judging_rows import shared_rows
    from flows.validate import remembered_dataset
    from flows.wiring import opened

    version, other = intent.outcome.version, new_factory()
    with factory.active():
        assert list(shared_rows(opened())) == []
        base, files = opened().ledger.base(version.base), opened().ledger.files(version.ref)
        data = remembered_dataset(opened(), version.parents[0].ref.removeprefix("dataset:"))
    keys = tuple(row.key for row in data.snapshot.examples("train")[:3])
    score = EvaluationRecord(data.digest, "test", "exact_match", 1.0, 3, 0.5, 1.0, keys, (1.0,) * 3)
    with other.active():
        ledger, store = opened().ledger, opened().store
        ledger.remember_base(base)
        assert store.put(data.snapshot.folder) == data.digest
        ledger.remember_dataset(data.record)
        draft = {"name": "vain", "kind": "adapter", "version_key": "7" * 64, "spec": version.spec}
        made_from = {"base": version.base, "code": opened().code.digest, "parents": version.parents[:1]}
        ledger.register(VersionDraft(**draft, **made_from, artifact=store.put(files), evaluations=(score,)))
    said = other.run("fsck")
    assert said.code == 4
    assert [line.partition(": ")[0] for line in said.lines] == ["E-LEDGER-115 vain:1"]
    assert "3 of its test rows are train rows" in said.lines[0]


def test_without_a_key_nothing_is_signed_and_that_is_one_line(factory: Any, intent: Any) -> None:
    said = factory.run("--quiet", "sign", "intent:1")
    assert said.code == 2
    assert [line.split()[0] for line in said.lines] == ["E-SIGN-001"]


def test_with_a_key_an_unsigned_version_is_signed_and_promoted_by_hand(
    factory: Any, intent: Any, moved: Any, at_its_word: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    import subprocess

    key = factory.folder / "factory.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
    subprocess.run(make, check=True, capture_output=True)
    back = factory.run("rollback", "topic")
    assert back.code == 0, back.err
    monkeypatch.setitem(factory.settings, "FACTORY_SIGNING_KEY", str(key))
    refused = factory.run("--quiet", "promote", "topic:4")
    assert refused.code == 4, refused.err
    assert refused.lines[-1].startswith("E-SIGN-002 topic:4: is not signed")
    assert factory.run("sign", "topic:4").out == "topic:4 is signed\n"
    assert factory.run("promote", "topic:4").code == 0
