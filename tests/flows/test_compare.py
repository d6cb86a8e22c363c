from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.compare import refuse_impossible
from tasks.errors import SpecRefused
from tasks.specs import AdapterSpec, MethodSpec


def runs_of(factory: Any) -> tuple[Any, list[Any]]:
    """The newest comparison's run in MLflow, and the runs under it."""
    experiment = factory.mlflow().get_experiment_by_name("tone")
    runs = factory.mlflow().search_runs([experiment.experiment_id], "tags.`factory.flow` = 'compare'")
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def test_every_method_and_rank_has_a_row_and_nothing_is_registered(factory: Any, desk: Any) -> None:
    spec = factory.spec(desk["tone"], "compared", training__steps=3, method__alpha=12.0)
    factory.run("validate", spec)
    before = factory.remembered()
    said = factory.run("--json", "compare", spec, "--methods", "lora, dora, ia3", "--ranks", "2,4")
    assert said.code == 0, said.err
    table = json.loads(said.out)["result"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(row["method"], row["rank"]) for row in rows] == [
        *[("untouched base", None), ("lora", 2), ("lora", 4), ("dora", 2), ("dora", 4)],
        ("ia3", None),  # it has no rank, so it is trained once
    ]
    parameters = {(row["method"], row["rank"]): row["trainable share"] for row in rows[1:]}
    assert parameters["lora", 4] == pytest.approx(2 * parameters["lora", 2])
    assert parameters["dora", 2] > parameters["lora", 2]
    for row in rows[1:]:
        assert row["mergeable"]
        assert row["peak memory"] > 1 << 20
        assert row["pass attached"] > 0
        assert row["pass merged"] > 0
        assert abs(row["forgotten"]) < 1  # three steps forget little
    assert factory.remembered() == before
    assert factory.litter() == []
    parent, runs = runs_of(factory)
    scale = {
        float(json.loads(run.data.params["spec"])["method"]["alpha"]) / int(run.data.params["method.rank"])
        for run in runs
    }
    assert len(runs) == 5
    assert scale == {1.5}  # alpha / rank stays as in the spec
    assert parent.data.metrics["lora-r4-seed-0/score"] == pytest.approx(rows[2][table["columns"][7]])
    assert parent.data.metrics["ia3-seed-0/pass_attached"] == pytest.approx(rows[5]["pass attached"])
    kept = factory.mlflow().download_artifacts(parent.info.run_id, "comparison.json")
    stored = json.loads(Path(kept).read_text())
    assert (stored["columns"], stored["rows"]) == (table["columns"], table["rows"])


def test_seeds_have_a_mean_with_its_interval_and_no_comparison_writes_over_another(factory: Any, desk: Any) -> None:
    spec = factory.spec(desk["tone"], "repeated", training__steps=2, method__alpha=12.0)
    pages = set((factory.home / "reports").glob("compare-tone-*.html"))
    said = factory.run("--json", "compare", spec, "--ranks", "4", "--seeds", "2", "--keep-alpha")
    assert said.code == 0, said.err
    table = json.loads(said.out)["result"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(row["rank"], row["seed"]) for row in rows[1:]] == [(4, 0), (4, 1), (4, "mean of 2")]
    first, second, mean = rows[1:]
    for column in ("pass attached", "forgotten", table["columns"][7], "seconds"):
        assert mean[column] == pytest.approx((first[column] + second[column]) / 2)
    assert mean["low"] <= min(first[table["columns"][7]], second[table["columns"][7]])
    assert first["peak memory"] == pytest.approx(second["peak memory"], rel=0.5)  # whichever comes first
    assert "Student" in table["note"]
    _, runs = runs_of(factory)
    assert {json.loads(run.data.params["spec"])["method"]["alpha"] for run in runs} == {12.0}
    now = set((factory.home / "reports").glob("compare-tone-*.html"))
    assert len(now - pages) == 1
    assert pages < now


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--methods", "lora,loar"), "E-SPEC-022 methods: 'loar' is not in the catalogue -> did you mean 'lora'?"),
        (("--ranks", "four"), "E-SPEC-014 --ranks: 'four' is no list of numbers"),
        (("--methods", "nosuch"), "E-SPEC-022 methods: 'nosuch' is not in the catalogue -> choose of lora, rslora,"),
        (("--ranks", "0,4"), "E-SPEC-014 ranks: 0 is no rank"),
        (("--ranks", "9999"), "E-SPEC-014 ranks: 9999 is no rank: input should be less than or equal to 4096"),
        (("--ranks", "4,65"), "E-SPEC-012 method.rank: rank 65 is above the dimension"),
        (("--methods", "lora,full"), "E-SPEC-042 methods: full: 4-bit weights have no gradient"),
        (("--seeds", "0"), "E-SPEC-019 factory compare: "),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_the_first_run(
    factory: Any, desk: Any, words: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.training.loop.train_adapter", lambda *_, **__: pytest.fail("one was trained"))
    spec = factory.spec(desk["tone"], "never compared")
    said = factory.run("compare", spec, *words)
    assert said.code == 2
    assert any(line.startswith(expected) for line in said.lines)
    assert factory.litter() == []


def test_a_method_that_needs_the_whole_base_is_not_compared_on_a_shared_one() -> None:
    tree = {
        "task": "tone",
        "kind": "generation",
        "base": {"model": "/base"},
        "data": {"source": "/rows.jsonl", "prompt": "{a}", "completion": "{b}"},
        "resources": {"processes": 2, "shard_base": True},
    }
    lora = AdapterSpec.model_validate(tree)
    refuse_impossible([lora])
    dora = lora.model_copy(update={"method": MethodSpec(name="dora")})
    with pytest.raises(SpecRefused, match=r"E-SPEC-042 methods: dora: starts from every weight of the base at once"):
        refuse_impossible([lora, dora])
