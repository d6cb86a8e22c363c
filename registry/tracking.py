"""Runs that people can look at in MLflow, without training ever waiting for MLflow.

    tracker = Tracker("sqlite:///.factory/mlflow/mlflow.db", folder=Path(".factory/mlflow"))
    with tracker.run(name="triage r16", experiment="triage", params=...) as run:
        run.log_steps([{"step": 1, "loss": 2.3, "rate": 1e-4}])      # a line in a local file, some microseconds
    draft = VersionDraft(..., run=run.key)

Everything is written to a journal first. A thread sends it on in batches; what it cannot send (MLflow down, slow, or
this process killed) stays in the journal until `deliver`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from registry.delivery import Delivery
from registry.errors import DependencyDown, Problem
from registry.mlflow_access import client, down, prepare, run_of, saying_when_it_is_down
from registry.spool import Journal, journals

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LONGEST_PAUSE_SECONDS = 60.0
SIGNALS_FROM = 128  # exit codes above it say that a signal ended the work

log = logging.getLogger(__name__)


class Delivered(NamedTuple):
    """What `deliver` did: runs brought to their end, events sent, runs that still wait, and why."""

    runs: int
    events: int
    waiting: int
    problem: Problem | None


class Run:
    """What a training says about itself. `key` names it here and in MLflow (tag factory.run)."""

    def __init__(
        self, journal: Journal, sender: Sender, clock: Callable[[], float], said: Mapping[str, int] | None = None
    ) -> None:
        self.key = journal.key
        self._said = said or {}
        self._journal = journal
        self._sender = sender
        self._clock = clock
        self._lost = 0

    @property
    def id(self) -> str | None:
        """MLflow's own id, once MLflow has heard of the run; None before that, and while it is down."""
        return self._sender.delivery.position.run_id

    def log_steps(self, points: Iterable[Mapping[str, float]]) -> None:
        """Metric points, each with its "step": [{"step": 7, "loss": 1.9, "rate": 2e-4}, ...].

        What a run said before it was interrupted is not said again when it repeats those steps.
        """
        plain = [
            {
                n: float(value)
                for n, value in point.items()
                if n == "step" or not 0 < point["step"] <= self._said.get(n, 0)
            }
            for point in points
        ]
        if new := [point for point in plain if len(point) > 1]:
            self._say("points", points=new)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.log_steps([{"step": step, **values}])

    def log_params(self, values: Mapping[str, Any]) -> None:
        """What was asked for; each parameter is set once."""
        self._say("params", values={name: str(value) for name, value in values.items()})

    def log_tags(self, values: Mapping[str, Any]) -> None:
        self._say("tags", values={name: str(value) for name, value in values.items()})

    def log_figure(self, name: str, image: bytes) -> None:
        """An image (loss.svg, loss.png) under figures/."""
        self._attach(f"figures/{name}", image)

    def log_text(self, name: str, text: str) -> None:
        """A text at this path among the run's files."""
        self._attach(name, text.encode())

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """A data set as input of the run; context is training, validation, test, replay, ..."""
        self._say("dataset", name=name, digest=digest, source=source, context=context)

    def _attach(self, path: str, data: bytes) -> None:
        """
        Raises:
            ValueError: the path leaves the run's folder.
        """
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path.endswith("/"):
            raise ValueError(f"a file's name stays inside the run; found {path!r}")
        try:
            name = self._journal.attach(data)
        except OSError as error:
            self._note_loss(error)
        else:
            self._say("file", path=path, file=name)

    def _say(self, kind: str, **fields: Any) -> None:
        try:
            self._journal.append(kind, int(self._clock() * 1000), **fields)
        except OSError as error:  # a full disk stops the training's own writes, not this
            self._note_loss(error)

    def _note_loss(self, error: OSError) -> None:
        self._lost += 1
        if self._lost == 1:
            log.warning(
                "the journal of run %s cannot be written (%s); its curve will have gaps", self.key, error.strerror
            )


