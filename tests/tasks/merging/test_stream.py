"""A merge in row blocks has the bytes of the whole one, an interrupted one goes on, and little is in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.export import shards
from tasks.export.model import export_model, verify_export
from tasks.merging import stream, vectors
from tasks.merging.base import open_base
from tasks.merging.catalogue import RULES
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates
from tasks.merging.stream import Merged, merged_stream
from tasks.merging.tensor_file import TensorFile


@pytest.fixture(scope="module")
def plan(adapter: Callable[..., Path]) -> MergePlan:
    folders = [adapter(100), adapter(101, r=6, target_modules=["q_proj", "down_proj"])]
    return check_parents([Parent(f"{task}:1", task, path, "digest") for task, path in zip("ab", folders, strict=True)])


def whole(change: Merged) -> torch.Tensor:
    found = torch.full(change.shape, torch.nan)
    for block, rows in change.blocks():
        found[block] = rows
    return found


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("rule", RULES)
def test_the_stream_has_the_bits_of_the_whole_merge(
    rule: str, plan: MergePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ENTRIES", 7 * 32)
    expected = dict(merged_updates(plan, rule, density=0.4, seed=3))
    streamed = {change.name: whole(change) for change in merged_stream(plan, rule, density=0.4, seed=3)}
    assert streamed.keys() == expected.keys()
    for name, delta in expected.items():
        assert torch.equal(streamed[name], delta)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj"]}]
)
def test_dora_and_biases_stream_too(settings: dict[str, Any], adapter: Callable[..., Path], llama: Path) -> None:
    base = open_base(llama)
    plan = check_parents([Parent("a:1", "a", adapter(102, **settings), "digest")], base)
    for rule in ("ties", "average"):
        expected = dict(merged_updates(plan, rule, density=0.5))
        for change in merged_stream(plan, rule, density=0.5):
            assert torch.equal(whole(change), expected[change.name])


def test_no_block_is_larger_than_a_block(plan: MergePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ENTRIES", 128)
    for change in merged_stream(plan, "ties", density=0.4):
        assert all(rows.numel() <= max(128, change.shape[-1]) for _, rows in change.blocks())


def test_a_file_is_read_by_row_ranges_as_safetensors_reads_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(7, 5, generator=generator).bfloat16(),
        "cube": torch.randn(3, 2, 4, generator=generator),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(3.5),
        "flags": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    file, expected = TensorFile(tmp_path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert file.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(file.rows(name), value)
        if value.dim():
            assert torch.equal(file.rows(name, slice(1, 2)), value[1:2]) or not len(value)


def resident(path: Path) -> int:
    """KiB of a mapped file that are in this process's memory."""
    kept, size = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            kept = line.endswith(str(path))
        size += int(line.split()[1]) if kept and line.startswith("Rss:") else 0
    return size


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc: what is resident cannot be seen")
def test_adapters_are_in_memory_only_while_their_module_is_merged(plan: MergePlan) -> None:
    files = [update.folder / "adapter_model.safetensors" for update in plan.updates]
    for update in plan.updates:
        update.forget()
    assert [resident(path) for path in files] == [0, 0]
    for change in merged_stream(plan, "ties", density=0.4):
        whole(change)
        assert resident(files[0]) > 0
    assert [resident(path) for path in files] == [0, 0]
    stored = load_file(files[0])["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    assert torch.equal(plan.updates[0].parts["model.layers.0.mlp.down_proj"].B, stored)


def test_bytes_that_are_not_those_of_the_shape_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ValueError, match="not those of its shape"):
        TensorFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize("cut", [4, 60, -3])
def test_a_torn_file_is_refused(cut: int, llama: Path, tmp_path: Path) -> None:
    from tasks.errors import ArtifactRefused

    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:cut])
    with pytest.raises(ArtifactRefused, match="E-MERGE-021"):
        open_base(tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_export_of_a_stream_is_that_of_the_whole_merge(
    workers: int, plan: MergePlan, llama: Path, tmp_path: Path
) -> None:
    base = open_base(llama)
    before, some = tree(llama), {"scale": 0.7, "max_shard_bytes": 30_000}
    export_model(tmp_path / "whole", base, merged_updates(plan, "ties", density=0.5), workers=1, **some)
    changes = merged_stream(plan, "ties", density=0.5)
    export_model(tmp_path / "stream", base, changes, resume="a key", workers=workers, **some)
    assert tree(tmp_path / "whole") == tree(tmp_path / "stream")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stream", "whole"]
    assert tree(llama) == before


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("after", [1, 5, 13])
def test_an_interrupted_write_goes_on_where_it_was(
    after: int, workers: int, plan: MergePlan, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "FLUSH_BYTES", 1)
    base = open_base(llama)
    export_model(tmp_path / "whole", base, merged_stream(plan, "ties", density=0.5))
    computed: list[str] = []

    def watched(stop: int | None) -> Iterator[Merged]:
        for place, change in enumerate(merged_stream(plan, "ties", density=0.5)):
            if place == stop:
                raise KeyboardInterrupt
            prepared = change.prepared
            yield stream.Merged(
                change.name,
                change.shape,
                lambda change=change, prepared=prepared: (computed.append(change.name), prepared())[1],
            )

    with pytest.raises(KeyboardInterrupt):
        export_model(tmp_path / "model", base, watched(after), resume="a key", workers=workers)
    assert not (tmp_path / "model").exists()
    export_model(tmp_path / "model", base, watched(None), resume="a key", workers=workers)
    assert len(computed) == len(set(computed)) == 14, "each module was computed once"
    assert tree(tmp_path / "model") == tree(tmp_path / "whole")
    verify_export(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole"]


def test_another_key_starts_anew(plan: MergePlan, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FLUSH_BYTES", 1)
    base = open_base(llama)

    def broken() -> Iterator[Merged]:
        yield next(merged_stream(plan, "task_arithmetic"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(tmp_path / "model", base, broken(), resume="one")
    export_model(tmp_path / "model", base, merged_stream(plan, "ties", density=0.5), resume="two")
    export_model(tmp_path / "whole", base, merged_stream(plan, "ties", density=0.5))
    assert tree(tmp_path / "model") == tree(tmp_path / "whole")
