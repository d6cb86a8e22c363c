"""One adapter at weight 1 gives the logits of the attached adapter; what has no exact update is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tasks.errors import ArtifactRefused
from tasks.merging.apply import applied, fill
from tasks.merging.base import nf4_modules, open_base
from tasks.merging.catalogue import RULES
from tasks.merging.merge import Parent, check_parents, merged_updates
from tasks.merging.vectors import exact_updates
from tasks.methods.catalogue import LORA_METHODS as METHODS

TOLERANCE = 1e-4  # of the largest change that the adapter makes to a logit: float32 in two orders of summation

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: dict(row.config) for name, row in METHODS.items()},
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 20},
    },
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"o_proj": 9}, "alpha_pattern": {"gate_proj": 1}},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj"]},
    "two modules only": {"target_modules": ["q_proj", "up_proj"]},
}


def assert_same(candidate: torch.Tensor, attached: torch.Tensor, plain: torch.Tensor) -> None:
    moved = (attached - plain).abs().max()
    assert moved > 0.05, "the adapter does something"
    assert (candidate - attached).abs().max() <= TOLERANCE * moved


def only(plan_folder: Path, base: Any, rule: str = "average") -> dict[str, torch.Tensor]:
    plan = check_parents([Parent("a:1", "a", plan_folder, "digest")], base)
    return dict(merged_updates(plan, rule))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_one_parent_at_weight_1_gives_the_logits_of_the_attached_adapter(
    settings: dict[str, Any], llama: Path, adapter: Callable[..., Path], tokens: torch.Tensor, tiny: Any
) -> None:
    folder = adapter(1, **settings)
    model, base = tiny.loaded(llama, "generation"), open_base(llama)
    plain = model(tokens).logits
    attached = peft.PeftModel.from_pretrained(tiny.loaded(llama, "generation"), folder).eval()(tokens).logits
    with applied(model, only(folder, base)):
        assert_same(model(tokens).logits, attached, plain)
    assert torch.equal(model(tokens).logits, plain)


@pytest.mark.parametrize("rule", [row.name for row in RULES.values() if row.keeps_one])
def test_every_rule_that_says_so_gives_one_parent_back(rule: str, llama: Path, adapter: Callable[..., Path]) -> None:
    folder, base = adapter(2, use_dora=rule in ("ties", "knots_ties"), use_rslora=True), open_base(llama)
    alone = exact_updates(folder, base.weight)
    merged = only(folder, base, rule)
    assert merged.keys() == set(alone.modules)
    for name, delta in merged.items():
        torch.testing.assert_close(delta, alone.delta(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_on_an_nf4_base_the_update_on_dequantised_weights_gives_the_logits_of_the_attached_adapter(
    method: str, llama: Path, tmp_path: Path, tokens: torch.Tensor, tiny: Any
) -> None:
    import transformers

    nf4 = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    quantised = tiny.loaded(llama, "generation", quantization_config=nf4, dtype=torch.float32, device_map={"": "cpu"})
    for module in quantised.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    names = nf4_modules(llama, "generation")
    packed = [name for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"]
    assert sorted(names) == sorted(packed)

    base = open_base(llama, nf4=names)
    attached = tiny.random_adapter(quantised, 3, task_type="CAUSAL_LM", **METHODS[method].config)
    attached.save_pretrained(tmp_path / "adapter")
    model = tiny.loaded(llama, "generation")
    stored = model(tokens).logits
    fill(model, base)
    plain = model(tokens).logits
    assert (plain - stored).abs().max() > 1e-3, "NF4 moves the logits"
    with applied(model, only(tmp_path / "adapter", base)):
        assert_same(model(tokens).logits, attached(tokens).logits, plain)


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_classifier_keeps_its_head_and_gives_the_logits_of_the_attached_adapter(
    method: str, tiny_encoder: Path, tmp_path: Path, tokens: torch.Tensor, tiny: Any
) -> None:
    settings = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"], **METHODS[method].config}
    attached = tiny.random_adapter(tiny.loaded(tiny_encoder, "classification"), 4, **settings)
    attached.save_pretrained(tmp_path / "adapter")
    base, model = open_base(tiny_encoder), tiny.loaded(tiny_encoder, "classification")
    plan = check_parents([Parent("a:1", "a", tmp_path / "adapter", "digest")], base)
    assert set(plan.heads["a"]) == {"classifier.weight", "classifier.bias"}
    assert not any("classifier" in name for name in plan.modules)
    plain = model(tokens).logits
    with applied(model, dict(merged_updates(plan, "ties")), head=plan.heads["a"]):
        assert_same(model(tokens).logits, attached(tokens).logits, plain)


@pytest.mark.parametrize("dora", [False, True])
def test_a_base_that_stores_in_by_out_gets_its_update_in_that_layout(
    dora: bool, tmp_path: Path, tokens: torch.Tensor, tiny: Any
) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    tiny.model(config, "generation").save_pretrained(tmp_path / "gpt2")
    attached = tiny.random_adapter(
        tiny.loaded(tmp_path / "gpt2", "generation"), 5, task_type="CAUSAL_LM", use_dora=dora, fan_in_fan_out=True
    )
    attached.save_pretrained(tmp_path / "adapter")
    model, base = tiny.loaded(tmp_path / "gpt2", "generation"), open_base(tmp_path / "gpt2")
    plain = model(tokens).logits
    with applied(model, only(tmp_path / "adapter", base, "ties")):
        assert_same(model(tokens).logits, attached(tokens).logits, plain)


def test_the_update_is_what_a_loop_over_entries_computes(llama: Path, adapter: Callable[..., Path]) -> None:
    folder = adapter(6, use_dora=True, use_rslora=True, r=3, lora_alpha=5, target_modules=["k_proj"])
    raw = load_file(folder / "adapter_model.safetensors")
    base, name = open_base(llama), "model.layers.1.self_attn.k_proj"
    B, A = (raw[f"base_model.model.{name}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    magnitude = raw[f"base_model.model.{name}.lora_magnitude_vector"].astype(np.float64)
    W, s = base.weight(name).double().numpy(), 5 / math.sqrt(3)
    expected = np.empty_like(W)
    for i in range(W.shape[0]):
        moved = [W[i, j] + s * sum(B[i, k] * A[k, j] for k in range(3)) for j in range(W.shape[1])]
        norm = math.sqrt(sum(value * value for value in moved))
        expected[i] = [magnitude[i] * value / norm - W[i, j] for j, value in enumerate(moved)]
    np.testing.assert_allclose(exact_updates(folder, base.weight).delta(name).numpy(), expected, rtol=0, atol=1e-6)


def test_factors_multiply_to_the_update(adapter: Callable[..., Path]) -> None:
    settings = {"rank_pattern": {"q_proj": 2}, "lora_bias": True, "target_modules": ["q_proj", "k_proj"]}
    update = exact_updates(adapter(7, use_rslora=True, **settings))
    for name in update.modules:
        pair = update.factors(name)
        assert pair is not None
        torch.testing.assert_close((pair[0] @ pair[1]).float(), update.delta(name), rtol=0, atol=1e-6)


def damaged(folder: Path, to: Path, config: dict[str, Any] | None = None, drop: str = "", **tensors: Any) -> Path:
    shutil.copytree(folder, to)
    written = json.loads((to / "adapter_config.json").read_text()) | (config or {})
    (to / "adapter_config.json").write_text(json.dumps(written))
    weights = {name: value for name, value in load_file(to / "adapter_model.safetensors").items() if name != drop}
    save_file(weights | tensors, to / "adapter_model.safetensors")
    return to


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"config": {"peft_type": "PREFIX_TUNING"}}, "E-ADAPTER-102", "prefixes"),
        ({"config": {"peft_type": "PREFIX_TUNING"}}, "E-ADAPTER-102", "lora, rslora or dora"),
        ({"config": {"task_type": "SEQ_2_SEQ_LM"}}, "E-ADAPTER-103", "SEQ_2_SEQ_LM"),
        ({"config": {"layer_replication": [[0, 2]]}}, "E-ADAPTER-104", "layer_replication"),
        ({"config": {"a_field_of_tomorrow": "on"}}, "E-ADAPTER-104", "a_field_of_tomorrow"),
        ({"config": {"bias": "all"}}, "E-ADAPTER-104", "bias"),
        ({"config": {"init_lora_weights": "pissa"}}, "E-ADAPTER-105", "changes the base"),
        ({"config": {"lora_alpha": -4}}, "E-ADAPTER-106", "lora_alpha"),
        ({"config": {"alpha_pattern": {"(a+)+b": 2}}}, "E-ADAPTER-106", "(a+)+b"),
        ({"config": {"r": 5}}, "E-ADAPTER-112", "rank 5"),
        ({"config": {"use_dora": True}}, "E-ADAPTER-111", "magnitude"),
        ({"drop": NAME}, "E-ADAPTER-111", "asks for A, B"),
        ({NAME: np.zeros((4, 3, 1), np.float32)}, "E-ADAPTER-112", "(4, 3, 1)"),
        ({NAME: np.full((4, 32), np.nan, np.float32)}, "E-ADAPTER-110", "128 of 128"),
        ({NAME: np.zeros((4, 32), np.int32)}, "E-ADAPTER-109", "int32"),
        ({"base_model.model.lm_head.weight": np.zeros((4, 4), np.float32)}, "E-ADAPTER-108", "lm_head.weight"),
        ({"q_proj.lora_A.weight": np.zeros((4, 4), np.float32)}, "E-ADAPTER-108", "does not start with"),
    ],
)
def test_an_adapter_without_an_exact_update_is_refused_with_the_reason(
    change: dict[str, Any], code: str, words: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = damaged(adapter(8), tmp_path / "damaged", **change)
    with pytest.raises(ArtifactRefused) as refusal:
        exact_updates(folder)
    assert refusal.value.exit_code == 4
    assert any(problem.code == code and words in str(problem) for problem in refusal.value.problems)


def test_an_adapter_of_another_base_is_refused_naming_each_module(llama: Path, adapter: Callable[..., Path]) -> None:
    folder, base = adapter(9), open_base(llama)

    def smaller(name: str) -> tuple[int, ...] | None:
        return None if "layers.1" in name else base.shape(name) if "q_proj" not in name else (16, 32)

    with pytest.raises(ArtifactRefused) as refusal:
        exact_updates(folder, base.weight, smaller)
    places = {problem.where.split(":")[-1] for problem in refusal.value.problems}
    assert places == {name for name in exact_updates(folder).modules if "layers.1" in name or "q_proj" in name}


def test_weights_that_are_no_safetensors_are_never_read(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = damaged(adapter(10), tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ArtifactRefused, match="missing"):
        exact_updates(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        exact_updates(folder)
