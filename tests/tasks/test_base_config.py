"""A config.json that says what cannot be is refused in one line, with and without weights beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ArtifactRefused
from tasks.planning import shapes_of

SIZES = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
]
NO_SIZES = [0, -1, -64, 1.5, 1e308, 10**30, float("nan"), float("inf"), "64", True, [], [64], {"a": 1}]


@pytest.fixture(params=["with weights", "a config alone"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """The folder of a base whose config is to be written over."""
    for path in [tiny_base / "config.json", *(tiny_base.glob("*.safetensors") if "with" in request.param else ())]:
        shutil.copy(path, tmp_path)
    return tmp_path


def refusal(base: Path, config: str) -> str:
    (base / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ArtifactRefused) as refused:
        shapes_of(base)
    (problem,) = refused.value.problems
    assert (problem.code, problem.where) == ("E-BASE-010", str(base / "config.json"))
    assert len(str(problem).splitlines()) == 1
    return problem.wrong


@pytest.mark.parametrize("text", ["[]", "[[1]]", "7", "null", '"llama"', "true"])
def test_a_config_that_is_no_object_is_refused(base: Path, text: str) -> None:
    assert refusal(base, text) == "is no JSON object"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_json_is_refused(base: Path, text: str) -> None:
    assert refusal(base, text).startswith("cannot be read: ")


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_none_is_refused_by_its_name(base: Path, size: str) -> None:
    config = json.loads((base / "config.json").read_text())
    for value in NO_SIZES:
        said = refusal(base, json.dumps({**config, size: value}))
        assert said.startswith(f"{size} is {json.dumps(value):.40}, which is no whole number from 1 to "), said


@pytest.mark.parametrize(
    "changed",
    [{"model_type": ["llama"]}, {"architectures": "Llama"}, {"architectures": {"a": 1}}, {"architectures": [7]}],
    ids=str,
)
def test_names_that_are_none_are_refused(base: Path, changed: dict[str, Any]) -> None:
    config = json.loads((base / "config.json").read_text())
    assert refusal(base, json.dumps({**config, **changed})).startswith(f"{next(iter(changed))} is ")


def test_more_heads_than_the_width_has_places_are_refused(base: Path) -> None:
    config = {**json.loads((base / "config.json").read_text()), "head_dim": None, "num_attention_heads": 65}
    assert refusal(base, json.dumps(config)) == "num_attention_heads is 65, more than hidden_size 64"


def test_a_size_that_is_left_open_is_as_one_that_is_not_named(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    parameters = []
    for changed in ({**config, "head_dim": None}, {name: size for name, size in config.items() if name != "head_dim"}):
        (base / "config.json").write_text(json.dumps(changed))
        parameters.append(shapes_of(base).parameters)
    assert parameters[0] == parameters[1]
