"""Plans of models whose weights are nowhere, against transformers' own modules and against published figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.architecture import shapes_of_config
from tasks.errors import ArtifactRefused, SpecRefused
from tasks.fitting import changed, in_words
from tasks.memory import (
    MemoryPlan,
    Shapes,
    nf4_bytes,
    parse_size,
    plan_memory,
    refuse_if_too_large,
    trainable_of,
)
from tasks.methods.catalogue import TRAINED
from tasks.planning import fitted, full_static_bytes, largest_batch, rewritten, shapes_of, variants
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec

GIB = 1 << 30
CONFIGS: dict[str, dict[str, Any]] = {
    "llama 7B": {"model_type": "llama"},  # the library's defaults are those of the 7B
    "llama 65B": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama 3 8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "small tied": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 4,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", "num_hidden_layers": 2},
    "gemma": {"model_type": "gemma", "num_hidden_layers": 2},
    "gemma2": {"model_type": "gemma2", "num_hidden_layers": 3},
    "gemma3": {"model_type": "gemma3_text", "num_hidden_layers": 3},
    "phi3": {"model_type": "phi3", "num_hidden_layers": 2, "num_key_value_heads": 8},
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1},
    "distilbert": {"model_type": "distilbert", "dim": 384, "hidden_dim": 1000},
}
ENCODERS = ("bert", "roberta", "distilbert")


def full_config(name: str) -> dict[str, Any]:
    return full_config_of(**CONFIGS[name])


def full_config_of(model_type: str, **asked: Any) -> dict[str, Any]:
    from transformers import AutoConfig

    return dict(AutoConfig.for_model(model_type, **asked).to_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_from_a_config_are_those_of_the_modules_that_transformers_builds(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = full_config(name)
    kind: Any = AutoModel if name in ENCODERS else AutoModelForCausalLM
    with torch.device("meta"):
        asked = {key: value for key, value in config.items() if key != "model_type"}
        model = kind.from_config(AutoConfig.for_model(config["model_type"], **asked))
    linear = {
        n: (m.out_features, m.in_features)
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    }
    shapes = shapes_of_config(config)
    named = model.named_parameters()
    assert shapes.biases == sum(p.numel() for n, p in named if n.endswith(".bias"))
    assert dict(shapes.linear) == linear
    assert shapes.parameters == sum(p.numel() for p in model.parameters())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    assert [shapes.config[size] for size in sizes] == [getattr(model.config, size) for size in sizes]


def spec_of(**changes: Any) -> AdapterSpec:
    parts = {
        "method": MethodSpec(rank=16),
        "base": BaseSpec(model="/base", quantization="none"),
        "training": TrainingSpec(batch_size=16),
        "data": DataSpec(source="/rows", prompt="{a}", completion="{b}", max_tokens=512),
    }
    return AdapterSpec(task="t", kind="generation", **{**parts, **changes})


def planner_of(shapes: Shapes, room: int = 1 << 60) -> Callable[[AdapterSpec], MemoryPlan]:
    def plan(spec: AdapterSpec) -> MemoryPlan:
        tokens = spec.data.max_tokens
        return plan_memory(spec, shapes, available_bytes=room, longest_tokens=tokens, on_gpu=True, half=True)

    return plan


def test_the_published_figures_come_out() -> None:
    """Dettmers et al. 2023: 65B takes more than 780 GB to fine-tune in full, and QLoRA less than 48 GB."""
    large, small = shapes_of_config(full_config("llama 65B")), shapes_of_config(full_config("llama 7B"))
    assert full_static_bytes(large.parameters) / 1e9 == pytest.approx(780, rel=0.01)
    assert full_static_bytes(small.parameters) / 1e9 == pytest.approx(84, rel=0.05)
    four = MethodSpec(rank=16, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert trainable_of(spec_of(method=four), small) == 16_777_216
    one_row = TrainingSpec(batch_size=16, micro_batch=1, gradient_checkpointing=True)
    spec = spec_of(base=BaseSpec(model="/base"), training=one_row, method=MethodSpec(rank=64))
    assert planner_of(large)(spec).peak_bytes < 48 * 10**9
    assert nf4_bytes(large.parameters) > 33 * 10**9


def test_a_full_run_holds_its_weights_gradients_and_moments_once() -> None:
    shapes = shapes_of_config(full_config("llama 7B"))
    spec = spec_of(method=MethodSpec(name="full"), training=TrainingSpec(optimizer="adamw"))
    causes = planner_of(shapes)(spec).causes
    held = sum(causes[name] for name in ("weights in 16 bit", "adapter", "gradients", "optimizer"))
    assert held == full_static_bytes(shapes.parameters)


def test_full_lora_and_qlora_stand_side_by_side_in_this_order() -> None:
    shapes = shapes_of_config(full_config("llama 3 8B"))
    one_row = TrainingSpec(batch_size=16, micro_batch=1)  # of many rows activations are most, in all three
    found = variants(spec_of(training=one_row), planner_of(shapes, 40 * GIB))
    assert [variant.name for variant in found] == ["full", "LoRA", "QLoRA"]
    peaks = [variant.plan.peak_bytes for variant in found]
    assert peaks == sorted(peaks, reverse=True)
    assert found[0].largest_batch == 0 < found[1].largest_batch < found[2].largest_batch


@pytest.mark.parametrize("room_gib", [8, 12, 16, 24, 48, 80])
def test_the_largest_batch_fits_and_one_row_more_does_not(room_gib: int) -> None:
    plan = planner_of(shapes_of_config(full_config("llama 3 8B")), room_gib * GIB)
    spec = spec_of(base=BaseSpec(model="/base"))
    rows = largest_batch(spec, plan)

    def fits(count: int) -> bool:
        training = spec.training.model_copy(update={"batch_size": count, "micro_batch": count})
        return plan(spec.model_copy(update={"training": training})).fits

    assert rows == 0 or fits(rows)
    assert not fits(rows + 1)


@pytest.mark.parametrize("room_gib", [7, 8, 10, 12, 16, 20, 24, 32, 48, 80])
def test_a_spec_made_to_fit_fits_with_the_same_effective_batch(room_gib: int) -> None:
    plan = planner_of(shapes_of_config(full_config("llama 3 8B")), room_gib * GIB)
    spec = spec_of()
    changes = fitted(spec, plan)
    made = changed(spec, changes)
    assert plan(made).fits
    assert made.training.batch_size == spec.training.batch_size
    assert plan(spec).fits == (not changes)


@pytest.mark.parametrize("room_gib", [7, 8, 10, 12, 16])
def test_what_a_refusal_proposes_first_is_what_is_made_to_fit(room_gib: int) -> None:
    plan = planner_of(shapes_of_config(full_config("llama 3 8B")), room_gib * GIB)
    spec = spec_of()
    with pytest.raises(SpecRefused) as refused:
        refuse_if_too_large(plan(spec), spec)
    assert refused.value.problems[0].remedy.split(" or ")[0] == in_words([fitted(spec, plan)])


def test_rows_are_proposed_shorter_where_nothing_cheaper_is_enough() -> None:
    spec = spec_of(base=BaseSpec(model="/base"), training=TrainingSpec(batch_size=1, gradient_checkpointing=True))
    long = changed(spec, {"data.max_tokens": 8192})
    plan = planner_of(shapes_of_config(full_config("llama 3 8B")), 10 * GIB)
    (only,) = plan(long).remedies
    assert only.keys() == {"data.max_tokens"}
    assert plan(changed(long, only)).fits
    assert not plan(changed(long, {"data.max_tokens": 2 * only["data.max_tokens"]})).fits


def test_columns_are_named_after_the_method_that_they_plan() -> None:
    plan = planner_of(shapes_of_config(full_config("llama 3 8B")))
    for method, names in {"dora": ["full", "DoRA", "QDoRA"], "rslora": ["full", "rslora", "rslora on NF4"]}.items():
        found = variants(spec_of(method=MethodSpec(name=method)), plan)
        assert [variant.name for variant in found] == names
        trained = trainable_of(spec_of(method=MethodSpec(name=method)), shapes_of_config(full_config("llama 3 8B")))
        assert [variant.plan.trainable for variant in found[1:]] == [trained, trained]
        for variant in found:
            assert variant.activations_again < variant.activations_kept == variant.plan.causes["activations"]


@pytest.mark.parametrize(
    "text", ["", "GiB", "0GiB", "-1GiB", "1e3GiB", "²GiB", ".GiB", "1.1.1GiB", "9" * 400 + "GiB", "24"]
)
def test_what_is_no_size_of_a_memory_is_refused(text: str) -> None:
    with pytest.raises(SpecRefused, match=r"^E-SPEC-016 --device: .* is no size"):
        parse_size(text)


def test_biases_are_planned_where_there_are_some_and_refused_where_there_are_none() -> None:
    bitfit = spec_of(method=MethodSpec(name="bitfit"))
    with pytest.raises(SpecRefused, match=r"E-SPEC-041 method.name: the base has no biases"):
        trainable_of(bitfit, shapes_of_config(full_config("llama 7B")))
    assert trainable_of(bitfit, shapes_of_config(full_config("qwen2"))) == 4 * (896 + 2 * 128)


def test_what_cannot_fit_is_not_made_to() -> None:
    with pytest.raises(LookupError):
        fitted(spec_of(), planner_of(shapes_of_config(full_config("llama 3 8B")), GIB))


def test_a_rewritten_spec_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("task: t  # mine\ntraining:\n  batch_size: 16   # as ever\n", encoding="utf-8")
    text = rewritten(path, {"training.micro_batch": 4, "base.quantization": "nf4"})
    assert (
        text
        == "task: t  # mine\ntraining:\n  batch_size: 16   # as ever\n  micro_batch: 4\nbase:\n  quantization: nf4\n"
    )


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba"}, {"model_type": "llama"}, {"model_type": "llama", "hidden_size": "x"}]
)
def test_a_config_that_says_too_little_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ArtifactRefused, match="E-BASE-010"):
        shapes_of_config(config)


def test_a_mixture_of_experts_is_refused_with_its_reason() -> None:
    with pytest.raises(ArtifactRefused, match=r"E-BASE-010 .*'mixtral' is a mixture of experts"):
        shapes_of_config(full_config_of("mixtral"))


def test_a_folder_with_a_config_and_no_weights_is_enough(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    whole, alone = shapes_of(tiny_base), shapes_of(tmp_path)
    assert (alone.linear, alone.other_parameters) == (whole.linear, whole.other_parameters)
    with pytest.raises(ArtifactRefused, match="E-BASE-010"):
        shapes_of(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "bitfit"])  # the tiny Llama has no biases
def test_the_planned_trainable_parameters_of_every_method_are_the_real_ones_or_just_above(
    name: str, tiny_base: Path
) -> None:
    from tasks.methods.build import fresh_adapter
    from tasks.training.base import load_base

    method = MethodSpec(name=name, rank=4)
    base = load_base(BaseSpec(model=str(tiny_base), quantization="none"), kind="generation")
    with fresh_adapter(base, method, 0) as model:
        real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    planned = trainable_of(spec_of(method=method), shapes_of(tiny_base))
    assert real <= planned <= (2.1 * real if name == "layernorm" else real)
