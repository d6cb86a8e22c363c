"""The shapes of a base from its config alone, so that a model of any size is planned with no weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.errors import ArtifactRefused
from tasks.memory import Shapes

GATED = ("llama", "mistral", "qwen2", "qwen3")  # q, k, v, o and a gated feed-forward part, norms without offsets
ENCODERS = ("bert",)


def shapes_of_config(config: Mapping[str, Any], where: str = "config.json") -> Shapes:
    """Linear layers and other parameters of a model that `config.json` describes.

    >>> llama_7b = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    ...             "num_attention_heads": 32, "vocab_size": 32000}
    >>> f"{shapes_of_config(llama_7b).parameters:,}"
    '6,738,415,616'

    Raises:
        ArtifactRefused: the family is not known here; its weights' headers must be there then.
    """
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
    raise ArtifactRefused.one("E-BASE-010", where, wrong, "download the safetensors files, their headers are enough")


def _gated(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
    size = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * size, int(config.get("num_key_value_heads") or heads) * size
    parts = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    linear = {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in parts.items()}
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    biases = queries + 2 * keys if config["model_type"] == "qwen2" else 0
    biases += queries + 2 * keys + hidden if config.get("attention_bias") else 0
    biases += 2 * inner + hidden if config.get("mlp_bias") else 0
    norms = 2 * hidden + (2 * size if config["model_type"] == "qwen3" else 0)
    other = embeddings + layers * (norms + biases) + hidden
    return _with_stored(linear, other, config, layers * biases)


def _encoder(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    parts = {f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
    parts |= {"attention.output.dense": (hidden, hidden)}
    parts |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    linear = {f"encoder.layer.{layer}.{name}": shape for layer in range(layers) for name, shape in parts.items()}
    linear["pooler.dense"] = (hidden, hidden)
    places = int(config["max_position_embeddings"]) + int(config.get("type_vocab_size", 2))
    other = (int(config["vocab_size"]) + places) * hidden + 2 * hidden
    offsets = layers * (4 * hidden + inner + hidden + 2 * hidden) + hidden
    other += offsets + layers * 2 * hidden
    return _with_stored(linear, other, config, offsets + hidden)


def _with_stored(linear: Mapping[str, tuple[int, int]], other: int, config: Mapping[str, Any], biases: int) -> Shapes:
    parameters = sum(rows * columns for rows, columns in linear.values()) + other
    half = str(config.get("torch_dtype") or config.get("dtype") or "float32") in ("float16", "bfloat16")
    return Shapes(linear, other, parameters * (2 if half else 4), config, biases)
