"""An export in another form says what the model says: logits in a fresh process, GGUF by entries, MLflow by answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.export import gguf_file
from tasks.export.agreement import agreement_in_fresh_process, refuse_unless_agreeing
from tasks.export.gguf_file import write_gguf
from tasks.export.mlflow_model import write_mlflow_model
from tasks.export.model import export_model
from tasks.merging.base import open_base
from tasks.merging.plan import Parent, check_parents
from tasks.merging.stream import merged_stream

PROMPTS = ["the card was lost", "again and again and again"]


def merged(base_folder: Path, adapter: Path, target: Path, **settings: Any) -> Path:
    base = open_base(base_folder)
    plan = check_parents([Parent("triage:1", "triage", adapter, "digest")], base)
    export_model(target, base, merged_stream(plan, "task_arithmetic"), **settings)
    return target


def test_an_export_agrees_with_its_adapter_and_a_wrong_one_is_refused(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    right = merged(tiny_base, adapters["triage"], tmp_path / "right", dtype=torch.float32)
    refuse_unless_agreeing(right, agreement_in_fresh_process(right, tiny_base, adapters["triage"], PROMPTS), "float32")
    off = agreement_in_fresh_process(right, tiny_base, adapters["route"], PROMPTS)
    assert off > 0.1
    with pytest.raises(ArtifactRefused, match="E-EXPORT-004"):
        refuse_unless_agreeing(right, off, "bfloat16")


def test_what_cannot_be_compared_says_why(tiny_base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="E-EXPORT-003"):
        agreement_in_fresh_process(tmp_path / "nowhere", tiny_base, adapters["triage"], PROMPTS)


def rotated_halves(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotary embedding as transformers has it: the first half of a head against the second."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-np.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return np.concatenate([one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)], -1)


def rotated_pairs(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """The same as llama.cpp has it: neighbours against each other."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-np.arange(half) / half)
    one, two = x[..., 0::2], x[..., 1::2]
    found = np.empty_like(x)
    found[..., 0::2], found[..., 1::2] = (
        one * np.cos(angle) - two * np.sin(angle),
        two * np.cos(angle) + one * np.sin(angle),
    )
    return found


def test_gguf_holds_the_model_and_attends_as_it_does(tiny_base: Path, tmp_path: Path) -> None:
    """Read back by the field's own reader; query times key is the same in llama.cpp's order of dimensions."""
    gguf = pytest.importorskip("gguf")
    write_gguf(tiny_base, tmp_path / "model.gguf", name="tiny")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    config = json.loads((tiny_base / "config.json").read_text())
    tensors, stored = {t.name: t for t in reader.tensors}, load_file(tiny_base / "model.safetensors")
    assert len(tensors) == len(stored)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    x = np.random.default_rng(0).standard_normal((2, config["hidden_size"])).astype(np.float32)

    def scores(query: np.ndarray, key: np.ndarray, rotated: Any) -> np.ndarray:
        q, k = (x[0] @ query.T).reshape(heads, size), (x[1] @ key.T).reshape(groups, size)
        return (rotated(q, 5, 10000.0) * np.repeat(rotated(k, 2, 10000.0), heads // groups, 0)).sum(-1)

    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight")
    ours = scores(*(stored[name].float().numpy() for name in names), rotated_halves)
    theirs = scores(*(np.asarray(tensors[f"blk.0.attn_{side}.weight"].data) for side in "qk"), rotated_pairs)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    value = stored["model.layers.0.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(np.asarray(tensors["blk.0.ffn_up.weight"].data), value)
    assert reader.fields["llama.block_count"].contents() == config["num_hidden_layers"]
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == config["vocab_size"]


def test_a_gguf_that_does_not_read_back_is_refused_and_leaves_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    right, turns = gguf_file.interleaved, iter(range(1000))
    monkeypatch.setattr(gguf_file, "interleaved", lambda rows, heads: right(rows, heads) + next(turns))
    with pytest.raises(ArtifactRefused, match="E-EXPORT-006"):
        write_gguf(tiny_base, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_gguf_is_written_for_architectures_that_have_a_converter(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecRefused, match="E-EXPORT-002"):
        write_gguf(tiny_encoder, tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(SpecRefused, match="E-EXPORT-001"):
        write_gguf(tiny_encoder, tmp_path / "model.gguf")


def test_a_weight_without_a_name_in_gguf_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    shutil.copytree(tiny_base, tmp_path / "odd")
    tensors = load_file(tmp_path / "odd" / "model.safetensors")
    save_file({**tensors, "model.extra.weight": torch.zeros(2)}, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(ArtifactRefused, match="E-EXPORT-005"):
        write_gguf(tmp_path / "odd", tmp_path / "model.gguf")


def test_the_mlflow_model_answers_as_the_folder_does(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    import mlflow.pyfunc
    import transformers

    folder = merged(tiny_base, adapters["triage"], tmp_path / "model", dtype=torch.float32)
    write_mlflow_model(folder, tmp_path / "mlflow", max_new_tokens=6)
    said = mlflow.pyfunc.load_model(str(tmp_path / "mlflow")).predict(PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, answer in zip(PROMPTS, said, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer.strip() == tokenizer.decode(written, skip_special_tokens=True).strip()
    with pytest.raises(SpecRefused, match="E-EXPORT-001"):
        write_mlflow_model(folder, tmp_path / "mlflow")
