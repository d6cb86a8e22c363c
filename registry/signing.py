"""Signatures in the OpenSSF model-signing format, with a key of one's own and no network.

    openssl ecparam -name prime256v1 -genkey -noout -out factory.pem
    openssl ec -in factory.pem -pubout -out factory.pub

What is signed is a version's manifest, which names every file by its hash. Anyone can check it without the factory:
`model_signing verify key SEAL/signed --signature SEAL/model.sig --public_key factory.pub`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from registry.errors import DependencyDown, IntegrityError, Problem, Unknown
from registry.manifest import MANIFEST
from registry.store import Store

SIGNED, SIGNATURE = f"signed/{MANIFEST}", "model.sig"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
RESTORE = "restore the store, or register the version again from files that you trust"


class Signer:
    """Signs with the private key, checks with the public one; only the second is needed where nothing is registered."""

    def __init__(self, private_key: Path | None, public_key: Path | None = None) -> None:
        """
        Raises:
            Unknown: a key is missing, unreadable, or of a kind that is not spoken here.
            DependencyDown: the extra `signing` is not installed.
        """
        _library()
        self.private_key = private_key
        self._public = _public_pem(public_key or private_key, private=public_key is None)

    @property
    def key(self) -> str:
        """SHA-256 of the public key in PEM."""
        return hashlib.sha256(self._public).hexdigest()

    @cached_property
    def _hashing(self) -> Callable[[], Any]:
        from model_signing import hashing

        return lambda: hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)

    def seal(self, store: Store, manifest: bytes) -> str:
        """Sign a manifest; the digest in the store of manifest and signature.

        Raises:
            Unknown: there is no private key here.
        """
        if self.private_key is None:
            raise Unknown.one(
                "E-SIGN-001", "signing key", "only the public key is here", "set FACTORY_SIGNING_KEY where you register"
            )
        from model_signing import signing

        with tempfile.TemporaryDirectory(prefix="factory-") as folder:
            signed = Path(folder, SIGNED)
            signed.parent.mkdir()
            signed.write_bytes(manifest)
            config = signing.Config().use_elliptic_key_signer(private_key=self.private_key)
            config.set_hashing_config(self._hashing()).sign(signed.parent, Path(folder, SIGNATURE))
            return store.put(folder)

    def sign_export(self, target: Path) -> Path:
        """Sign a folder or a file that leaves the factory; the signature lies inside the folder or beside the file.
        `model_signing verify key` checks it with the public key.

        Raises:
            Unknown: there is no private key here.
        """
        if self.private_key is None:
            raise Unknown.one("E-SIGN-001", "signing key", "only the public key is here", "set FACTORY_SIGNING_KEY")
        from model_signing import signing

        signature = target / SIGNATURE if target.is_dir() else target.with_name(f"{target.name}.sig")
        signature.unlink(missing_ok=True)
        hashing = self._hashing().set_ignored_paths(paths=[signature])
        config = signing.Config().use_elliptic_key_signer(private_key=self.private_key)
        config.set_hashing_config(hashing).sign(target, signature)
        return signature

    def check(self, store: Store, seal: str, manifest: bytes, where: str) -> None:
        """Let a seal pass that our key made over exactly this manifest.

        Raises:
            IntegrityError: another key's, another manifest's, or a damaged one.
        """
        from model_signing import verifying

        folder = store.path(seal)
        if not (folder / SIGNED).is_file() or (folder / SIGNED).read_bytes() != manifest:
            raise IntegrityError.one("E-SIGN-003", where, "the signature is over another manifest", RESTORE)
        with tempfile.NamedTemporaryFile(prefix="factory-", suffix=".pub") as public:
            public.write(self._public)
            public.flush()
            config = verifying.Config().use_elliptic_key_verifier(public_key=Path(public.name))
            try:
                config.set_hashing_config(self._hashing()).verify((folder / SIGNED).parent, folder / SIGNATURE)
            except Exception as error:  # the library raises what its parsers raise
                wrong = f"the signature is not by key {self.key[:12]} ({str(error).splitlines()[0][:120]})"
                raise IntegrityError.one("E-SIGN-003", where, wrong, RESTORE) from error


def unsigned(where: str, key: str) -> Problem:
    """A version without a signature of the configured key, where one is asked for."""
    return Problem("E-SIGN-002", where, f"is not signed with key {key[:12]}", f"factory sign {where}, if you trust it")


def _library() -> None:
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'adapter-factory[signing]', or unset FACTORY_SIGNING_KEY"
        raise DependencyDown.one("E-SIGN-004", "signing", "model-signing is not installed", remedy) from error


def _public_pem(path: Path | None, *, private: bool) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if path is None:
        raise Unknown.one("E-SIGN-001", "signing key", "is not named", "set FACTORY_SIGNING_KEY")
    try:
        data = Path(path).read_bytes()
        found: Any = (
            serialization.load_pem_private_key(data, None).public_key()
            if private
            else serialization.load_pem_public_key(data)
        )
        if not isinstance(found, EllipticCurvePublicKey) or found.curve.name not in CURVES:
            raise ValueError(f"it is no elliptic key of {', '.join(CURVES)}")
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:120]
        remedy = "openssl ecparam -name prime256v1 -genkey -noout makes one, without a password"
        raise Unknown.one("E-SIGN-001", path, f"is no key that can be used ({reason})", remedy) from error
    return bytes(found.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
