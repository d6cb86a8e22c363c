"""What a curve says: read off real runs with the cause planted, and off curves drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasks.specs import AdapterSpec, MethodSpec
from tasks.training.base import load_base
from tasks.training.curve import Curve, Look, Step
from tasks.training.diagnosis import Reach, diagnose
from tasks.training.loop import Trained, train_adapter
from tasks.training.repair import next_repair

Make = Callable[..., Any]


def causes(curve: Curve) -> list[str]:
    return [finding.cause for finding in diagnose(curve)]


def drawn(losses: Sequence[float], looks: Sequence[float] = (), norm: float = 1.0) -> Curve:
    """A curve with these step losses, and validation losses at even distances."""
    steps = tuple(Step(i, loss, 1e-4, norm, 100, float(i)) for i, loss in enumerate(losses, start=1))
    every = len(losses) // max(1, len(looks))
    return Curve(steps, tuple(Look((i + 1) * every, loss) for i, loss in enumerate(looks)), len(losses))


def run(spec: AdapterSpec, rows: Any, validation: Any, folder: Path, start: Path | None = None) -> Curve:
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels if spec.kind == "classification" else ())
    return train_adapter(base, spec, rows, validation, folder, start=start).curve


def test_a_run_that_learns_is_healthy(good_run: Trained) -> None:
    (finding,) = diagnose(good_run.curve)
    assert finding.cause in ("healthy", "still improving")
    assert not finding.fatal
    assert f"{good_run.curve.best.loss:.3f}" in finding.evidence  # type: ignore[union-attr]


def test_a_rate_near_zero_does_not_move(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    spec = make_spec("generation", tiny_base, steps=40, learning_rate=1e-8, schedule="constant")
    (finding,) = diagnose(run(spec, make_rows("generation", 60), make_rows("generation", 30, 1), tmp_path))
    assert finding.cause == "did not move"
    assert "raise the learning rate" in finding.remedy
    assert not finding.fatal


@pytest.mark.parametrize("warmup", [0.05, 0.5])
def test_a_rate_far_too_high_diverges(
    warmup: float, tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make, good_run: Trained
) -> None:
    rate = {"learning_rate": 1.0, "schedule": "constant", "warmup": warmup, "max_grad_norm": 1e9}
    spec = make_spec("generation", tiny_base, steps=30, **rate)
    curve = run(spec, make_rows("generation", 60), make_rows("generation", 30, 1), tmp_path, good_run.folder)
    first, *_ = diagnose(curve)
    assert first.cause in ("diverged", "not a number")
    assert first.fatal
    assert "learning rate" in first.remedy


@pytest.mark.parametrize("kind", ["generation", "classification"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_rate_too_high_that_stays_finite_is_never_healthy_and_its_repair_is_a_lower_one(
    rate: float, kind: str, tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec(kind, tiny_base, steps=30, learning_rate=rate)
    findings = diagnose(run(spec, make_rows(kind, 60), make_rows(kind, 30, 1), tmp_path))
    assert findings[0].cause in ("diverged", "plateau")  # a random base is as blind as what the rate leaves behind
    repair = next_repair(spec, spec, findings, [spec])
    assert repair is not None
    assert repair.spec.training.learning_rate == pytest.approx(
        rate / (10 if findings[0].cause == "diverged" else 3), rel=1e-2
    )


def test_few_rows_seen_many_times_overfit(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    method = MethodSpec(rank=16, dropout=0.0)
    spec = make_spec("classification", tiny_base, steps=40, method=method, validations=10, schedule="constant")
    curve = run(spec, make_rows("classification", 9), make_rows("classification", 40, 1), tmp_path)
    assert "overfit" in causes(curve)
    assert not any(finding.fatal for finding in diagnose(curve))
    assert curve.best.step < curve.looks[-1].step  # type: ignore[union-attr]


def test_a_run_cut_short_is_still_improving(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    spec = make_spec("generation", tiny_base, steps=16, learning_rate=5e-3, schedule="constant", validations=4)
    curve = run(spec, make_rows("generation", 100), make_rows("generation", 40, 1), tmp_path)
    assert causes(curve) == ["still improving"]


FALL = [3.0 * 0.95**i + 0.5 for i in range(60)]


def test_a_drawn_fall_is_healthy() -> None:
    assert causes(drawn(FALL, [2.0, 1.2, 0.9, 0.8, 0.79, 0.78])) == ["healthy"]
    assert causes(drawn(FALL)) == ["healthy"]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_a_loss_or_gradient_that_is_no_number_is_fatal_and_its_step_named(loss: float, norm: float) -> None:
    steps = (*drawn(FALL[:5]).steps, Step(6, loss, 1e-4, norm, 100, 6.0))
    (finding,) = diagnose(Curve(steps, (), 60))
    assert (finding.cause, finding.fatal) == ("not a number", True)
    assert "step 6" in finding.evidence


def test_a_validation_loss_that_is_no_number_is_fatal_too() -> None:
    (finding,) = diagnose(drawn(FALL, [2.0, math.nan, 1.0]))
    assert (finding.cause, finding.fatal) == ("not a number", True)
    assert "step 40" in finding.evidence


def test_no_gradient_at_any_step_is_fatal() -> None:
    (finding,) = diagnose(drawn([2.0] * 20, norm=0.0))
    assert (finding.cause, finding.fatal) == ("no gradient", True)


def test_a_run_without_steps_says_so() -> None:
    (finding,) = diagnose(Curve((), (), 10))
    assert (finding.cause, finding.fatal) == ("no steps", True)


def test_a_loss_that_ends_above_its_start_diverged_fatally_and_one_that_only_lost_ground_did_not() -> None:
    up = [1.0] * 10 + [0.9] * 10 + [4.0] * 20
    (worst, *_) = diagnose(drawn(up))
    assert (worst.cause, worst.fatal) == ("diverged", True)
    (lost, *_) = diagnose(drawn([3.0] * 10 + [0.5] * 20 + [2.0] * 10))
    assert (lost.cause, lost.fatal) == ("diverged", False)


def test_noise_on_a_loss_that_begins_small_ruins_no_run() -> None:
    """As that of a run that goes on from a champion."""
    noisy = [0.24, 0.11, 0.41, 0.2] * 10 + [0.41] * 4
    assert not any(finding.fatal for finding in diagnose(drawn(noisy)))
    assert diagnose(drawn([loss * 10 for loss in noisy]))[0].fatal


def test_a_loss_that_rose_before_it_was_first_read_diverged_too() -> None:
    fell_from_ruins = drawn([5.0 * 0.99**i for i in range(60)], [4.5, 4.0, 3.5])
    assert "diverged" not in causes(fell_from_ruins)
    (worst, *_) = diagnose(replace(fell_from_ruins, start_loss=1.2))
    assert (worst.cause, worst.fatal) == ("diverged", True)


def test_noise_on_a_flat_loss_is_no_learning() -> None:
    assert causes(drawn([2.0 + 0.1 * math.sin(7 * i) for i in range(80)])) == ["did not move"]


def test_one_wild_step_is_a_spike_with_its_place_and_no_divergence() -> None:
    (finding,) = diagnose(drawn([*FALL[:30], 40.0, *FALL[31:]]))
    assert (finding.cause, finding.fatal) == ("spiked", False)
    assert finding.evidence == "loss 40.000 at step 31 where 1.145 is usual"


def scored(looks: Sequence[float], scores: Sequence[float], losses: Sequence[float] = FALL) -> Curve:
    """The same with the share of right answers at each look."""
    curve = drawn(losses, looks)
    return replace(curve, looks=tuple(replace(look, score=s) for look, s in zip(curve.looks, scores, strict=True)))


STUCK = scored([2.0, 1.15, 1.1, 1.1, 1.1, 1.1], [0.2, 0.4, 0.5, 0.5, 0.5, 0.5], [2.0 * 0.7**i + 1.1 for i in range(60)])


def test_a_loss_that_stays_where_it_is_is_a_plateau_whose_limit_is_the_rank_or_the_layers_if_they_are_small() -> None:
    (finding,) = diagnose(STUCK, reach=Reach(16, 8, 1.0))
    assert finding.cause == "plateau"
    assert "flat from step 20" in finding.evidence
    assert "50% right" in finding.evidence
    assert causes(STUCK) == ["plateau"]
    (rank,) = diagnose(STUCK, reach=Reach(1, 8, 1.0))
    assert (rank.cause, "at rank 1 where 8 is usual" in rank.evidence) == ("rank too low", True)
    (layers,) = diagnose(STUCK, reach=Reach(16, 8, 0.125))
    assert (layers.cause, "12% of the linear weights" in layers.evidence) == ("wrong layers", True)


THROWN = [2.5, 2.0, 4.4, 3.9, *[1.7 + 0.8 * 0.8**i for i in range(56)]]  # up, then down to 1.7 and no further


def test_a_loss_thrown_up_that_comes_back_to_the_answers_frequencies_diverged() -> None:
    blind = replace(scored([3.0, 2.2, 1.9, 1.8, 1.7, 1.7], [0.3] * 6, THROWN), blind_loss=1.75)
    (finding,) = diagnose(blind)
    assert (finding.cause, finding.fatal) == ("diverged", False)
    assert "rose from 2.000 at step 2 to 4.400 at step 3" in finding.evidence
    assert "ends at 1.700, where the answers' frequencies alone give 1.750" in finding.evidence
    assert "diverged" not in causes(replace(blind, blind_loss=4.0))  # far below them: it has read the prompts
    assert "diverged" not in causes(replace(blind, blind_loss=None))


def test_a_run_that_ends_at_the_answers_frequencies_is_never_healthy() -> None:
    fell = scored([2.9, 2.4, 2.2, 2.1, 2.05, 2.02], [0.3] * 6, [2.0 + 1.5 * 0.9**i for i in range(60)])
    assert causes(fell) == ["healthy"]
    (finding,) = diagnose(replace(fell, blind_loss=2.0))
    assert (finding.cause, "frequencies alone give 2.000" in finding.evidence) == ("plateau", True)
    (forgot, *_) = diagnose(replace(fell, blind_loss=2.0, start_loss=1.8))
    assert (forgot.cause, "1.800 at the start" in forgot.evidence) == ("diverged", True)


@pytest.mark.parametrize("seed", range(20))
def test_noise_however_wild_is_no_divergence(seed: int) -> None:
    """As of batches of one row, whose answers are drawn by chance."""
    draw = Random(seed)
    noisy = replace(drawn([abs(draw.gauss(3.0, 1.2)) for _ in range(200)], [3.0] * 8), blind_loss=3.0, start_loss=3.0)
    assert "diverged" not in causes(noisy)


def test_a_loss_that_rose_on_the_way_to_mediocre_answers_is_no_healthy_one() -> None:
    """As at three times the best rate: only the schedule's fall brought it down again."""
    swung = scored([0.92, 0.83, 0.82, 0.93, 0.68, 0.63], [0.7, 0.7, 0.7, 0.7, 0.7, 0.8])
    (finding,) = diagnose(swung)
    assert finding.cause == "plateau"
    assert "rose from 0.820 at step 30 to 0.930 at step 40" in finding.evidence
    assert finding.remedy.startswith("a lower rate")
    assert causes(replace(swung, looks=tuple(replace(look, score=0.95) for look in swung.looks))) == ["healthy"]


