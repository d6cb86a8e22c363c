"""What a look inside says of adapters whose updates are of different kinds, and that trimming holds to its advice."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def taught(factory: Any, desk: Any) -> Any:
    """An adapter of a method, taught for a few steps under the method's name."""

    def teach(method: str) -> str:
        name = f"by-{method}"
        spec = factory.spec(desk["tone"], name, task=name, method__name=method, training__steps=16)
        said = factory.run("train", spec, "--no-promote")  # a second time there is nothing to do
        assert said.code == 0, said.err
        return f"{name}:1"

    return teach


def test_norms_alone_are_told_of_in_one_line(factory: Any, taught: Any) -> None:
    ref = taught("layernorm")
    said = factory.run("inspect", ref)
    assert said.code == 0, said.err
    (line,) = said.out.splitlines()
    assert line.startswith("layernorm gave 5 norms or biases new values, which have no rank: moved by ")
    assert json.loads(factory.run("--json", "inspect", ref).out)["result"]["modules"] == []
    assert factory.run("trim", ref).lines[-1].startswith("E-SPEC-043 by-layernorm:1: ")


def test_what_is_advised_of_dora_is_what_trimming_says(factory: Any, taught: Any) -> None:
    ref = taught("dora")
    look = json.loads(factory.run("--json", "inspect", ref).out)["result"]
    why = "dora changes every weight: its update has no rank to cut"
    assert look["advice"][0].startswith(f"{why}; of ")
    refused = factory.run("trim", ref)
    assert refused.code == 2
    assert refused.lines[-1] == (
        f"E-SPEC-043 {ref}: {why} -> name an adapter of lora, rslora, loraplus, shared-a, eva or adalora"
    )


def test_an_adapter_whose_modules_have_ranks_of_their_own_is_looked_into_trimmed_and_compared(
    factory: Any, desk: Any, taught: Any
) -> None:
    ref, other = taught("adalora"), taught("dora")
    said = factory.run("--json", "inspect", ref, "--against", other, "--energy", "0.8")
    assert said.code == 0, said.err
    look = json.loads(said.out)["result"]
    ranks = [len(module["values"]) for module in look["modules"]]
    assert max(ranks) > min(ranks)  # mean rank 8, as the budget went
    needed = 1
    for module in look["modules"]:
        squares = [value**2 for value in module["values"]]
        needed = max(needed, next(k for k in range(1, 13) if sum(squares[:k]) >= 0.8 * sum(squares) * (1 - 1e-9)))
    assert look["advice"][0] == f"rank {needed} of {max(ranks)} keeps 80% of every module's update"
    assert len(look["phi"]) == min(ranks)
    assert all(0 <= phi <= 1 for row in look["phi"] for phi in row)
    shown = factory.run("inspect", ref, "--against", other)
    for words in ("phi(i, j)", "j = 32", "r=1", "r=4", "figure: "):
        assert words in shown.out
    trimmed = json.loads(factory.run("--json", "trim", ref, "--energy", "0.8").out)["result"]
    assert (trimmed["rank"], trimmed["parent_rank"]) == (needed, max(ranks))
    assert trimmed["lost"] <= 0.2 + 1e-6
    assert trimmed["version"]["spec"]["method"]["name"] == "lora"
    spec = factory.spec(desk["tone"], "compared", training__steps=4)
    said = factory.run("--json", "compare", spec, "--methods", "adalora", "--ranks", "4")
    assert said.code == 0, said.err
    table = json.loads(said.out)["result"]
    row = dict(zip(table["columns"], table["rows"][1], strict=True))
    assert (row["method"], row["rank"]) == ("adalora", 4)
    assert row["pass merged"] > 0
