"""X06: signed with our key, over exactly this manifest, or refused; at registration, promotion, loading and fsck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import DependencyDown, IntegrityError, Unknown
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store

pytest.importorskip("model_signing", reason="the extra `signing` is not installed")

from registry.signing import SIGNATURE, SIGNED, Signer


def new_key(folder: Path, name: str = "factory", curve: str = "prime256v1") -> tuple[Path, Path]:
    """A key pair as the documentation makes it."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return new_key(tmp_path)


@pytest.fixture
def signed(sqlite_url, sqlite_workshop, keys):
    """The workshop on a ledger that signs."""
    sqlite_workshop.ledger = Ledger.open(sqlite_url, store=sqlite_workshop.store, signer=Signer(keys[0]))
    return sqlite_workshop


def reopened(url: str, store: Store, *keys: Path | None) -> Ledger:
    return Ledger.open(url, store=store, signer=Signer(*keys) if keys else None)


def test_a_registered_version_is_signed_and_anyone_can_check_it_without_the_factory(signed, keys, tmp_path):
    version = signed.ledger.register(signed.draft("triage"))
    (signature,) = signed.ledger.signatures("triage:1")
    seal = signed.store.path(signature.seal)
    assert (seal / SIGNED).read_bytes() == (signed.store.path(version.manifest) / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "model_signing", "verify", "key", str((seal / SIGNED).parent)]
    command += ["--signature", str(seal / SIGNATURE), "--public_key", str(keys[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert signed.ledger.promote("triage", 1, expected=None, decision={}).number == 1
    assert signed.ledger.files("triage:1").is_dir()
    assert fsck(signed.ledger, signed.store) == ()


def test_a_promoter_needs_only_the_public_key(signed, sqlite_url, keys):
    signed.ledger.register(signed.draft("triage"))
    ledger = reopened(sqlite_url, signed.store, None, keys[1])
    assert ledger.promote("triage", 1, expected=None, decision={}).number == 1
    with pytest.raises(Unknown, match="only the public key"):
        ledger.register(signed.draft("routing"))


def test_unsigned_is_not_promotable_loaded_or_rolled_back_to_until_it_is_signed(sqlite_url, sqlite_workshop, keys):
    for place in range(2):
        sqlite_workshop.ledger.register(sqlite_workshop.draft("triage", place))
    sqlite_workshop.ledger.promote("triage", 1, expected=None, decision={})
    ledger = reopened(sqlite_url, sqlite_workshop.store, keys[0])
    for use in (
        lambda: ledger.promote("triage", 2, expected=1, decision={}),
        lambda: ledger.files("triage:2"),
    ):
        with pytest.raises(IntegrityError, match="is not signed with key") as refusal:
            use()
        assert refusal.value.exit_code == 4
    assert [p.code for p in fsck(ledger, sqlite_workshop.store)] == ["E-SIGN-002"]  # the champion
    ledger.sign("triage:2")
    ledger.sign("triage:2")
    assert ledger.promote("triage", 2, expected=1, decision={}).number == 2
    with pytest.raises(IntegrityError, match="is not signed"):
        ledger.rollback("triage")
    ledger.sign("triage:1")
    assert ledger.rollback("triage").number == 1


def test_another_key_vouches_for_nothing(signed, sqlite_url, tmp_path):
    """Wrong or revoked: once the key is replaced, what the old one signed is signed no more."""
    signed.ledger.register(signed.draft("triage"))
    ledger = reopened(sqlite_url, signed.store, new_key(tmp_path, "other")[0])
    with pytest.raises(IntegrityError, match="is not signed with key"):
        ledger.promote("triage", 1, expected=None, decision={})


def forge(raw, ref_id: int, seal: str) -> None:
    """Put another seal behind the ledger's back."""
    for name in ("update", "delete"):
        raw.execute(f"DROP TRIGGER IF EXISTS signatures_refuses_{name}")
    raw.execute("UPDATE signatures SET seal = ? WHERE version_id = ?", [seal, ref_id])


@pytest.mark.parametrize("forgery", ["another version's", "another key's", "no signature", "changed manifest"])
def test_a_forged_seal_is_refused_everywhere(signed, sqlite_url, raw, tmp_path, forgery):
    for place in range(2):
        signed.ledger.register(signed.draft("triage", place))
    manifest = (signed.store.path(signed.ledger.version("triage:1").manifest) / "manifest.json").read_bytes()
    whole = signed.store.path(signed.ledger.signatures("triage:1")[0].seal)
    seals = {
        "another version's": lambda: signed.ledger.signatures("triage:2")[0].seal,
        "another key's": lambda: Signer(new_key(tmp_path, "other")[0]).seal(signed.store, manifest),
        "no signature": lambda: signed.store.put_files({SIGNED: manifest, SIGNATURE: b"{}"}),
        "changed manifest": lambda: signed.store.put_files(
            {SIGNED: manifest.replace(b"triage", b"triagf"), SIGNATURE: (whole / SIGNATURE).read_bytes()}
        ),
    }
    forge(raw, 1, seals[forgery]())
    for use in (
        lambda: signed.ledger.promote("triage", 1, expected=None, decision={}),
        lambda: signed.ledger.files("triage:1"),
    ):
        with pytest.raises(IntegrityError, match="signature is") as refusal:
            use()
        assert {problem.code for problem in refusal.value.problems} == {"E-SIGN-003"}
    assert [p.code for p in fsck(signed.ledger, signed.store)] == ["E-SIGN-003"]


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "link"])
def test_a_signed_version_whose_files_changed_is_refused(signed, harm, tmp_path):
    version = signed.ledger.register(signed.draft("triage"))
    folder = signed.store.path(version.artifact)
    victim = folder / "adapter_config.json"
    if harm == "changed":
        victim.chmod(0o644)
        victim.write_text("{} ")
    elif harm == "added":
        (folder / "more.safetensors").write_bytes(b"x")
    else:
        (tmp_path / "outside.json").write_text("{}")
        victim.unlink()
        if harm == "link":
            victim.symlink_to(tmp_path / "outside.json")
    with pytest.raises(IntegrityError):
        signed.ledger.promote("triage", 1, expected=None, decision={})


def test_a_ledger_that_says_otherwise_than_the_signed_manifest_is_refused(signed, raw):
    for place in range(2):
        signed.ledger.register(signed.draft("triage", place))
    raw.execute("DROP TRIGGER versions_refuses_update")
    raw.execute("UPDATE versions SET artifact = (SELECT artifact FROM versions WHERE id = 2) WHERE id = 1")
    with pytest.raises(IntegrityError, match="its manifest says"):
        signed.ledger.promote("triage", 1, expected=None, decision={})
    assert ("E-LEDGER-111", "triage:1 artifact") in {(p.code, p.where) for p in fsck(signed.ledger, signed.store)}


def test_a_key_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "rsa.pem").write_bytes(subprocess.run(["openssl", "genrsa", "2048"], capture_output=True).stdout)
    (tmp_path / "words.pem").write_text("not a key")
    curve, _ = new_key(tmp_path, "odd", "secp256k1")
    for path in (tmp_path / "gone.pem", tmp_path / "rsa.pem", tmp_path / "words.pem", curve, tmp_path):
        with pytest.raises(Unknown) as refusal:
            Signer(path)
        assert refusal.value.exit_code == 2
        assert len(refusal.value.lines()) == 1
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(DependencyDown, match=r"adapter-factory\[signing\]"):
        Signer(curve)


def test_an_export_is_signed_so_that_the_library_alone_finds_any_change(keys, tmp_path):
    """A folder has its signature inside, a file beside it; the witness is the library's own command."""

    def verifies(target: Path, signature: Path) -> bool:
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(target)]
        command += ["--signature", str(signature), "--public_key", str(keys[1])]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    (folder / "heads").mkdir(parents=True)
    (folder / "heads" / "triage.safetensors").write_bytes(b"weights")
    (folder / "manifest.json").write_bytes(b"{}")
    file.write_bytes(b"GGUF")
    signer = Signer(keys[0])
    signatures = {target: signer.sign_export(target) for target in (folder, file)}
    assert signatures == {folder: folder / SIGNATURE, file: tmp_path / "model.gguf.sig"}
    assert signer.sign_export(folder) == folder / SIGNATURE, "an earlier signature is replaced, not signed"
    assert all(verifies(target, signature) for target, signature in signatures.items())
    (folder / "heads" / "triage.safetensors").write_bytes(b"weightz")
    file.write_bytes(b"GGUG")
    assert not any(verifies(target, signature) for target, signature in signatures.items())
    with pytest.raises(Unknown, match="E-SIGN-001"):
        Signer(None, keys[1]).sign_export(folder)
