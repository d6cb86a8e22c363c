"""A transformers folder of a Llama as one GGUF file, written and read back with the field's own package.

Names and the order of rotary dimensions follow llama.cpp's converter: transformers rotates halves of a head, llama.cpp
neighbouring pairs, so the rows of q_proj and k_proj are interleaved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ArtifactRefused, Problem, SpecRefused, raise_if_any
from tasks.merging.base import BaseWeights, open_base

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_A_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
REMEDY = "export transformers instead"
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
# llama.cpp's name: the steps before byte pairs are merged, and whether a word that is a token is taken unmerged
PRE_TOKENIZERS = {
    "gpt-2": ([WORDS], False),
    "smollm": ([DIGITS, WORDS], False),
    "llama-bpe": ([SPLIT, {**WORDS, "use_regex": False}], True),
}


def write_gguf(folder: Path, target: Path, *, name: str = "") -> None:
    """Write the model in `folder` to `target`, floats in float32 (norms) and float16 or float32 as stored otherwise.

    Raises:
        SpecRefused: the target is there already, or llama.cpp would not answer as the model does.
        ArtifactRefused: a weight has no name in GGUF, or the file does not read back to the same values.
    """
    import gguf

    if target.exists():
        raise SpecRefused.one("E-EXPORT-001", target, "is there already", "name a new file")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        wrong = f"is a {config.get('model_type')}"
        raise SpecRefused.one("E-EXPORT-002", folder, wrong, "GGUF is written for llama; export transformers instead")
    tokenizer = _tokenizer(folder)
    tree = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer is not None else None
    unwritable = _unwritable(config, tree)
    raise_if_any(SpecRefused, [Problem("E-EXPORT-002", str(folder), wrong, REMEDY) for wrong in unwritable])
    base = open_base(folder)
    names = {stored: own for stored in base.shapes if (own := gguf_name(stored)) is not None}
    unknown = sorted(base.shapes.keys() - names.keys())
    if unknown:
        raise ArtifactRefused.one("E-EXPORT-005", folder, f"{unknown[0]} has no name in GGUF", "export transformers")
    writer = gguf.GGUFWriter(target.with_name(f".{target.name}.new"), "llama")
    _describe(writer, config, name or folder.name)
    if tree is not None:
        _tokens(writer, gguf.TokenType, tree, config)
        _frame(writer, tokenizer("")["input_ids"], config)
        if template := _chat_template(tokenizer):
            writer.add_chat_template(template)
    for stored, own in names.items():
        writer.add_tensor(own, _values(base, stored, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse_unless_read_back(base, target.with_name(f".{target.name}.new"), config)
    target.with_name(f".{target.name}.new").replace(target)


def gguf_name(stored: str) -> str | None:
    """GGUF's name of a transformers tensor, or None if there is none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    module, _, what = stored.rpartition(".")
    if module in WHOLE:
        return f"{WHOLE[module]}.{what}"
    parts = module.removeprefix("model.layers.").split(".", 1)
    if module.startswith("model.layers.") and len(parts) == 2 and parts[1] in IN_A_LAYER:
        return f"blk.{parts[0]}.{IN_A_LAYER[parts[1]]}.{what}"
    return None


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection from halves to neighbouring pairs, head by head.

    >>> interleaved(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def refuse_unless_read_back(base: BaseWeights, path: Path, config: Mapping[str, Any]) -> None:
    """Every tensor of the file has the values that were meant, entry by entry.

    Raises:
        ArtifactRefused: naming the first that has not; the file is removed.
    """
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for stored in base.shapes:
        own = found.get(gguf_name(stored) or "")
        expected = _values(base, stored, config)
        if own is None or not np.array_equal(np.asarray(own.data).reshape(expected.shape), expected):
            path.unlink()
            raise ArtifactRefused.one("E-EXPORT-006", path, f"{stored} does not read back", "report this as a bug")


def _values(base: BaseWeights, stored: str, config: Mapping[str, Any]) -> np.ndarray:
    """A tensor as GGUF holds it: bfloat16 has no NumPy type and becomes float32, vectors are float32."""
    import torch

    tensor = base.tensor(stored)
    half = tensor.dtype == torch.float16 and tensor.dim() > 1
    value = tensor.to(torch.float16 if half else torch.float32).numpy()
    every = config["num_attention_heads"]
    heads = {"q_proj": every, "k_proj": config.get("num_key_value_heads") or every}
    count = heads.get(stored.split(".")[-2])
    return value if count is None else interleaved(value, count)


def pre_tokenizer_name(tree: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of how this tokenizer.json cuts a text before its byte pairs are merged, or None if it has none:
    `default` stands for a cut of its own, which no tokenizer of transformers makes."""
    model, cut = tree["model"], tree["pre_tokenizer"] or {}
    if model["type"] != "BPE" or model["byte_fallback"] or tree["normalizer"]:
        return None
    steps = [
        step | ({"trim_offsets": True} if "trim_offsets" in step else {}) for step in cut.get("pretokenizers", [cut])
    ]
    known = (name for name, wanted in PRE_TOKENIZERS.items() if wanted == (steps, model["ignore_merges"]))
    return next(known, None)


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers applies it, tokenizer_config.json's settings included, or None."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None


def _unwritable(config: Mapping[str, Any], tree: Mapping[str, Any] | None) -> list[str]:
    """What the model does and a file written here would not say."""
    ropes = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    kinds = [rope.get("rope_type") or rope.get("type") or "default" for rope in ropes]
    found = [f"its rotary positions are scaled ({kind})" for kind in dict.fromkeys(kinds) if kind != "default"]
    if tree is not None and pre_tokenizer_name(tree) is None:
        known = ", ".join(PRE_TOKENIZERS)
        found.append(f"its tokenizer does not cut texts into bytes as one of {known} does")
    return found


def _describe(writer: Any, config: Mapping[str, Any], name: str) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(size)  # llama.cpp would take hidden size / heads
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tokens(writer: Any, kinds: Any, tree: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """The vocabulary and the merges of byte pairs; added tokens are marked as such."""
    by_place = {place: (token, kinds.NORMAL) for token, place in tree["model"]["vocab"].items()}
    for added in tree["added_tokens"]:
        by_place[added["id"]] = (added["content"], kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
    listed = [by_place.get(place, (f"[unused {place}]", kinds.UNUSED)) for place in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tree))
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([" ".join(pair) for pair in tree["model"]["merges"]])


def _chat_template(tokenizer: Any) -> str | None:
    """How a conversation becomes a prompt; of several named ones the default."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _frame(writer: Any, around: Sequence[int], config: Mapping[str, Any]) -> None:
    """The tokens that begin and end a text, and whether a prompt gets them: they are what an empty text consists of."""
    for name in ("bos", "eos"):
        found = config.get(f"{name}_token_id")
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int):
            getattr(writer, f"add_{name}_token_id")(first)
        getattr(writer, f"add_add_{name}_token")(first in around)
