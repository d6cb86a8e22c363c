"""A plain transformers folder from base weights and a merged update: staged beside the target, then renamed into
place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.errors import ArtifactRefused, FactoryError, Problem, SpecRefused, raise_if_any
from tasks.export.card import Card, rendered
from tasks.export.shards import JOURNAL, Layout, ShardWriter, laid_out
from tasks.merging.base import BaseWeights
from tasks.merging.kernels import rounded_sum
from tasks.merging.merge import in_order
from tasks.merging.stream import Merged, held
from tasks.merging.vectors import row_blocks

MANIFEST, HEADS, LABELS = "manifest.json", "heads", "labels.json"
SIGNATURE = "model.sig"  # over all files, the manifest too; whoever signs puts it beside them
MAX_SHARD_BYTES = 4 << 30

# What a transformers folder holds beside weights and config. Nothing that could run is ever copied.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Exported:
    """A written model. `files` maps each file's path inside the folder to its SHA-256, the manifest excepted."""

    folder: Path
    files: Mapping[str, str]
    weight_bytes: int


def export_model(
    target: Path,
    base: BaseWeights,
    updates: Iterable[tuple[str, Tensor] | Merged] = (),
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    card: Card | None = None,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    resume: str | None = None,
    workers: int | None = None,
) -> Exported:
    """Write W + scale * dW; of a stream (`merged_stream`) a few row blocks a worker are in memory at a time.

    Args:
        target: the folder to make; it may exist only if it is empty.
        base: weights to add to (dequantised or stored), and the folder whose config and tokenizer are copied.
        updates: module name and change, in any order, as `merged_updates` or `merged_stream` gives them.
        dtype: of the written floats; None keeps those of `base`. bfloat16 halves float32's size for a rounding of
            each weight by up to 0.4 % of itself.
        max_shard_bytes: weights in one file.
        heads: classification: each task's own head, by parameter name; the body is written once.
        labels: classification: each task's class names in the order of its head's rows.
        resume: a key of everything that decides the bytes. An interrupted write leaves its finished weights beside the
            target under this name, and the next one with the same key goes on from them.
        workers: weights computed and files read at once, each by one thread, as many as torch may use here by
            default. The bytes are the same for any number.

    Raises:
        SpecRefused: the target is there already, or heads and labels disagree.
        ArtifactRefused: an update changes a weight that the base lacks, or a written weight is not finite.
    """
    heads, labels = heads or {}, labels or {}
    config = _checked_request(target, base, heads, labels)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging(target, resume)
    try:
        layout = _layout(base, dtype, max_shard_bytes)
        _write_weights(staging, base, layout, updates, scale, bool(config.get("tie_word_embeddings")), workers)
        _write_config(staging, config, base, dtype)
        for name in COPIED:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, staging / name)
        _write_heads(staging, heads, labels, dtype)
        if card is not None:
            (staging / "README.md").write_text(rendered(card), encoding="utf-8")
        files = _write_manifest(staging, workers)
        staging.chmod(0o755)
        _flush(staging)
        staging.replace(target)
    except BaseException as error:
        if resume is None or isinstance(error, FactoryError):  # what was refused once is refused again
            shutil.rmtree(staging, ignore_errors=True)
        raise
    _flush_folder(target.parent)
    return Exported(target, files, layout.total_bytes)


