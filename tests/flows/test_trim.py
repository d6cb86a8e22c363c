"""A trimmed adapter is the best one of its rank, judged on the same rows, and comes from the one that it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

KINDS = {"generation": "intent", "classification": "mood"}


@pytest.fixture
def large(factory: Any, desk: Any, intent: Any, mood: Any) -> Any:
    """A trained adapter under a name of its own, where it may get a second version."""

    def arrive(kind: str) -> str:
        heard, name = {"intent": intent, "mood": mood}[KINDS[kind]], f"slim-{kind}"
        folder = factory.folder / f"{name} adapter"
        folder.mkdir()
        files = factory.files(heard.outcome.version.artifact)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes(files[file].read_bytes())
        changes: dict[str, Any] = {"task": name}
        if kind == "classification":
            changes |= {"kind": kind, "data__prompt": None, "data__completion": None}
            changes["base__model"] = str(factory.encoder)
        spec = factory.spec(desk[KINDS[kind]], name, **changes)
        said = factory.run("import", folder, "--spec", spec)
        assert said.code == 0, said.err
        return f"{name}:1"

    return arrive


def updates(folder: dict[str, Path]) -> dict[str, torch.Tensor]:
    """Dense changes by module, multiplied out here."""
    config = json.loads(folder["adapter_config.json"].read_text())
    tensors = load_file(folder["adapter_model.safetensors"])
    scale = config["lora_alpha"] / config["r"]
    return {
        name: scale * tensors[name.replace("lora_A", "lora_B")].double() @ tensor.double()
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_trimmed_adapter_is_the_best_of_its_rank_and_remembers_what_it_was(
    kind: str, factory: Any, large: Any
) -> None:
    ref = large(kind)
    said = factory.run("--json", "trim", ref, "--energy", "0.9")
    assert said.code == 0, said.err
    done = json.loads(said.out)["result"]
    version, parent = done["version"], done["parent"]
    assert (version["name"], version["number"], parent["number"]) == (parent["name"], 2, 1)
    assert ["trimmed", ref] in version["parents"]
    assert (done["scores"]["dataset"], done["scores"]["n"]) == tuple(done["parent_scores"][k] for k in ("dataset", "n"))
    before, after = updates(factory.files(parent["artifact"])), updates(factory.files(version["artifact"]))
    needed = []
    for name, dense in before.items():
        squares = torch.linalg.svdvals(dense) ** 2
        needed.append(int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1)
        rest = float(torch.linalg.matrix_norm(dense - after[name]) ** 2)
        assert rest <= (0.1 + 1e-6) * float(squares.sum())
        assert int(torch.linalg.matrix_rank(after[name], rtol=1e-5)) <= max(needed)
    assert done["rank"] == max(needed) < done["parent_rank"] == 8
    assert version["spec"]["method"] == {**parent["spec"]["method"], "rank": done["rank"], "alpha": float(done["rank"])}
    again = json.loads(factory.run("--json", "trim", ref, "--energy", "0.9").out)["result"]
    assert again["version"]["number"] == 2


def test_what_no_smaller_rank_keeps_is_left_as_it_is_in_one_line(factory: Any, intent: Any) -> None:
    before = factory.remembered()
    said = factory.run("trim", "intent:1", "--energy", "1.0")
    assert said.code == 2
    assert said.lines[-1].startswith("E-SPEC-044 intent:1: no smaller rank than 8")
    assert factory.remembered() == before
    assert factory.run("trim", "nobody:1").code == 2
