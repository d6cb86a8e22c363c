"""The plan on the command line: three ways side by side, no weights needed, a spec made to fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

LARGE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture
def large(factory: Any, desk: Any) -> Any:
    """A spec on an 8B base of which nothing but the config is here."""
    folder = factory.folder / "large"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LARGE))
    return factory.spec(desk["tone"], "large", base__model=str(folder), base__quantization="none", method__rank=16)


def test_a_base_without_weights_is_planned_in_three_ways(factory: Any, large: Any) -> None:
    said = factory.run("plan", large, "--device", "160GiB")
    assert said.code == 0, said.err
    for words in (
        "Memory plan",
        "Trained in other ways",
        "full",
        "LoRA",
        "QLoRA",
        "weights in 4 bit",
        "quantisation constants",
        "weights in 16 bit",
        "activations without checkpointing",
        "activations with checkpointing",
        "largest batch at once",
        "optimizer",
    ):
        assert words in said.out


def test_what_does_not_fit_is_refused_and_made_to_fit_on_request(factory: Any, large: Any) -> None:
    before = large.read_text()
    refused = factory.run("plan", large, "--device", "12GiB")
    assert refused.code == 2
    assert refused.lines[-1].startswith("E-SPEC-013 ")
    proposed = refused.lines[-1].split(" -> ")[1].split(" or ")[0]
    assert large.read_text() == before
    said = factory.run("plan", large, "--device", "12GiB", "--fit")
    assert said.code == 0, said.err
    for change in proposed.split(" and "):
        assert change.replace(": ", " is now ") in said.out
    assert "base.quantization is now nf4" in said.out
    assert factory.run("plan", large, "--device", "12GiB").code == 0
    again = factory.run("plan", large, "--device", "12GiB", "--fit")
    assert "is now" not in again.out


def test_what_cannot_fit_is_left_as_it_was(factory: Any, large: Any) -> None:
    before = large.read_text()
    said = factory.run("plan", large, "--device", "1GiB", "--fit")
    assert said.code == 2
    assert "use a smaller base" in said.lines[-1]
    assert large.read_text() == before


def test_what_is_left_auto_is_chosen_in_the_plan_with_its_reason(factory: Any, desk: Any) -> None:
    spec = factory.spec(desk["tone"], "open", method__rank="auto", training__learning_rate="auto")
    said = factory.run("plan", spec)
    assert said.code == 0, said.err
    lines = [line for line in said.out.splitlines() if line.startswith(("method.rank ", "training.learning_rate "))]
    assert len(lines) == 2
    assert "rows of generation" in lines[0]
    assert "hidden size 64" in lines[1]


@pytest.mark.parametrize("size", ["0GiB", "0.0 MiB", "24", "many", "-3GiB"])
def test_a_card_of_no_size_is_refused(factory: Any, large: Any, size: str) -> None:
    said = factory.run("plan", large, "--device", size)
    assert said.code == 2
    assert said.lines[-1].startswith("E-SPEC-016 --device: ")


def test_what_training_refuses_of_a_base_the_plan_refuses(factory: Any, desk: Any) -> None:
    spec = factory.spec(desk["tone"], "biases", method__name="bitfit", base__quantization="none")
    said = factory.run("plan", spec)
    assert said.code == 2
    assert said.lines[-1].startswith("E-SPEC-041 method.name: the base has no biases")
