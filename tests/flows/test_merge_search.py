"""A search keeps to its budget, rows that choose are not rows that judge, and a regression names its parent."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.merge_candidates import Setting
from flows.merge_gates import attributed, general_rows, refuse_tuning_on_acceptance
from flows.merge_stale import Stale, merged_again, stale_merges
from flows.progress import voice
from tasks.data.examples import Example
from tasks.errors import DataRefused, SpecRefused
from tasks.merging.rules import check_rules
from tasks.specs import GeneralSpec, MergeGateSpec, MergeSpec, SearchSpec

PAIR = ("intent:1", "tone:1")


@pytest.fixture(scope="module")
def searched(factory: Any, intent: Any, fleet: Any) -> Any:
    from flows.merge import merge

    texts = factory.folder / "general.txt"
    texts.write_text("".join(f"the cat number {n} sat on a mat and looked at {n + 1} birds\n" for n in range(40)))
    recipe = factory.recipe(
        "duo",
        PAIR,
        rules=[{"rule": "average", "scale": [2.0]}],
        search={"trials": 5, "rules": ["task_arithmetic", "ties"], "scale": [0.5, 1.5]},
        general={"source": "general.txt", "max_loss": 1.0},
        gates={"min_retention": -0.5, "min_rows": 30},
    )
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        return merge(str(recipe))


def test_a_search_adds_settings_to_the_recipes_own(searched: Any) -> None:
    own = [name for name in searched.tried if name.startswith("average")]
    others = [name for name in searched.tried if not name.startswith("average")]
    assert len(own) == 1
    assert 1 <= len(others) <= 5
    assert all(set(kept) == {"intent", "tone"} for kept in searched.tried.values())
    assert searched.chosen == max(
        searched.tried,
        key=lambda name: (
            round(min(searched.tried[name].values()), 2),
            sum(searched.tried[name].values()),
        ),
    )


def test_every_trial_is_a_child_run(factory: Any, searched: Any) -> None:
    client = factory.mlflow()
    experiment = client.get_experiment_by_name("duo")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = [run for run in runs if run.data.tags.get("mlflow.runName") == "duo search"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 5
    assert all({"rule", "scale"} <= set(run.data.params) for run in children)
    whole = [run for run in children if run.data.tags["pruned"] == "False"]
    pruned = [run for run in children if run.data.tags["pruned"] == "True"]
    assert all({"kept_intent", "kept_tone"} <= set(run.data.metrics) for run in whole)
    assert all(len([name for name in run.data.metrics if name.startswith("kept_")]) == 1 for run in pruned)
    assert parent.data.metrics["trials"] == 5


def test_leave_one_out_is_stored_and_names_the_parent_of_a_task(factory: Any, searched: Any) -> None:
    assert set(searched.attribution) == {"intent", "tone"}
    kept = searched.tried[searched.chosen]
    assert sum(searched.attribution[task][task] for task in kept) < 0.5 * sum(kept.values())
    for task in ("intent", "tone"):
        other = "tone" if task == "intent" else "intent"
        assert searched.attribution[task][task] <= kept[task]
        assert searched.attribution[task][other] > searched.attribution[task][task]
        assert searched.version.metrics[f"without_{task}_{task}_kept"] == pytest.approx(
            searched.attribution[task][task]
        )


def test_a_parent_without_whom_nothing_is_left_to_merge_is_said_and_left_out() -> None:
    one, two = SimpleNamespace(task="one"), SimpleNamespace(task="two")
    spec = SimpleNamespace(attribution=True, resources=SimpleNamespace(threads=1))
    chosen = Setting("average", (("one", 0.0), ("two", 0.0)), density=1.0, scale=1.0)
    with voice.hushed():
        assert attributed.fn(spec, [one, two], None, chosen, {}) == {}


def test_general_text_has_a_gate_of_its_own(searched: Any) -> None:
    assert [gate.name for gate in searched.decision.gates][-1] == "kept on general text"
    assert searched.decision.gates[-1].n == 40


def expert(task: str, validation: str, test: str) -> Any:
    def slices(keys: str) -> Any:
        return (SimpleNamespace(examples=tuple(Example(key, key, "", 1) for key in keys)),)

    return SimpleNamespace(task=task, slices={"validation": slices(validation), "test": slices(test)})


def test_rows_that_choose_are_not_rows_that_judge() -> None:
    refuse_tuning_on_acceptance([expert("a", "abc", "de"), expert("b", "fg", "hi")])
    with pytest.raises(SpecRefused) as refusal:
        refuse_tuning_on_acceptance([expert("a", "abc", "de"), expert("b", "def", "cx")])  # type: ignore[list-item]
    said = [(problem.code, problem.where, problem.wrong) for problem in refusal.value.problems]
    assert said == [
        ("E-MERGE-044", "a, b", "1 validation rows of a are test rows of b"),
        ("E-MERGE-044", "b, a", "2 validation rows of b are test rows of a"),
    ]


@pytest.mark.parametrize(
    ("rules", "code"), [(("tise",), "E-MERGE-001"), (("regmean",), "E-MERGE-009"), (("slerp",), "E-MERGE-008")]
)
def test_a_search_over_rules_that_cannot_be_searched_is_refused(rules: tuple[str, ...], code: str) -> None:
    with pytest.raises(SpecRefused) as refusal:
        check_rules(MergeSpec(name="x", parents=("a", "b", "c"), search=SearchSpec(rules=rules)))
    assert [problem.code for problem in refusal.value.problems] == [code]


@pytest.mark.parametrize("content", ["one two\n" * 9, '{"txt": "a b c d e"}\n', None])
def test_general_text_that_cannot_be_read_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    if content is not None:
        path.write_text(content)
    spec = MergeSpec(name="x", parents=("a",), general=GeneralSpec(source=str(path)), gates=MergeGateSpec(min_rows=1))
    with pytest.raises(DataRefused, match="E-MERGE-046"):
        general_rows(spec, [SimpleNamespace(spec=SimpleNamespace(kind="generation"))])  # type: ignore[list-item]


def test_general_text_is_read_to_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    path.write_text(json.dumps({"text": "one two three  four five"}) + "\n")
    spec = MergeSpec(name="x", parents=("a",), general=GeneralSpec(source=str(path)), gates=MergeGateSpec(min_rows=1))
    (row,) = general_rows(spec, [SimpleNamespace(spec=SimpleNamespace(kind="generation"))])  # type: ignore[list-item]
    assert (row.input, row.target) == ("one two", " three four five")
    with pytest.raises(SpecRefused, match="E-MERGE-045"):
        general_rows(spec, [SimpleNamespace(spec=SimpleNamespace(kind="classification"))])  # type: ignore[list-item]


def test_a_refreshed_parent_marks_the_merges_that_contain_it() -> None:
    def version(name: str, number: int, kind: str = "adapter", parents: Any = ()) -> Any:
        return SimpleNamespace(name=name, number=number, ref=f"{name}:{number}", kind=kind, parents=parents)

    champions = {
        "triage": version("triage", 2),
        "route": version("route", 1),
        "desk": version("desk", 1, "merged", (("parent", "triage:1"), ("parent", "route:1"), ("base", "base:x"))),
        "fresh": version("fresh", 3, "merged", (("parent", "triage:2"),)),
        "never-served": None,
    }
    home = SimpleNamespace(ledger=SimpleNamespace(names=lambda: tuple(champions), champion=champions.get))
    assert stale_merges(home) == (Stale("desk:1", "triage:1", "triage:2"),)  # type: ignore[arg-type]


def test_what_contains_a_refreshed_adapter_is_merged_again_with_the_champion(
    factory: Any, searched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe that is followed again is the version's own, but for the parents."""
    from flows import merge
    from flows.wiring import opened
    from tasks.errors import SpecRefused
    from tasks.spec_files import load_merge_spec

    def refuse() -> None:
        raise SpecRefused.one("E-SPEC-000", "recipe", "is refused", "mend it")

    tried: list[str] = []
    followed: list[MergeSpec] = []
    monkeypatch.setattr(merge, "merge", lambda path: followed.append(load_merge_spec(path)))
    with factory.active():
        home = opened()
        champions = {"intent": SimpleNamespace(ref="intent:9"), "tone": None}
        ledger = SimpleNamespace(version=home.ledger.version, champion=champions.__getitem__)
        other = SimpleNamespace(ledger=ledger, scratch=home.scratch)
        marks = [Stale("duo:1", "intent:1", "intent:9"), Stale("duo:1", "tone:1", "tone:2")]
        merged_again(other, marks)  # type: ignore[arg-type]
        monkeypatch.setattr(merge, "merge", lambda path: tried.append(path) or refuse())
        twice = SimpleNamespace(
            version=lambda ref: home.ledger.version(ref if "duo" not in ref and "other" not in ref else "duo:1"),
            champion=champions.__getitem__,
        )
        two = [Stale("duo:1", "intent:1", "intent:9"), Stale("other:1", "intent:1", "intent:9")]
        with pytest.raises(SpecRefused) as told:
            merged_again(SimpleNamespace(ledger=twice, scratch=home.scratch), two)  # type: ignore[arg-type]
    assert (len(tried), len(told.value.problems)) == (2, 2), "one that is refused does not keep the other from it"
    (recipe,) = followed
    before = load_merge_spec(factory.folder / "duo recipe.yaml")
    assert recipe.parents == ("intent:9", "tone:1")
    assert recipe == before.model_copy(update={"parents": recipe.parents})
    assert factory.litter() == []
    assert factory.run("merge", "--stale", "--list").code == 0
