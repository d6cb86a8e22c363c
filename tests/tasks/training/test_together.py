"""Adapters whose rows share a pass over one base, against each trained by itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import SpecRefused
from tasks.methods.build import attached
from tasks.specs import AdapterSpec, MethodSpec
from tasks.training.base import load_base
from tasks.training.checkpoint import Checkpoints
from tasks.training.encoding import collate, encode
from tasks.training.interruption import Stopped
from tasks.training.loop import Trained, steps_of, train_adapter
from tasks.training.several import Several, refusal_of, twin_of
from tasks.training.together import TRIED_STEPS, Together, train_together

Make = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
ENOUGH = 20  # steps of a run that is tried here


@pytest.fixture
def three(tiny_base: Path, make_spec: Make) -> list[AdapterSpec]:
    """Three that differ in all that a run may: method, rank, scale, targets, dropout, batch, order, rate and length."""
    methods = [
        MethodSpec(rank=4, dropout=0.3),
        MethodSpec(name="loraplus", rank=2, dropout=0.1, targets=("q_proj", "down_proj")),
        MethodSpec(name="adalora", rank=2, dropout=0.0),
    ]
    sizes: list[dict[str, Any]] = [
        {"batch_size": 8, "steps": 9},
        {"batch_size": 3, "steps": 7, "learning_rate": 1e-3},
        {"batch_size": 5, "steps": 9, "micro_batch": 2, "schedule": "linear"},
    ]
    return [
        make_spec("generation", tiny_base, compute_dtype="float32", method=method, seed=seed, **size)
        for seed, (method, size) in enumerate(zip(methods, sizes, strict=True))
    ]


@pytest.fixture
def rows(make_rows: Make) -> list[list[Any]]:
    return [make_rows("generation", 40, seed) for seed in range(3)]


def base_of(spec: AdapterSpec) -> Any:
    return load_base(spec.base, kind=spec.kind, labels=spec.data.labels if spec.kind == "classification" else ())


def by_themselves(specs: Sequence[AdapterSpec], rows: Sequence[Any], folder: Path, **others: Any) -> list[Trained]:
    return [
        train_adapter(base_of(spec), spec, mine[8:], mine[:8], folder / str(number), **others)
        for number, (spec, mine) in enumerate(zip(specs, rows, strict=True))
    ]


def at_once(
    specs: Sequence[AdapterSpec], rows: Sequence[Any], folder: Path, kept: Path | None = None, **others: Any
) -> Together:
    def begin(number: int) -> Any:
        checkpoints = Checkpoints(kept / str(number), f"run {number}") if kept else None
        mine, where = rows[number], folder / str(number)
        return lambda base, stop: steps_of(
            base, specs[number], mine[8:], mine[:8], where, checkpoints=checkpoints, stop=stop
        )

    return train_together(base_of(specs[0]), [begin(number) for number in range(len(specs))], **others)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / WEIGHTS).items())])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def curve_of(trained: Any) -> list[tuple[float, ...]]:
    steps = [(s.step, s.loss, s.rate, s.grad_norm, s.tokens) for s in trained.curve.steps]
    return [*steps, *((look.step, look.loss) for look in trained.curve.looks)]


def stopping_after(passes: int) -> Callable[[], bool]:
    turns = count()
    return lambda: next(turns) >= passes


@pytest.fixture(autouse=True)
def short_runs_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.training.together.ENOUGH_STEPS", ENOUGH)


def passing(seconds_apart: float, seconds_together: float) -> Callable[[], float]:
    """A clock by which the tried steps took so long; it is read before and after each of the two ways."""
    readings = [0.0]
    for _ in range(TRIED_STEPS):
        for took in (0.0, seconds_apart, 0.0, seconds_together):
            readings.append(readings[-1] + took)
    return iter([*readings[1:], *[readings[-1]] * 99]).__next__


def test_each_adapter_and_curve_is_that_of_its_own_run(
    three: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    several = Several.backward

    def counted(self: Several, parts: Any, chances: Any) -> list[float]:
        passes.append(len(parts))
        return several(self, parts, chances)

    monkeypatch.setattr(Several, "backward", counted)
    alone = by_themselves(three, rows, tmp_path / "alone")
    found = at_once(three, rows, tmp_path / "together", share=True)
    assert passes[0] == 3
    assert passes[-1] == 2  # one went on when another had ended; the last of all was alone again
    for number, (own, shared) in enumerate(zip(alone, found.outcomes, strict=True)):
        for one, other in zip(curve_of(own), curve_of(shared), strict=True):
            assert other == pytest.approx(one, rel=2e-4)
        expected = weights(tmp_path / "alone" / str(number))
        assert (weights(tmp_path / "together" / str(number)) - expected).norm() < 2e-4 * expected.norm()
        assert own.change > 0


def test_on_nf4_in_bfloat16_the_answers_are_close_to_those_of_its_own_run(
    three: Any, rows: Any, tmp_path: Path
) -> None:
    specs = [s.model_copy(update={"base": s.base.model_copy(update={"compute_dtype": "bfloat16"})}) for s in three]
    by_themselves(specs, rows, tmp_path / "alone")
    at_once(specs, rows, tmp_path / "together", share=True)
    base = base_of(specs[0])
    inputs, _ = collate(base, encode(base, rows[0][:8]))
    with torch.no_grad():
        untouched = base.model(**inputs).logits.float()
        for number in range(3):
            answers = []
            for side in ("alone", "together"):
                with attached(base, tmp_path / side / str(number)) as model:
                    answers.append(model(**inputs).logits.float())
            own, shared = answers
            assert (shared - own).norm() < 0.1 * (own - untouched).norm()


@pytest.mark.parametrize("passes", [0, 4])
def test_runs_that_are_stopped_together_go_on_to_the_same_bytes(
    passes: int, three: Any, rows: Any, tmp_path: Path
) -> None:
    specs = [
        spec.model_copy(update={"training": spec.training.model_copy(update={"micro_batch": None})}) for spec in three
    ]
    whole = at_once(specs, rows, tmp_path / "whole", share=True)
    halted = at_once(specs, rows, tmp_path / "again", tmp_path / "kept", share=True, stop=stopping_after(passes))
    assert [type(outcome) for outcome in halted.outcomes] == [Stopped] * 3
    assert not (tmp_path / "again").exists()
    again = at_once(specs, rows, tmp_path / "again", tmp_path / "kept")  # together is remembered
    assert again.shared
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    assert list(map(curve_of, again.outcomes)) == list(map(curve_of, whole.outcomes))


def test_one_that_becomes_no_number_leaves_the_others_bytes_as_they_were(
    three: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that ends at the same step in good health."""
    short = [three[0].model_copy(update={"training": three[0].training.model_copy(update={"steps": 4})}), *three[1:]]
    healthy = at_once(short, rows, tmp_path / "healthy", share=True)
    several, passes = Several.backward, count(1)

    def poisoned(self: Several, parts: Any, chances: Any) -> list[float]:
        sick = replace(parts[0], learned=math.nan) if next(passes) == 4 else parts[0]
        return several(self, [sick, *parts[1:]], chances)

    monkeypatch.setattr(Several, "backward", poisoned)
    sick = at_once(three, rows, tmp_path / "sick", share=True)
    assert len(sick.outcomes[0].curve.steps) == len(healthy.outcomes[0].curve.steps) == 4  # type: ignore[union-attr]
    assert math.isnan(sick.outcomes[0].curve.steps[-1].grad_norm)  # type: ignore[union-attr]
    assert torch.isfinite(weights(tmp_path / "sick" / "0")).all()
    for other in ("1", "2"):
        assert digests(tmp_path / "sick" / other) == digests(tmp_path / "healthy" / other)


