"""The shapes of a base from its config alone, so that a model of any size is planned with no weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.base_config import checked
from tasks.errors import ArtifactRefused
from tasks.memory import Shapes

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")  # a gated feed-forward part
TIED_UNLESS_SAID = ("gemma", "gemma2", "gemma3_text")
FOUR_NORMS = ("gemma2", "gemma3_text")  # before and after attention, before and after the feed-forward part
NORMED_HEADS = ("qwen3", "gemma3_text")  # of queries and keys
ENCODERS = ("bert", "roberta", "distilbert")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def shapes_of_config(config: Mapping[str, Any], where: str = "config.json") -> Shapes:
    """Linear layers and other parameters of a model that `config.json` describes.

    >>> llama_7b = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    ...             "num_attention_heads": 32, "vocab_size": 32000}
    >>> f"{shapes_of_config(llama_7b).parameters:,}"
    '6,738,415,616'

    Raises:
        ArtifactRefused: its sizes cannot be; or the family is not known here; its weights' headers must be there then.
    """
    config = checked(config, where)
    family = config.get("model_type")
    try:
        if family in GATED:
            return _gated(config)
        if family in ENCODERS:
            return _encoder(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactRefused.one(
            "E-BASE-010", where, f"describes no whole model: {error!r}", "name a complete config"
        ) from error
    wrong = f"model type {family!r} is not known without its weights ({', '.join((*GATED, *ENCODERS))} are)"
    if any(config.get(name) for name in EXPERTS):
        wrong = f"{family!r} is a mixture of experts: how many of its activations a step keeps its rows decide"
        raise ArtifactRefused.one("E-BASE-010", where, wrong, "name a dense base")
    raise ArtifactRefused.one("E-BASE-010", where, wrong, "download the safetensors files, their headers are enough")


def _gated(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
    size = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * size, int(config.get("num_key_value_heads") or heads) * size
    family = config["model_type"]
    parts = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
    }
    if family == "phi3":  # the same in one piece
        parts = {"self_attn.qkv_proj": (queries + 2 * keys, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
    parts |= {"self_attn.o_proj": (hidden, queries), "mlp.down_proj": (hidden, inner)}
    linear = {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in parts.items()}
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", family in TIED_UNLESS_SAID) else 2)
    biases = queries + 2 * keys if family == "qwen2" else 0
    biases += queries + 2 * keys + hidden if config.get("attention_bias") else 0
    biases += 2 * inner + hidden if config.get("mlp_bias") else 0
    norms = (4 if family in FOUR_NORMS else 2) * hidden + (2 * size if family in NORMED_HEADS else 0)
    other = embeddings + layers * (norms + biases) + hidden
    return _with_stored(linear, other, config, layers * biases)


def _encoder(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    distilled = config["model_type"] == "distilbert"  # without a pooler, and without types of tokens
    square, block = [f"attention.self.{name}" for name in ("query", "key", "value")], "encoder.layer"
    square, up, down = [*square, "attention.output.dense"], "intermediate.dense", "output.dense"
    if distilled:
        square, block = [f"attention.{name}_lin" for name in ("q", "k", "v", "out")], "transformer.layer"
        up, down = "ffn.lin1", "ffn.lin2"
    parts = {**dict.fromkeys(square, (hidden, hidden)), up: (inner, hidden), down: (hidden, inner)}
    linear = {f"{block}.{layer}.{name}": shape for layer in range(layers) for name, shape in parts.items()}
    offsets = layers * (4 * hidden + inner + hidden + 2 * hidden) + hidden
    places = int(config["max_position_embeddings"])
    if not distilled:
        linear["pooler.dense"] = (hidden, hidden)
        offsets, places = offsets + hidden, places + int(config.get("type_vocab_size", 2))
    embeddings, gains = (int(config["vocab_size"]) + places) * hidden, (2 * layers + 1) * hidden
    return _with_stored(linear, embeddings + gains + offsets, config, offsets)


def _with_stored(linear: Mapping[str, tuple[int, int]], other: int, config: Mapping[str, Any], biases: int) -> Shapes:
    parameters = sum(rows * columns for rows, columns in linear.values()) + other
    half = str(config.get("torch_dtype") or config.get("dtype") or "float32") in ("float16", "bfloat16")
    return Shapes(linear, other, parameters * (2 if half else 4), config, biases)
