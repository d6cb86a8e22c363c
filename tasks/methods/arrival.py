"""The door for adapter folders that were made elsewhere: looked at file by file and byte by byte before anything loads.

Torch is not imported before the files have passed; nothing is unpickled, unpacked, or followed out of the folder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ArtifactRefused, Problem, raise_if_any

if TYPE_CHECKING:
    from tasks.training.base import Base

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TAKEN = (
    CONFIG,
    WEIGHTS,
    "labels.json",
    "factory.json",
)  # what is kept of an imported folder; the rest is only looked at
SUFFIXES = {".json", ".safetensors", ".md", ".txt", ".jinja", ".model", ""}
CODE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".py", ".so"}
PACKED = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst"}
MOST_FILES, MOST_BYTES, MOST_TEXT_BYTES = 1_000, 16 << 30, 64 << 20
MOST_HEADER_BYTES, MOST_TENSORS = 25 << 20, 50_000
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
LARGEST = 1e6  # no trained weight comes near it


def check_folder(folder: Path) -> None:
    """Only plain files of the kinds that an adapter has, few and small enough.

    Raises:
        ArtifactRefused: naming every file that is a link, a device, a pickle, an archive, code, too large, one of two
            that differ in case only, or missing.
    """
    if not folder.is_dir() or folder.is_symlink():
        packed = folder.suffix.lower() in PACKED
        remedy = "unpack it where nothing can be overwritten, and name the folder" if packed else "name a PEFT folder"
        raise ArtifactRefused.one("E-ADAPTER-020", folder, "is no folder", remedy)
    found: list[Problem] = []
    names: dict[str, str] = {}
    total = 0
    for count, entry in enumerate(_walk(folder)):
        name = os.path.relpath(entry.path, folder)
        if count >= MOST_FILES:
            found.append(
                Problem("E-ADAPTER-021", str(folder), f"holds more than {MOST_FILES} files", "keep the adapter")
            )
            break
        status = entry.stat(follow_symlinks=False)
        total += status.st_size
        found += _file_problems(str(folder / name), name, status)
        other = names.setdefault(name.casefold(), name)
        if other != name:
            wrong = f"and {other} differ in case only"
            found.append(Problem("E-ADAPTER-022", str(folder / name), wrong, "keep one of them"))
    if total > MOST_BYTES:
        wrong = f"holds {total:,} bytes, at most {MOST_BYTES:,} are taken"
        found.append(Problem("E-ADAPTER-021", str(folder), wrong, "keep the adapter only"))
    remedy = "a PEFT folder has adapter_config.json and adapter_model.safetensors; pickled weights are never read"
    found += [
        Problem("E-ADAPTER-001", str(folder / name), "missing", remedy)
        for name in (CONFIG, WEIGHTS)
        if name not in names.values()
    ]
    raise_if_any(ArtifactRefused, found)


def taken(folder: Path, into: Path) -> None:
    """Copy what is kept, through descriptors that follow no link: what was looked at is what is used.

    Raises:
        ArtifactRefused: a file became something else meanwhile.
    """
    into.mkdir(parents=True)
    for name in TAKEN:
        if not os.path.lexists(folder / name):
            continue
        try:
            source = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            wrong = f"changed while it was taken ({error.strerror})"
            raise ArtifactRefused.one("E-ADAPTER-023", folder / name, wrong, "import it when it rests") from error
        with os.fdopen(source, "rb") as reader, (into / name).open("xb") as writer:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                raise ArtifactRefused.one("E-ADAPTER-023", folder / name, "is no plain file", "import plain files")
            left = MOST_BYTES
            while chunk := reader.read(min(1 << 20, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise ArtifactRefused.one("E-ADAPTER-021", folder / name, "grows while it is read", "let it rest")
                writer.write(chunk)


def check_weights_file(path: Path) -> None:
    """The header of a safetensors file says exactly what follows it, in types that are taken.

    The format allows readers to differ on duplicate keys, holes and trailing bytes; here all of these are refused.

    Raises:
        ArtifactRefused: naming the tensor, or the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise _broken(path, "is no safetensors file: its first eight bytes are no length of a header")
        head = file.read(length)
    try:
        header = json.loads(head.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"has a header that is not understood: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise _broken(path, "has a header that is no JSON object")
    notes = header.pop("__metadata__", {})
    if not (isinstance(notes, dict) and all(isinstance(value, str) for value in notes.values())):
        raise _broken(path, "has __metadata__ that is not text")
    if not 1 <= len(header) <= MOST_TENSORS:
        raise _broken(path, f"holds {len(header)} tensors, 1 to {MOST_TENSORS:,} are taken")
    raise_if_any(ArtifactRefused, _tensor_problems(path, header, size - 8 - length))


def check_values(path: Path, tensors: Mapping[str, Any]) -> None:
    """Weights are finite and of a size that training reaches.

    Raises:
        ArtifactRefused: naming each tensor, with how many of its values are wrong.
    """
    found = []
    for name, tensor in sorted(tensors.items()):
        wrong = int((~tensor.isfinite()).sum())
        huge = int((tensor.float().abs() > LARGEST).sum()) if not wrong else 0
        if wrong or huge:
            what = f"{wrong} of {tensor.numel()} values are NaN or infinite"
            what = what if wrong else f"{huge} of {tensor.numel()} values are beyond {LARGEST:g}"
            found.append(Problem("E-ADAPTER-003", f"{path}:{name}", what, "train again with a lower rate"))
    raise_if_any(ArtifactRefused, found)


def check_origin(folder: Path, name: str, revision: str | None, digest: str, files: Mapping[str, str]) -> None:
    """The adapter was made on this base, as far as the folder says: name, revision, content, tokenizer.

    Args:
        name: of the base, as the spec has it; its last part counts.
        digest: of the base's files together.
        files: SHA-256 of each of the base's files, by name.

    Raises:
        ArtifactRefused: "trained on qwen@abc, you have qwen@def".
    """
    import hashlib

    config = _object(folder / CONFIG)
    card = _object(folder / "factory.json") if (folder / "factory.json").is_file() else {}
    said, at = config.get("base_model_name_or_path"), config.get("revision")
    have = f"{name}@{(revision or digest)[:12]}"
    found = []
    other_name = isinstance(said, str) and said and _last(said) != _last(name)
    other_revision = bool(at and revision and at != revision)
    remedy = "name that base in the spec; if it is the same one, write its name into adapter_config.json"
    if other_name or other_revision:
        wrong = f"trained on {said}@{str(at or 'unknown')[:12]}, you have {have}"
        found.append(Problem("E-ADAPTER-024", f"{folder / CONFIG}:base_model_name_or_path", wrong, remedy))
    own = card.get("base_sha256")
    if own is not None and own != digest:
        wrong = f"trained on a base of sha256 {str(own)[:12]}, you have {name}@{digest[:12]}"
        found.append(Problem("E-ADAPTER-024", f"{folder / 'factory.json'}:base_sha256", wrong, remedy))
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.startswith(("tokenizer.", "vocab", "merges")) and path.name in files:
            here = hashlib.sha256(path.read_bytes()).hexdigest()
            if here != files[path.name]:
                wrong = f"is another tokenizer: sha256 {here[:12]}, the base's is {files[path.name][:12]}"
                found.append(Problem("E-ADAPTER-025", str(path), wrong, "use the base that it belongs to"))
    raise_if_any(ArtifactRefused, found)


def check_effect(base: Base, folder: Path, prompts: Sequence[str]) -> None:
    """With the adapter on, the model says something else: a door that lets everything pass is none.

    Raises:
        ArtifactRefused: no logit changes; with the tensors that are all zero.
    """
    import torch

    from tasks.methods.build import attached, read_adapter

    inputs = base.tokenizer(list(prompts)[:1], return_tensors="pt").to(base.device)
    inputs.pop("token_type_ids", None)
    with torch.no_grad(), base.autocast():
        before = base.model(**inputs).logits.float().clone()
        with attached(base, folder) as model:
            after = model(**inputs).logits.float()
    if before.shape == after.shape and torch.equal(before, after):
        zero = [name for name, tensor in sorted(read_adapter(folder).items()) if not tensor.any()]
        wrong = "changes no answer of the base" + (f": {', '.join(zero[:3])} and so on are zero" if zero else "")
        raise ArtifactRefused.one("E-ADAPTER-026", folder / WEIGHTS, wrong, "train it, or save it after training")


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            else:
                yield entry


def _file_problems(where: str, name: str, status: os.stat_result) -> Iterator[Problem]:
    suffix = Path(name).suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "a special file"
        yield Problem("E-ADAPTER-023", where, f"is {kind}", "import a folder of plain files")
    elif suffix in CODE:
        yield Problem(
            "E-ADAPTER-027", where, f"*{suffix} can run code when it is read", "save as safetensors, remove it"
        )
    elif suffix in PACKED or (suffix not in SUFFIXES and not name.startswith(".git")) or not name.isprintable():
        yield Problem("E-ADAPTER-028", repr(where)[1:-1], "is no file of an adapter", "remove it")
    elif suffix != ".safetensors" and status.st_size > MOST_TEXT_BYTES:
        wrong = f"has {status.st_size:,} bytes, at most {MOST_TEXT_BYTES:,} are read"
        yield Problem("E-ADAPTER-021", where, wrong, "remove it")


def _tensor_problems(path: Path, header: Mapping[str, Any], data_bytes: int) -> Iterator[Problem]:
    restore = "restore the file"
    spans = []
    for name, entry in header.items():
        where = f"{path}:{name[:80]}"
        shape: Any = entry.get("shape") if isinstance(entry, dict) else None
        span: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (_naturals(shape) and len(shape) <= 4 and _naturals(span) and len(span) == 2):
            yield Problem("E-ADAPTER-002", where, "has no shape and place", restore)
            continue
        width = WIDTHS.get(str(entry.get("dtype")))
        if width is None:
            wrong = f"is {str(entry.get('dtype'))[:20]}; floats of 16 or 32 bits are taken"
            yield Problem("E-ADAPTER-009", where, wrong, "store it as F32, F16 or BF16")
            continue
        wanted = width
        for length in shape:
            wanted *= length
        if span[1] - span[0] != wanted:
            yield Problem("E-ADAPTER-002", where, f"needs {wanted:,} bytes, has {span[1] - span[0]:,}", restore)
        spans.append((*span, where))
    end = 0
    for first, last, where in sorted(spans):
        if first != end:
            yield Problem("E-ADAPTER-002", where, f"begins at byte {first:,}, the one before ends at {end:,}", restore)
        end = last
    if spans and end != data_bytes:
        yield Problem("E-ADAPTER-002", str(path), f"has {data_bytes:,} bytes of data, its header {end:,}", restore)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()[:MOST_TEXT_BYTES], object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused.one(
            "E-ADAPTER-004", path, f"is not understood: {str(error)[:120]}", "restore it"
        ) from error
    if not isinstance(found, dict):
        raise ArtifactRefused.one("E-ADAPTER-004", path, "is no JSON object", "restore it")
    return found


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _broken(path: Path, wrong: str) -> Any:
    return ArtifactRefused.one("E-ADAPTER-002", path, wrong, "restore the file; pickled weights are never read")
