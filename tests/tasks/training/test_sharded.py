"""A base of which each process keeps a part, against the run of one process that holds it whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gloo_team import run_shares
from pydantic import ValidationError
from safetensors.torch import load_file

from tasks.architecture import shapes_of_config
from tasks.memory import WEIGHTS as HELD
from tasks.memory import MemoryPlan, plan_memory, read_shapes
from tasks.planning import fitted
from tasks.specs import AdapterSpec, MethodSpec, ResourceSpec
from tasks.training.base import load_base
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import train_adapter
from tasks.training.parallel import train_in_processes, write_job

Make = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
LAYERS = 8
SHARED = ResourceSpec(device="cpu", threads=1, processes=2, shard_base=True)


@pytest.fixture(scope="session")
def deep_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with more layers, so that one of them is a small part."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("deep") / "base"
    shutil.copytree(tiny_base, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(AutoConfig.from_pretrained(tiny_base, num_hidden_layers=LAYERS)).save_pretrained(folder)
    return folder


def job_of(folder: Path, spec: AdapterSpec, *rows: Any, checkpoints: Checkpoints | None = None) -> Path:
    folder.mkdir()
    resources = spec.resources if spec.resources.team_size > 1 else SHARED
    write_job(folder, spec.model_copy(update={"resources": resources}), *rows, checkpoints=checkpoints)
    return folder


def done(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "done.json").read_text())
    return found


def packed_bytes(spec: AdapterSpec) -> int:
    """Bytes of the weights and scales of all linear layers, of the loaded base."""
    weights: Any = [
        m.weight
        for m in load_base(spec.base, kind="generation").model.model.layers.modules()
        if hasattr(m, "in_features")
    ]
    return sum(
        weight.nbytes + (weight.quant_state.absmax.nbytes if hasattr(weight, "quant_state") else 0)
        for weight in weights
    )


def assert_same_adapter(one: Path, other: Path) -> None:
    first, second = (load_file(folder / WEIGHTS) for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < 2e-3, name


@pytest.mark.parametrize(
    ("kind", "which", "quantization", "others"),
    [
        ("generation", "tiny_base", "nf4", {}),
        ("generation", "tiny_base", "nf4", {"gradient_checkpointing": True, "micro_batch": 3}),
        ("classification", "exact_encoder", "none", {"micro_batch": 2}),
    ],
)
def test_two_processes_with_half_a_base_each_give_the_single_process_result(
    kind: str,
    which: str,
    quantization: str,
    others: dict[str, Any],
    request: Any,
    tmp_path: Path,
    make_rows: Make,
    make_spec: Make,
) -> None:
    folder = request.getfixturevalue(which)
    spec = make_spec(kind, folder, steps=6, batch_size=7, compute_dtype="float32", quantization=quantization, **others)
    rows, held_out = make_rows(kind, 40), make_rows(kind, 21, 1)
    base = load_base(spec.base, kind=kind, labels=spec.data.labels)
    alone = train_adapter(base, spec, rows, held_out, tmp_path / "alone")
    job = job_of(tmp_path / "job", spec, rows, held_out)
    run_shares(job, 2)
    curve = done(job)["curve"]
    assert [s["loss"] for s in curve["steps"]] == pytest.approx([s.loss for s in alone.curve.steps], rel=2e-3)
    assert [s["tokens"] for s in curve["steps"]] == [s.tokens for s in alone.curve.steps]
    assert [s["loss"] for s in curve["looks"]] == pytest.approx([s.loss for s in alone.curve.looks], rel=2e-3)
    assert curve["start_loss"] == pytest.approx(alone.curve.start_loss, rel=1e-5)
    assert_same_adapter(tmp_path / "alone", job / "adapter")


@pytest.mark.parametrize(
    "method",
    [MethodSpec(name=name, rank=4, dropout=0.0) for name in ("eva", "adalora", "bottleneck", "prefix")],
    ids=lambda method: method.name,
)
def test_methods_that_need_no_whole_base_train_on_a_shared_one(
    method: MethodSpec, tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=3, method=method, compute_dtype="float32")
    rows = make_rows("generation", 16)
    alone = train_adapter(load_base(spec.base, kind="generation"), spec, rows, [], tmp_path / "alone")
    job = job_of(tmp_path / "job", spec, rows, [])
    run_shares(job, 2)
    losses = [step["loss"] for step in done(job)["curve"]["steps"]]
    assert losses == pytest.approx([step.loss for step in alone.curve.steps], rel=2e-3)
    assert_same_adapter(tmp_path / "alone", job / "adapter")


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_each_process_keeps_its_part_of_the_layers_and_one_of_them_whole(
    quantization: str, deep_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", deep_base, steps=2, quantization=quantization, compute_dtype="float32")
    rows = make_rows("generation", 16)
    held = {}
    for name, resources in {"whole": SHARED.model_copy(update={"shard_base": False}), "shared": SHARED}.items():
        job = job_of(tmp_path / name, spec.model_copy(update={"resources": resources}), rows, [])
        held[name] = run_shares(job, 2)
    for whole, shared in zip(held["whole"], held["shared"], strict=True):
        assert whole["tensors"] - shared["tensors"] == pytest.approx(
            packed_bytes(spec) * (1 - 1 / 2 - 1 / LAYERS), rel=0.02
        )
        assert not [path for path in shared["mapped"] if path.startswith(str(deep_base))]


def test_a_shared_run_that_was_told_to_stop_goes_on_and_ends_with_the_same_bytes(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=6, method=MethodSpec(rank=4, dropout=0.3), checkpoint_minutes=60)
    rows, held_out = make_rows("generation", 24), make_rows("generation", 9, 1)
    run_shares(job_of(tmp_path / "whole", spec, rows, held_out), 2)
    kept = Checkpoints(tmp_path / "kept", "a run")
    first = job_of(tmp_path / "first", spec, rows, held_out, checkpoints=kept)
    run_shares(first, 2, stop_at=3)
    assert done(first)["kind"] == "Stopped"
    assert "step 3 of 6, a checkpoint holds it" in done(first)["problems"][0][2]
    second = job_of(tmp_path / "second", spec, rows, held_out, checkpoints=kept)
    run_shares(second, 2)
    first_bytes, second_bytes = ((job / "adapter" / WEIGHTS).read_bytes() for job in (tmp_path / "whole", second))
    assert first_bytes == second_bytes
    losses = [[step["loss"] for step in done(tmp_path / name)["curve"]["steps"]] for name in ("whole", "second")]
    assert losses[0] == losses[1]


def test_where_one_process_lacks_memory_all_begin_again_with_fewer_rows_at_once(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows each of a batch of four; from the third step on the last process has room for one."""
    spec = make_spec("generation", tiny_base, steps=4, batch_size=4, compute_dtype="float32", checkpoint_minutes=0)
    rows, kept = make_rows("generation", 40), Checkpoints(tmp_path / "kept", "a run")
    said: list[str] = []
    spec = spec.model_copy(update={"resources": SHARED})

    def forked(job: Path, *others: Any, **more: Any) -> dict[str, Any]:
        run_shares(job, 2, room=1, cramped_after=0 if said else 2)
        return done(job)

    monkeypatch.setattr("tasks.training.parallel._done", forked)
    found = train_in_processes(spec, rows, [], tmp_path / "shared", checkpoints=kept, say=said.append)
    assert said == ["  out of memory at step 3: begun again with 1 rows at once, same batch"], said
    assert (found.micro_batch, found.resumed) == (1, True)
    alone = train_adapter(load_base(spec.base, kind="generation"), spec, rows, [], tmp_path / "alone")
    assert [s.loss for s in found.curve.steps] == pytest.approx([s.loss for s in alone.curve.steps], rel=2e-3)
    assert_same_adapter(tmp_path / "alone", tmp_path / "shared")


