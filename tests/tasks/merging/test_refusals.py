"""What does not fit together is refused before anything is computed, all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.merging.merge import Parent, check_parents, merged_updates

Make = Callable[..., Path]


def parent(folder: Path, task: str, **settings: Any) -> Parent:
    return Parent(f"{task}:1", task, folder, "digest", **settings)


def test_all_mismatches_are_listed_before_anything_is_computed(
    adapter: Make, tiny_encoder: Path, tiny: Any, tmp_path: Path
) -> None:
    classifier = tiny.random_adapter(tiny.loaded(tiny_encoder, "classification"), 1, task_type="SEQ_CLS")
    classifier.save_pretrained(tmp_path / "classifier")
    narrow = tmp_path / "narrow"
    tensors = load_file(adapter(50) / "adapter_model.safetensors")
    narrow.mkdir()
    cut = {name: tensor[:, :4].contiguous() if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file(cut, narrow / "adapter_model.safetensors")
    (narrow / "adapter_config.json").write_bytes((adapter(50) / "adapter_config.json").read_bytes())
    parents = [
        parent(adapter(51), "a", tokenizer_digest="t"),
        parent(adapter(52), "b", tokenizer_digest="t", quantization="nf4"),
        Parent("c:1", "c", adapter(53), "another", tokenizer_digest="u"),
        parent(tmp_path / "classifier", "d", tokenizer_digest="t"),
        parent(narrow, "e", tokenizer_digest="t"),
        parent(tmp_path / "nowhere", "f", tokenizer_digest="t"),
    ]
    with pytest.raises(ArtifactRefused) as refusal:
        check_parents(parents)
    codes = [problem.code for problem in refusal.value.problems]
    for code, times in (
        ("E-MERGE-011", 1),
        ("E-MERGE-012", 1),
        ("E-MERGE-013", 1),
        ("E-MERGE-014", 1),
        ("E-ADAPTER-101", 2),
    ):
        assert codes.count(code) == times, code
    assert codes.count("E-MERGE-015") == 14, "one per module of the narrow parent"
    assert any("c:1" in problem.where and "another" in problem.wrong for problem in refusal.value.problems)


def test_parents_without_names_of_their_own_are_refused(adapter: Make) -> None:
    with pytest.raises(SpecRefused, match="there are none"):
        check_parents([])
    with pytest.raises(SpecRefused, match="task 'a'"):
        check_parents([parent(adapter(54), "a"), Parent("b:1", "a", adapter(55), "digest")])


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        ("tise", {}, "did you mean ties"),
        ("ties", {"density": 0.0}, "density"),
        ("ties", {"density": 1.5}, "density"),
        ("ties", {"weights": {"z": 1.0}}, "z"),
        ("ties", {"weights": {"a": float("nan")}}, "finite"),
        ("average", {"weights": {"a": 1, "b": -1, "c": 0}}, "sum to 0"),
        ("ties", {"weights": {"a": 0, "b": 0, "c": 0}}, "all weights are 0"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_it_starts(
    rule: str, settings: dict[str, Any], words: str, adapter: Make
) -> None:
    plan = check_parents([parent(adapter(seed), task) for seed, task in ((54, "a"), (55, "b"), (56, "c"))])
    with pytest.raises(SpecRefused, match=words):
        next(merged_updates(plan, rule, **settings))


def test_a_generation_parent_with_replaced_weights_is_refused(llama: Path, tiny: Any, tmp_path: Path) -> None:
    settings = {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]}
    tiny.random_adapter(tiny.loaded(llama, "generation"), 60, **settings).save_pretrained(tmp_path / "a")
    with pytest.raises(ArtifactRefused, match="lm_head"):
        check_parents([parent(tmp_path / "a", "a")])
