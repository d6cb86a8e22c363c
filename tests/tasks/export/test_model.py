"""An exported folder is a plain transformers model with the attached adapter's logits, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.export.adapter import write_merged_adapter
from tasks.export.card import Card, Score, rendered
from tasks.export.model import MANIFEST, export_model, verify_export
from tasks.export.shards import ShardWriter, laid_out
from tasks.merging.base import nf4_modules, open_base
from tasks.merging.merge import MergePlan, Parent, check_parents, merged_updates, reduced_updates

CARD = Card(
    name="desk",
    kind="generation",
    base="tiny sha256 0000",
    lineage={"triage:1": "adapter", "route:2": "adapter"},
    recipe={"rule": "ties", "density": 0.2},
    scores=[Score("triage", "exact_match", 0.1, 0.9, 0.8, 200)],
    limits=["English only"],
)


def planned(folders: dict[str, Path], base: Any) -> MergePlan:
    return check_parents([Parent(f"{task}:1", task, folder, "digest") for task, folder in folders.items()], base)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_one_parent_exported_gives_the_logits_of_the_attached_adapter(
    tmp_path: Path, tiny_base: Path, adapters: dict[str, Path], tokens: torch.Tensor, build: Any
) -> None:
    import peft

    base = open_base(tiny_base)
    plan = planned({"triage": adapters["triage"]}, base)
    export_model(tmp_path / "model", base, merged_updates(plan, "average"), card=CARD)
    plain = build.loaded(tiny_base)(tokens).logits
    attached = peft.PeftModel.from_pretrained(build.loaded(tiny_base), adapters["triage"]).eval()(tokens).logits
    model = build.loaded(tmp_path / "model")
    assert not hasattr(model.config, "quantization_config")
    moved = (attached - plain).abs().max()
    assert moved > 0.05
    assert (model(tokens).logits - attached).abs().max() <= 1e-4 * moved


def test_an_nf4_base_is_exported_dense_with_the_logits_that_the_adapter_had_on_it(
    tmp_path: Path, tiny_base: Path, tokens: torch.Tensor, build: Any
) -> None:
    from tasks.specs import BaseSpec
    from tasks.training.base import load_base

    spec = BaseSpec(model=str(tiny_base), quantization="nf4", compute_dtype="float32")
    quantised = load_base(spec, kind="generation").model
    plain = quantised(tokens).logits
    attached = build.adapted(quantised, 3, task_type="CAUSAL_LM")
    attached.save_pretrained(tmp_path / "adapter")
    expected = attached(tokens).logits
    attached.unload()
    base = open_base(tiny_base, nf4=nf4_modules(tiny_base, "generation"))
    plan = planned({"a": tmp_path / "adapter"}, base)
    export_model(tmp_path / "model", base, merged_updates(plan, "ties"))
    found = build.loaded(tmp_path / "model")(tokens).logits
    assert (found - expected).abs().max() <= 1e-4 * (expected - plain).abs().max()


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 1 << 30])
def test_sharding_changes_files_and_no_weight(
    shard_bytes: int, tmp_path: Path, tiny_base: Path, adapters: dict[str, Path], tokens: torch.Tensor, build: Any
) -> None:
    base = open_base(tiny_base)
    plan = planned(adapters, base)
    done = export_model(
        tmp_path / "model", base, merged_updates(plan, "ties", density=0.3), scale=0.5, max_shard_bytes=shard_bytes
    )
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert (len(shards) == 1) == (shard_bytes == 1 << 30)
    updates = dict(merged_updates(plan, "ties", density=0.3))
    seen = set()
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            names = list(file.keys())
            sizes = [file.get_tensor(name).nbytes for name in names]
            assert len(names) == 1 or sum(sizes) <= shard_bytes
            for name in names:
                expected = base.tensor(name)
                if name.removesuffix(".weight") in updates:
                    expected = expected + 0.5 * updates[name.removesuffix(".weight")]
                assert torch.equal(file.get_tensor(name), expected)
                seen.add(name)
    assert seen == set(base.shapes)
    assert done.weight_bytes == sum(base.tensor(name).nbytes for name in base.shapes)
    assert torch.isfinite(build.loaded(tmp_path / "model")(tokens).logits).all()


def test_writing_bfloat16_costs_the_rounding_of_each_weight_and_no_more(
    tmp_path: Path, tiny_base: Path, adapters: dict[str, Path], tokens: torch.Tensor, build: Any
) -> None:
    base = open_base(tiny_base)
    plan = planned(adapters, base)
    for dtype in (torch.float32, torch.bfloat16):
        export_model(tmp_path / str(dtype), base, merged_updates(plan, "ties"), dtype=dtype)
    exact, rounded = (build.loaded(tmp_path / str(dtype), dtype="auto") for dtype in (torch.float32, torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    for name, weight in exact.named_parameters():
        assert torch.equal(rounded.get_parameter(name), weight.to(torch.bfloat16))
    shift = (rounded.float()(tokens).logits - exact(tokens).logits).abs().max()
    assert 0 < shift < 0.05 * exact(tokens).logits.std(), "0.4 % per weight, averaged out"


def test_the_folder_holds_what_the_base_came_with_and_a_hash_of_every_file(
    tmp_path: Path, tiny_base: Path, adapters: dict[str, Path]
) -> None:
    import transformers

    base = open_base(tiny_base)
    done = export_model(tmp_path / "model", base, merged_updates(planned(adapters, base), "average"), card=CARD)
    text = "bado kilu 42"
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (tiny_base, tmp_path / "model")]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == 2
    card = (tmp_path / "model" / "README.md").read_text()
    assert all(word in card for word in ("triage:1", "route:2", "| density | 0.2 |", "0.800", "English only"))
    found = hashes(tmp_path / "model")
    assert found.pop(MANIFEST)
    assert found == dict(done.files)
    verify_export(tmp_path / "model")


def test_the_same_merge_writes_the_same_bytes(tmp_path: Path, tiny_base: Path, adapters: dict[str, Path]) -> None:
    base = open_base(tiny_base)
    plans = [planned(adapters, base), planned(dict(reversed(adapters.items())), base)]
    for place, plan in enumerate(plans):
        export_model(tmp_path / str(place), base, merged_updates(plan, "dare_ties", density=0.5, seed=4), card=CARD)
    assert hashes(tmp_path / "0") == hashes(tmp_path / "1")


@pytest.mark.parametrize("change", ["flip", "add", "remove"])
def test_a_changed_file_is_found(change: str, tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "model"
    export_model(folder, open_base(tiny_base))
    victim = folder / "model.safetensors"
    if change == "flip":
        content = bytearray(victim.read_bytes())
        content[-7] ^= 1
        victim.write_bytes(content)
    elif change == "add":
        (folder / "modeling.py").write_text("")
    else:
        victim.unlink()
    with pytest.raises(ArtifactRefused) as refusal:
        verify_export(folder)
    assert len(refusal.value.problems) == 1


def test_a_folder_that_is_there_is_never_touched(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("kept")
    with pytest.raises(SpecRefused, match="is there already"):
        export_model(tmp_path / "model", open_base(tiny_base))
    assert hashes(tmp_path) == {"model/mine.txt": hashlib.sha256(b"kept").hexdigest()}


def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path, tiny_base: Path, adapters: dict[str, Path]) -> None:
    base = open_base(tiny_base)

    def breaking() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(merged_updates(planned(adapters, base), "average"))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        export_model(tmp_path / "model", base, breaking())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "delta", "words"),
    [
        ("model.layers.9.mlp.up_proj", torch.zeros(128, 64), "no such weight"),
        ("model.layers.0.mlp.up_proj", torch.zeros(64, 128), "shape"),
        ("model.layers.0.mlp.up_proj", torch.full((128, 64), torch.nan), "NaN"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(
    name: str, delta: torch.Tensor, words: str, tmp_path: Path, tiny_base: Path
) -> None:
    with pytest.raises(ArtifactRefused, match=words) as refusal:
        export_model(tmp_path / "model", open_base(tiny_base), [(name, delta)])
    assert name in str(refusal.value)


def test_two_updates_of_one_weight_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    twice = [("model.layers.0.mlp.up_proj", torch.zeros(128, 64))] * 2
    with pytest.raises(ArtifactRefused, match="two updates"):
        export_model(tmp_path / "model", open_base(tiny_base), twice)


def test_a_base_that_asks_to_run_code_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes())
    with pytest.raises(ArtifactRefused, match="auto_map"):
        export_model(tmp_path / "model", open_base(tmp_path / "base"))


def test_a_layout_keeps_wide_types_aligned_and_a_writer_misses_nothing(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(1.5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "long": torch.arange(5),
        "empty": torch.zeros(0, 4),
    }
    layout = laid_out({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, 1 << 20)
    assert all(place.offset % place.dtype.itemsize == 0 for place in layout.places.values())
    with ShardWriter(tmp_path, layout) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    with pytest.raises(ArtifactRefused, match="never written"), ShardWriter(tmp_path, layout) as writer:
        writer.write("odd", tensors["odd"])


def test_a_card_cannot_be_broken_by_its_values() -> None:
    hostile = Card(
        "a\n---\n# b", "generation", "c", lineage={"x|y": "z\n\n# w"}, scores=[Score("a|b", "m", 0, 1, 1, 2)]
    )
    text = rendered(hostile)
    assert sum(line == "---" for line in text.splitlines()) == 2
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# a --- # b"]
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    assert row.replace("\\|", "").count("|") == 7


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties"])
def test_a_merged_adapter_loads_in_peft_and_adds_the_reduced_update(
    rule: str, tmp_path: Path, tiny_base: Path, adapters: dict[str, Path], tokens: torch.Tensor, build: Any
) -> None:
    import peft

    plan = planned(adapters, None)
    reduced = dict(reduced_updates(plan, rule, rank=8, density=0.5))
    lost = write_merged_adapter(tmp_path / "merged", reduced.items(), kind=plan.kind, base_name="tiny", scale=0.7)
    assert (lost < 1e-6) == (rule == "task_arithmetic"), "two parents of rank 4 sum to rank 8"
    model = peft.PeftModel.from_pretrained(build.loaded(tiny_base), tmp_path / "merged").eval()
    for name, part in reduced.items():
        found = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(found, 0.7 * part.B @ part.A, rtol=0, atol=1e-5)
