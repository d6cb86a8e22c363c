"""Fused kernels: on a GPU, where the library has some for the base and they compute what the base computes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from tasks.specs import BaseSpec
from tasks.training.base import load_base
from tasks.training.fused import use_fused_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Kernels = Callable[[Any], None]


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base).requires_grad_(False).eval()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernels], list[dict[str, Any]]]:
    """A library of this name whose kernels for Llamas are put on by a function; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def install(kernels: Kernels) -> list[dict[str, Any]]:
        def apply(model: Any, **settings: Any) -> None:
            asked.append(settings)
            kernels(model)

        found = importlib.util.find_spec
        monkeypatch.setattr(
            "tasks.training.fused.find_spec", lambda name: True if name == "liger_kernel" else found(name)
        )
        parts: dict[str, dict[str, Any]] = {
            "": {},
            ".transformers": {"_apply_liger_kernel_to_instance": apply},
            ".transformers.monkey_patch": {"MODEL_TYPE_TO_APPLY_LIGER_FN": {"llama": apply}},
        }
        for name, values in parts.items():
            module = ModuleType(f"liger_kernel{name}")
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
        return asked

    return install


def norms_of(model: Any) -> list[Any]:
    return [layer.input_layernorm for layer in model.model.layers]


def as_liger_does(change: float) -> Kernels:
    """New forwards on the instances, and the module's own classes and functions replaced, for all models to come."""

    def put_on(model: Any) -> None:
        for norm in norms_of(model):
            plain = type(norm).forward
            norm.forward = lambda x, norm=norm, plain=plain: plain(norm, x) * change
        vars(modeling_llama).update(LlamaMLP=object, apply_rotary_pos_emb=lambda *_: pytest.fail("a CPU came here"))

    return put_on


@pytest.fixture(autouse=True)
def transformers_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = dict(vars(modeling_llama))
    yield
    vars(modeling_llama).update(before)


def state_of(model: Any) -> list[Any]:
    return [(module, dict(vars(module))) for module in model.modules()]


def test_a_base_on_a_gpu_gets_them_and_no_other_model_does(model: Any, installed: Any) -> None:
    mlp = modeling_llama.LlamaMLP
    asked, ids = installed(as_liger_does(1.0)), torch.arange(6)[None]
    alone = model(ids).logits
    assert use_fused_kernels(model, GPU).startswith("liger-kernel computes llama's norms")
    assert asked == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert all("forward" in vars(norm) for norm in norms_of(model))
    assert modeling_llama.LlamaMLP is mlp
    assert torch.equal(model(ids).logits, alone)  # on a CPU, with the plain rotation


def test_a_cpu_has_no_use_for_them(model: Any, installed: Any, tiny_base: Path) -> None:
    asked, before = installed(as_liger_does(1.0)), state_of(model)
    assert use_fused_kernels(model, CPU) == ""
    assert state_of(model) == before
    assert "liger" not in load_base(BaseSpec(model=str(tiny_base)), kind="generation", device="cpu").compute_reason
    assert asked == []


def test_without_the_library_or_without_kernels_for_the_base_it_stays_as_it_is(model: Any, installed: Any) -> None:
    before = state_of(model)
    if importlib.util.find_spec("liger_kernel") is None:
        assert use_fused_kernels(model, GPU) == "liger-kernel is not installed"
    asked = installed(as_liger_does(1.0))
    model.config.model_type = "unheard-of"
    assert use_fused_kernels(model, GPU) == "liger-kernel has no kernels for unheard-of"
    assert asked == []
    assert state_of(model) == before


def failing(model: Any) -> None:
    as_liger_does(1.0)(model)
    raise RuntimeError("no such instruction\nand a long trace")


def failing_when_run(model: Any) -> None:
    for norm in norms_of(model):
        norm.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no such instruction"))


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        (failing, "no such instruction"),
        (failing_when_run, "no such instruction"),
        (as_liger_does(1.5), "its logits are"),
        (as_liger_does(float("nan")), "its logits are nan"),
    ],
)
def test_kernels_that_fail_or_compute_otherwise_leave_the_base_as_it_was(
    kernels: Kernels, said: str, model: Any, installed: Any
) -> None:
    before, shared = state_of(model), dict(vars(modeling_llama))
    installed(kernels)
    told = use_fused_kernels(model, GPU)
    assert told.startswith(f"without liger-kernel, which failed here: {said}")
    assert "\n" not in told
    assert state_of(model) == before
    assert dict(vars(modeling_llama)) == shared
