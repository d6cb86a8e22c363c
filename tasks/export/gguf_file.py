"""A transformers folder of a Llama as one GGUF file, written and read back with the field's own package.

Names and the order of rotary dimensions follow llama.cpp's converter: transformers rotates halves of a head, llama.cpp
neighbouring pairs, so the rows of q_proj and k_proj are interleaved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    raise_if_any(SpecRefused, [Problem("E-EXPORT-002", str(folder), wrong, REMEDY) for wrong in _unwritable(config)])
    base = open_base(folder)
    names = {stored: own for stored in base.shapes if (own := gguf_name(stored)) is not None}
    unknown = sorted(base.shapes.keys() - names.keys())
    if unknown:
        raise ArtifactRefused.one("E-EXPORT-005", folder, f"{unknown[0]} has no name in GGUF", "export transformers")
    writer = gguf.GGUFWriter(target.with_name(f".{target.name}.new"), "llama")
    _describe(writer, config, name or folder.name)
    _tokens(writer, gguf, folder, config)
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


def _unwritable(config: Mapping[str, Any]) -> list[str]:
    """What the model does and a file written here would not say."""
    ropes = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    kinds = [rope.get("rope_type") or rope.get("type") or "default" for rope in ropes]
    return [f"its rotary positions are scaled ({kind})" for kind in dict.fromkeys(kinds) if kind != "default"]


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


def _tokens(writer: Any, gguf: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """The vocabulary and, for byte-pair tokenizers, the merges; special tokens are marked as such."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    tree = json.loads(path.read_text(encoding="utf-8"))
    model = tree["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        scores = [score for _, score in vocabulary]
        vocabulary = {token: place for place, (token, _) in enumerate(vocabulary)}
    else:
        scores = [0.0] * len(vocabulary)
    special = {token["id"]: token["content"] for token in tree.get("added_tokens", []) if token.get("special")}
    by_place = {place: token for token, place in vocabulary.items()} | special
    size = config["vocab_size"]
    kinds = gguf.TokenType
    tokens = [by_place.get(place, f"[unused {place}]") for place in range(size)]
    types = [
        kinds.CONTROL if place in special else kinds.NORMAL if place in by_place else kinds.UNUSED
        for place in range(size)
    ]
    writer.add_tokenizer_model("gpt2" if model.get("merges") else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if model.get("merges"):
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    else:
        writer.add_token_scores([*scores, *[0.0] * (size - len(scores))])
    for key, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        found = config.get(key)
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int):
            add(first)
