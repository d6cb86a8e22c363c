"""Processes and machines that share every batch make the adapter that one process makes, up to rounding."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gloo_team import run_shares
from safetensors.torch import load_file

from tasks.errors import DependencyDown, FactoryError, SpecRefused
from tasks.specs import AdapterSpec, ResourceSpec
from tasks.training.base import load_base
from tasks.training.checkpoint import Checkpoints
from tasks.training.curve import Step
from tasks.training.interruption import Stopped
from tasks.training.loop import Trained, train_adapter
from tasks.training.node import join
from tasks.training.parallel import children_of, train_in_processes, write_job

Make = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


def shared(spec: AdapterSpec, **resources: Any) -> AdapterSpec:
    return spec.model_copy(update={"resources": ResourceSpec(device="cpu", threads=1, **resources)})


def assert_same_adapter(one: Path, other: Path) -> None:
    first, second = (load_file(folder / WEIGHTS) for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < 2e-3, name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(pid: int) -> None:
    """A process and all that it started, at once, as a machine goes."""
    with suppress(ProcessLookupError, FileNotFoundError):
        below = children_of(pid)
        os.kill(pid, signal.SIGKILL)
        for child in below:
            kill(child)


def alone(spec: AdapterSpec, rows: Any, held_out: Any, folder: Path) -> Trained:
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels)
    return train_adapter(base, spec, rows, held_out, folder)


def test_two_gloo_processes_give_the_single_process_result(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=6, batch_size=7, compute_dtype="float32")
    rows, held_out = make_rows("generation", 40), make_rows("generation", 20, 1)
    single = alone(spec, rows, held_out, tmp_path / "alone")
    seen: dict[str, list[Any]] = {"steps": [], "looks": []}
    done: Trained = train_in_processes(
        shared(spec, processes=2),
        rows,
        held_out,
        tmp_path / "shared",
        on_step=seen["steps"].append,
        on_look=seen["looks"].append,
    )
    assert [step.step for step in done.curve.steps] == [step.step for step in single.curve.steps]
    for one, other in zip(single.curve.steps, done.curve.steps, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-3)
        assert other.tokens == one.tokens
    assert done.curve.start_loss == pytest.approx(single.curve.start_loss, rel=1e-5)
    assert seen == {"steps": list(done.curve.steps), "looks": list(done.curve.looks)}
    assert done.trainable_parameters == single.trainable_parameters
    assert_same_adapter(tmp_path / "alone", tmp_path / "shared")


def test_a_batch_that_does_not_divide_among_them_is_learned_whole(
    exact_encoder: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    """Batches of 7 in pieces of 2: of three processes, two have no row of their own in the last piece."""
    spec = make_spec("classification", exact_encoder, steps=6, batch_size=7, micro_batch=2, compute_dtype="float32")
    rows, held_out = make_rows("classification", 40), make_rows("classification", 20, 1)
    single = alone(spec, rows, held_out, tmp_path / "alone")
    write_job(tmp_path, shared(spec, processes=3), rows, held_out)
    run_shares(tmp_path, 3)
    curve = json.loads((tmp_path / "done.json").read_text())["curve"]
    assert [step["loss"] for step in curve["steps"]] == pytest.approx([s.loss for s in single.curve.steps], rel=2e-3)
    assert [look["score"] for look in curve["looks"]] == [look.score for look in single.curve.looks]
    assert_same_adapter(tmp_path / "alone", tmp_path / "adapter")


def test_where_one_process_lacks_memory_all_hold_fewer_rows_at_once_and_learn_the_same(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    """Four rows each of a batch of eight; the last process has room for one."""
    spec = make_spec("generation", tiny_base, steps=4, batch_size=8, compute_dtype="float32")
    rows, held_out = make_rows("generation", 40), make_rows("generation", 20, 1)
    single = alone(spec, rows, held_out, tmp_path / "alone")
    write_job(tmp_path, shared(spec, processes=2), rows, held_out)
    run_shares(tmp_path, 2, room=1)
    done = json.loads((tmp_path / "done.json").read_text())
    assert done["micro_batch"] == 1
    steps = done["curve"]["steps"]
    assert [step["loss"] for step in steps] == pytest.approx([s.loss for s in single.curve.steps], rel=2e-3)
    assert_same_adapter(tmp_path / "alone", tmp_path / "adapter")


def test_what_a_process_refuses_is_refused_in_one_line(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = shared(make_spec("generation", tiny_base, steps=2), processes=2)
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"targets": ("nothing",)})})
    with pytest.raises(FactoryError) as refused:
        train_in_processes(spec, make_rows("generation", 16), [], tmp_path / "out")
    assert refused.value.problems[0].code == "E-SPEC-010"
    assert not (tmp_path / "out").exists()


def test_two_nodes_of_which_one_died_end_with_the_single_process_result(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    """The second node runs what the first one says, and all its processes are killed after two steps."""
    spec = make_spec("generation", tiny_base, steps=12, batch_size=7, compute_dtype="float32", checkpoint_minutes=0)
    rows, held_out = make_rows("generation", 40), make_rows("generation", 20, 1)
    single = alone(spec, rows, held_out, tmp_path / "alone")
    said: list[str] = []
    nodes: list[subprocess.Popen[bytes]] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if "there run: python " in sentence:
            words = shlex.split(sentence.split("there run: python ")[1])
            nodes.append(subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE))

    def kill_after_two(step: Step) -> None:
        if step.step == 2:
            kill(nodes[0].pid)

    def run(name: str, **hears: Any) -> Trained:
        asked = shared(spec, nodes=2, meet_at=f"127.0.0.1:{free_port()}")
        kept = Checkpoints(tmp_path / "home", "a run")
        return train_in_processes(asked, rows, held_out, tmp_path / name, checkpoints=kept, say=say, **hears)

    try:
        with pytest.raises(DependencyDown, match=r"E-TRAIN-007 .*run it again, it goes on from its checkpoint"):
            run("never", on_step=kill_after_two)
        assert not (tmp_path / "never").exists()
        done = run("shared")
        assert nodes[1].wait(60) == 0
    finally:
        for node in nodes:
            kill(node.pid)
            node.communicate()
    assert re.fullmatch(r"  resumed from step \d+ of 12 \(verified\)", said[2]), said
    assert [s.loss for s in done.curve.steps] == pytest.approx([s.loss for s in single.curve.steps], rel=2e-3)
    assert_same_adapter(tmp_path / "alone", tmp_path / "shared")
    assert not (tmp_path / "home" / "job").exists()


def test_a_run_that_is_stopped_while_it_waits_for_a_node_ends(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = shared(make_spec("generation", tiny_base), nodes=2, meet_at=f"127.0.0.1:{free_port()}")
    kept = Checkpoints(tmp_path / "home", "a run")
    with pytest.raises(Stopped, match="E-TRAIN-003 triage: was told to stop before its first step"):
        train_in_processes(spec, make_rows("generation", 16), [], tmp_path / "no", checkpoints=kept, stop=lambda: True)


def test_a_node_that_has_nothing_to_join_says_so(tiny_base: Path, tmp_path: Path, make_spec: Make) -> None:
    with pytest.raises(DependencyDown, match=r"E-TRAIN-008 .*no run waits there"):
        join(tmp_path, 1)
    write_job(tmp_path, shared(make_spec("generation", tiny_base), nodes=2, meet_at="127.0.0.1:29400"), [], [])
    with pytest.raises(SpecRefused, match=r"E-TRAIN-008 triage: has no node 2, but 1 to 1 beside the first"):
        join(tmp_path, 2)


def test_two_processes_are_not_put_on_one_gpu(
    tiny_base: Path, tmp_path: Path, make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    spec = make_spec("generation", tiny_base)
    spec = spec.model_copy(update={"resources": ResourceSpec(processes=2)})
    with pytest.raises(SpecRefused, match=r"E-SPEC-047 .*2 processes were asked for, 1 GPUs are there"):
        train_in_processes(spec, [], [], tmp_path / "no")
