"""A Trainer's state file, written by transformers itself, read without it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ArtifactRefused
from tasks.training.diagnosis import diagnose
from tasks.training.foreign import read_trainer_state


def written(path: Path, history: list[dict[str, Any]], steps: int = 60) -> Path:
    from transformers import TrainerState

    path.parent.mkdir(parents=True, exist_ok=True)
    TrainerState(log_history=history, max_steps=steps).save_to_json(str(path))
    return path


def steps(losses: list[float], **others: Any) -> list[dict[str, Any]]:
    return [{"step": i, "loss": loss, "learning_rate": 1e-4, **others} for i, loss in enumerate(losses, 1)]


FALLING = [3.0 * 0.95**i + 0.5 for i in range(60)]


def test_steps_and_looks_are_those_that_were_logged(tmp_path: Path) -> None:
    history = [*steps([2.0, 1.5], grad_norm=0.7), {"step": 2, "eval_loss": 1.75}, {"step": 2, "train_runtime": 9.0}]
    curve = read_trainer_state(written(tmp_path / "trainer_state.json", history, steps=2))
    assert [(s.step, s.loss, s.rate, s.grad_norm) for s in curve.steps] == [(1, 2.0, 1e-4, 0.7), (2, 1.5, 1e-4, 0.7)]
    assert [(look.step, look.loss) for look in curve.looks] == [(2, 1.75)]
    assert curve.planned_steps == 2


def test_the_newest_checkpoint_of_a_folder_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        written(tmp_path / f"checkpoint-{step}" / "trainer_state.json", steps([1.0] * step))
    assert len(read_trainer_state(tmp_path).steps) == 100


def test_a_curve_without_gradient_norms_is_read_all_the_same(tmp_path: Path) -> None:
    (finding,) = diagnose(read_trainer_state(written(tmp_path / "trainer_state.json", steps(FALLING))))
    assert finding.cause == "healthy"


@pytest.mark.parametrize("name", ["loss", "learning_rate", "grad_norm", "eval_loss", "step"])
@pytest.mark.parametrize("place", [0, 30, 59])
def test_a_figure_or_a_step_beyond_all_bounds_is_refused(tmp_path: Path, name: str, place: int) -> None:
    path, far = tmp_path / "trainer_state.json", [10**30, -(10**30), 10**400] if name == "step" else [1e308, -1e308]
    for value in far:
        history = steps(FALLING, grad_norm=0.5)
        if name == "eval_loss":
            history.append({"step": place + 1, name: value})
        history[place if name != "eval_loss" else -1][name] = value
        path.write_text(json.dumps({"log_history": history, "max_steps": 60}))
        with pytest.raises(ArtifactRefused, match=r"^E-TRAIN-005 .*: holds .*-> name a curve") as refused:
            read_trainer_state(path)
        assert len(str(refused.value)) < 300 + len(str(path))


def test_a_norm_as_large_as_float32_holds_and_one_that_is_infinite_are_read(tmp_path: Path) -> None:
    history = [*steps(FALLING[:59], grad_norm=3.4e38), {"step": 60, "loss": 0.6, "grad_norm": math.inf}]
    assert len(read_trainer_state(written(tmp_path / "trainer_state.json", history)).steps) == 60


def test_a_loss_that_is_no_number_is_found_in_it(tmp_path: Path) -> None:
    broken = written(tmp_path / "trainer_state.json", steps([*FALLING[:30], math.nan, *FALLING[31:]]))
    finding = diagnose(read_trainer_state(broken))[0]
    assert (finding.cause, finding.fatal) == ("not a number", True)
    assert "step 31" in finding.evidence


def test_a_step_that_loss_scaling_left_out_is_no_fault_and_a_gradient_that_stays_no_number_is(tmp_path: Path) -> None:
    def read(norms: list[float]) -> Any:
        history = [entry | {"grad_norm": norm} for entry, norm in zip(steps(FALLING), norms, strict=True)]
        return read_trainer_state(written(tmp_path / "trainer_state.json", history))

    scaled = read([math.inf, math.nan, *[0.7] * 28, math.inf, *[0.7] * 29])
    assert [finding.cause for finding in diagnose(scaled)] == ["healthy"]
    (lost,) = diagnose(read([math.inf, *[0.7] * 29, *[math.nan] * 30]))
    assert (lost.cause, lost.fatal, "step 31" in lost.evidence) == ("not a number", True, True)
    (ours,) = diagnose(replace(scaled, may_skip=False))  # our loop skips none
    assert (ours.cause, "step 1" in ours.evidence) == ("not a number", True)


def test_zeros_without_a_gradient_norm_are_how_the_trainer_logs_a_loss_that_is_no_number(tmp_path: Path) -> None:
    for norm, where in (({"grad_norm": math.nan}, "norm nan at step 1"), ({}, "at every step from 1 to 40")):
        finding = diagnose(read_trainer_state(written(tmp_path / "trainer_state.json", steps([0.0] * 40, **norm))))[0]
        assert (finding.cause, finding.fatal) == ("not a number", True)
        assert where in finding.evidence


def test_three_points_are_too_few_and_what_is_said_names_no_adapter_of_ours(tmp_path: Path) -> None:
    history = [{"step": 500 * i, "loss": loss} for i, loss in enumerate((2.0, 1.0, 0.5), 1)]
    for points in (1, 2, 3):
        (finding,) = diagnose(read_trainer_state(written(tmp_path / "trainer_state.json", history[:points])))
        assert (finding.cause, finding.fatal) == ("too few points", False)
    looks = [{"step": 10 * i, "eval_loss": loss} for i, loss in enumerate((2.0, 1.0, 0.8, 0.9, 1.2, 1.6), 1)]
    overfit, *_ = diagnose(read_trainer_state(written(tmp_path / "trainer_state.json", [*steps(FALLING), *looks])))
    assert overfit.cause == "overfit"
    assert "kept" not in overfit.remedy


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"log_history": 3}',
        '{"log_history": [{"step": 1}]}',
        '{"log_history": [{"step": 1, "loss": "x"}]}',
    ],
)
def test_what_is_no_curve_is_refused_with_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(content)
    with pytest.raises(ArtifactRefused, match=r"E-TRAIN-005 .*trainer_state\.json") as refused:
        read_trainer_state(path)
    assert not re.search(r"[A-Z]\w+Error|indices|object", str(refused.value))  # no words of Python's


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="holds no trainer_state"):
        read_trainer_state(tmp_path)


def test_json_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text('{"log_history": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ArtifactRefused):
        read_trainer_state(path)
    assert json.dumps([])  # the process goes on
