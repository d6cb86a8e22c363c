"""Identity is content."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import IntegrityError, Unstable
from registry.fingerprint import canonical, digest_of_file, digest_of_folder, fingerprint, version_key

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)


def shuffled(value, chance):
    """The same value with every mapping's keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        chance.shuffle(keys)
        return {key: shuffled(value[key], chance) for key in keys}
    return [shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value, chance):
    assert fingerprint(value) == fingerprint(shuffled(value, chance))


@given(VALUES)
def test_the_bytes_say_the_whole_value(value):
    assert json.loads(canonical(value)) == value


@given(VALUES, VALUES)
def test_different_json_has_different_fingerprints(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


def test_the_fingerprint_is_the_same_in_another_process_with_another_hash_seed():
    value = {"b": [1, 2.5, None], "a": {"ä": True, "rate": 1e-4}}
    program = f"from registry.fingerprint import fingerprint; print(fingerprint({value!r}))"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == fingerprint(value)


def test_tuples_and_frozen_mappings_count_as_what_they_hold():
    assert fingerprint({"a": (1, 2)}) == fingerprint(MappingProxyType({"a": [1, 2]}))


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        ({"training": {"rate": float("nan")}}, "value.training.rate"),
        ({"rate": [1.0, float("inf")]}, "value.rate[1]"),
        ({"labels": {"a", "b"}}, "value.labels"),
        ({"model": object()}, "value.model"),
        ({"path": Path("x")}, "value.path"),
        ({1: "one"}, "value"),
        ({"raw": b"bytes"}, "value.raw"),
        ({"text": "half \ud800"}, "value.text"),
    ],
)
def test_what_has_no_stable_bytes_is_refused_by_its_place(bad, place):
    with pytest.raises(Unstable) as refusal:
        fingerprint(bad)
    assert [problem.where for problem in refusal.value.problems] == [place]
    assert refusal.value.exit_code == 2


def test_every_unstable_place_is_named_at_once():
    with pytest.raises(Unstable) as refusal:
        fingerprint({"a": float("nan"), "b": {1}, "c": 1})
    assert len(refusal.value.problems) == 2


def test_a_version_key_ignores_the_order_of_parents_and_feels_everything_else():
    facts = {"kind": "adapter", "spec": {"r": 16}, "base": "b", "parents": [("dataset", "d"), ("replay", "e")]}
    facts |= {"evaluation": ["v", "w"], "code": "c", "seed": 0}
    key = version_key(**facts)
    assert version_key(**{**facts, "parents": facts["parents"][::-1], "evaluation": ["w", "v"]}) == key
    changes = {"kind": "merged", "spec": {"r": 8}, "base": "x", "parents": [("dataset", "d")], "evaluation": ["v"]}
    changes |= {"code": "x", "seed": 1}
    assert len({key, *(version_key(**{**facts, name: value}) for name, value in changes.items())}) == len(changes) + 1


def test_a_file_has_the_digest_that_hashlib_gives(tmp_path):
    data = random.Random(0).randbytes(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert digest_of_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_folder_digest_is_the_hash_of_its_sorted_manifest(tmp_path):
    files = {"b.txt": b"two", "sub/a.txt": b"one"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    rows = [
        {"bytes": len(data), "path": name, "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    ]
    expected = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    assert digest_of_folder(tmp_path) == expected


def test_a_folder_feels_names_as_well_as_bytes(tmp_path):
    for folder, name in (("one", "a"), ("two", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"same")
    assert digest_of_folder(tmp_path / "one") != digest_of_folder(tmp_path / "two")


def test_links_fifos_and_unspeakable_names_are_refused_together(tmp_path):
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "new\nline").write_bytes(b"x")
    with pytest.raises(IntegrityError) as refusal:
        digest_of_folder(tmp_path)
    assert {problem.where for problem in refusal.value.problems} == {"'link'", "'pipe'", repr("new\nline")}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_missing_or_empty_folder_has_no_digest(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntegrityError):
        digest_of_folder(tmp_path / name)
