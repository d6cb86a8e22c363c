"""A01 to A08: what comes in is what it says; nothing that came runs, leaves its folder, or is unpacked."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tasks.errors import ArtifactRefused
from tasks.methods.arrival import WEIGHTS, check_folder, check_origin, check_values, check_weights_file, taken

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PEFT folder as it is downloaded."""
    folder = tmp_path / "arrived"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/small"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({KEY: torch.ones(2, 8), KEY.replace("_A", "_B"): torch.ones(8, 2)}, folder / WEIGHTS)
    (folder / "README.md").write_text("an adapter")
    return folder


def refusal(act: Callable[[], object]) -> list[str]:
    with pytest.raises(ArtifactRefused) as refused:
        act()
    assert refused.value.exit_code == 4
    return [f"{p.code} {p.where} {p.wrong}" for p in refused.value.problems]


def test_a_plain_folder_comes_in_as_it_is(folder: Path, tmp_path: Path) -> None:
    check_folder(folder)
    check_weights_file(folder / WEIGHTS)
    taken(folder, tmp_path / "in")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["adapter_config.json", WEIGHTS]
    assert (tmp_path / "in" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".ckpt", ".npz", ".py"])
def test_a01_pickles_and_code_beside_the_weights_are_refused_by_name(folder: Path, tmp_path: Path, suffix: str) -> None:
    (folder / f"adapter_model{suffix}").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    (line,) = refusal(lambda: check_folder(folder))
    assert f"adapter_model{suffix}" in line
    assert "can run code" in line
    assert not (tmp_path / "canary").exists()


def test_a01_a_pickle_that_is_called_safetensors_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    check_folder(folder)
    assert "is no safetensors file" in refusal(lambda: check_weights_file(folder / WEIGHTS))[0]
    assert not (tmp_path / "canary").exists()


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + data)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "its header"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "its header"),
        (lambda p: p.write_bytes(b""), "is no safetensors file"),
        (lambda p: written(p, {"a": ONE}, b"0000", length=2**62), "is no safetensors file"),
        (lambda p: written(p, b'{"a":1,"a":2}'), "a key stands twice"),
        (lambda p: written(p, b"[" * 20_000), "not understood"),
        (lambda p: written(p, b"\xff\xfe"), "not understood"),
        (lambda p: written(p, [1]), "no JSON object"),
        (lambda p: written(p, {"__metadata__": {"a": 1}, "a": ONE}, b"0000"), "__metadata__"),
        (lambda p: written(p, {"__metadata__": {"a": "b"}}), "holds 0 tensors"),
        (lambda p: written(p, {f"t{i}": 0 for i in range(100_000)}), "holds 100000 tensors"),
        (lambda p: written(p, {"a": {**ONE, "shape": [-1]}}, b"0000"), "no shape and place"),
        (lambda p: written(p, {"a": {**ONE, "shape": [2**40, 2**40]}}, b"0000"), "needs"),
        (lambda p: written(p, {"a": {**ONE, "data_offsets": [4, 8]}}, b"0" * 8), "begins at byte 4"),
        (lambda p: written(p, {"a": ONE, "b": ONE}, b"0000"), "begins at byte 0"),
    ],
)
def test_a02_a_file_that_is_not_exactly_what_its_header_says_is_refused_at_once(
    folder: Path, harm: Any, said: str
) -> None:
    harm(folder / WEIGHTS)
    began = time.monotonic()
    lines = refusal(lambda: check_weights_file(folder / WEIGHTS))
    assert time.monotonic() - began < 1
    assert all(WEIGHTS in line for line in lines)
    assert said in " ".join(lines)


def test_a02_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in range(0, len(whole), 16):
        (folder / WEIGHTS).write_bytes(whole[:length])
        refusal(lambda: check_weights_file(folder / WEIGHTS))


