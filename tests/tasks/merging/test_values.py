"""Norms, biases and whole weights that were trained have exact updates too, and mix with adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tasks.errors import ArtifactRefused
from tasks.merging.apply import applied
from tasks.merging.base import open_base
from tasks.merging.merge import check_parents, merged_updates
from tasks.merging.overlap import forecast
from tasks.merging.plan import Parent
from tasks.merging.stream import merged_stream
from tasks.merging.vectors import exact_updates
from tasks.methods.own import own_method, settings_of

METHODS = ("layernorm", "bitfit", "full")


@pytest.fixture
def written(llama: Path, tiny: Any, tmp_path: Path) -> Callable[[str], tuple[Path, Any]]:
    """Write an adapter of one of our own methods with moved values; its folder, and what it says to token ids."""

    def make(name: str) -> tuple[Path, Any]:
        model, folder = tiny.loaded(llama, "generation"), tmp_path / name
        settings = settings_of(name, model, {"model.layers.0.mlp.up_proj": (64, 32)}, 4, "")
        generator = torch.Generator().manual_seed(len(name))
        folder.mkdir()
        with own_method(model, settings, torch.device("cpu")) as own, torch.no_grad():
            for parameter in own.trained().values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            save_file(
                {key: p.detach().clone() for key, p in own.trained().items()}, folder / "adapter_model.safetensors"
            )
            config = {**settings, "task_type": "CAUSAL_LM", "base_model_name_or_path": "llama"}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            said = own(torch.arange(3, 43).reshape(4, 10)).logits
        return folder, said

    return make


@pytest.mark.parametrize("name", METHODS)
def test_one_parent_at_weight_1_gives_the_logits_of_the_trained_model(
    name: str, written: Any, llama: Path, tiny: Any
) -> None:
    (folder, said), model = written(name), tiny.loaded(llama, "generation")
    tokens = torch.arange(3, 43).reshape(4, 10)
    with torch.no_grad():
        plain = model(tokens).logits
        moved = (said - plain).abs().max()
        assert moved > 0.05
        plan = check_parents([Parent("a:1", "a", folder, "digest")], open_base(llama))
        for rule in ("average", "ties"):
            with applied(model, dict(merged_updates(plan, rule))):
                assert (model(tokens).logits - said).abs().max() <= 1e-4 * moved


def test_they_mix_with_lora_in_memory_and_as_a_stream(written: Any, adapter: Any, llama: Path) -> None:
    base = open_base(llama)
    folders = [
        *(written(name)[0] for name in METHODS),
        adapter(130, lora_bias=True, target_modules=["q_proj", "v_proj"]),
    ]
    plan = check_parents([Parent(f"{n}:1", n, path, "digest") for n, path in zip("abcd", folders, strict=True)], base)
    alone = [exact_updates(folder, base.weight, base.shape) for folder in folders]
    stored = {name: tuple(value) for name in plan.modules if (value := base.shape(name)) is not None}
    for name, delta in merged_updates(plan, "task_arithmetic"):
        expected = sum(update.delta(name) for update in alone if name in update.modules)
        assert tuple(delta.shape) == stored[name]
        torch.testing.assert_close(delta.reshape(expected.shape), expected, rtol=0, atol=1e-5)
    for rule in ("ties", "knots_ties", "iso_c"):
        whole = dict(merged_updates(plan, rule, density=0.5))
        for change in merged_stream(plan, rule, density=0.5):
            assert torch.equal(torch.cat([rows for _, rows in change.blocks()]), whole[change.name])
    assert {(p.first, p.second) for p in forecast(plan)} == {("a", "c"), ("b", "c"), ("b", "d"), ("c", "d")}


def test_the_forms_that_are_measured_on_rows_take_them(written: Any, adapter: Any, llama: Path, tiny: Any) -> None:
    """What is no linear layer gets the mean; the witness reads the files."""
    from safetensors.torch import load_file

    from tasks.merging.distillation import distilled
    from tasks.merging.regression import regression_mean
    from tasks.specs import BaseSpec
    from tasks.training.base import Base
    from tasks.training.encoding import Encoded

    folders = [written("layernorm")[0], adapter(131)]
    plan = check_parents(
        [Parent(f"{n}:1", n, path, "digest") for n, path in zip("ab", folders, strict=True)], open_base(llama)
    )
    model = tiny.loaded(llama, "generation").requires_grad_(False)
    spec = BaseSpec(model=str(llama), quantization="none")
    base = Base(model, None, spec, "generation", (), torch.device("cpu"), torch.float32, "", 2, 0)
    rows = {task: [Encoded((3 + place, 5, 7), (8, 2)) for place in range(20)] for task in "ab"}
    merged = regression_mean(base, plan, rows)
    value = load_file(folders[0] / "adapter_model.safetensors")["base.model.norm.weight"]
    torch.testing.assert_close(merged["model.norm"], (value - model.model.norm.weight) / 2)
    taught = distilled(base, plan, rows, merged, steps=2)
    assert taught.keys() == merged.keys()
    torch.testing.assert_close(taught["model.norm"], merged["model.norm"])


def test_without_the_base_or_on_another_one_they_are_refused(written: Any, tiny_base: Path) -> None:
    for name in METHODS:
        folder, _ = written(name)
        with pytest.raises(ArtifactRefused, match="E-ADAPTER-113"):
            exact_updates(folder)
        with pytest.raises(ArtifactRefused, match="E-ADAPTER-114"):
            check_parents([Parent("a:1", "a", folder, "digest")], open_base(tiny_base))


def test_a_network_behind_the_modules_has_no_update(written: Any) -> None:
    folder, _ = written("bottleneck")
    with pytest.raises(ArtifactRefused, match=r"E-ADAPTER-102 .*bottleneck has no exact weight update"):
        exact_updates(folder)
