from __future__ import annotations

import importlib
import inspect
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.events import DeploymentEventTrigger
from ruamel.yaml import YAML

from infra.automations import DRIFT_EVENT, STALE_EVENT, drift_resource, stale_resource
from infra.deployments import declared, prefect_file
from infra.pools import POOL

ROOT = Path(__file__).parents[2]
FILE = YAML(typ="safe").load(ROOT / "prefect.yaml")
ROWS: list[dict[str, Any]] = FILE["deployments"]
BY_NAME = pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])


def flow_of(row: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = row["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def asked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of every schedule and trigger of a deployment."""
    return [found.get("parameters", {}) for key in ("schedules", "triggers") for found in row.get(key, [])]


@BY_NAME
def test_every_entrypoint_is_a_flow_and_file_function_and_deployment_share_a_name(row: dict[str, Any]) -> None:
    flow = flow_of(row)
    assert isinstance(flow, Flow)
    assert row["entrypoint"] == f"flows.{row['name']}.{flow.name}"
    assert flow.name == row["name"]


@BY_NAME
def test_whatever_starts_a_flow_gives_it_parameters_that_it_takes_and_all_that_it_needs(row: dict[str, Any]) -> None:
    takes = inspect.signature(flow_of(row).fn).parameters
    needs = {name for name, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    for given in asked(row):
        assert needs <= set(given) <= set(takes)


@BY_NAME
def test_every_file_that_a_schedule_names_is_shipped(row: dict[str, Any]) -> None:
    values = [value for given in asked(row) for value in given.values()]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    named = [path for path in paths if isinstance(path, str) and path.endswith((".yaml", ".yml"))]
    assert [path for path in named if not (ROOT / path).is_file()] == []


@BY_NAME
def test_every_deployment_says_what_it_does_and_runs_on_the_pool_that_up_makes(row: dict[str, Any]) -> None:
    assert row["work_pool"]["name"] == POOL
    assert row["work_pool"]["job_variables"]["stream_output"] is False
    assert len(row["description"]) > 20


def test_a_drift_event_starts_the_retrain_of_its_task() -> None:
    row = next(row for row in ROWS if row["name"] == "retrain")
    (written,) = row["triggers"]
    trigger = DeploymentEventTrigger.model_validate(written)
    assert trigger.expect == {DRIFT_EVENT}
    resource = drift_resource("triage")
    assert all(fnmatch(resource[key], pattern) for key, pattern in written["match"].items())
    assert written["parameters"]["task"] == "{{ event.resource.name }}"
    assert resource["prefect.resource.name"] == "triage"


def test_a_promotion_that_makes_a_merge_stale_starts_its_refresh() -> None:
    (written,) = next(row for row in ROWS if row["name"] == "refresh")["triggers"]
    assert DeploymentEventTrigger.model_validate(written).expect == {STALE_EVENT}
    assert all(fnmatch(stale_resource("desk")[key], pattern) for key, pattern in written["match"].items())


def test_only_what_needs_no_file_of_the_user_runs_by_itself() -> None:
    active = {row["name"]: s.get("parameters", {}) for row in ROWS for s in row.get("schedules", []) if s["active"]}
    assert active == {"watch": {}, "refresh": {}}


def test_runs_start_where_their_relative_paths_are_meant() -> None:
    assert FILE["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $FACTORY_WORKDIR }}"}}
    ]


def test_the_file_in_the_working_folder_goes_before_the_one_beside_the_packages(tmp_path: Path) -> None:
    assert prefect_file(tmp_path) == ROOT / "prefect.yaml"
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    assert prefect_file(tmp_path) == tmp_path / "prefect.yaml"
    assert list(declared(ROOT / "prefect.yaml")) == [f"{row['name']}/{row['name']}" for row in ROWS]