def test_a_plateau_is_told_before_a_spike_on_it() -> None:
    losses = [step.loss for step in STUCK.steps]
    spiked = scored([2.0, 1.15, 1.1, 1.1, 1.1, 1.1], [0.2, 0.4, 0.5, 0.5, 0.5, 0.5], [*losses[:40], 9.0, *losses[41:]])
    assert causes(spiked) == ["plateau", "spiked"]


@pytest.mark.parametrize("points", range(1, 6))
def test_of_too_few_points_nothing_is_said_but_that(points: int) -> None:
    (finding,) = diagnose(drawn([2.0 / 2**i for i in range(points)]))
    assert (finding.cause, finding.fatal) == ("too few points", False)
    assert finding.evidence.startswith(f"{points}, loss 2.000 to ")
    (broken,) = diagnose(drawn([math.nan] * points))
    assert broken.cause == "not a number"


def test_the_steps_of_a_curve_are_counted_not_its_points() -> None:
    flat = drawn([2.0] * 40)
    sparse = replace(flat, steps=tuple(replace(step, step=10 * step.step) for step in flat.steps))
    (finding,) = diagnose(sparse)
    assert (finding.cause, "in 400 steps" in finding.evidence) == ("did not move", True)


def test_nearly_all_answers_right_are_healthy_whatever_rank_and_layers_are() -> None:
    right = replace(STUCK, looks=tuple(replace(look, score=0.99) for look in STUCK.looks))
    assert [finding.cause for finding in diagnose(right, reach=Reach(1, 8, 0.1))] == ["healthy"]