def test_where_one_process_lacks_memory_for_a_single_row_the_run_is_refused(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=4, batch_size=2, compute_dtype="float32")
    job = job_of(tmp_path / "job", spec, make_rows("generation", 16), [])
    run_shares(job, 2, room=0)
    assert done(job)["problems"][0][:2] == ["E-SPEC-013", "triage:resources"]


@pytest.mark.parametrize(
    ("resources", "method", "said"),
    [
        ({"shard_base": True}, "lora", "shard_base shares the base among processes; set processes to 2 or more"),
        ({"shard_base": True, "processes": 2}, "full", "method full trains the whole base"),
        ({"shard_base": True, "nodes": 2}, "dora", "method dora starts from every weight of the base at once"),
        ({"meet_at": "first:29400"}, "lora", "set nodes to 2 or more"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_loads(
    resources: dict[str, Any], method: str, said: str, tiny_base: Path, make_spec: Make
) -> None:
    tree = make_spec("generation", tiny_base, quantization="none").model_dump()
    tree["resources"] |= resources
    tree["method"]["name"] = method
    with pytest.raises(ValidationError, match=said):
        AdapterSpec.model_validate(tree)


def test_the_plan_of_a_shared_base_counts_what_a_process_keeps(deep_base: Path, make_spec: Make) -> None:
    def causes(**resources: Any) -> dict[str, int]:
        spec = make_spec("generation", deep_base, compute_dtype="float32")
        spec = spec.model_copy(update={"resources": ResourceSpec(device="cpu", **resources)})
        shapes = read_shapes(deep_base)
        plan = plan_memory(spec, shapes, available_bytes=1 << 40, longest_tokens=16, on_gpu=False, half=False)
        assert plan.peak_bytes == sum(plan.causes.values())
        return dict(plan.causes)

    packed = packed_bytes(make_spec("generation", deep_base, compute_dtype="float32"))
    whole, shared = causes(processes=4), causes(processes=4, shard_base=True)
    saved = sum(whole[cause] - shared[cause] for cause in HELD if cause in whole)
    assert saved == pytest.approx(packed * 3 / 4, rel=0.02)
    assert shared["gathered block"] == pytest.approx(packed / LAYERS, rel=0.02)
    assert all(shared[cause] == size for cause, size in whole.items() if cause not in HELD)


def test_a_run_that_fits_once_its_base_is_shared_is_told_so(make_spec: Make) -> None:
    """Four processes in a host's memory, of which each may take three fifths of a 7B base in bfloat16."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    shapes = shapes_of_config({"model_type": "llama", "vocab_size": 32000, **sizes})
    spec = make_spec("generation", Path("/base"), quantization="none", micro_batch=1)
    spec = spec.model_copy(update={"resources": ResourceSpec(device="cpu", processes=4)})

    def plan(asked: AdapterSpec) -> MemoryPlan:
        room = shapes.parameters * 2 * 3 // 5
        return plan_memory(asked, shapes, available_bytes=room, longest_tokens=64, on_gpu=False, half=True)

    assert not plan(spec).fits
    assert {"resources.shard_base": True} in plan(spec).remedies
    changes = fitted(spec, plan)
    assert changes["resources.shard_base"] is True
    shared = plan(spec.model_copy(update={"resources": spec.resources.model_copy(update={"shard_base": True})}))
    assert shared.peak_bytes >= (plan(spec).weight_bytes + 3 * shared.weight_bytes) // 4  # while it is loaded
    one_by_one = spec.model_copy(update={"method": MethodSpec(name="dora")})
    assert not any("resources.shard_base" in remedy for remedy in plan(one_by_one).remedies)
