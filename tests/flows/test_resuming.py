"""A training that was told to stop, and the same command again: same run, same bytes, nothing left over."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

STEPS = 150


def wait_for(found: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_told_to_stop_a_training_ends_in_time_and_the_same_command_ends_it_with_the_same_bytes(
    new_factory: Any, desk: Any, tmp_path: Path, at_its_word: None
) -> None:
    from flows.validate import remembered_dataset
    from flows.wiring import opened
    from tasks.spec_files import load_adapter_spec
    from tasks.training.base import load_base
    from tasks.training.loop import train_adapter

    factory = new_factory()
    settings = {"training__steps": STEPS, "training__checkpoint_minutes": 0, "method__dropout": 0.2}
    path = factory.spec(desk["intent"], "long", **settings)
    process = factory.start("train", path)
    kept = factory.home / "checkpoints"
    wait_for(lambda: list(kept.glob("*/run-0/step-*")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    said = factory.finish(process)
    assert time.monotonic() - told < 30
    assert said.code == 143, said.err
    assert said.lines[-1].startswith("E-TRAIN-003 intent: was told to stop after step ")
    assert factory.sql("SELECT * FROM versions") == []
    assert factory.litter() == []

    again = factory.run("train", path)
    assert again.code == 0, again.err
    assert "resumed from step " in again.err
    assert list(kept.iterdir()) == []
    ((artifact,),) = factory.sql("SELECT artifact FROM versions")
    mlflow = factory.mlflow()
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("intent").experiment_id])
    assert run.info.status == "FINISHED"
    points = mlflow.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))

    with factory.active():
        ((digest,),) = factory.sql("SELECT digest FROM datasets")
        rows = remembered_dataset(opened(), digest).snapshot
        spec = load_adapter_spec(path)
        base = load_base(spec.base, kind=spec.kind)
        train_adapter(base, spec, rows.examples("train"), rows.examples("validation"), tmp_path / "whole")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        straight = hashlib.sha256((tmp_path / "whole" / name).read_bytes()).hexdigest()
        assert hashlib.sha256(factory.files(artifact)[name].read_bytes()).hexdigest() == straight


def test_one_process_makes_a_version_at_a_time_and_what_is_finished_is_gone(factory: Any) -> None:
    from flows.resuming import working_on
    from flows.wiring import opened
    from tasks.errors import GateRefused

    with factory.active():
        home = opened()
        folder = home.settings.home / "checkpoints" / "some-key"
        if (child := os.fork()) == 0:
            with working_on(home, "some-key") as place:
                place.run_key()
                (folder / "inside").touch()
                time.sleep(0.5)
            os._exit(0)
        wait_for((folder / "inside").exists)
        began = time.monotonic()
        with working_on(home, "some-key") as place:
            assert time.monotonic() - began > 0.2
            assert not (folder / "inside").exists()
            key = place.run_key()
            with open(folder / "lock", "ab") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert place.run_key() == key != place.run_key(1)
        assert not folder.exists()
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(KeyboardInterrupt), working_on(home, "some-key"):
            raise KeyboardInterrupt
        assert folder.exists()
        with pytest.raises(GateRefused), working_on(home, "some-key"):
            raise GateRefused
        assert not folder.exists()


def test_what_nobody_came_back_to_for_a_month_goes_unless_it_is_held(factory: Any) -> None:
    from flows.resuming import working_on
    from flows.wiring import opened

    with factory.active():
        home = opened()
        root = home.settings.home / "checkpoints"
        old = time.time() - 40 * 86400
        for name in ("left", "held"):
            (root / name).mkdir(parents=True)
            (root / name / "lock").touch()
            os.utime(root / name, (old, old))
        (root / "fresh").mkdir()
        with open(root / "held" / "lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with working_on(home, "another"):
                pass
        here = {path.name for path in root.iterdir()}
        assert here & {"fresh", "held", "left", "another"} == {"fresh", "held"}
        for name in ("fresh", "held"):
            (root / name / "lock").unlink(missing_ok=True)
            (root / name).rmdir()
