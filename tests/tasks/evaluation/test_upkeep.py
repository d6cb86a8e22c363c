"""What an adapter costs where it serves, against adapters whose cost is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.evaluation.upkeep import forgetting, merged_copy, own_loss, own_texts, pass_ratios
from tasks.methods.build import attached, fresh_adapter, write_adapter
from tasks.methods.catalogue import METHODS, TRAINED
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.base import Base, load_base
from tasks.training.encoding import encode

Make = Callable[..., Any]


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_base), quantization="none"), kind="generation")


def test_the_bases_own_texts_are_the_same_every_time_and_surprise_it_least(base: Base) -> None:
    texts = own_texts(base)
    assert texts == own_texts(base)
    assert {text.length for text in texts} == {41}
    generator = torch.Generator().manual_seed(1)
    noise = [type(t)(t.prompt, tuple(torch.randint(4, 300, (40,), generator=generator).tolist())) for t in texts]
    assert own_loss(base, texts) < own_loss(base, noise)


def test_an_untrained_adapter_forgets_nothing_and_a_random_one_does(base: Base) -> None:
    texts = own_texts(base)
    before = own_loss(base, texts)
    with fresh_adapter(base, MethodSpec(rank=4), 0) as model:
        assert forgetting(base, model, texts, before) == pytest.approx(0, abs=1e-6)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(2))
        assert forgetting(base, model, texts, before) > 0.1


def random_adapter(base: Base, name: str, folder: Path) -> Path:
    """Far enough from the base that its answers are others."""
    draw = torch.Generator().manual_seed(2)
    with fresh_adapter(base, MethodSpec(name=name, rank=4), 0) as model:
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=draw)
                parameter.data += noise.to(parameter.dtype)
        write_adapter(model, folder, "tiny")
    return folder


def test_a_machine_that_slows_down_meets_all_ways_alike(base: Base, make_rows: Make, tmp_path: Path) -> None:
    """A pass costs 1, 3 (attached) or 2 (merged), ten times as much from round to round, once in a round more."""
    now, calls = [0.0], count()

    def clock() -> float:
        call = next(calls)
        round_, way, place = call // 18, call % 18 // 6, call % 6
        if place % 2:
            now[0] += 10**round_ * (1, 3, 2)[way] * (7 if place == 3 else 1)
        return now[0]

    adapter = random_adapter(base, "lora", tmp_path)
    rows = encode(base, make_rows("generation", 4))
    assert pass_ratios(base, rows, adapter, merged_copy(base, adapter), clock=clock) == pytest.approx((3, 2))
    assert pass_ratios(base, rows, adapter, clock=lambda: next(calls)) == (1, None)


EXACT = [name for name in TRAINED if METHODS[name].mergeable and name != "bitfit"]  # the tiny Llama has no biases


@pytest.mark.parametrize("name", EXACT)
def test_a_merged_copy_answers_as_the_attached_adapter_and_the_base_is_untouched(
    name: str, base: Base, tmp_path: Path
) -> None:
    ids = torch.arange(4, 20)[None]
    random_adapter(base, name, tmp_path)
    with torch.no_grad():
        before = base.model(ids).logits
        with attached(base, tmp_path) as model:
            wanted = model(ids).logits
        assert torch.allclose(merged_copy(base, tmp_path)(ids).logits, wanted, atol=2e-4)
        assert not torch.allclose(wanted, before, atol=1e-2)
        assert torch.equal(base.model(ids).logits, before)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_encoder"])
@pytest.mark.parametrize("name", ["lora", "layernorm"])
def test_a_merged_copy_of_a_classifier_has_the_adapters_head(
    name: str, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    base = load_base(BaseSpec(model=str(folder), quantization="none"), kind="classification", labels=("a", "b", "c"))
    ids = torch.arange(4, 20)[None]
    random_adapter(base, name, tmp_path)
    with torch.no_grad():
        before = base.model(ids).logits
        with attached(base, tmp_path) as model:
            wanted = model(ids).logits
        assert torch.allclose(merged_copy(base, tmp_path)(ids).logits, wanted, atol=2e-4)
        assert not torch.allclose(wanted, before, atol=1e-2)
        assert torch.equal(base.model(ids).logits, before)


@pytest.mark.parametrize("name", ["lora", "ia3", "layernorm"])
def test_a_merged_copy_of_a_4_bit_base_is_a_4_bit_model_near_the_adapter(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = load_base(BaseSpec(model=str(tiny_base)), kind="generation")
    ids = torch.arange(4, 20)[None]
    random_adapter(base, name, tmp_path)
    with torch.no_grad():
        before = base.model(ids).logits
        with attached(base, tmp_path) as model:
            wanted = model(ids).logits
        merged = merged_copy(base, tmp_path)
        assert (merged(ids).logits - wanted).norm() < 0.5 * (wanted - before).norm()
        assert torch.equal(base.model(ids).logits, before)
    kinds = [[type(parameter).__name__ for parameter in model.parameters()] for model in (base.model, merged)]
    assert kinds[0] == kinds[1]
    assert "Params4bit" in kinds[0]
