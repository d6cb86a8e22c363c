"""From a journal to MLflow: in order, in batches, each event at least once, and once is all that MLflow keeps.

A run is found again by its key, a metric point is identified by (key, step, time, value), parameters, tags and inputs
are sets, files overwrite themselves. So whatever was delivered but not noted as such can be sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from registry.errors import DependencyDown
from registry.failpoint import failpoint
from registry.mlflow_access import RUN_KEY, down, experiment_id, run_of, saying_when_it_is_down
from registry.pages import TEXT_LIMIT, plain_name
from registry.spool import Journal, Position

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

BEGINNING = Lock()  # of this process's senders one at a time looks for a run and creates it: none is there twice
POINTS_PER_CALL = 1000  # MLflow's own limit for metrics; 100 for tags and parameters
TAGS_PER_CALL = 100

log = logging.getLogger(__name__)


class Delivery:
    """Sends what a journal holds and MLflow does not have yet."""

    def __init__(self, journal: Journal, uri: str, connect: Callable[[], MlflowClient], artifacts: Path) -> None:
        self._journal = journal
        self._uri = uri
        self._connect = connect
        self._artifacts = artifacts
        self.position = journal.position()

    def advance(self) -> int:
        """Send all that is there now; returns how many events went out.

        Raises:
            DependencyDown: MLflow does not answer; what was sent before stays noted, the rest waits.
        """
        sent = 0
        for events, offset in _batches(self._journal.events(self.position.offset)):
            self._send(events)
            failpoint("delivery.before_note")
            kind = events[-1]["kind"]
            finished = kind == "end" or (self.position.finished and kind != "begin")
            self.position = self.position._replace(offset=offset, finished=finished)
            self._journal.move_to(self.position)
            sent += len(events)
        return sent

    def _send(self, events: list[dict[str, Any]]) -> None:
        """One batch. What MLflow will never take is put aside, so that it does not hold up the rest.

        The beginning is never put aside: without a run there is nothing to write to.
        """
        from mlflow.exceptions import MlflowException

        first, files = events[0], self._journal.folder / "files"
        try:
            with saying_when_it_is_down(self._uri):
                if first["kind"] == "begin":
                    self._begin(first)
                else:
                    SENDERS[first["kind"]](self._connect(), str(self.position.run_id), events, files)
        except MlflowException as refusal:
            if first["kind"] == "begin":
                raise DependencyDown(down(self._uri, refusal)) from refusal
            if len(events) > 1:
                for event in events:
                    self._send([event])
                return
            reason = str(refusal).splitlines()[0]
            log.warning("MLflow refuses a %s of run %s: %s", first["kind"], self._journal.key, reason)
            self._journal.refuse(first, reason)

    def _begin(self, event: dict[str, Any]) -> None:
        """The run in MLflow, found or created."""
        mlflow = self._connect()
        with BEGINNING:
            found = self._found_or_created(mlflow, self._journal.key, event)
        if found.info.status != "RUNNING":  # it goes on after an interruption
            mlflow.update_run(found.info.run_id, status="RUNNING")
        self.position = Position(self.position.offset, found.info.run_id)

    def _found_or_created(self, mlflow: MlflowClient, key: str, event: dict[str, Any]) -> Any:
        """Under its parent, which is created first where its own sender has not come to that yet."""
        if (found := run_of(mlflow, key)) is not None:
            return found
        tags = {**event["tags"], RUN_KEY: key}
        if parent := event.get("parent"):
            begun = Journal(self._journal.folder.parent / parent).events(0)
            first = next((earlier for earlier, _ in begun if earlier["kind"] == "begin"), None)
            above = self._found_or_created(mlflow, parent, first) if first else run_of(mlflow, parent)
            tags |= {"mlflow.parentRunId": above.info.run_id} if above else {}
        experiment = experiment_id(mlflow, event["experiment"], self._artifacts)
        return mlflow.create_run(experiment, start_time=event["at_ms"], tags=tags, run_name=event["name"])


def _batches(events: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Neighbouring metric points together, up to the limit of one call; everything else alone."""
    batch: list[dict[str, Any]] = []
    held, behind = 0, 0
    for event, offset in events:
        points = event["kind"] == "points"
        size = sum(len(point) - 1 for point in event["points"]) if points else 0
        if batch and (not points or batch[-1]["kind"] != "points" or held + size > POINTS_PER_CALL):
            yield batch, behind
            batch, held = [], 0
        batch.append(event)
        held, behind = held + size, offset
    if batch:
        yield batch, behind


def _send_points(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], _: Path) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(plain_name(name), value, event["at_ms"], int(point["step"]))
        for event in events
        for point in event["points"]
        for name, value in point.items()
        if name != "step"
    ]
    for start in range(0, len(metrics), POINTS_PER_CALL):
        mlflow.log_batch(run_id, metrics=metrics[start : start + POINTS_PER_CALL])


def _send_params(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], _: Path) -> None:
    from mlflow.entities import Param

    params = [Param(plain_name(name), text[:TEXT_LIMIT]) for event in events for name, text in event["values"].items()]
    for start in range(0, len(params), TAGS_PER_CALL):
        mlflow.log_batch(run_id, params=params[start : start + TAGS_PER_CALL])


def _send_tags(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], _: Path) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(name, text[:TEXT_LIMIT]) for event in events for name, text in event["values"].items()]
    for start in range(0, len(tags), TAGS_PER_CALL):
        mlflow.log_batch(run_id, tags=tags[start : start + TAGS_PER_CALL])


def _send_file(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], files: Path) -> None:
    for event in events:
        send_bytes(mlflow, run_id, event["path"], (files / event["file"]).read_bytes())


def _send_dataset(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], _: Path) -> None:
    for event in events:
        send_dataset(mlflow, run_id, event["name"], event["digest"], event["source"], event["context"])


def _send_end(mlflow: MlflowClient, run_id: str, events: list[dict[str, Any]], _: Path) -> None:
    mlflow.set_terminated(run_id, events[-1]["status"], events[-1]["at_ms"])


def send_bytes(mlflow: MlflowClient, run_id: str, path: str, data: bytes) -> None:
    """Put one file at `path` among the run's artifacts."""
    folder, _, name = path.rpartition("/")
    with TemporaryDirectory(prefix="factory-") as temporary:
        local = Path(temporary, name)
        local.write_bytes(data)
        mlflow.log_artifact(run_id, str(local), folder or None)


def send_dataset(mlflow: MlflowClient, run_id: str, name: str, digest: str, source: str, context: str) -> None:
    """Name a data set as an input of the run. MLflow keeps 36 characters of a digest."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source}))
    tags = [InputTag("mlflow.data.context", context)]
    mlflow.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])


SENDERS: dict[str, Callable[[Any, str, list[dict[str, Any]], Path], None]] = {
    "points": _send_points,
    "params": _send_params,
    "tags": _send_tags,
    "file": _send_file,
    "dataset": _send_dataset,
    "end": _send_end,
}
