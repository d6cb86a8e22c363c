"""A GGUF file says what llama.cpp must know to answer as the model does, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Cuts

from tasks.errors import SpecRefused
from tasks.export.gguf_file import write_gguf

gguf = pytest.importorskip("gguf")
Other = Callable[..., Path]
LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_3_CUT = (  # of the published Meta-Llama-3-8B
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture
def other(tiny_base: Path, tmp_path: Path) -> Other:
    """The tiny Llama with another entry in its config."""

    def make(**entries: Any) -> Path:
        folder = shutil.copytree(tiny_base, tmp_path / "other")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))
        return folder

    return make


def with_tokenizer(folder: Path, change: Callable[[Any], None]) -> Path:
    """The folder with its tokenizer changed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def read(folder: Path, target: Path) -> dict[str, Any]:
    """The written file's keys and values."""
    write_gguf(folder, target)
    return {name: field.contents() for name, field in gguf.GGUFReader(target).fields.items()}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": LLAMA_3_1},
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


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (ByteLevel(add_prefix_space=False), "gpt-2"),
        (ByteLevel(add_prefix_space=False, trim_offsets=False), "gpt-2"),
        (Cuts([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), "smollm"),
        (
            Cuts([Split(Regex(LLAMA_3_CUT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
            "llama-bpe",
        ),
    ],
)
def test_how_a_text_is_cut_is_written_by_the_name_that_llama_cpp_has_for_it(
    cut: Any, name: str, other: Other, tmp_path: Path
) -> None:
    """Of these three, llama.cpp takes a word of the vocabulary without merging for Llama 3 alone."""

    def change(tokenizer: Any) -> None:
        tokenizer.pre_tokenizer = cut
        tokenizer.model.ignore_merges = name == "llama-bpe"

    fields = read(with_tokenizer(other(), change), tmp_path / "model.gguf")
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", name)


def sentencepiece(tokenizer: Any) -> None:
    """As Llama 2 has it: byte pairs of marked words, and bytes where a letter has no piece."""
    tokenizer.model = models.BPE(
        {"<pad>": 0, "<bos>": 1, "<eos>": 2, "▁": 3, "a": 4, "▁a": 5}, [("▁", "a")], byte_fallback=True
    )
    tokenizer.pre_tokenizer = Metaspace()


def unigram(tokenizer: Any) -> None:
    tokenizer.model = models.Unigram([("<pad>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), ("a", -1.0)], 0)


def normalized(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.NFC()


def spaced(tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)


def unmerged(tokenizer: Any) -> None:
    tokenizer.model.ignore_merges = True


@pytest.mark.parametrize("change", [sentencepiece, unigram, normalized, spaced, unmerged])
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(
    change: Callable[[Any], None], other: Other, tmp_path: Path
) -> None:
    folder = with_tokenizer(other(), change)
    with pytest.raises(SpecRefused, match=r"E-EXPORT-002 .*tokenizer"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_tokens_that_were_added_are_marked_and_found(other: Other, tmp_path: Path) -> None:
    def add(tokenizer: Any) -> None:
        tokenizer.add_tokens(["order number"])

    folder = with_tokenizer(other(), add)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    place = next(token["id"] for token in tokens if token["content"] == "order number")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": place + 1}))
    fields = read(folder, tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.tokens"][place] == "order number"
    kinds = fields["tokenizer.ggml.token_type"]
    assert (kinds[place], kinds[1]) == (gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL)


@pytest.mark.parametrize("begins", [True, False])
def test_a_prompt_begins_as_it_does_for_the_model(begins: bool, other: Other, tmp_path: Path) -> None:
    """llama.cpp puts no first token before a prompt for most byte-pair tokenizers where it is not told to."""

    def frame(tokenizer: Any) -> None:
        single = "<bos> $A" if begins else "$A"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 1)])

    fields = read(with_tokenizer(other(), frame), tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.add_bos_token"] is begins
    assert fields["tokenizer.ggml.add_eos_token"] is False


def test_a_conversation_becomes_a_prompt_as_it_does_for_the_model(other: Other, tmp_path: Path) -> None:
    folder, chat = other(), "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert "tokenizer.chat_template" not in read(folder, tmp_path / "plain.gguf")
    (folder / "chat_template.jinja").write_text(chat)
    assert read(folder, tmp_path / "one.gguf")["tokenizer.chat_template"] == chat
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("tools")
    fields = read(folder, tmp_path / "two.gguf")
    assert (fields["tokenizer.chat_template"], "tools" in str(fields.keys())) == (chat, False)
