"""IA3 and VeRA have exact updates too: one parent at weight 1 gives the logits of the attached adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ArtifactRefused
from tasks.merging.apply import applied
from tasks.merging.base import open_base
from tasks.merging.merge import check_parents, merged_updates, reduced_updates
from tasks.merging.overlap import forecast
from tasks.merging.plan import Parent
from tasks.merging.stream import merged_stream
from tasks.merging.vectors import exact_updates

ALL = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, Any] = {
    "ia3": lambda: peft.IA3Config(target_modules=ALL, feedforward_modules=[], task_type="CAUSAL_LM"),
    "ia3 as its paper has it": lambda: peft.IA3Config(
        target_modules=ALL, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "vera": lambda: peft.VeraConfig(
        r=8, target_modules=ALL, projection_prng_key=3, save_projection=True, task_type="CAUSAL_LM"
    ),
}


@pytest.fixture
def written(llama: Path, tiny: Any, tmp_path: Path) -> Any:
    """Write an adapter with random factors; the base has biases on its attention."""

    def make(name: str, folder: str = "adapter") -> Path:
        model = peft.get_peft_model(tiny.loaded(llama, "generation"), CONFIGS[name]()).eval()
        generator = torch.Generator().manual_seed(len(name))
        for key, parameter in model.named_parameters():
            if "ia3_l" in key:
                parameter.data = 1 + torch.randn(parameter.shape, generator=generator)
            elif "vera_lambda" in key:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_one_parent_at_weight_1_gives_the_logits_of_the_attached_adapter(
    name: str, written: Any, llama: Path, tokens: torch.Tensor, tiny: Any
) -> None:
    folder, base, model = written(name), open_base(llama), tiny.loaded(llama, "generation")
    plain = model(tokens).logits
    attached = peft.PeftModel.from_pretrained(tiny.loaded(llama, "generation"), folder).eval()(tokens).logits
    plan = check_parents([Parent("a:1", "a", folder, "digest")], base)
    moved = (attached - plain).abs().max()
    assert moved > 0.05
    for rule in ("average", "ties"):
        with applied(model, dict(merged_updates(plan, rule))):
            assert (model(tokens).logits - attached).abs().max() <= 1e-4 * moved


def test_they_mix_with_lora_in_every_form(written: Any, adapter: Any, llama: Path) -> None:
    base = open_base(llama)
    folders = [written("ia3", "one"), written("vera", "two"), adapter(120)]
    plan = check_parents([Parent(f"{n}:1", n, path, "digest") for n, path in zip("abc", folders, strict=True)], base)
    alone = [exact_updates(folder, base.weight, base.shape) for folder in folders]
    for name, delta in merged_updates(plan, "task_arithmetic"):
        expected = sum(update.delta(name) for update in alone if name in update.modules)
        torch.testing.assert_close(delta.reshape(expected.shape), expected, rtol=0, atol=1e-5)
    for rule in ("ties", "knots_ties", "tsv", "slerp"):
        weights = {"c": 0.0} if rule == "slerp" else None
        whole = dict(merged_updates(plan, rule, density=0.5, weights=weights))
        for change in merged_stream(plan, rule, density=0.5, weights=weights):
            assert torch.equal(torch.cat([rows for _, rows in change.blocks()]), whole[change.name])
    assert len(dict(reduced_updates(plan, "ties", rank=4, density=0.5))) == len(plan.modules)
    assert len(forecast(plan)) == 3


def test_without_the_base_or_on_another_one_they_are_refused(
    written: Any, tiny_base: Path, llama: Path, tmp_path: Path
) -> None:
    for name in ("ia3", "vera"):
        folder = written(name, name)
        with pytest.raises(ArtifactRefused, match="E-ADAPTER-113"):
            exact_updates(folder)
        with pytest.raises(ArtifactRefused, match="E-ADAPTER-114"):
            check_parents([Parent("a:1", "a", folder, "digest")], open_base(tiny_base))


def test_vera_without_its_random_pair_is_refused(written: Any, llama: Path) -> None:
    folder = written("vera")
    path = folder / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != "base_model.vera_A"}, path)
    with pytest.raises(ArtifactRefused, match="E-ADAPTER-111"):
        check_parents([Parent("a:1", "a", folder, "digest")], open_base(llama))
