"""Base weights read from files are those that the loaded model has, NF4 included; a model is changed for one block
only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tasks.errors import ArtifactRefused
from tasks.merging.apply import applied, fill
from tasks.merging.base import held_base, nf4_modules, open_base
from tasks.specs import BaseSpec
from tasks.training.base import dense_weights, load_base


@pytest.mark.parametrize("kind", ["generation", "classification"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_weights_from_files_are_bit_for_bit_those_of_the_loaded_base(
    kind: str, double_quant: bool, tiny_base: Path, tiny_encoder: Path
) -> None:
    folder = tiny_base if kind == "generation" else tiny_encoder
    spec = BaseSpec(model=str(folder), quantization="nf4", double_quant=double_quant, compute_dtype="float32")
    held = dense_weights(load_base(spec, kind=kind, labels=() if kind == "generation" else ("a", "b")))
    names = nf4_modules(folder, kind)
    base = open_base(folder, nf4=names, double_quant=double_quant)
    compared = 0
    for name, weight in held.items():
        tensor = base.tensor_name(name)
        if tensor is not None:
            assert torch.equal(base.tensor(tensor), weight), name
            compared += 1
    assert compared >= len(names) + 3
    stored = open_base(folder)
    assert all(not torch.equal(base.weight(name), stored.weight(name)) for name in names)


def test_sharded_and_single_files_give_the_same_weights(tiny_base: Path, tmp_path: Path, tiny: Any) -> None:
    tiny.loaded(tiny_base, "generation").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    single, sharded = open_base(tiny_base), open_base(tmp_path)
    assert dict(single.shapes).keys() == dict(sharded.shapes).keys()
    assert all(torch.equal(single.tensor(name), sharded.tensor(name)) for name in single.shapes)


def test_a_base_loaded_in_another_type_is_read_in_it(tiny_base: Path) -> None:
    half, stored = open_base(tiny_base, dtype=torch.bfloat16), open_base(tiny_base)
    for name in stored.shapes:
        assert torch.equal(half.tensor(name), stored.tensor(name).bfloat16())
        assert half.dtypes[name] == torch.bfloat16


def test_a_body_without_its_models_prefix_is_found_and_nothing_else_is(tiny_encoder: Path) -> None:
    base = open_base(tiny_encoder)
    assert base.tensor_name("bert.encoder.layer.0.output.dense") == "encoder.layer.0.output.dense.weight"
    assert base.tensor_name("bert.encoder.layer.0.output.dense.bias") == "encoder.layer.0.output.dense.bias"
    assert base.shape("classifier") is None
    with pytest.raises(KeyError, match="classifier"):
        base.weight("classifier")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"\x80\x04no", "cannot be read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/passwd"}}', "missing shard"),
        ("model.safetensors.index.json", b"[]", "neither"),
        ("pytorch_model.bin", b"\x80\x04no", "neither"),
    ],
)
def test_a_base_without_readable_safetensors_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactRefused, match=words):
        open_base(tmp_path)


def test_a_base_stored_in_4_bits_is_refused(tmp_path: Path) -> None:
    packed = {"a.weight": torch.zeros(8, 1, dtype=torch.uint8), "a.weight.absmax": torch.zeros(1)}
    save_file(packed, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactRefused, match="stored quantised"):
        open_base(tmp_path)


def test_a_base_that_stores_in_by_out_has_no_nf4_weights_of_its_own(tmp_path: Path, tiny: Any) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    tiny.model(config, "generation").save_pretrained(tmp_path)
    with pytest.raises(ArtifactRefused, match="merge_base: stored"):
        nf4_modules(tmp_path, "generation")


def test_a_model_is_changed_inside_the_block_and_bit_for_bit_restored_after_it(tiny_base: Path, tiny: Any) -> None:
    model = tiny.loaded(tiny_base, "generation")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    name = "model.layers.0.mlp.up_proj"
    delta = torch.randn(model.get_submodule(name).weight.shape)

    def interrupted() -> None:
        with applied(model, {name: delta}, scale=0.5):
            assert torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"] + 0.5 * delta)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_update_of_a_weight_that_the_model_lacks_changes_nothing(tiny_base: Path, tiny: Any) -> None:
    model = tiny.loaded(tiny_base, "generation")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    updates = {"model.layers.0.mlp.up_proj": torch.ones(128, 64), "model.layers.7.mlp.up_proj": torch.ones(128, 64)}
    with pytest.raises(ArtifactRefused, match=r"layers\.7"), applied(model, updates):
        pass
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_filled_model_has_the_weights_of_the_base(tiny_encoder: Path, tiny: Any) -> None:
    model, base = tiny.loaded(tiny_encoder, "classification"), open_base(tiny_encoder)
    held = held_base(tiny_encoder, {name: base.tensor(name) + 1 for name in base.shapes})
    fill(model, held)
    for name, weight in model.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(weight, base.tensor(name.removeprefix("bert.")) + 1)
