"""Which program did the work: a digest of the four packages' files, and the versions of what they stand on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from registry.errors import Unknown
from registry.fingerprint import FileEntry, digest_of_file, digest_of_manifest, fingerprint
from registry.records import CodeRecord

PACKAGES = ("flows", "tasks", "registry", "infra")
DISTRIBUTIONS = (  # what can change an adapter's bytes or its scores
    "accelerate",
    "bitsandbytes",
    "datasets",
    "great_expectations",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
NOT_PROGRAM = frozenset({".pyc", ".pyo"})


def code_record(packages: Sequence[str] = PACKAGES, distributions: Sequence[str] = DISTRIBUTIONS) -> CodeRecord:
    """The program as it lies on disk now, without importing any of it.

    Raises:
        Unknown: a package is not on the path.
    """
    digests = {package: digest_of_package(package_folder(package)) for package in packages}
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in distributions}}
    return CodeRecord(fingerprint({"packages": digests, "versions": versions}), digests, versions)


def digest_of_package(folder: Path) -> str:
    """One digest over all source files below a folder: names and bytes, in any order, without caches."""
    entries = [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, digest_of_file(path))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in NOT_PROGRAM
    ]
    return digest_of_manifest(entries)


def package_folder(package: str) -> Path:
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise Unknown.one("E-ENV-030", package, "is not on the path", "install the project: pip install -e .")
    return Path(next(iter(found.submodule_search_locations)))


def version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
