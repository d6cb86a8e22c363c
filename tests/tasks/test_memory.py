"""The memory plan, against real headers, real quantised layers and real adapters."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.memory import (
    GIB,
    MemoryPlan,
    Shapes,
    free_ram_bytes,
    nf4_bytes,
    plan_memory,
    read_shapes,
    refuse_if_too_large,
)
from tasks.methods.build import fresh_adapter
from tasks.methods.catalogue import LORA_METHODS as METHODS
from tasks.methods.catalogue import trainable_parameters
from tasks.methods.targets import chosen_targets
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, ResourceSpec, TrainingSpec
from tasks.training.base import linear_modules, load_base

LLAMA_8B = Shapes(
    linear={
        f"model.layers.{layer}.{name}": shape
        for layer in range(32)
        for name, shape in {
            "self_attn.q_proj": (4096, 4096),
            "self_attn.k_proj": (1024, 4096),
            "self_attn.v_proj": (1024, 4096),
            "self_attn.o_proj": (4096, 4096),
            "mlp.gate_proj": (14336, 4096),
            "mlp.up_proj": (14336, 4096),
            "mlp.down_proj": (4096, 14336),
        }.items()
    },
    other_parameters=2 * 128_256 * 4096 + 65 * 4096,
    stored_bytes=2 * 8_030_261_248,
    config={"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128_256},
)


def spec_of(method: MethodSpec | None = None, quantization: Any = "nf4", **training: Any) -> AdapterSpec:
    return AdapterSpec(
        task="triage",
        kind="generation",
        base=BaseSpec(model="/base", quantization=quantization),
        data=DataSpec(source="/rows", prompt="{a}", completion="{b}"),
        method=method or MethodSpec(),
        training=TrainingSpec(**training),
        resources=ResourceSpec(),
    )


def plan_of(spec: AdapterSpec, available_bytes: int = 1 << 60, tokens: int = 512, on_gpu: bool = False) -> MemoryPlan:
    return plan_memory(spec, LLAMA_8B, available_bytes=available_bytes, longest_tokens=tokens, on_gpu=on_gpu, half=True)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (128, 320), (512, 1024)])
def test_nf4_bytes_are_those_of_a_quantised_layer(rows: int, columns: int, double_quant: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(rows, columns), quant_type="nf4", compress_statistics=double_quant)
    scales = [state.absmax] + ([state.state2.absmax] if double_quant else [])
    held = sum(tensor.numel() * tensor.element_size() for tensor in (packed, *scales))
    assert nf4_bytes(rows * columns, double_quant=double_quant) == held


def test_double_quantisation_saves_three_eighths_of_a_bit() -> None:
    parameters = 65_000_000_000
    saved = nf4_bytes(parameters, double_quant=False) - nf4_bytes(parameters)
    assert saved * 8 / parameters == pytest.approx(0.373, abs=5e-4)  # Dettmers et al. 2023, section 3


def test_the_sizes_of_a_text_model_inside_another_are_planned_and_none_is_made_up(
    tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_base / "model.safetensors")
    config = json.loads((tiny_base / "config.json").read_text())
    asked: dict[str, Any] = {"available_bytes": 1 << 40, "longest_tokens": 64, "on_gpu": False, "half": False}

    def planned(told: dict[str, Any]) -> MemoryPlan:
        (tmp_path / "config.json").write_text(json.dumps(told))
        return plan_memory(spec_of(), read_shapes(tmp_path), **asked)

    vocabulary = config.pop("vocab_size")  # gemma 3's file leaves it to the weights
    nested = {"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 1152}}
    assert planned(nested) == planned({**config, "vocab_size": vocabulary})
    for size in ("hidden_size", "num_hidden_layers"):
        with pytest.raises(ArtifactRefused, match=rf"^E-BASE-010 .*config\.json: does not say {size} -> [^\n]*$"):
            planned({name: value for name, value in config.items() if name != size})


@pytest.mark.parametrize("which", ["tiny_base", "tiny_encoder"])
def test_shapes_from_headers_are_those_of_the_loaded_model(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    shapes = read_shapes(folder)
    kind = "generation" if which == "tiny_base" else "classification"
    base = load_base(BaseSpec(model=str(folder), quantization="none"), kind=kind, labels=("a", "b"))
    body = base.model if kind == "generation" else base.model.bert
    loaded = {name: (module.out_features, module.in_features) for name, module in linear_modules(body).items()}
    assert shapes.linear == loaded
    assert shapes.parameters == sum(parameter.numel() for parameter in body.parameters())
    assert shapes.stored_bytes == 4 * shapes.parameters
    assert 0 < (folder / "model.safetensors").stat().st_size - shapes.stored_bytes < 20_000


METHOD_SPECS = [
    MethodSpec(name=name, rank=rank, targets=targets, layers=layers)
    for name in METHODS
    for rank, targets, layers in (
        (4, "all-linear", None),
        (3, ("q_proj", "v_proj"), None),
        (8, "all-linear", (1,)),
        (1, ("down_proj",), (0,)),
        (2, ("model.layers.0.self_attn.o_proj",), None),
    )
]


@pytest.mark.parametrize("method", METHOD_SPECS, ids=lambda m: f"{m.name}-{m.rank}-{m.targets}-{m.layers}")
def test_the_planned_trainable_parameters_are_the_real_ones(tiny_base: Path, method: MethodSpec) -> None:
    shapes = read_shapes(tiny_base)
    plan = plan_memory(spec_of(method), shapes, available_bytes=1 << 40, longest_tokens=16, on_gpu=False, half=False)
    base = load_base(BaseSpec(model=str(tiny_base)), kind="generation")
    with fresh_adapter(base, method, seed=0) as model:
        trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert plan.trainable == sum(trainable)
    assert trainable_parameters(chosen_targets(shapes.linear, method), method.rank, method.name) == sum(trainable)


@pytest.mark.parametrize(
    ("method", "code", "named"),
    [
        (MethodSpec(targets=("q_proj", "query")), "E-SPEC-010", "choose of: down_proj, gate_proj"),
        (MethodSpec(targets=(".*",)), "E-SPEC-010", "'.*'"),
        (MethodSpec(targets=("(a+)+$",)), "E-SPEC-010", "(a+)+$"),
        (MethodSpec(targets=("proj",)), "E-SPEC-010", "'proj'"),
        (MethodSpec(layers=(0, 2)), "E-SPEC-011", "no layer 2 -> layers are 0 to 1"),
        (MethodSpec(layers=(-1,)), "E-SPEC-011", "no layer -1"),
        (MethodSpec(rank=33, targets=("k_proj", "q_proj")), "E-SPEC-012", "k_proj (32 x 64) -> use a rank of at most"),
        (MethodSpec(rank=4096), "E-SPEC-012", "use a rank of at most 32"),
    ],
)
def test_a_method_that_does_not_fit_the_base_is_refused_before_loading(
    tiny_base: Path, method: MethodSpec, code: str, named: str
) -> None:
    with pytest.raises(SpecRefused) as refused:
        chosen_targets(read_shapes(tiny_base).linear, method)
    assert refused.value.exit_code == 2
    assert {problem.code for problem in refused.value.problems} == {code}
    assert named in str(refused.value)


def test_a_rank_of_the_full_dimension_is_allowed(tiny_base: Path) -> None:
    linear = read_shapes(tiny_base).linear
    assert len(chosen_targets(linear, MethodSpec(rank=32))) == len(linear)


def test_a_choice_of_nothing_is_refused() -> None:
    linear = {"layers.0.query": (64, 64), "pooler.dense": (64, 64)}
    for modules, method in (({}, MethodSpec()), (linear, MethodSpec(targets=("dense",), layers=(0,)))):
        with pytest.raises(SpecRefused, match=r"E-SPEC-010 .*no linear layer"):
            chosen_targets(modules, method)


def test_an_8b_model_in_nf4_weighs_what_the_paper_says() -> None:
    linear = sum(rows * columns for rows, columns in LLAMA_8B.linear.values())
    plan = plan_of(spec_of())
    expected = linear * 4.127 / 8 + LLAMA_8B.other_parameters * 2
    assert plan.weight_bytes == pytest.approx(expected, rel=1e-3)
    assert plan.causes["weights in 4 bit"] == linear // 2
    assert plan.causes["quantisation constants"] == pytest.approx(linear * 0.127 / 8, rel=2e-3)
    assert plan.causes["weights in 16 bit"] == LLAMA_8B.other_parameters * 2
    assert plan.causes["dequantised layer"] == 14336 * 4096 * 2
    assert plan.peak_bytes == sum(plan.causes.values())
    assert plan.trainable == 41_943_040  # r = 16 on all linear layers of Llama 3 8B, as PEFT prints it


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"quantization": "none"}, "weights in 16 bit"),
        ({"batch_size": 32}, "activations"),
        ({"batch_size": 32}, "outputs"),
        ({"method": MethodSpec(rank=64)}, "adapter"),
        ({"method": MethodSpec(rank=64)}, "optimizer"),
    ],
)
def test_asking_for_more_costs_more_where_it_is_asked(change: dict[str, Any], cause: str) -> None:
    assert plan_of(spec_of(**change)).causes[cause] > plan_of(spec_of()).causes[cause]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"micro_batch": 1}, "activations"),
        ({"gradient_checkpointing": True}, "activations"),
        ({"optimizer": "paged_adamw_8bit"}, "optimizer"),
    ],
)
def test_each_way_to_save_memory_saves_it_where_it_says(change: dict[str, Any], cause: str) -> None:
    before, after = plan_of(spec_of()).causes, plan_of(spec_of(**change)).causes
    assert after[cause] < before[cause]
    assert all(after[name] <= before[name] for name in before)


def test_a_plan_that_fits_is_let_through_and_one_byte_less_is_not() -> None:
    peak = plan_of(spec_of()).peak_bytes
    refuse_if_too_large(plan_of(spec_of(), available_bytes=peak), spec_of())
    with pytest.raises(SpecRefused) as refused:
        refuse_if_too_large(plan_of(spec_of(), available_bytes=peak - 1), spec_of())
    assert refused.value.exit_code == 2
    assert refused.value.problems[0].code == "E-SPEC-013"


def test_a_model_that_caps_is_planned_with_its_scores_and_with_logits_at_every_position() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens, rows, vocabulary = 96, 2, 300
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}

    def kept(family: str, layers: int) -> int:
        """Bytes that a layer's backward pass reads, its weights apart."""
        told = {**sizes, "head_dim": 8, "vocab_size": vocabulary, "num_hidden_layers": layers, "pad_token_id": 0}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **told)).requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)
        weights = {weight.data_ptr() for weight in model.parameters()}
        found: dict[int, Any] = {}

        def seen(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            model(torch.ones(rows, tokens, dtype=torch.long), use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for at, tensor in found.items() if at not in weights)

    def planned(layers: int, **caps: float) -> Any:
        config = {**sizes, "num_hidden_layers": layers, "vocab_size": vocabulary, **caps}
        asked: Any = {"available_bytes": 1 << 60, "longest_tokens": tokens, "on_gpu": False, "half": False}
        spec, shapes = spec_of(batch_size=rows), Shapes({"layers.0.q_proj": (32, 32)}, 1000, 8000, config)
        return plan_memory(spec, shapes, **asked, longest_answer=1).causes

    def grown(of: Any) -> int:
        return of(2) - of(1)

    more = grown(lambda n: kept("gemma2", n)) - grown(lambda n: kept("llama", n))
    told = [
        grown(lambda n, cap=cap: planned(n, **cap)["activations"]) for cap in ({"attn_logit_softcapping": 50.0}, {})
    ]
    assert told[0] - told[1] == pytest.approx(more, rel=0.05)
    every = rows * tokens * vocabulary * 4
    assert planned(1)["outputs"] < every
    assert 3 * every <= planned(1, final_logit_softcapping=30.0)["outputs"] <= 5 * every
    assert 2 * every <= planned(1, logits_scaling=8.0)["outputs"]
    assert planned(1, logits_scaling=1.0) == planned(1)


def followed(spec: AdapterSpec, remedy: str) -> AdapterSpec:
    """The spec after a remedy such as 'training.micro_batch: 4 and base.quantization: nf4'."""
    tree = spec.model_dump(mode="json")
    for change in remedy.split(" and "):
        section, field, value = re.fullmatch(r"(\w+)\.(\w+): (\w+)", change).groups()  # type: ignore[union-attr]
        tree[section][field] = value if field == "quantization" else json.loads(value)
    return AdapterSpec.model_validate_json(json.dumps(tree))


@settings(deadline=None)
@given(
    available=st.integers(1 * GIB, 60 * GIB),
    quantization=st.sampled_from(["nf4", "none"]),
    rows=st.integers(1, 64),
    tokens=st.integers(16, 4096),
    checkpointing=st.booleans(),
    on_gpu=st.booleans(),
)
def test_every_remedy_for_a_plan_that_is_too_large_makes_it_fit(
    available: int, quantization: str, rows: int, tokens: int, checkpointing: bool, on_gpu: bool
) -> None:
    spec = spec_of(quantization=quantization, batch_size=rows, gradient_checkpointing=checkpointing)
    plan = plan_of(spec, available, tokens, on_gpu)
    if plan.fits:
        refuse_if_too_large(plan, spec)
        return
    with pytest.raises(SpecRefused) as refused:
        refuse_if_too_large(plan, spec)
    remedy = refused.value.problems[0].remedy
    if remedy == "use a smaller base":
        smallest = followed(spec, "training.micro_batch: 1 and training.gradient_checkpointing: true")
        smallest = followed(smallest, "base.quantization: nf4 and data.max_tokens: 16")
        assert not plan_of(smallest, available, tokens, on_gpu).fits
        return
    for way in remedy.split(" or "):
        assert plan_of(followed(spec, way), available, tokens, on_gpu).fits
        for change in way.split(" and ") if " and " in way else ():
            fewer = " and ".join(other for other in way.split(" and ") if other != change)
            assert not plan_of(followed(spec, fewer), available, tokens, on_gpu).fits  # none can be left out


def headers(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a safetensors file."""
    yield "empty", b""
    yield "cut in the length", good[:5]
    yield "cut in the header", good[:200]
    yield "endless header", struct.pack("<Q", 2**62) + good[8:]
    yield "no JSON", struct.pack("<Q", 4) + b"\xff\xfe{}"
    for name, header in (
        ("a list", []),
        ("no entry", {"w": 5}),
        ("no shape", {"w": {"dtype": "F32"}}),
        ("a text for a shape", {"w": {"dtype": "F32", "shape": "64"}}),
        ("a negative length", {"w": {"dtype": "F32", "shape": [-1, 64]}}),
        ("no dtype", {"w": {"shape": [1, 64]}}),
    ):
        text = json.dumps(header).encode()
        yield name, struct.pack("<Q", len(text)) + text
    yield "deep", struct.pack("<Q", 200_000) + b"[" * 200_000


def test_a_damaged_header_is_refused_by_file(tiny_base: Path, tmp_path: Path) -> None:
    good = (tiny_base / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    path = tmp_path / "model.safetensors"
    path.write_bytes(good)
    assert read_shapes(tmp_path) == read_shapes(tiny_base)
    for name, content in headers(good):
        path.write_bytes(content)
        with pytest.raises(ArtifactRefused) as refused:
            read_shapes(tmp_path)
        assert (refused.value.exit_code, refused.value.problems[0].where) == (4, str(path)), name


def test_classification_adds_its_head(tiny_base: Path) -> None:
    labels = ("a", "b", "c")
    spec = spec_of().model_copy(update={"kind": "classification", "data": DataSpec(source="/rows", labels=labels)})
    asked = {"available_bytes": 1 << 40, "longest_tokens": 16, "on_gpu": False, "half": False}
    plan = plan_memory(spec, read_shapes(tiny_base), **asked)  # type: ignore[arg-type]
    base = load_base(BaseSpec(model=str(tiny_base)), kind="classification", labels=labels)
    with fresh_adapter(base, spec.method, seed=0) as model:
        assert plan.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_free_memory_lies_below_what_the_machine_has() -> None:
    total = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    assert 0 < free_ram_bytes() < total


def test_a_plan_says_what_it_was_made_for() -> None:
    plan = plan_of(spec_of(batch_size=8, micro_batch=32), tokens=77)
    assert (plan.micro_batch, plan.tokens) == (8, 77)
    assert replace(plan, available_bytes=plan.peak_bytes).fits


def test_a_gpt_2_is_planned_as_it_trains_in_4_bit_and_refused_as_it_is_stored(
    tiny_base: Path, tmp_path: Path, make_rows: Any, make_spec: Any
) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tasks.training.loop import train_adapter

    folder, tokenizer = tmp_path / "gpt2", AutoTokenizer.from_pretrained(tiny_base)
    ids: Any = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes: Any = {"vocab_size": len(tokenizer), "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shapes = read_shapes(folder)
    asked: Any = {"available_bytes": 1 << 40, "longest_tokens": 64, "on_gpu": False, "half": False}
    base = load_base(BaseSpec(model=str(folder)), kind="generation")
    loaded = {name: (layer.out_features, layer.in_features) for name, layer in linear_modules(base.model).items()}
    assert dict(shapes.linear) == loaded
    for name in ("lora", "ia3", "bottleneck"):
        spec = make_spec("generation", folder, method=MethodSpec(name=name, rank=4, dropout=0.0), steps=2)
        with fresh_adapter(base, spec.method, seed=0) as model:
            real = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert plan_memory(spec, shapes, **asked).trainable == real
        stored = spec.model_copy(update={"base": spec.base.model_copy(update={"quantization": "none"})})
        with pytest.raises(SpecRefused, match=r"E-SPEC-010 triage:base\.quantization: .* -> base\.quantization: nf4$"):
            refuse_if_too_large(plan_memory(stored, shapes, **asked), stored)
        rows = make_rows("generation", 16)
        assert len(train_adapter(base, spec, rows, rows[:4], tmp_path / name).curve.steps) == 2
    whole = make_spec("generation", folder, quantization="none", method=MethodSpec(name="full"))
    assert plan_memory(whole, shapes, **asked).fits
