"""The code digest feels every source file and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from registry.errors import Unknown
from registry.fingerprint import fingerprint
from registry.provenance import PACKAGES, code_record, digest_of_package


def test_the_record_names_the_four_packages_and_the_installed_versions():
    record = code_record()
    assert tuple(record.packages) == PACKAGES
    assert record.digest == fingerprint({"packages": record.packages, "versions": record.versions})
    assert record == code_record()
    import numpy

    assert record.versions["numpy"] == numpy.__version__


def test_any_changed_added_or_renamed_source_file_changes_the_digest(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "sub" / "b.sql").write_text("SELECT 1")
    digests = [digest_of_package(tmp_path)]
    (tmp_path / "a.py").write_text("x = 2\n")
    digests.append(digest_of_package(tmp_path))
    (tmp_path / "sub" / "c.py").write_text("")
    digests.append(digest_of_package(tmp_path))
    (tmp_path / "sub" / "c.py").rename(tmp_path / "sub" / "d.py")
    digests.append(digest_of_package(tmp_path))
    assert len(set(digests)) == 4


def test_caches_do_not_change_the_digest(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = digest_of_package(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.cpython-311.pyc").write_bytes(hashlib.sha256(b"x").digest())
    assert digest_of_package(tmp_path) == before


def test_a_missing_package_is_named():
    with pytest.raises(Unknown, match="no_such_package"):
        code_record(("no_such_package",), ())
    assert code_record(("registry",), ("no-such-distribution",)).versions["no-such-distribution"] == "absent"
