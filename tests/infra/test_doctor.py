from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from infra import doctor
from infra.running import Process, record, this_process
from infra.settings import asked_settings

WELL = {"device": "cpu", "error": 0.09, "gpu": "", "gib": 0.0, "bf16": False}


def test_this_machine_is_fit_and_every_check_has_a_name_of_its_own() -> None:
    found = doctor.checks(asked_settings(), probe=lambda: WELL)
    assert [check for check in found if not check.ok and check.name != "disk"] == []
    assert len({check.name for check in found}) == len(found)


def test_the_probe_finds_that_nf4_works_here() -> None:
    check = doctor.nf4(doctor.probe_nf4())
    assert check.ok, check


@pytest.mark.parametrize(
    ("required", "version", "tested", "ok"),
    [
        ("fastapi>=0.139,<0.151", "0.150.0", "0.150.0", True),
        ("fastapi>=0.139,<0.151", "0.165.0", None, False),
        ("sqlalchemy>=2.0.40,<2.1", "2.1.9", None, False),
        ("torch==2.13.0; extra == 'train'", "2.13.0+cu130", "2.13.0", True),
        ("torch==2.13.0; extra == 'train'", None, "2.13.0", True),
        ("peft>=0.21,<0.22; extra == 'train'", "0.21.3", "0.21.2", False),
        ("prefect>=3.8.8,<4", None, None, False),
    ],
)
def test_a_version_is_refused_outside_its_range_and_outside_the_tested_set(
    required: str, version: str | None, tested: str | None, ok: bool
) -> None:
    check = doctor.fits(Requirement(required), version, tested)
    assert check.ok is ok
    assert ok or check.remedy


def test_kernels_is_refused_because_it_makes_an_import_download_code() -> None:
    assert doctor.kernels(None).ok
    assert not doctor.kernels("0.4.1").ok


def test_a_second_package_of_one_of_our_names_is_found_and_a_plain_folder_is_not_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "tasks").mkdir(parents=True)
        (tmp_path / name / "tasks" / "__init__.py").touch()
    (tmp_path / "three" / "tasks").mkdir(parents=True)
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "tasks.py").touch()
    path = [str(tmp_path / name) for name in ("one", "two", "three", "four", "one")]
    found = doctor.homes("tasks", path)
    assert found == (tmp_path / "one" / "tasks", tmp_path / "two" / "tasks", tmp_path / "four" / "tasks.py")
    assert not doctor.one_home("tasks", found).ok
    assert not doctor.one_home("tasks", ()).ok


@pytest.mark.parametrize("name", doctor.PACKAGES)
def test_each_of_our_names_has_exactly_one_home(name: str) -> None:
    assert doctor.homes(name, sys.path) == (Path(__file__).parents[2] / name,)


def test_nf4_that_gives_wrong_numbers_or_no_answer_is_refused() -> None:
    assert not doctor.nf4({**WELL, "error": 0.5}).ok
    assert not doctor.nf4("ModuleNotFoundError: No module named 'bitsandbytes'").ok


def test_no_gpu_is_fine_but_a_gpu_that_torch_does_not_see_is_not() -> None:
    assert doctor.gpu(WELL, driver=False).ok
    assert not doctor.gpu(WELL, driver=True).ok
    seen = {**WELL, "device": "cuda", "gpu": "H100", "gib": 79.6, "bf16": True}
    assert doctor.gpu(seen, driver=True).found == "H100, 80 GiB, bfloat16"


def test_a_database_file_answers_only_if_it_is_one(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    url = f"sqlite:///{file}"
    assert doctor.reachable("ledger", url).ok
    assert not file.exists()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE versions (number INTEGER)")
    assert doctor.reachable("ledger", url).ok
    file.write_bytes(b"this is no database, and longer than a header of one hundred bytes" * 3)
    assert not doctor.reachable("ledger", url).ok


def test_a_server_is_reached_by_a_connection_and_its_password_is_not_shown(
    listener: Callable[[], int], free_port: int
) -> None:
    url = "postgresql+psycopg://u:CANARY@127.0.0.1:{}/ledger"
    there, gone = (doctor.reachable("ledger", url.format(port)) for port in (listener(), free_port))
    assert (there.ok, gone.ok) == (True, False)
    assert "CANARY" not in repr(there) + repr(gone)


def test_servers_that_are_not_up_are_fine_but_servers_that_died_are_not(tmp_path: Path) -> None:
    assert doctor.servers(tmp_path).ok
    record(tmp_path, {"worker": this_process()})
    assert doctor.servers(tmp_path).ok
    record(tmp_path, {"worker": this_process(), "prefect": Process(2**22 + 1, "1", "http://127.0.0.1:1")})
    check = doctor.servers(tmp_path)
    assert not check.ok
    assert check.found == "worker up, prefect gone"


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "not" / "yet").ok
    (tmp_path / "file").touch()
    assert not doctor.writable(tmp_path / "file" / "home").ok
