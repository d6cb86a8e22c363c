"""A run in several processes under torchrun: the job goes to them as files, what they see comes back as lines.

    torchrun --standalone --nproc-per-node 2 -m tasks.training.parallel JOB

JOB is a folder: `job.json` (spec, rows, where checkpoints lie); afterwards `done.json` and `adapter/`. The first
process writes a line of JSON per step, look and sentence to stdout. On several nodes JOB lies beside the checkpoints,
in a folder that all nodes see, and every other node takes its part with `tasks.training.node`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from tasks.data.examples import Example
from tasks.errors import DependencyDown, FactoryError, Problem, SpecRefused
from tasks.specs import AdapterSpec
from tasks.training.checkpoint import Checkpoints
from tasks.training.curve import Curve, Look, Step
from tasks.training.interruption import Stopped
from tasks.training.loop import Progress, Trained, train_adapter
from tasks.training.node import ADAPTER, DONE, JOB, command_of, last_words, with_meeting_point
from tasks.training.part import Cramped

if TYPE_CHECKING:
    from tasks.training.base import Base

LOOK_SECONDS, PATIENCE_SECONDS = 0.2, 30.0


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
    """`train_adapter` in `resources.processes` processes of each node, one GPU each where there are GPUs.

    This process's machine is the first node; what the others must run is said.

    Raises:
        SpecRefused: there are fewer GPUs than processes, or no folder that the nodes share.
        FactoryError: what the processes raised.
        DependencyDown: they ended without a result and without a word.
    """
    _refuse_too_few_gpus(spec)
    hear: dict[str, Callable[[dict[str, Any]], None]] = {
        "step": lambda told: on_step(Step(**told)),
        "look": lambda told: on_look(Look(**told)),
        "progress": lambda told: on_progress(Progress(**told)),
        "say": lambda told: say(told["sentence"]),
    }
    with _job_folder(spec, checkpoints) as job:
        spec = with_meeting_point(spec)
        while True:
            write_job(job, spec, train, validation, start, checkpoints)
            done = _done(job, spec, hear, stop, kept=checkpoints is not None)
            if "cramped" not in done:
                break
            step, rows = done["cramped"]
            say(f"  out of memory at step {step}: begun again with {rows} rows at once, same batch")
            fewer = spec.training.model_copy(update={"micro_batch": rows})
            spec = spec.model_copy(update={"training": fewer})
        if "problems" in done:
            raise _error_of(done)
        shutil.copytree(job / ADAPTER, folder, dirs_exist_ok=True)
    curve = done.pop("curve")
    steps, looks = tuple(Step(**s) for s in curve["steps"]), tuple(Look(**look) for look in curve["looks"])
    return Trained(folder, Curve(**curve | {"steps": steps, "looks": looks}), **done)


def _done(
    job: Path,
    spec: AdapterSpec,
    hear: Mapping[str, Callable[[dict[str, Any]], None]],
    stop: Callable[[], bool],
    *,
    kept: bool,
) -> dict[str, Any]:
    """What the processes of a job leave behind: a run's figures, problems, or word that memory did not suffice.

    Raises:
        Stopped: `stop` said so before there was anything to leave.
        DependencyDown: they ended without a word.
    """
    (job / DONE).unlink(missing_ok=True)
    for number in range(1, spec.resources.nodes):
        hear["say"]({"sentence": f"  waits for node {number}; there run: python -m tasks.training.node {job} {number}"})
    with (job / "stderr").open("wb") as errors:
        team = subprocess.Popen(  # noqa: S603 # this very interpreter and a module of ours
            command_of(job, spec.resources, 0), stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        with _stopped_when(stop, team):
            assert team.stdout is not None
            for line in team.stdout:
                if line.startswith('{"tells":'):
                    told = json.loads(line)
                    hear[told["tells"]](told["what"])
        team.wait()
    if (job / DONE).is_file():
        done: dict[str, Any] = json.loads((job / DONE).read_text())
        return done
    if stop():
        remedy = "run the same command again"
        raise Stopped.one("E-TRAIN-003", spec.task, "was told to stop before its first step", remedy)
    wrong = f"its processes ended with code {team.returncode}: {last_words(job / 'stderr')}"
    remedy = "run it again" + (", it goes on from its checkpoint" if kept else "")
    raise DependencyDown.one("E-TRAIN-007", spec.task, wrong, f"{remedy}, or set resources.processes: 1")


def write_job(
    job: Path,
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    start: Path | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """What every process of a run must know."""
    told = {
        "spec": spec.model_dump(mode="json"),
        "train": [astuple(row) for row in train],
        "validation": [astuple(row) for row in validation],
        "start": str(start) if start else None,
        "checkpoints": [str(checkpoints.folder), checkpoints.run] if checkpoints else None,
    }
    _write(job / JOB, told)


def _refuse_too_few_gpus(spec: AdapterSpec) -> None:
    """
    Raises:
        SpecRefused: two processes would have to share a GPU.
    """
    import torch

    if spec.resources.device == "cpu" or not torch.cuda.is_available():
        return
    if (there := torch.cuda.device_count()) < spec.resources.processes:
        wrong = f"{spec.resources.processes} processes were asked for, {there} GPUs are there"
        raise SpecRefused.one("E-SPEC-047", "resources.processes", wrong, f"set it to {there}, or device: cpu")


@contextmanager
def _job_folder(spec: AdapterSpec, checkpoints: Checkpoints | None) -> Iterator[Path]:
    """Where the job lies while the run lasts: on this machine, or where all nodes see it."""
    if spec.resources.nodes == 1:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    if checkpoints is None:
        raise SpecRefused.one("E-SPEC-046", "resources.nodes", "no folder is shared with them", "set nodes: 1")
    job = checkpoints.folder / "job"
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)
    try:
        yield job
    finally:
        shutil.rmtree(job, ignore_errors=True)


def run_share(job: Path) -> None:
    """This process's part of a job, under torchrun."""
    import torch
    from torch import distributed as dist

    from tasks.training.interruption import told_to_stop

    told = json.loads((job / JOB).read_text())
    spec = AdapterSpec.model_validate(told["spec"])
    on_gpus = spec.resources.device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    leads = dist.get_rank() == 0
    try:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(spec.resources.threads or max(1, len(os.sched_getaffinity(0)) // here))
        base = loaded_in_turn(spec) if spec.resources.shard_base else loaded(spec)
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
            _write(job / DONE, {**plain, "curve": done.curve.as_dict()})
    except Cramped as error:
        _write(job / DONE, {"cramped": [error.step, error.rows]})
        raise
    except FactoryError as error:
        sys.stderr.write(f"{error}\n")
        if leads or spec.resources.shard_base:  # there the first process may wait for this one
            problems = [list(problem) for problem in error.problems]
            _write(job / DONE, {"kind": type(error).__name__, "problems": problems})
        if not leads:  # torchrun ends all when one fails: not before there is written what there is to say
            _wait_for(job / DONE)
            raise SystemExit(error.exit_code) from None
    finally:
        dist.destroy_process_group()


def loaded(spec: AdapterSpec) -> Base:
    """The base of a spec, whole."""
    from tasks.training.base import load_base

    return load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)


def loaded_in_turn(spec: AdapterSpec) -> Base:
    """The base of a spec, of which this process keeps its share.

    On a CPU the processes of a node load it one after another, so that their memory holds it whole but once.
    """
    from tasks.training.base import device_for, load_libraries
    from tasks.training.peak import handing_back
    from tasks.training.sharded import shard
    from tasks.training.team import Team

    load_libraries()
    team, device = Team.of_this_process(), device_for(spec.resources.device)
    here, others = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    for turn in range(others if device.type == "cpu" else 1):
        if turn == here or device.type != "cpu":
            with handing_back(device):
                base = loaded(spec)
                shard(base.model, team)
        team.wait()
    return base


def _wait_for(path: Path) -> None:
    """Until a file is there, or half a minute is over."""
    for _ in range(round(PATIENCE_SECONDS / LOOK_SECONDS)):
        if path.is_file():
            return
        time.sleep(LOOK_SECONDS)


def _tell(what: str, told: dict[str, Any]) -> None:
    print(json.dumps({"tells": what, "what": told}), flush=True)


def _write(path: Path, told: dict[str, Any]) -> None:
    """A whole file or none."""
    staging = path.with_suffix(f".{os.getpid()}")
    staging.write_text(json.dumps(told))
    staging.rename(path)


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
                for process in children_of(team.pid) or [team.pid]:  # itself while it waits for nodes
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGTERM)
                return

    guard = Thread(target=watch, daemon=True)
    guard.start()
    try:
        yield
    except BaseException:
        for process in (*children_of(team.pid), team.pid):  # torchrun gives each a session of its own
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raise
    finally:
        over.set()
        guard.join()


def children_of(pid: int) -> list[int]:
    """The processes that torchrun started; it would itself kill them half a minute after a SIGTERM of its own."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.glob("*") for child in (task / "children").read_text().split()]


if __name__ == "__main__":
    run_share(Path(sys.argv[1]))
