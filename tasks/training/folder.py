"""A base model as files: found, fetched and looked through before anything is loaded; torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.errors import ArtifactRefused, DependencyDown, Problem, raise_if_any
from tasks.specs import BaseSpec


def local_folder(spec: BaseSpec) -> Path:
    """The folder of the base; a hub id is fetched at its pinned revision (or taken from the hub's local cache).

    Raises:
        ArtifactRefused: no such folder, no config, no safetensors, or code in the config.
        DependencyDown: the hub cannot be reached and the revision is not in the cache.
    """
    if spec.is_folder:
        folder = Path(spec.model)
    else:
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
            folder = Path(snapshot_download(spec.model, revision=spec.revision, allow_patterns=patterns))
        except Exception as error:  # the hub client raises a dozen kinds; all mean that the base is not to be had now
            raise DependencyDown.one(
                "E-BASE-001",
                spec.model,
                f"cannot be fetched: {first_line(error)}",
                "check the network or use a folder",
            ) from error
    raise_if_any(ArtifactRefused, folder_problems(folder))
    return folder


def folder_problems(folder: Path) -> list[Problem]:
    """What keeps a folder from being a base, all at once."""
    if not folder.is_dir():
        return [Problem("E-BASE-002", str(folder), "no such folder", "name the folder of a transformers model")]
    found = []
    if not (folder / "config.json").is_file():
        found.append(Problem("E-BASE-002", str(folder / "config.json"), "missing", "add the model's config.json"))
    else:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            config = None
        if not isinstance(config, dict):
            found.append(Problem("E-BASE-002", str(folder / "config.json"), "is not a JSON object", "restore the file"))
        elif "auto_map" in config:
            found.append(
                Problem("E-BASE-005", str(folder / "config.json"), "auto_map asks to run code", "remove auto_map")
            )
    if not any(folder.glob("*.safetensors")):
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none"
        wrong = f"has no safetensors weights (other weight files: {others})"
        found.append(
            Problem("E-BASE-003", str(folder), wrong, "convert the weights to safetensors; pickles are never read")
        )
    return found


def count_tokens(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to lengths in tokens; the tokenizer's file is read by the Rust library alone.

    Raises:
        ArtifactRefused: the folder has no tokenizer.json, or a broken one.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactRefused.one("E-BASE-008", path, "missing", "save the fast tokenizer beside the weights")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing narrower
        wrong = f"is no tokenizer: {first_line(error)}"
        raise ArtifactRefused.one("E-BASE-008", path, wrong, "restore the file") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(row.ids) for row in tokenizer.encode_batch(list(texts))]


def first_line(error: Exception) -> str:
    """The first line of what a library says, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
