"""The way to MLflow: quiet, impatient, and honest about what is down. Imports MLflow only when it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from registry.errors import DependencyDown, Problem

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_KEY = "factory.run"  # tag that finds a run again by the tracker's own key

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow compares with the word; 1 would not switch it off
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its default of 7 waits about 4 minutes per call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
NOISY = ("mlflow.store.db.utils", "mlflow.tracking", "alembic", "alembic.runtime.migration", "urllib3.connectionpool")
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"})


def client(uri: str) -> MlflowClient:
    """A client of the tracking server and registry at `uri`; nothing is sent yet."""
    prepare(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def prepare(uri: str) -> None:
    """Do the slow imports now, in the caller's thread: two threads that import at once can see half a module."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    import mlflow.tracking

    if not uri.startswith("http"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def shown(uri: str) -> str:
    """The address without user and password.

    >>> shown("http://me:secret@mlflow.lan:5000/x")
    'http://mlflow.lan:5000/x'
    """
    parts = urlsplit(uri)
    return uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def saying_when_it_is_down(uri: str) -> Iterator[None]:
    """Let refusals of a request through as they are; everything else means that MLflow cannot be used now.

    Raises:
        DependencyDown: MLflow does not answer, or not as MLflow does.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise
        raise DependencyDown(down(uri, error)) from error
    except (RequestException, SQLAlchemyError, OSError) as error:
        raise DependencyDown(down(uri, error)) from error


def down(uri: str, error: BaseException) -> Problem:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    secret = urlsplit(uri).password
    first = first.replace(secret, "***") if secret else first
    return Problem("E-MLFLOW-001", shown(uri), f"does not answer ({first[:200]})", "nothing is lost: factory reconcile")


def experiment_id(mlflow: MlflowClient, name: str, artifacts: Path) -> str:
    """The experiment of this name; created, or brought back from the bin, where needed.

    With a database store its files go to `artifacts`; a server decides for itself where they go.
    """
    from mlflow.exceptions import MlflowException

    found: Any = mlflow.get_experiment_by_name(name)
    if found is None:
        local = not mlflow.tracking_uri.startswith("http")
        place = (artifacts / name.replace("/", "-")).absolute().as_uri() if local else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = mlflow.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        mlflow.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def run_of(mlflow: MlflowClient, key: str) -> Any | None:
    """The run that carries this key of ours, if there is one."""
    found = mlflow.search_runs(experiment_ids(mlflow), f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
    return mlflow.get_run(found[0].info.run_id) if found else None  # a search leaves out which models went in


def experiment_ids(mlflow: MlflowClient) -> list[str]:
    """Every experiment; MLflow searches nowhere unless it is told where."""
    return [str(experiment.experiment_id) for experiment in mlflow.search_experiments()]
