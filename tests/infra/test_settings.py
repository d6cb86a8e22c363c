from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra import running
from infra.errors import SettingsRefused
from infra.running import Process
from infra.settings import Settings, asked_settings, load_settings

URLS = ("ledger_url", "mlflow_uri", "prefect_api_url", "prefect_database_url", "mlflow_artifacts")


def test_everything_that_persists_lies_under_home_and_home_moves_it_all(tmp_path: Path) -> None:
    for home in (tmp_path / ".factory", tmp_path / "else where"):
        settings = asked_settings(home=home) if home.name != ".factory" else asked_settings()
        places = {name: value for name, value in settings if isinstance(value, Path | str) and name != "workdir"}
        assert {name for name, place in places.items() if str(home) not in str(place).replace("%20", " ")} == set()


def test_a_relative_home_is_made_absolute_so_that_a_child_in_another_folder_means_the_same(tmp_path: Path) -> None:
    os.environ["FACTORY_HOME"] = "here"
    assert asked_settings().home == tmp_path / "here"
    assert asked_settings().ledger_url == f"sqlite:///{tmp_path}/here/ledger.db"


def test_an_argument_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    assert asked_settings().prefect_port == 4200
    (tmp_path / "factory.toml").write_text("prefect_port = 4301\nmlflow_port = 5301\n")
    assert asked_settings().prefect_port == 4301
    os.environ["FACTORY_PREFECT_PORT"] = "4302"
    assert (asked_settings().prefect_port, asked_settings().mlflow_port) == (4302, 5301)
    assert asked_settings(prefect_port=4303).prefect_port == 4303


@pytest.mark.parametrize("name", URLS)
def test_no_password_shows_in_what_settings_print(name: str) -> None:
    settings = asked_settings(**{name: "https://user:CANARY@host.example/x?token=CANARY"})
    assert getattr(settings, name).count("CANARY") == 2
    assert "host.example" in repr(settings)
    assert "CANARY" not in repr(settings) + str(settings) + f"{settings!r}"


@pytest.mark.parametrize("name", URLS)
def test_no_password_shows_in_a_refusal(name: str) -> None:
    for bad in ("CANARY", "postgresql://u:CANARY with spaces@host/db"):
        os.environ[f"FACTORY_{name.upper()}"] = bad
        with pytest.raises(SettingsRefused) as refused:
            asked_settings()
        assert refused.value.exit_code == 2
        assert f"FACTORY_{name.upper()}" in str(refused.value)
        assert "CANARY" not in str(refused.value)
        assert refused.value.__cause__ is None


def test_all_that_is_wrong_is_said_at_once_and_nothing_that_follows_from_it() -> None:
    os.environ |= {"FACTORY_PREFECT_PORT": "70000", "FACTORY_GPU_SLOTS": "none", "FACTORY_LEDGER_URL": "ledger.db"}
    with pytest.raises(SettingsRefused) as refused:
        asked_settings()
    named = [problem.where for problem in refused.value.problems]
    assert sorted(named) == ["FACTORY_GPU_SLOTS", "FACTORY_LEDGER_URL", "FACTORY_PREFECT_PORT"]


def test_a_key_of_the_file_that_is_no_setting_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "factory.toml").write_text("gpu_slot = 2\n")
    with pytest.raises(SettingsRefused, match=r"factory\.toml:gpu_slot.*'gpu_slots'"):
        asked_settings()
    (tmp_path / "factory.toml").write_text("gpu_slots = \n")
    with pytest.raises(SettingsRefused, match="is not TOML"):
        asked_settings()


def test_a_foreign_variable_with_our_prefix_is_none_of_our_business() -> None:
    os.environ["FACTORY_DATA"] = "/data"
    assert asked_settings().prefect_port == 4200


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        asked_settings().home = Path("/")  # type: ignore[misc]


@pytest.mark.parametrize("bare", ["postgresql://u@h/db", "postgres://u@h/db"])
def test_a_bare_postgresql_url_gets_the_driver_that_is_installed(bare: str) -> None:
    settings = asked_settings(ledger_url=bare, mlflow_uri=bare, prefect_database_url=bare)
    assert settings.ledger_url == settings.mlflow_uri == "postgresql+psycopg://u@h/db"
    assert settings.prefect_database_url == "postgresql+asyncpg://u@h/db"
    assert asked_settings(ledger_url="postgresql+psycopg2://u@h/db").ledger_url == "postgresql+psycopg2://u@h/db"


def test_a_remote_mlflow_keeps_its_own_files() -> None:
    assert asked_settings(mlflow_uri="https://mlflow.lan").mlflow_artifacts is None
    assert not asked_settings(mlflow_uri="https://mlflow.lan").owns_mlflow
    assert asked_settings().owns_mlflow


def test_a_command_lands_on_the_servers_of_its_home_while_they_run(tmp_path: Path, listener: Callable[[], int]) -> None:
    prefect, mlflow = (f"http://127.0.0.1:{listener()}" for _ in range(2))
    me = running.this_process()
    running.record(
        tmp_path / ".factory",
        {"prefect": Process(me.pid, me.born, prefect), "mlflow": Process(me.pid, me.born, mlflow)},
    )
    found = load_settings()
    assert (found.prefect_api_url, found.mlflow_uri) == (f"{prefect}/api", mlflow)
    assert found.mlflow_artifacts == asked_settings().mlflow_artifacts
    assert load_settings(home=tmp_path / "another").prefect_api_url is None


def test_what_is_asked_for_beats_what_is_found_running(tmp_path: Path, listener: Callable[[], int]) -> None:
    me = running.this_process()
    url = f"http://127.0.0.1:{listener()}"
    running.record(
        tmp_path / ".factory", {"prefect": Process(me.pid, me.born, url), "mlflow": Process(me.pid, me.born, url)}
    )
    found = load_settings(prefect_api_url="https://prefect.lan/api", mlflow_uri="https://mlflow.lan")
    assert (found.prefect_api_url, found.mlflow_uri) == ("https://prefect.lan/api", "https://mlflow.lan")


def test_a_server_that_died_misleads_nobody(tmp_path: Path, listener: Callable[[], int], free_port: int) -> None:
    me = running.this_process()
    dead = {
        "its number was given to a later process": Process(me.pid, "0", f"http://127.0.0.1:{listener()}"),
        "it no longer listens": Process(me.pid, me.born, f"http://127.0.0.1:{free_port}"),
        "there is no such process": Process(2**22 + 1, me.born, f"http://127.0.0.1:{listener()}"),
    }
    for process in dead.values():
        running.record(tmp_path / ".factory", {"prefect": process})
        assert load_settings().prefect_api_url is None
    (tmp_path / ".factory" / "servers.json").write_text('{"prefect": {"pid": ')
    assert load_settings().prefect_api_url is None


def test_a_run_of_a_worker_takes_the_server_that_the_worker_names() -> None:
    os.environ["PREFECT_API_URL"] = "https://prefect.lan/api"
    assert load_settings().prefect_api_url == "https://prefect.lan/api"
    assert load_settings(prefect_api_url="https://other/api").prefect_api_url == "https://other/api"
    assert asked_settings().prefect_api_url is None


def test_settings_load_without_prefect_mlflow_or_torch() -> None:
    program = (
        "import sys, infra.environment; from infra.settings import load_settings; load_settings();"
        "print(sorted({'prefect', 'mlflow', 'torch', 'sqlalchemy', 'flows', 'tasks', 'registry'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if len(field.description or "") < 20] == []