def verify_export(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        ArtifactRefused: naming each file that is missing, added or changed.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: entry["sha256"] for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactRefused.one("E-MERGE-036", folder / MANIFEST, "cannot be read", "export again") from error
    found = {name: _sha256(folder / name) for name in _files(folder)}
    raise_if_any(
        ArtifactRefused,
        [
            Problem(
                "E-MERGE-036",
                str(folder / name),
                "missing" if name not in found else "not in the manifest" if name not in expected else "has changed",
                "export again",
            )
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ],
    )


def _checked_request(
    target: Path, base: BaseWeights, heads: Mapping[str, Mapping[str, Tensor]], labels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    problems = []
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problems.append(
            Problem("E-MERGE-030", str(target), "is there already", "name a new folder, or remove this one")
        )
    if heads.keys() != labels.keys():
        wrong = f"heads of {', '.join(sorted(heads)) or 'nothing'}, labels of {', '.join(sorted(labels)) or 'nothing'}"
        problems.append(Problem("E-MERGE-034", "labels", wrong, "give both for each task"))
    for task in heads.keys() & labels.keys():
        outputs = {len(tensor) for name, tensor in heads[task].items() if name.endswith("weight")}
        if len(labels[task]) not in outputs:
            wrong = f"{task} has {len(labels[task])} labels, its head has {sorted(outputs)} rows"
            problems.append(Problem("E-MERGE-034", "labels", wrong, "give the labels that the head was trained on"))
        if Path(task).name != task or task.startswith("."):
            problems.append(Problem("E-MERGE-034", "heads", f"'{task}' is no file name", "name tasks in plain words"))
    raise_if_any(SpecRefused, problems)
    try:
        config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        wrong = "has no readable config.json"
        raise ArtifactRefused.one("E-MERGE-035", base.folder, wrong, "restore the base") from error
    if not isinstance(config, dict) or "auto_map" in config:
        wrong = "config.json is no plain config (auto_map asks to run code)"
        raise ArtifactRefused.one("E-MERGE-035", base.folder, wrong, "use an architecture of transformers")
    return config


def _layout(base: BaseWeights, dtype: torch.dtype | None, max_shard_bytes: int) -> Layout:
    return laid_out(
        {
            name: (dtype if dtype is not None and own.is_floating_point else own, tuple(base.shapes[name]))
            for name, own in base.dtypes.items()
        },
        max_shard_bytes,
    )


def _staging(target: Path, resume: str | None) -> Path:
    """A folder beside the target that is renamed to it in the end."""
    if resume is None:
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    folder = target.with_name(f".{target.name}.{resume[:16]}")
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():  # weights are taken over; the rest is written in no time
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != JOURNAL and path.suffix != ".safetensors":
            path.unlink()
    return folder


def _write_weights(
    staging: Path,
    base: BaseWeights,
    layout: Layout,
    updates: Iterable[tuple[str, Tensor] | Merged],
    scale: float,
    tied: bool,
    workers: int | None,
) -> None:
    with ShardWriter(staging, layout) as writer:
        before = set(layout.places) - writer.left

        def put(update: tuple[str, Tensor] | Merged) -> None:
            change = update if isinstance(update, Merged) else held(*update)
            name = base.tensor_name(change.name)
            if name is None or (tied and name.startswith("lm_head")):
                wrong = "shares its weight with the embedding" if name else "the base has no such weight"
                raise ArtifactRefused.one("E-MERGE-031", change.name, wrong, "merge adapters of this base")
            if change.shape != base.shapes[name]:
                wrong = f"has shape {change.shape}, the weight {base.shapes[name]}"
                raise ArtifactRefused.one("E-MERGE-031", change.name, wrong, "merge adapters of this base")
            if name not in before:
                rows, own = base.rows(name), layout.places[name].dtype
                merged = (rounded_sum(rows(block), delta, scale, own) for block, delta in change.blocks())
                writer.write_rows(name, change.shape, merged)

        def copy(name: str) -> None:
            shape, rows = base.shapes[name], base.rows(name)
            blocks = map(rows, row_blocks(shape[0], prod(shape[1:]))) if shape else [base.tensor(name)]
            writer.write_rows(name, shape, blocks)

        _each(put, updates, workers)
        _each(copy, [name for name in layout.places if name in writer.left], workers)


def _each(work: Callable[[Any], None], items: Iterable[Any], workers: int | None) -> None:
    for _ in in_order(work, items, workers):
        pass


def _write_config(staging: Path, config: dict[str, Any], base: BaseWeights, dtype: torch.dtype | None) -> None:
    """The base's config with the type of the written weights, and without quantisation or traces of this machine."""
    gone = ("quantization_config", "torch_dtype", "_name_or_path")
    kept = {key: value for key, value in config.items() if key not in gone}
    floats = [own for own in base.dtypes.values() if own.is_floating_point]
    written = dtype or (max(set(floats), key=floats.count) if floats else torch.float32)
    text = json.dumps({**kept, "dtype": str(written).removeprefix("torch.")}, indent=2, sort_keys=True)
    (staging / "config.json").write_text(text + "\n", encoding="utf-8")


def _write_heads(
    staging: Path,
    heads: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, Sequence[str]],
    dtype: torch.dtype | None,
) -> None:
    if not heads:
        return
    (staging / HEADS).mkdir()
    for task, tensors in sorted(heads.items()):
        written = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in sorted(tensors.items())}
        save_file(written, staging / HEADS / f"{task}.safetensors")
    listed = {task: list(names) for task, names in sorted(labels.items())}
    (staging / LABELS).write_text(json.dumps(listed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(folder: Path, workers: int | None) -> dict[str, str]:
    files = dict(in_order(lambda name: _sha256(folder / name), _files(folder), workers))
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in files.items()}
    text = json.dumps({"format": 1, "files": entries}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return files


def _files(folder: Path) -> list[str]:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if path not in (MANIFEST, SIGNATURE))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Everything inside on the disk: files first, then the folders that name them."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.is_dir()):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
