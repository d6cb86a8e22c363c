"""Two processes that share every batch make the adapter that one process makes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tasks.errors import FactoryError
from tasks.specs import AdapterSpec, ResourceSpec
from tasks.training.base import load_base
from tasks.training.loop import Trained, train_adapter
from tasks.training.parallel import train_in_processes

Make = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


def in_two(spec: AdapterSpec) -> AdapterSpec:
    return spec.model_copy(update={"resources": ResourceSpec(device="cpu", threads=1, processes=2)})


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_two_gloo_processes_give_the_single_process_result(
    kind: str, tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec(kind, tiny_base, steps=6, batch_size=7, compute_dtype="float32")
    rows, held_out = make_rows(kind, 40), make_rows(kind, 20, 1)
    base = load_base(spec.base, kind=kind, labels=spec.data.labels)
    alone = train_adapter(base, spec, rows, held_out, tmp_path / "alone")
    seen: dict[str, list[Any]] = {"steps": [], "looks": []}
    done: Trained = train_in_processes(
        in_two(spec),
        rows,
        held_out,
        tmp_path / "shared",
        on_step=seen["steps"].append,
        on_look=seen["looks"].append,
    )
    assert [step.step for step in done.curve.steps] == [step.step for step in alone.curve.steps]
    for one, other in zip(alone.curve.steps, done.curve.steps, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-3)
        assert other.tokens == one.tokens
    assert done.curve.start_loss == pytest.approx(alone.curve.start_loss, rel=1e-5)
    assert seen == {"steps": list(done.curve.steps), "looks": list(done.curve.looks)}
    assert done.trainable_parameters == alone.trainable_parameters
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("alone", "shared"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < 2e-3, name


def test_what_a_process_refuses_is_refused_in_one_line(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = in_two(make_spec("generation", tiny_base, steps=2))
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"targets": ("nothing",)})})
    with pytest.raises(FactoryError) as refused:
        train_in_processes(spec, make_rows("generation", 16), [], tmp_path / "out")
    assert refused.value.problems[0].code == "E-SPEC-010"
    assert not (tmp_path / "out").exists()
