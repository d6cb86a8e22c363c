"""An adapter that was made elsewhere comes in through the strict door, or not at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def arrived(factory: Any, intent: Any, tmp_path: Path) -> Path:
    """The intent adapter as a stranger would have it: config and weights, named after the same base."""
    folder = tmp_path / "arrived"
    folder.mkdir()
    files = factory.files(intent.outcome.version.artifact)
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copyfile(files[name], folder / name)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"someone/{factory.base.name}"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_good_folder_is_scored_registered_once_promoted_and_known_to_have_unknown_teachers(
    factory: Any, intent: Any, desk: Any, arrived: Path, at_its_word: None
) -> None:
    spec = factory.spec(desk["intent"], "foreign", task="foreign", method__rank=4)
    said = factory.run("--json", "import", arrived, "--spec", spec)
    assert said.code == 0, said.err
    found = json.loads(said.out)["result"]
    assert found["scores"]["score"] == pytest.approx(intent.outcome.scores.score, abs=0.1)
    assert found["version"]["spec"]["method"]["rank"] == 8  # as the folder has it
    again = json.loads(factory.run("--json", "import", arrived, "--spec", spec).out)["result"]
    assert again["version"]["number"] == found["version"]["number"] == 1
    ((dataset,),) = factory.sql("SELECT dataset FROM edges WHERE role = 'judged'")
    contains = factory.run("lineage", f"dataset:{dataset}", "--contains").out
    assert "foreign:1" not in contains
    assert factory.run("promote", "foreign:1").code == 0
    assert factory.run("fsck").code == 0


def changed(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def reweighted(folder: Path, change: Any) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.contiguous() for name, tensor in change(weights).items()}, folder / WEIGHTS)


HARMS: dict[str, tuple[Any, str]] = {
    "A01 pickled weights": (
        lambda f: (f / "adapter_model.bin").write_bytes(b"\x80\x04"),
        "E-ADAPTER-027 .*adapter_model.bin",
    ),
    "A04 a value that is none": (
        lambda f: reweighted(f, lambda w: {n: t * float("nan") if "layers.0" in n else t for n, t in w.items()}),
        "E-ADAPTER-003 .*layers.0.*NaN",
    ),
    "A04 an adapter that does nothing": (
        lambda f: reweighted(f, lambda w: {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in w.items()}),
        "E-ADAPTER-026 .*changes no answer.*lora_B.*zero",
    ),
    "A05 another base": (
        lambda f: changed(f, base_model_name_or_path="org/other"),
        "E-ADAPTER-024 .*trained on org/other",
    ),
    "A06 a renamed key": (
        lambda f: reweighted(f, lambda w: {n.replace("layers.1", "layers.7"): t for n, t in w.items()}),
        "E-ADAPTER-005 .*layers.1",
    ),
    "A06 another rank than the tensors": (lambda f: changed(f, r=16), "E-ADAPTER-006 .*has shape"),
    "A07 code by name": (
        lambda f: changed(f, auto_mapping={"base_model_class": "x", "parent_library": "os"}),
        "E-ADAPTER-007 .*auto_mapping",
    ),
    "A07 other layers": (lambda f: changed(f, layer_replication=[[0, 1]]), "E-ADAPTER-007 .*layer_replication"),
    "A08 a link": (lambda f: (f / "labels.json").symlink_to("/etc/passwd"), "E-ADAPTER-023 .*labels.json"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_bad_folder_is_refused_by_file_field_or_tensor_and_leaves_nothing(
    factory: Any, desk: Any, arrived: Path, harm: str
) -> None:
    act, expected = HARMS[harm]
    act(arrived)
    spec = factory.spec(desk["intent"], "foreign", task="foreign")
    before = factory.sql("SELECT count(*) FROM versions")
    said = factory.run("--quiet", "import", arrived, "--spec", spec)
    assert said.code == 4, said.err
    assert any(re.search(expected, line) for line in said.lines), said.err
    assert str(arrived) in said.err or "arrived" in said.err or "adapter" in said.err
    assert factory.sql("SELECT count(*) FROM versions") == before
    assert factory.litter() == []
