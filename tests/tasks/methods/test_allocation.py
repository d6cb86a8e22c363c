"""AdaLoRA: the asked budget is kept, what is written is a plain LoRA with the same update, and PEFT's loss is ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.adalora import AdaLoraLayer
from safetensors.torch import load_file

from tasks.memory import plan_memory, read_shapes
from tasks.merging.apply import applied
from tasks.merging.base import open_base
from tasks.merging.merge import check_parents, merged_updates
from tasks.merging.plan import Parent
from tasks.merging.vectors import exact_updates
from tasks.methods.allocation import GAMMA, Allocation
from tasks.methods.build import attached, fresh_adapter, write_adapter
from tasks.specs import BaseSpec, MethodSpec
from tasks.training import loop
from tasks.training.base import Base, load_base
from tasks.training.encoding import collate, encode
from tasks.training.loop import Trained, train_adapter
from tasks.training.lowrank import compute_in_few_passes

RANK, MODULES = 2, 14
METHOD = MethodSpec(name="adalora", rank=RANK, alpha=3.0, dropout=0.0)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_base), quantization="none"), kind="generation")


@pytest.fixture(scope="module")
def trained(
    base: Base, tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, dict[str, torch.Tensor]]:
    """A run and, by module, the update of the model that was written: s B diag(E) A of PEFT's own layers."""
    folder, updates, write = tmp_path_factory.mktemp("adalora"), {}, loop.write_adapter

    def noting(model: Any, *rest: Any) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, AdaLoraLayer):
                updates[name.removeprefix("base_model.model.")] = layer.get_delta_weight("default").detach().clone()
        write(model, *rest)

    training = {"steps": 24, "learning_rate": 3e-2, "batch_size": 16, "validations": 24}
    spec = make_spec("generation", tiny_base, quantization="none", method=METHOD, **training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_adapter", noting)
        done = train_adapter(base, spec, make_rows("generation", 160), make_rows("generation", 32, 1), folder)
    return done, updates


def test_the_modules_end_with_the_asked_rank_on_average_and_with_ranks_of_their_own(trained: Any) -> None:
    folder = trained[0].folder
    ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    stored = load_file(folder / "adapter_model.safetensors")
    held = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(A)
        for name, A in stored.items()
        if ".lora_A." in name
    }
    assert held == ranks
    assert sum(held.values()) == RANK * MODULES
    assert len(set(held.values())) > 1


def test_the_written_lora_has_the_update_that_was_trained(trained: Any) -> None:
    done, updates = trained
    read = exact_updates(done.folder)
    for name, delta in updates.items():
        if name in read.modules:
            torch.testing.assert_close(read.delta(name), delta, rtol=1e-5, atol=1e-7)
        else:  # no triplet was left
            assert not delta.any()


def test_one_parent_at_weight_1_gives_the_logits_of_the_attached_adapter(
    trained: Any, base: Base, tiny_base: Path
) -> None:
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        plain = base.model(ids).logits
        with attached(base, trained[0].folder) as model:
            with_adapter = model(ids).logits
        plan = check_parents([Parent("a:1", "a", trained[0].folder, "digest")], open_base(tiny_base))
        with applied(base.model, dict(merged_updates(plan, "average"))):
            merged = base.model(ids).logits
    moved = (with_adapter - plain).abs().max()
    assert moved > 0.05
    assert (merged - with_adapter).abs().max() <= 1e-4 * moved


def test_only_an_adapter_of_the_final_ranks_is_kept(
    base: Base, tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the validation loss only rises, the first look after the last cut is the best that can be kept."""
    losses = count(1.0)
    monkeypatch.setattr(loop, "validation_sums", lambda *_: (next(losses), 0, 1))
    spec = make_spec("generation", tiny_base, quantization="none", method=METHOD, steps=8, validations=8)
    done = train_adapter(base, spec, make_rows("generation", 32), make_rows("generation", 8, 1), tmp_path)
    assert [look.loss for look in done.curve.looks] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert done.curve.best is not None
    assert done.curve.best.step == 4
    ranks = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(ranks.values()) == RANK * MODULES


def test_the_gradient_of_the_orthogonality_is_that_of_pefts_own_loss(base: Base, make_rows: Make) -> None:
    inputs, labels = collate(base, encode(base, make_rows("generation", 4)))
    gradients: list[dict[str, torch.Tensor]] = []
    with fresh_adapter(base, METHOD, seed=1) as model:
        model.peft_config["default"].orth_reg_weight = GAMMA
        for ours in (False, True):
            model.zero_grad()
            tuner = model if ours else model.base_model
            (model.get_base_model() if ours else tuner)(**inputs, labels=labels).loss.backward()
            if ours:
                Allocation(model, 10).add_orthogonality()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    theirs, own = gradients
    assert any(gradient.any() for name, gradient in theirs.items() if "lora_A" in name)
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-7)


def test_in_few_passes_it_computes_what_pefts_layers_compute(base: Base) -> None:
    ids, found = torch.arange(4, 20)[None], []
    with fresh_adapter(base, METHOD, seed=1) as model:
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(3))
        for fast in (False, True):
            if fast:
                assert compute_in_few_passes(model) == MODULES
            model.zero_grad()
            logits = model(ids).logits
            logits.pow(2).mean().backward()
            found.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + 3 * MODULES
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)


def test_the_plan_counts_what_ranking_remembers(base: Base, tiny_base: Path, make_spec: Make) -> None:
    spec = make_spec("generation", tiny_base, quantization="none", method=METHOD)
    sizes: dict[str, Any] = {"available_bytes": 1 << 40, "longest_tokens": 16, "on_gpu": False, "half": False}
    plan = plan_memory(spec, read_shapes(tiny_base), **sizes)
    with fresh_adapter(base, METHOD, seed=1) as model:
        model(torch.arange(4, 20)[None]).logits.sum().backward()
        Allocation(model, 10).after(1)
        ranks = model.base_model.rankallocator
        held = [*ranks.ipt.values(), *ranks.exp_avg_ipt.values(), *ranks.exp_avg_unc.values()]
    assert plan.causes["importances"] == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_too_short_to_rank_still_ends_whole(
    steps: int, base: Base, tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path
) -> None:
    spec = make_spec("generation", tiny_base, quantization="none", method=METHOD, steps=steps, validations=1)
    done = train_adapter(base, spec, make_rows("generation", 16), make_rows("generation", 8, 1), tmp_path)
    assert done.change > 0
    with attached(base, tmp_path):
        pass


def test_an_untrained_one_is_written_as_one_that_changes_nothing(base: Base, tmp_path: Path) -> None:
    ids = torch.arange(4, 20)[None]
    with fresh_adapter(base, METHOD, seed=0) as model:
        write_adapter(model, tmp_path, "tiny")
    with attached(base, tmp_path) as model, torch.no_grad():
        after = model(ids).logits
    with torch.no_grad():
        assert torch.equal(after, base.model(ids).logits)
