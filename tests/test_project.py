"""The project as a whole: the direction of imports, what is shipped, and how it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from infra.settings import settings_table

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.yaml"))


def declared_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


def tested_versions() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pairs}


def test_flows_know_everyone_and_the_other_three_know_nobody() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_spec_is_one_that_the_factory_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.spec_files import load_adapter_spec, load_merge_spec

    for name in re.findall(r"\$\{(\w+)\}", path.read_text()):
        monkeypatch.setenv(name, "/data")  # what lies elsewhere is not looked at here; the form is checked all the same
    keys = YAML(typ="safe").load(path)
    load = {"task": load_adapter_spec, "parents": load_merge_spec}
    (kind,) = {"task", "parents"} & set(keys)
    load[kind](path)


def test_every_dependency_has_a_tested_version_within_its_declared_range() -> None:
    tested = tested_versions()
    outside = [
        str(row) for row in declared_requirements() if not row.specifier.contains(tested[canonicalize_name(row.name)])
    ]
    assert outside == []


def test_the_tested_versions_leave_the_build_of_torch_to_the_machine() -> None:
    assert [version for version in tested_versions().values() if "+" in version] == []


def test_everything_that_an_install_brings_has_a_tested_version() -> None:
    """The closure of what is declared, read from what is installed here; a package that is not here is not needed."""
    tested, seen, todo = tested_versions(), set(), declared_requirements()
    while todo:
        row = todo.pop()
        if (canonicalize_name(row.name), frozenset(row.extras)) in seen:
            continue
        seen.add((canonicalize_name(row.name), frozenset(row.extras)))
        try:
            needed = [Requirement(line) for line in metadata.requires(row.name) or ()]
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            needed = []
        extras = ["", *row.extras]
        todo += [n for n in needed if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in extras)]
    brought = {name for name, _ in seen}
    assert brought - set(tested) == {name for name in brought if name.startswith(("nvidia-", "cuda-", "triton"))}


def test_an_install_names_the_extras_that_exist() -> None:
    installs = re.findall(
        r"-e '\.\[([a-z0-9,]+)\]'", (ROOT / "Makefile").read_text() + (ROOT / "constraints.txt").read_text()
    )
    assert installs
    assert {extra for found in installs for extra in found.split(",")} <= set(PROJECT["optional-dependencies"])


def test_make_offers_what_the_readme_promises() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    promised = set(re.findall(r"^\s*make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "up"} | promised <= targets


def test_a_second_make_has_nothing_to_do(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    done = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Nothing to be done" in done.stdout


def test_make_without_a_python_that_is_new_enough_says_so_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "setup", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert "needs Python 3.11 or newer" in first
    assert [line for line in rest if not line.startswith("make")] == []
    assert not (tmp_path / ".venv").exists()


def test_the_settings_of_the_documentation_are_the_settings() -> None:
    assert settings_table() in (ROOT / "docs" / "operations.md").read_text()
