"""What Prefect, MLflow, the hub client and the GPU stack read from the environment, said once, before they load.

These libraries fix most of it when they are imported, so `export_environment` is the first thing a command does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from infra.settings import LOOPBACK, Settings

HEARTBEAT_SECONDS = 30  # Prefect's smallest; a run that is silent for three of them is called Crashed (automations.py)

# Nothing phones home, nothing unpickles, nothing listens beyond this machine: not to be overridden.
ALWAYS: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",  # the word, not 1: MLflow understands nothing else
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes and 2.4 GB for scoring that is not used here
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # Prefect's default is pickle
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
}

# Sensible for the factory; a variable that is set already wins.
UNLESS_SET: Mapping[str, str] = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is too short beside a training run on two cores
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait for work leave the core to the others
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# The console belongs to the command's own progress; runs log in full to Prefect all the same.
QUIET: Mapping[str, str] = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
TALKATIVE: Mapping[str, str] = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
    "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
    "MLFLOW_LOGGING_LEVEL": "INFO",
}


def environment_of(
    settings: Settings, *, debug: bool = False, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables to set over `given` (default: this process's), a value apart from the act of setting them."""
    given = os.environ if given is None else given
    wanted = {
        "FACTORY_HOME": str(settings.home),
        "FACTORY_WORKDIR": str(settings.workdir),  # prefect.yaml starts its runs there
        "PREFECT_HOME": str(settings.prefect_home),
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        **ALWAYS,
    }
    if settings.prefect_api_url is not None:
        wanted["PREFECT_API_URL"] = settings.prefect_api_url
    if settings.prefect_database_url is not None:
        wanted["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = settings.prefect_database_url
    if settings.offline:
        wanted["HF_HUB_OFFLINE"] = "1"
    if debug:
        wanted |= TALKATIVE
    defaults = {**UNLESS_SET, **({} if debug else QUIET)}
    return {name: value for name, value in defaults.items() if name not in given} | wanted


def export_environment(settings: Settings, *, debug: bool = False) -> dict[str, str]:
    """Set the variables in this process and so in its children, before Prefect, MLflow or transformers are imported."""
    wanted = environment_of(settings, debug=debug)
    os.environ.update(wanted)
    return wanted
