from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from infra.environment import ALWAYS, HEARTBEAT_SECONDS, QUIET, UNLESS_SET, environment_of, export_environment
from infra.settings import asked_settings


def test_exporting_sets_every_variable_in_this_process_and_so_in_its_children(tmp_path: Path) -> None:
    settings = asked_settings(
        home=tmp_path / "home", prefect_api_url="http://prefect.lan/api", workdir=tmp_path / "work"
    )
    wanted = export_environment(settings)
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    child = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert wanted.items() <= child.items()
    assert child["PREFECT_HOME"] == str(tmp_path / "home" / "prefect")
    assert child["PREFECT_API_URL"] == "http://prefect.lan/api"
    assert child["MLFLOW_TRACKING_URI"] == settings.mlflow_uri
    assert child["FACTORY_HOME"] == str(tmp_path / "home")
    assert child["FACTORY_WORKDIR"] == str(tmp_path / "work")


def test_a_child_in_another_folder_finds_the_same_home(tmp_path: Path) -> None:
    export_environment(asked_settings(home="relative"))
    (tmp_path / "deep").mkdir()
    program = "from infra.settings import asked_settings; print(asked_settings().ledger_url)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "deep", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"sqlite:///{tmp_path}/relative/ledger.db"


def test_what_protects_is_not_to_be_overridden_and_what_is_taste_is() -> None:
    given = dict.fromkeys((*ALWAYS, *UNLESS_SET, *QUIET), "mine")
    wanted = environment_of(asked_settings(), given=given)
    assert ALWAYS.items() <= wanted.items()
    assert not set(wanted) & ({*UNLESS_SET, *QUIET} - set(ALWAYS))
    assert {**UNLESS_SET, **QUIET}.items() <= environment_of(asked_settings(), given={}).items()


def test_offline_is_the_default_and_a_hub_must_be_asked_for() -> None:
    assert environment_of(asked_settings(), given={})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment_of(asked_settings(offline=False), given={})


def test_debug_shows_what_is_otherwise_kept_from_the_console() -> None:
    quiet, loud = (environment_of(asked_settings(), debug=debug, given={}) for debug in (False, True))
    assert {name for name in QUIET if quiet[name] == loud[name]} == set()


LIBRARIES_SAY = """
import json
from huggingface_hub import constants as hub
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION, MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from mlflow.telemetry.utils import is_telemetry_disabled
from prefect._internal.analytics.enabled import is_telemetry_enabled
from prefect.settings import get_current_settings
prefect = get_current_settings()
print(json.dumps({
    "hub is offline": hub.HF_HUB_OFFLINE,
    "hub telemetry": not hub.HF_HUB_DISABLE_TELEMETRY,
    "mlflow telemetry": not is_telemetry_disabled(),
    "mlflow unpickles": MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get(),
    "mlflow runs jobs": MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get(),
    "prefect telemetry": is_telemetry_enabled(),
    "prefect server telemetry": prefect.server.analytics_enabled,
    "prefect metrics": prefect.telemetry.enable_resource_metrics,
    "prefect results": prefect.results.default_serializer,
    "prefect heartbeat": prefect.flows.heartbeat_frequency,
    "prefect home": str(prefect.home),
}))
"""


def test_the_libraries_themselves_understand_what_is_exported() -> None:
    settings = asked_settings()
    clean = {name: value for name, value in os.environ.items() if name not in {*ALWAYS, "HF_HUB_OFFLINE", "CI"}}
    environment = clean | environment_of(settings, given=clean)
    said = subprocess.run(
        [sys.executable, "-c", LIBRARIES_SAY], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout) == {
        "hub is offline": True,
        "hub telemetry": False,
        "mlflow telemetry": False,
        "mlflow unpickles": False,
        "mlflow runs jobs": False,
        "prefect telemetry": False,
        "prefect server telemetry": False,
        "prefect metrics": False,
        "prefect results": "json",
        "prefect heartbeat": HEARTBEAT_SECONDS,
        "prefect home": str(settings.prefect_home),
    }
