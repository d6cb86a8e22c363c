"""A run in several processes under torchrun: the job goes to them as files, what they see comes back as lines.

    torchrun --standalone --nproc-per-node 2 -m tasks.training.parallel JOB

JOB is a folder: `job.json` (spec, rows, where checkpoints lie); afterwards `done.json` and `adapter/`. The first
process writes a line of JSON per step, look and sentence to stdout.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tasks.data.examples import Example
from tasks.errors import DependencyDown, FactoryError, Problem
from tasks.specs import AdapterSpec
from tasks.training.checkpoint import Checkpoints
from tasks.training.curve import Curve, Look, Step
from tasks.training.interruption import Stopped
from tasks.training.loop import Progress, Trained, train_adapter

JOB, DONE, ADAPTER = "job.json", "done.json", "adapter"
LOOK_SECONDS = 0.2


def train_in_processes(
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    start: Path | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda step: None,
    on_look: Callable[[Look], None] = lambda look: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Trained:
    """`train_adapter` in `resources.processes` processes, one GPU each where there are GPUs.

    Raises:
        FactoryError: what the processes raised.
        DependencyDown: they ended without a result and without a word.
    """
    hear: dict[str, Callable[[dict[str, Any]], None]] = {
        "step": lambda told: on_step(Step(**told)),
        "look": lambda told: on_look(Look(**told)),
        "progress": lambda told: on_progress(Progress(**told)),
        "say": lambda told: say(told["sentence"]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch)
        (job / JOB).write_text(
            json.dumps(
                {
                    "spec": spec.model_dump(mode="json"),
                    "train": [astuple(row) for row in train],
                    "validation": [astuple(row) for row in validation],
                    "start": str(start) if start else None,
                    "checkpoints": [str(checkpoints.folder), checkpoints.run] if checkpoints else None,
                }
            )
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(spec.resources.processes), "-m", "tasks.training.parallel", str(job)]
        with (job / "stderr").open("wb") as errors:
            team = subprocess.Popen(  # noqa: S603 # this very interpreter and a module of ours
                command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
            with _stopped_when(stop, team):
                assert team.stdout is not None
                for line in team.stdout:
                    if line.startswith('{"tells":'):
                        told = json.loads(line)
                        hear[told["tells"]](told["what"])
            team.wait()
        if not (job / DONE).is_file():
            last = ((job / "stderr").read_text(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
            wrong = f"its processes ended with code {team.returncode}: {last[:200]}"
            raise DependencyDown.one("E-TRAIN-007", spec.task, wrong, "run it again, or set resources.processes: 1")
        done = json.loads((job / DONE).read_text())
        if "problems" in done:
            raise _error_of(done)
        shutil.copytree(job / ADAPTER, folder, dirs_exist_ok=True)
    curve = done.pop("curve")
    steps, looks = tuple(Step(**s) for s in curve["steps"]), tuple(Look(**look) for look in curve["looks"])
    return Trained(folder, Curve(steps, looks, curve["planned_steps"], curve["start_loss"]), **done)


def run_share(job: Path) -> None:
    """This process's part of a job, under torchrun."""
    import torch
    from torch import distributed as dist

    from tasks.training.base import load_base
    from tasks.training.interruption import told_to_stop

    told = json.loads((job / JOB).read_text())
    spec = AdapterSpec.model_validate(told["spec"])
    on_gpus = spec.resources.device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    leads = dist.get_rank() == 0
    try:
        torch.set_num_threads(spec.resources.threads or max(1, len(os.sched_getaffinity(0)) // dist.get_world_size()))
        base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
        with told_to_stop() as stop:
            done = train_adapter(
                base,
                spec,
                [Example(*row) for row in told["train"]],
                [Example(*row) for row in told["validation"]],
                job / ADAPTER,
                start=Path(told["start"]) if told["start"] else None,
                checkpoints=Checkpoints(Path(told["checkpoints"][0]), told["checkpoints"][1])
                if told["checkpoints"]
                else None,
                stop=stop,
                on_step=lambda step: _tell("step", asdict(step)),
                on_look=lambda look: _tell("look", asdict(look)),
                on_progress=lambda progress: _tell("progress", asdict(progress)),
                say=lambda sentence: _tell("say", {"sentence": sentence}),
            )
        if leads:
            plain = {name: value for name, value in vars(done).items() if name not in ("folder", "curve")}
            _write(job, {**plain, "curve": done.curve.as_dict()})
    except FactoryError as error:
        if leads:
            _write(job, {"kind": type(error).__name__, "problems": [list(problem) for problem in error.problems]})
        else:
            raise
    finally:
        dist.destroy_process_group()


def _tell(what: str, told: dict[str, Any]) -> None:
    print(json.dumps({"tells": what, "what": told}), flush=True)


def _write(job: Path, told: dict[str, Any]) -> None:
    (job / "done.new").write_text(json.dumps(told))
    (job / "done.new").rename(job / DONE)


def _error_of(done: dict[str, Any]) -> FactoryError:
    import tasks.errors

    kind = Stopped if done["kind"] == Stopped.__name__ else getattr(tasks.errors, done["kind"], FactoryError)
    return kind(*(Problem(*problem) for problem in done["problems"]))


@contextmanager
def _stopped_when(stop: Callable[[], bool], team: subprocess.Popen[str]) -> Iterator[None]:
    """SIGTERM to every process of the team as soon as `stop` says so."""
    over = Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            if stop() and team.poll() is None:
                for child in _children(team.pid):
                    os.kill(child, signal.SIGTERM)
                return

    guard = Thread(target=watch, daemon=True)
    guard.start()
    try:
        yield
    except BaseException:
        os.killpg(team.pid, signal.SIGKILL)
        raise
    finally:
        over.set()
        guard.join()


def _children(pid: int) -> list[int]:
    """The processes that torchrun started; it would itself kill them half a minute after a SIGTERM of its own."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.glob("*") for child in (task / "children").read_text().split()]


if __name__ == "__main__":
    run_share(Path(sys.argv[1]))
