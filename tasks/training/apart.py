"""A training in a process of its own, which has computed nothing before: what it takes of memory is all its own.

A fork server loads the libraries once; each training is a fork of it, there in milliseconds. For a CPU: a GPU counts by
run, and does not outlive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.examples import Example
from tasks.errors import DependencyDown
from tasks.specs import AdapterSpec
from tasks.training.base import cpu_threads, load_base, load_libraries
from tasks.training.checkpoint import Checkpoints
from tasks.training.interruption import Stopped, told_to_stop
from tasks.training.loop import Trained, train_adapter

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

LOOK_SECONDS = 0.2

load_libraries()  # the fork server imports this module: what is loaded here is loaded once for all its forks


def train_apart(
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    start: Path | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    **hear: Callable[[Any], None],
) -> Trained:
    """`train_adapter` in a fresh process; `hear` are its listeners: on_step, on_look, on_progress, say.

    Raises:
        DependencyDown: the process ended without a word, as one that was killed does.
        Exception: what the training raised there.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__])
    heard, telling = forks.Pipe(duplex=False)
    kept = (checkpoints.folder, checkpoints.run) if checkpoints else None
    asked = (spec, train, validation, folder, start, kept)
    process = forks.Process(target=_train, args=(telling, asked, tuple(hear)), daemon=True)
    process.start()
    telling.close()
    try:
        return _outcome(process, heard, stop, hear, spec.task)
    finally:
        process.kill()
        process.join()
        heard.close()


def _outcome(
    process: BaseProcess,
    heard: Connection,
    stop: Callable[[], bool],
    hear: dict[str, Callable[[Any], None]],
    task: str,
) -> Trained:
    """What the training comes to; what it says on the way is passed on."""
    stopped = False
    while True:
        if not stopped and stop():
            process.terminate()  # it writes its checkpoint, and says that it was stopped
            stopped = True
        if not heard.poll(LOOK_SECONDS):
            continue
        try:
            what, value = heard.recv()
        except EOFError:
            process.join()
            if stopped:
                raise Stopped.one("E-TRAIN-003", task, "was told to stop", "run it again") from None
            wrong = f"its process ended with code {process.exitcode}"
            raise DependencyDown.one("E-TRAIN-007", task, wrong, "run it again, with more memory free") from None
        if what == "trained":
            done: Trained = value
            return done
        if what == "raised":
            raise value
        hear[what](value)


def _train(telling: Connection, asked: tuple[Any, ...], wanted: tuple[str, ...]) -> None:
    """What the fresh process does; Ctrl-C is heard by the one that asked."""
    os.setpgrp()
    spec, train, validation, folder, start, kept = asked

    def passed_on(what: str) -> Callable[[Any], None]:
        return lambda value: telling.send((what, value))

    try:
        with cpu_threads(spec.resources.threads), told_to_stop() as stop:
            base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
            told: dict[str, Any] = {what: passed_on(what) for what in wanted}
            checkpoints = Checkpoints(*kept) if kept else None
            done = train_adapter(
                base, spec, train, validation, folder, start=start, checkpoints=checkpoints, stop=stop, **told
            )
        telling.send(("trained", done))
    except Exception as error:
        telling.send(("raised", error))