def test_one_that_is_refused_ends_alone(three: Any, rows: Any, tmp_path: Path) -> None:
    three[1] = three[1].model_copy(update={"method": MethodSpec(rank=4, targets=("no_such_projection",))})
    found = at_once(three, rows, tmp_path, share=True)
    assert [type(outcome) for outcome in found.outcomes] == [Trained, SpecRefused, Trained]


@pytest.mark.parametrize(("joint", "shared"), [(1.0, True), (2.5, False)])
def test_together_is_where_it_was_measured_to_be_faster_and_a_run_says_so(
    joint: float, shared: bool, three: Any, rows: Any, tmp_path: Path
) -> None:
    longer = [s.model_copy(update={"training": s.training.model_copy(update={"steps": ENOUGH})}) for s in three]
    specs = [s.model_copy(update={"training": s.training.model_copy(update={"micro_batch": None})}) for s in longer]
    clock = passing(2.0, joint)
    found = at_once(specs, rows, tmp_path / "first", tmp_path / "kept", clock=clock)
    assert found.shared == shared
    assert f"for 3 adapters at once was {2 / joint:.2f} times as fast as one for each" in found.reason
    if shared:
        assert all(found.reason in outcome.compute for outcome in found.outcomes)  # type: ignore[union-attr]
        return
    assert [type(outcome) for outcome in found.outcomes] == [Stopped] * 3
    said: list[str] = []
    for number, (spec, mine) in enumerate(zip(specs, rows, strict=True)):
        kept = Checkpoints(tmp_path / "kept" / str(number), f"run {number}")
        where = tmp_path / "on" / str(number)
        done = train_adapter(base_of(spec), spec, mine[8:], mine[:8], where, checkpoints=kept, say=said.append)
        assert found.reason in done.compute
    assert said == [f"  resumed from step {TRIED_STEPS} of {ENOUGH} (verified)"] * 3
    by_themselves(specs, rows, tmp_path / "alone")
    assert digests(tmp_path / "on") == digests(tmp_path / "alone")  # nothing of what was tried is left