def test_rows_known_by_heart_are_overfit_also_where_the_validation_loss_never_rose() -> None:
    (finding,) = diagnose(scored([3.0, 2.9, 2.8, 2.8, 2.8, 2.8], [0.3] * 6, [3.0 * 0.8**i for i in range(60)]))
    assert finding.cause == "overfit"
    assert "validation loss 2.800, 30% right" in finding.evidence


def test_a_loss_that_was_thrown_far_above_its_start_diverged_also_if_it_came_back_to_chance() -> None:
    thrown = [4.0, 9.0, 11.0, 10.0, 6.0, *[2.2 + 0.1 * math.sin(i) for i in range(55)]]
    first, *_ = diagnose(scored([2.4, 2.3, 2.2, 2.3, 2.2, 2.2], [0.5] * 6, thrown))
    assert (first.cause, first.fatal) == ("diverged", False)
    assert "10.000 at worst" in first.evidence


def test_a_row_of_zeros_means_that_every_label_is_masked() -> None:
    (finding,) = diagnose(drawn([0.0] * 20, norm=0.0))
    assert (finding.cause, finding.fatal) == ("nothing to learn", True)
    assert "every step from 1 to 20" in finding.evidence


def test_a_validation_loss_that_rises_while_training_falls_is_overfit() -> None:
    (finding,) = diagnose(drawn(FALL, [2.0, 1.0, 0.8, 0.9, 1.2, 1.6]))
    assert finding.cause == "overfit"
    assert "0.800 at step 30" in finding.evidence
    assert "1.600 at 60" in finding.evidence


def test_the_words_of_a_finding_are_one_sentence_with_its_remedy() -> None:
    (finding,) = diagnose(drawn(FALL, [2.0, 1.0, 0.8, 0.9, 1.2, 1.6]))
    assert finding.sentence == f"overfit: {finding.evidence}; {finding.remedy}"


def test_the_best_look_is_the_lowest_and_of_equals_the_first() -> None:
    assert drawn(FALL, [2.0, 1.0, 1.5, 1.0]).best == Look(30, 1.0)
    assert drawn(FALL).best is None
    assert drawn(FALL, [math.nan, 1.0, 2.0]).best == Look(40, 1.0)


def test_a_curve_is_plain_data() -> None:
    tree = drawn([2.0, 1.0], [1.5]).as_dict()
    assert tree["steps"][1]["loss"] == 1.0
    assert tree["looks"] == ({"step": 2, "loss": 1.5, "score": None},)
    assert tree["planned_steps"] == 2