class Sender(Thread):
    """Sends a journal on while it is being written; a daemon, so that a hanging MLflow cannot hold the process."""

    def __init__(self, journal: Journal, delivery: Delivery, interval_seconds: float) -> None:
        super().__init__(name=f"mlflow-{journal.key}", daemon=True)
        self.delivery = delivery
        self.problem: Problem | None = None
        self._journal = journal
        self._interval_seconds = interval_seconds
        self._closing = Event()

    def run(self) -> None:
        pause_seconds = 0.0
        while True:
            closing = self._closing.wait(pause_seconds)
            try:
                self.delivery.advance()
                self.problem, pause_seconds = None, self._interval_seconds
            except DependencyDown as error:
                self.problem = error.problems[0]
                pause_seconds = min(max(2 * pause_seconds, self._interval_seconds), LONGEST_PAUSE_SECONDS)
            except Exception as error:  # a fault of ours or of MLflow's client; training goes on, the journal stays
                self.problem = down("MLflow", error)
                closing = True
            if closing:
                break
        if self.delivery.position.finished and not self._journal.refused():
            self._journal.remove()
        self._journal.disown()

    def finish(self, patience_seconds: float) -> None:
        """Ask for a last round and wait for it, but not for a MLflow that is known to be down."""
        self._closing.set()
        self.join(patience_seconds if self.problem is None else min(patience_seconds, 1.0))
        if self.problem is not None or self.is_alive():
            why = self.problem or "MLflow is slow"
            log.warning("run %s is not yet in MLflow; `factory reconcile` will send it (%s)", self._journal.key, why)


class Tracker:
    """Where runs go. `folder` holds the journals and, with a database URI, the artifacts."""

    def __init__(
        self,
        uri: str,
        *,
        folder: Path | str,
        interval_seconds: float = 2.0,
        patience_seconds: float = 20.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.uri = uri
        self.artifacts = Path(folder) / "artifacts"
        self.spool = Path(folder) / "spool"
        self._interval_seconds = interval_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._client: MlflowClient | None = None

    def client(self) -> MlflowClient:
        """One client per tracker."""
        if self._client is None:
            self._client = client(self.uri)
        return self._client

    @contextmanager
    def run(
        self,
        *,
        name: str,
        experiment: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        parent: str | None = None,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, FAILED (an exception) or KILLED (interrupted), and raises nothing of its own.

        Args:
            key: of the run to go on with, if it has begun, and of the new one, if it has not; drawn by default.
            parent: key of the run that this one is shown under.
        """
        prepare(self.uri)
        journal = Journal.reopen(self.spool, key or uuid.uuid4().hex)
        said = self._said_before(journal) if key else {}
        sender = Sender(journal, self._delivery(journal), self._interval_seconds)
        run = Run(journal, sender, self._clock, said)
        plain = {name: str(value) for name, value in (tags or {}).items()}
        run._say("begin", name=name, experiment=experiment, tags=plain, parent=parent)
        if params:
            run.log_params(params)
        sender.start()
        status = "KILLED"
        try:
            yield run
            status = "FINISHED"
        except Exception as error:
            stopped = getattr(error, "exit_code", 0) > SIGNALS_FROM
            status = "KILLED" if stopped else "FAILED"
            raise
        finally:
            run._say("end", status=status)
            sender.finish(self._patience_seconds)

    def _said_before(self, journal: Journal) -> dict[str, int]:
        """The last step of each metric of a run that goes on: from its journal, or from MLflow where that is gone."""
        if journal.begun():
            return journal.last_steps()
        try:
            with saying_when_it_is_down(self.uri):
                found = run_of(self.client(), journal.key)
                names = [] if found is None else list(found.data.metrics)
                history = {n: self.client().get_metric_history(found.info.run_id, n) for n in names}  # type: ignore[union-attr]
        except DependencyDown:
            return {}
        return {name: max((point.step for point in points), default=0) for name, points in history.items()}

    def deliver(self) -> Delivered:
        """Send what earlier processes could not. A run that never said goodbye was killed, and is marked so."""
        runs = events = waiting = 0
        problem = None
        for journal in journals(self.spool):
            if not journal.own():
                continue
            try:
                finished, sent = self._deliver_one(journal) if problem is None else (False, 0)
                runs, events, waiting = runs + (sent > 0), events + sent, waiting + (not finished)
            except DependencyDown as error:
                problem = error.problems[0]
                waiting += 1
            finally:
                journal.disown()
        return Delivered(runs, events, waiting, problem)

    def _deliver_one(self, journal: Journal) -> tuple[bool, int]:
        """(whether the run reached its end, events sent). A journal stays only for what MLflow refused."""
        if not journal.begun():
            return True, 0
        delivery, sent = self._delivery(journal), 0
        if not delivery.position.finished or not journal.ended():
            journal.cut_half_line()
            if not journal.ended():
                journal.append("end", journal.last_ms(), status="KILLED")
            sent = delivery.advance()
        if not journal.refused():
            journal.remove()
        return True, sent

    def _delivery(self, journal: Journal) -> Delivery:
        return Delivery(journal, self.uri, self.client, self.artifacts)