def test_too_few_steps_are_not_tried(three: Any, rows: Any, tmp_path: Path) -> None:
    found = at_once(three, rows, tmp_path)
    assert not found.shared
    assert "too few to try" in found.reason


def test_a_pass_that_fails_parts_them_at_their_last_step(
    three: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, passes = Several.backward, count(1)

    def full(self: Several, *asked: Any) -> list[float]:
        found = several(self, *asked)  # what it has added until then is not believed
        if next(passes) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(Several, "backward", full)
    found = at_once(three, rows, tmp_path / "first", tmp_path / "kept", share=True)
    assert not found.shared
    assert found.reason == "trained by itself: together it failed, out of memory"
    monkeypatch.setattr(Several, "backward", lambda *_: pytest.fail("tried again"))
    again = at_once(three, rows, tmp_path / "first", tmp_path / "kept")
    assert [type(outcome) for outcome in again.outcomes] == [Stopped] * 3


@pytest.mark.parametrize("method", ["ia3", "dora"])
def test_what_is_no_plain_low_rank_update_is_trained_by_itself(
    method: str, three: Any, rows: Any, tmp_path: Path
) -> None:
    specs = [s.model_copy(update={"training": s.training.model_copy(update={"steps": ENOUGH})}) for s in three]
    specs[2] = specs[2].model_copy(update={"method": MethodSpec(name=method, rank=4)})
    found = at_once(specs, rows, tmp_path)
    assert not found.shared
    assert "is trained, and is no low-rank update of a linear layer" in found.reason


def test_a_base_that_looks_back_only_so_far_or_drops_out_by_itself_is_not_shared(
    three: Any, tiny_encoder: Path, make_spec: Make
) -> None:
    base = base_of(three[0])
    assert refusal_of(base) == ""
    twin = twin_of(base)
    twin.model.config.sliding_window = 16
    assert "window" in refusal_of(twin)
    assert refusal_of(base) == ""
    noisy = twin_of(base)
    noisy.model.model.layers[0].dropout = torch.nn.Dropout(0.1)
    assert "drops out" in refusal_of(noisy)
    assert "decoders" in refusal_of(base_of(make_spec("classification", tiny_encoder)))


def test_a_twin_has_modules_of_its_own_around_the_same_weights(three: Any) -> None:
    base = base_of(three[0])
    twin = twin_of(base)
    assert not {*map(id, base.model.modules())} & {*map(id, twin.model.modules())}
    assert [*map(id, base.model.parameters())] == [*map(id, twin.model.parameters())]
    assert [*map(id, base.model.buffers())] == [*map(id, twin.model.buffers())]
