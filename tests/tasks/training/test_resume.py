"""A run that was stopped, killed or cramped, against the same run left in peace."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.specs import AdapterSpec, MethodSpec
from tasks.training import part
from tasks.training.base import load_base
from tasks.training.checkpoint import Checkpoints
from tasks.training.interruption import Stopped, told_to_stop
from tasks.training.loop import Trained, train_adapter

KINDS = [("generation", "tiny_base"), ("classification", "tiny_encoder")]
Make = Callable[..., Any]


@pytest.fixture
def asked(request: pytest.FixtureRequest, make_spec: Make) -> Callable[..., AdapterSpec]:
    """A spec with everything that draws: dropout, batches, 8-bit state if asked; a checkpoint after every step."""

    def spec(kind: str, which: str, **others: Any) -> AdapterSpec:
        settings = {"steps": 7, "batch_size": 4, "validations": 3, "checkpoint_minutes": 0} | others
        method = settings.pop("method", MethodSpec(rank=4, dropout=0.3))
        return make_spec(kind, request.getfixturevalue(which), method=method, **settings)

    return spec


def run(spec: AdapterSpec, rows: Any, folder: Path, **others: Any) -> Trained:
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels if spec.kind == "classification" else ())
    return train_adapter(base, spec, rows[8:], rows[:8], folder, **others)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def curve_of(trained: Trained) -> Any:
    """All of a curve but the times."""
    return [(s.step, s.loss, s.rate, s.grad_norm, s.tokens) for s in trained.curve.steps], trained.curve.looks


def stopping_after(step: int) -> Callable[[], bool]:
    turns = count()
    return lambda: next(turns) >= step


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_stopped_run_goes_on_to_the_same_bytes_and_curve(
    kind: str, which: str, optimizer: str, step: int, asked: Any, make_rows: Make, tmp_path: Path
) -> None:
    spec, rows = asked(kind, which, optimizer=optimizer), make_rows(kind, 32)
    whole = run(spec, rows, tmp_path / "whole")
    kept = Checkpoints(tmp_path / "kept", "a run")
    with pytest.raises(Stopped) as stopped:
        run(spec, rows, tmp_path / "never", checkpoints=kept, stop=stopping_after(step))
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "never").exists()
    said: list[str] = []
    again = run(spec, rows, tmp_path / "again", checkpoints=Checkpoints(tmp_path / "kept", "a run"), say=said.append)
    assert said == [f"  resumed from step {step} of 7 (verified)"]
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    assert curve_of(again) == curve_of(whole)
    assert again.change == whole.change > 0


@pytest.mark.parametrize("step", [2, 5])  # while ranks are cut, and after the last cut
def test_a_stopped_run_that_cuts_ranks_goes_on_to_the_same_ranks_and_bytes(
    step: int, asked: Any, make_rows: Make, tmp_path: Path
) -> None:
    method = MethodSpec(name="adalora", rank=2, dropout=0.3)
    spec, rows = asked("generation", "tiny_base", method=method), make_rows("generation", 32)
    whole = run(spec, rows, tmp_path / "whole")
    kept = Checkpoints(tmp_path / "kept", "a run")
    with pytest.raises(Stopped):
        run(spec, rows, tmp_path / "never", checkpoints=kept, stop=stopping_after(step))
    again = run(spec, rows, tmp_path / "again", checkpoints=Checkpoints(tmp_path / "kept", "a run"))
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    assert curve_of(again) == curve_of(whole)


def test_stopped_at_every_step_it_still_ends_the_same(asked: Any, make_rows: Make, tmp_path: Path) -> None:
    spec, rows = asked("generation", "tiny_base", micro_batch=2), make_rows("generation", 32)
    run(spec, rows, tmp_path / "whole")
    for _ in range(40):
        try:  # one question per micro-batch: each life gets one step and half of the next
            kept = Checkpoints(tmp_path / "kept", "a run")
            run(spec, rows, tmp_path / "pieces", checkpoints=kept, stop=stopping_after(3))
            break
        except Stopped:
            continue
    assert digests(tmp_path / "pieces") == digests(tmp_path / "whole")


def test_a_finished_run_that_was_not_registered_is_not_trained_again(
    asked: Any, make_rows: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rows = asked("generation", "tiny_base", checkpoint_minutes=60), make_rows("generation", 32)
    run(spec, rows, tmp_path / "first", checkpoints=Checkpoints(tmp_path / "kept", "a run"))
    monkeypatch.setattr(part, "backward", lambda *_: pytest.fail("a step was taken again"))
    run(spec, rows, tmp_path / "second", checkpoints=Checkpoints(tmp_path / "kept", "a run"))
    assert digests(tmp_path / "second") == digests(tmp_path / "first")


def test_another_runs_checkpoints_are_refused_before_a_step(asked: Any, make_rows: Make, tmp_path: Path) -> None:
    spec, rows = asked("generation", "tiny_base"), make_rows("generation", 32)
    run(spec, rows, tmp_path / "a", checkpoints=Checkpoints(tmp_path / "kept", "run a"))
    with pytest.raises(ArtifactRefused, match="E-TRAIN-004"):
        run(spec, rows, tmp_path / "b", checkpoints=Checkpoints(tmp_path / "kept", "run b"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_rows_at_once_and_learns_the_same(
    error: Exception, asked: Any, make_rows: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = MethodSpec(rank=4, dropout=0.0)
    spec, rows = asked("generation", "tiny_base", method=method, batch_size=8), make_rows("generation", 32)
    whole, summed, said = run(spec, rows, tmp_path / "whole"), part.summed_loss, []

    def cramped(base: Any, answer: Any, inputs: Any, labels: Any) -> Any:
        if len(labels) > 2:
            raise error
        return summed(base, answer, inputs, labels)

    monkeypatch.setattr(part, "summed_loss", cramped)
    small = run(spec, rows, tmp_path / "small", say=said.append)
    assert small.micro_batch == 2
    assert [line.split(":")[1] for line in said] == [" 4 rows at once from here, same batch"] * 1 + [
        " 2 rows at once from here, same batch"
    ]
    losses = [[step.loss for step in trained.curve.steps] for trained in (whole, small)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_one_row_that_does_not_fit_is_refused_with_what_would_help(
    asked: Any, make_rows: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(part, "summed_loss", full)
    with pytest.raises(SpecRefused, match=r"one row of \d+ tokens needs more memory than there is -> set training"):
        run(asked("generation", "tiny_base"), make_rows("generation", 32), tmp_path / "never")


def test_any_other_error_of_a_step_is_not_taken_for_a_lack_of_memory(
    asked: Any, make_rows: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(part, "summed_loss", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(asked("generation", "tiny_base"), make_rows("generation", 32), tmp_path / "never")


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_is_heard_between_micro_batches_and_the_handlers_come_back(
    number: signal.Signals, kind: type[BaseException]
) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with told_to_stop() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            raise Stopped.one("E-TRAIN-003", "", "stopped", "")

    with pytest.raises(kind):
        work()
    assert signal.getsignal(number) is before


def test_a_run_that_cannot_be_asked_ends_as_if_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.training.interruption.PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    if (child := os.fork()) == 0:
        with told_to_stop():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert time.monotonic() - began < 10


def test_killed_at_random_instants_twenty_of_twenty_runs_end_with_the_same_bytes(tiny_base: Path) -> None:
    """The short form of `make kill-campaign`."""
    spec = importlib.util.spec_from_file_location("kill_campaign", Path("benchmarks/kill_campaign.py").resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_campaign"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    found = module.campaign(tiny_base, runs=20, kills=1, seed=4)
    assert (found.identical, found.errors) == (20, 0), found
    assert found.kills > 10
    assert found.torn > 0
