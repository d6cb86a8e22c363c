"""What an adapter costs where it serves, against adapters whose cost is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.evaluation.upkeep import forgetting, merged_copy, own_loss, own_texts, pass_seconds
from tasks.methods.build import attached, fresh_adapter, write_adapter
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


def test_the_shortest_pass_counts(base: Base, make_rows: Make) -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0, 30.0, 39.0, 40.0, 42.0])
    assert pass_seconds(base, base.model, encode(base, make_rows("generation", 4)), clock=lambda: next(times)) == 1.0
    ticks = count()
    assert pass_seconds(base, base.model, encode(base, make_rows("generation", 4)), clock=lambda: next(ticks)) == 1


def test_a_merged_copy_answers_as_the_attached_adapter_and_the_base_is_untouched(base: Base, tmp_path: Path) -> None:
    ids = torch.arange(4, 20)[None]
    with fresh_adapter(base, MethodSpec(rank=4), 0) as model:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        write_adapter(model, tmp_path, "tiny")
    with torch.no_grad():
        before = base.model(ids).logits
        with attached(base, tmp_path) as model:
            wanted = model(ids).logits
        merged = merged_copy(base, tmp_path)
        assert merged is not None
        assert torch.allclose(merged(ids).logits, wanted, atol=1e-4)
        assert not torch.allclose(wanted, before, atol=1e-2)
        assert torch.equal(base.model(ids).logits, before)
