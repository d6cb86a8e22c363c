from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples as a checkout has them: specs and generator, no data yet."""
    import flows.demo

    folder = tmp_path / "examples" / "quickstart"
    folder.mkdir(parents=True)
    for path in [*flows.demo.QUICKSTART.glob("*.yaml"), *flows.demo.QUICKSTART.glob("*.py")]:
        shutil.copy(path, folder)
    monkeypatch.setattr(flows.demo, "QUICKSTART", folder)
    return folder


def test_both_forms_of_the_demo_have_specs_that_parse_and_differ_only_in_how_long_they_train(quickstart: Path) -> None:
    from flows.demo import TASKS, prepared
    from tasks.spec_files import load_adapter_spec, load_merge_spec

    def length(spec: Any) -> float:
        return float(spec.training.steps or spec.training.epochs)

    def specs(folder: Path) -> list[Any]:
        return [load_adapter_spec(folder / f"{task}.yaml") for task in TASKS]

    long, short = specs(prepared(False)), specs(prepared(True))
    assert [spec.task for spec in long] == list(TASKS)
    for full, brief in zip(long, short, strict=True):
        assert length(brief) < length(full)
        assert brief.model_copy(update={"training": full.training}) == full
        assert Path(full.data.source).parent == quickstart / "data"
        assert Path(full.data.source).stat().st_size > 0
        assert full.base.model == str(quickstart.parent / "base")
    assert load_merge_spec(prepared(True) / "merge.yaml") == load_merge_spec(prepared(False) / "merge.yaml")
    assert {parent.partition("@")[0] for parent in load_merge_spec(quickstart / "merge.yaml").parents} == set(TASKS)


def test_the_demo_says_where_it_must_be_started(factory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flows.demo.QUICKSTART", tmp_path / "gone")
    said = factory.run("demo")
    assert said.code == 2
    assert said.lines == [f"E-SPEC-017 {tmp_path / 'gone'}: missing -> run the demo from a checkout of the project"]