def test_random_bytes_never_get_past_the_header_with_another_meaning(folder: Path) -> None:
    """What passes after one to three bytes of the header were changed is read by the library with the same shapes."""
    from safetensors import SafetensorError, safe_open

    whole, chance, passed = (folder / WEIGHTS).read_bytes(), random.Random(0), 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(8 + int.from_bytes(whole[:8], "little"))] = chance.randrange(256)
        (folder / WEIGHTS).write_bytes(data)
        try:
            check_weights_file(folder / WEIGHTS)
        except ArtifactRefused:
            continue
        passed += 1
        try:
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                assert len(file.keys()) == 2
        except SafetensorError:
            continue
    assert passed < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a04_values_that_no_training_reaches_are_refused_with_tensor_and_count(folder: Path, value: float) -> None:
    tensors = {KEY: torch.ones(2, 8)}
    tensors[KEY][1, 3] = value
    (line,) = refusal(lambda: check_values(folder / WEIGHTS, tensors))
    assert KEY in line
    assert "1 of 16 values" in line


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8, torch.bool])
def test_a04_other_types_than_floats_of_16_and_32_bits_are_refused(folder: Path, dtype: torch.dtype) -> None:
    save_file({KEY: torch.ones(2, 8).to(dtype)}, folder / WEIGHTS)
    (line,) = refusal(lambda: check_weights_file(folder / WEIGHTS))
    assert line.startswith("E-ADAPTER-009")
    assert KEY[:40] in line


def test_a05_another_base_or_tokenizer_is_named_on_both_sides(folder: Path) -> None:
    at, files = "a" * 40, {"tokenizer.json": "0" * 64}
    check_origin(folder, "/models/small", None, "d" * 64, files)
    check_origin(folder, "org/Small", at, "d" * 64, files)
    assert (
        "trained on org/small@unknown, you have other@dddddddddddd"
        in refusal(lambda: check_origin(folder, "other", None, "d" * 64, files))[0]
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "revision": "b" * 40}))
    assert (
        f"trained on org/small@{'b' * 12}, you have org/small@{'a' * 12}"
        in refusal(lambda: check_origin(folder, "org/small", at, "d" * 64, files))[0]
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    assert (
        "tokenizer.json is another tokenizer"
        in refusal(lambda: check_origin(folder, "org/small", None, "d" * 64, files))[0]
    )
    (folder / "tokenizer.json").unlink()
    (folder / "factory.json").write_text(json.dumps({"base_sha256": "e" * 64}))
    assert "base_sha256" in refusal(lambda: check_origin(folder, "org/small", None, "d" * 64, files))[0]


def tree_of(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "harm", ["link out", "folder link", "fifo", "sparse", "case", "many", "zip", "absolute", "name"]
)
def test_a08_links_devices_bombs_and_archives_are_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, harm: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    target = folder
    if harm == "link out":
        (folder / "labels.json").symlink_to(outside / "secret.json")
    elif harm == "folder link":
        target = tmp_path / "linked"
        target.symlink_to(folder)
    elif harm == "fifo":
        os.mkfifo(folder / "labels.json")
    elif harm == "sparse":
        with (folder / "notes.txt").open("wb") as file:
            file.truncate(1 << 40)
    elif harm == "case":
        (folder / "Adapter_Config.json").write_text("{}")
    elif harm == "many":
        for number in range(1100):
            (folder / f"{number}.txt").touch()
    elif harm in ("zip", "absolute"):
        target = tmp_path / "adapter.zip"
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("../../escaped" if harm == "zip" else "/tmp/escaped-absolute", "x")
    else:
        (folder / "new\nline.txt").touch()
    before = tree_of(tmp_path)
    began = time.monotonic()
    lines = refusal(lambda: check_folder(target))
    assert time.monotonic() - began < 1
    assert all("\n" not in line for line in lines)
    assert tree_of(tmp_path) == before


def test_x07_a_file_that_becomes_a_link_after_it_was_looked_at_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    check_folder(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret")
    assert "changed while it was taken" in refusal(lambda: taken(folder, tmp_path / "in"))[0]
    shutil.rmtree(folder)
    folder.mkdir()
    os.mkfifo(folder / "adapter_config.json")
    assert "is no plain file" in refusal(lambda: taken(folder, tmp_path / "in again"))[0]


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (line,) = refusal(lambda: check_folder(folder))
    assert line.endswith(f"{WEIGHTS} missing")
