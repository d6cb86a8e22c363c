"""A GGUF file says what llama.cpp must know to answer as the model does, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import SpecRefused
from tasks.export.gguf_file import write_gguf

gguf = pytest.importorskip("gguf")
Other = Callable[..., Path]


@pytest.fixture
def other(tiny_base: Path, tmp_path: Path) -> Other:
    """The tiny Llama with another entry in its config."""

    def make(**entries: Any) -> Path:
        folder = shutil.copytree(tiny_base, tmp_path / "other")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))
        return folder

    return make


def read(folder: Path, target: Path) -> dict[str, Any]:
    """The written file's keys and values."""
    write_gguf(folder, target)
    return {name: field.contents() for name, field in gguf.GGUFReader(target).fields.items()}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    ],
)
def test_scaled_rotary_positions_are_refused_before_anything_is_written(
    rope: dict[str, Any], other: Other, tmp_path: Path
) -> None:
    folder = other(**rope)
    with pytest.raises(SpecRefused, match=r"E-EXPORT-002 .*scaled"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_of_several_ends_the_first_is_written(other: Other, tmp_path: Path) -> None:
    assert read(other(eos_token_id=[2, 0]), tmp_path / "model.gguf")["tokenizer.ggml.eos_token_id"] == 2


def test_a_head_of_another_size_is_written_as_it_is(tmp_path: Path) -> None:
    """llama.cpp takes hidden size / heads, 16 here, where no length is said."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    fields = read(tmp_path / "narrow", tmp_path / "model.gguf")
    sizes = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    assert [fields[f"llama.{name}"] for name in sizes] == [8, 8, 8]
