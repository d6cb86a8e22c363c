from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import AlreadyRunning, ServerDown, SettingsRefused
from infra.ports import holder, is_free
from infra.running import Process, record, recorded, this_process
from infra.servers import down, up
from infra.settings import asked_settings


def test_a_port_is_free_exactly_while_nobody_listens(listener: Callable[[], int], free_port: int) -> None:
    assert not is_free("127.0.0.1", listener())
    assert is_free("127.0.0.1", free_port)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system does not tell who listens")
def test_who_holds_a_port_is_named_by_its_process(listener: Callable[[], int], free_port: int) -> None:
    assert f"process {os.getpid()} " in holder(listener())
    assert holder(free_port) == "another process"


def test_taken_ports_are_all_named_before_anything_starts(tmp_path: Path, listener: Callable[[], int]) -> None:
    prefect, mlflow = listener(), listener()
    with pytest.raises(ServerDown) as refused:
        up(asked_settings(prefect_port=prefect, mlflow_port=mlflow))
    assert refused.value.exit_code == 7
    first, second = refused.value.lines()
    assert f"port {prefect}" in first
    assert f"FACTORY_PREFECT_PORT={prefect + 1}" in first
    assert f"port {mlflow}" in second
    assert f"FACTORY_MLFLOW_PORT={mlflow + 1}" in second
    assert not (tmp_path / ".factory").exists()


def test_servers_of_a_home_start_once(tmp_path: Path, listener: Callable[[], int]) -> None:
    me = this_process()
    record(tmp_path / ".factory", {"prefect": Process(me.pid, me.born, f"http://127.0.0.1:{listener()}")})
    with pytest.raises(AlreadyRunning, match="factory down") as refused:
        up(asked_settings())
    assert refused.value.exit_code == 6


def test_without_a_prefect_yaml_nothing_starts(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.deployments.__file__", str(tmp_path / "site-packages" / "infra" / "deployments.py"))
    with pytest.raises(SettingsRefused, match=r"prefect\.yaml"):
        up(asked_settings(prefect_port=free_port, mlflow_uri="https://mlflow.lan"))
    assert recorded(tmp_path / ".factory") == {}


def test_stopping_what_never_ran_is_no_error(tmp_path: Path) -> None:
    assert down(asked_settings()) == ()
    record(tmp_path / ".factory", {"prefect": Process(2**22 + 1, "1", "http://127.0.0.1:1")})
    assert down(asked_settings()) == ()
    assert recorded(tmp_path / ".factory") == {}
