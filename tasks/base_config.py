"""What the config.json of a base says, believed only where its sizes can be sizes; torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused

USUAL_NAMES = {
    "hidden_size": ("dim", "n_embd", "d_model"),
    "intermediate_size": ("hidden_dim", "n_inner"),
    "num_hidden_layers": ("n_layers", "n_layer"),
    "num_attention_heads": ("n_heads", "n_head"),
}
LARGEST = 2**31 - 1
SIZES = {  # name: (smallest, largest)
    **dict.fromkeys((*USUAL_NAMES, "num_key_value_heads", "head_dim"), (1, LARGEST)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), (1, LARGEST)),
    "num_hidden_layers": (1, 10_000),
    "type_vocab_size": (0, LARGEST),
}


def read_config(path: Path) -> dict[str, Any]:
    """The config in a file, checked.

    Raises:
        ArtifactRefused: it cannot be read, or says what cannot be.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ArtifactRefused.one("E-BASE-010", path, f"cannot be read: {reason}", "name a model's folder") from error
    return checked(config, str(path))


def checked(config: Any, where: str) -> dict[str, Any]:
    """A config under the usual names, without the sizes that it leaves open (null).

    Raises:
        ArtifactRefused: it is no object, or a size in it is none.
    """
    remedy = "name a complete config"
    if not isinstance(config, dict):
        raise ArtifactRefused.one("E-BASE-010", where, "is no JSON object", remedy)
    config = with_usual_names(config)
    config = {name: value for name, value in config.items() if value is not None or name not in SIZES}
    wrong = [
        f"{name} is {_shown(config[name])}, which is no whole number from {low:,} to {high:,}"
        for name, (low, high) in SIZES.items()
        if name in config and not _is_size(config[name], low, high)
    ]
    if not isinstance(config.get("model_type", ""), str | None):
        wrong.append(f"model_type is {_shown(config['model_type'])}, which is no name")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wrong.append(f"architectures is {_shown(names)}, which is no list of names")
    if not wrong and "head_dim" not in config:
        hidden, heads = config.get("hidden_size", LARGEST), config.get("num_attention_heads", 1)
        if heads > hidden:
            wrong.append(f"num_attention_heads is {heads}, more than hidden_size {hidden}")
    if wrong:
        raise ArtifactRefused.one("E-BASE-010", where, "; ".join(wrong), remedy)
    return config


def with_usual_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its sizes also under the names that most families use; of one that has parts, those of the text.

    >>> with_usual_names({"model_type": "distilbert", "dim": 768})["hidden_size"]
    768
    >>> with_usual_names({"model_type": "gemma3", "text_config": {"hidden_size": 2560}})["hidden_size"]
    2560
    """
    text = config.get("text_config")
    config = {**(text if isinstance(text, dict) else {}), **config}
    found = {usual: config[own] for usual, names in USUAL_NAMES.items() for own in names if config.get(own)}
    return found | config


def _is_size(value: Any, low: int, high: int) -> bool:
    return type(value) in (int, float) and low <= value <= high and value == int(value)


def _shown(value: Any) -> str:
    return f"{json.dumps(value):.40}"
