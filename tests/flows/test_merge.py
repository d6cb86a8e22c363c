from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

TRIO = ("intent:1", "topic:4", "tone:1")
IN_A_FRESH_PROCESS = """
import json, sys, numpy, torch, transformers
asked = json.load(sys.stdin)
said = {}
for name, folder in asked["folders"].items():
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        for place, prompt in enumerate(asked["prompts"]):
            said[f"{name} {place}"] = model(**tokenizer(prompt, return_tensors="pt")).logits[0].numpy()
numpy.savez(asked["out"], **said)
print(json.dumps(sorted(name for name in sys.modules if name in ("tasks", "flows", "registry", "peft"))))
"""


@pytest.fixture(scope="module")
def trio(factory: Any, intent: Any, moved: Any) -> Any:
    """Three experts in one model; one of them was retrained, and is asked about both of its quarters."""
    from flows.merge import merge

    rules = [{"rule": "average", "scale": [1.0, 3.0]}, {"rule": "ties", "scale": [1.0], "density": [0.5]}]
    recipe = factory.recipe("trio", TRIO, rules=rules, gates={"min_retention": -0.5, "min_rows": 30})
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        return merge(str(recipe), str(factory.folder / "exported trio"))


@pytest.fixture(scope="module")
def solo(factory: Any, intent: Any, moved: Any) -> Any:
    from flows.merge import merge

    gates = {"max_calibration_error": 1.0, "max_answer_seconds": 60.0}
    recipe = factory.recipe("solo", ["intent:1"], rules=[{"rule": "task_arithmetic"}], gates=gates)
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        return merge(str(recipe), str(factory.folder / "exported solo"))


@pytest.fixture(scope="module")
def prompts(desk: Any) -> list[str]:
    return [f"{desk[name].rows(1, seed=50)[0]['text']} {name}:" for name in ("intent", "topic", "tone")]


@pytest.fixture(scope="module")
def logits(factory: Any, trio: Any, solo: Any, prompts: list[str]) -> dict[str, Any]:
    """What the stored models say in a process that knows transformers and none of our code."""
    import numpy

    def folder(outcome: Any) -> str:
        return str(next(iter(factory.files(outcome.version.artifact).values())).parent)

    out = str(factory.folder / "logits.npz")
    asked = {"folders": {"trio": folder(trio), "solo": folder(solo)}, "prompts": prompts, "out": out}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    return dict(numpy.load(out))


def adapter_of(factory: Any, ref: str) -> Path:
    name, number = ref.split(":")
    ((artifact,),) = factory.sql("SELECT artifact FROM versions WHERE name = ? AND number = ?", name, number)
    return next(iter(factory.files(artifact).values())).parent


def answers_of(factory: Any, model: Any, prompts: list[str]) -> list[Any]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(factory.base)
    with torch.no_grad():
        return [model(**tokenizer(prompt, return_tensors="pt")).logits[0].numpy() for prompt in prompts]


def test_one_parent_at_weight_one_says_what_peft_says(factory: Any, solo: Any, logits: Any, prompts: list[str]) -> None:
    import numpy
    import peft

    base = factory.base_as_the_adapters_saw_it()
    before = answers_of(factory, base, prompts)
    after = answers_of(
        factory, peft.PeftModel.from_pretrained(base, str(adapter_of(factory, "intent:1"))).eval(), prompts
    )
    for place, (plain, adapted) in enumerate(zip(before, after, strict=True)):
        assert abs(adapted - plain).max() > 0.5
        numpy.testing.assert_allclose(logits[f"solo {place}"], adapted, atol=2e-4)
    assert solo.decision.passed, solo.decision.sentence
    assert solo.tried[solo.chosen] == {"intent": pytest.approx(1.0, abs=0.05)}


def test_the_answers_of_one_parent_at_weight_one_are_as_well_calibrated_as_the_parents(
    factory: Any, solo: Any, intent: Any
) -> None:
    from flows.blessings import asked_gates
    from flows.wiring import opened
    from tasks.specs import AdapterSpec, GateSpec

    version = intent.outcome.version
    spec = AdapterSpec.model_validate(version.spec)
    gates = GateSpec(max_calibration_error=1.0, min_rows=30)
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"gates": gates})})
    with factory.active():
        (alone,) = asked_gates(opened(), version, spec)
    kept, sure, quick = solo.decision.gates
    assert [kept.name, sure.name, quick.name] == [
        "retention on intent",
        "calibration on intent",
        "seconds of an answer on intent",
    ]
    assert (sure.n, quick.n) == (alone.n, alone.n)
    assert sure.measured == pytest.approx(alone.measured, abs=0.02)
    assert -60 < quick.bound <= quick.measured < 0


def test_the_merged_model_is_the_base_plus_scale_times_the_merged_updates(
    factory: Any, trio: Any, logits: Any, prompts: list[str]
) -> None:
    """The witness reads the adapters with safetensors and merges them by the textbook: a mean, or TIES by entries."""
    import numpy
    import torch
    from safetensors.torch import load_file

    updates: dict[str, list[Any]] = {}
    for ref in TRIO:
        folder = adapter_of(factory, ref)
        config = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in weights if key.endswith("lora_A.weight")):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = weights[key.replace("lora_A", "lora_B")] @ weights[key] * (config["lora_alpha"] / config["r"])
            updates.setdefault(module, []).append(delta)
    model = factory.base_as_the_adapters_saw_it()
    rule, _, rest = trio.chosen.partition(" (scale ")
    scale = float(rest.split(",")[0].rstrip(")"))
    for module, deltas in updates.items():
        stacked = torch.stack(deltas)  # (parents, out, in)
        model.get_submodule(module).weight.data += scale * (
            stacked.mean(0) if rule == "average" else ties(stacked, 0.5)
        )
    for place, expected in enumerate(answers_of(factory, model, prompts)):
        numpy.testing.assert_allclose(logits[f"trio {place}"], expected, atol=2e-4)


def ties(deltas: Any, density: float) -> Any:
    """Yadav et al. 2023: keep each parent's largest entries, elect a sign, average who agrees."""
    import math

    import torch

    kept = torch.zeros_like(deltas)
    for place, delta in enumerate(deltas):
        threshold = delta.abs().flatten().sort(descending=True).values[math.ceil(density * delta.numel()) - 1]
        kept[place] = torch.where(delta.abs() >= threshold, delta, 0.0)
    elected = kept.sum(0).sign()
    agreeing = (kept.sign() == elected) & (kept != 0)
    return (kept * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def test_every_setting_was_tried_and_the_best_by_its_worst_task_was_chosen(trio: Any) -> None:
    assert len(trio.tried) == 3
    best = max(trio.tried, key=lambda name: (round(min(trio.tried[name].values()), 2), sum(trio.tried[name].values())))
    assert trio.chosen == best
    assert set(trio.scores) == {"base", "experts", trio.chosen} | {
        max((name for name in trio.tried if name.startswith(rule)), key=lambda name: min(trio.tried[name].values()))
        for rule in ("average", "ties")
    }


def test_the_merged_version_names_its_parents_and_is_served(factory: Any, trio: Any) -> None:
    ((kind, artifact),) = factory.sql("SELECT kind, artifact FROM versions WHERE name = 'trio'")
    assert (kind, artifact) == ("merged", trio.version.artifact)
    parents = factory.sql(
        "SELECT p.name || ':' || p.number FROM edges e JOIN versions v ON v.id = e.child_id"
        " JOIN versions p ON p.id = e.parent_id WHERE v.name = 'trio' AND e.role = 'parent' ORDER BY e.place"
    )
    assert tuple(ref for (ref,) in parents) == TRIO
    assert str(factory.mlflow().get_model_version_by_alias("trio", "champion").version) == "1"
    assert set(trio.answers) == {"intent", "topic", "tone"}
    said = factory.run("lineage", "trio@champion")
    assert all(ref in said.out for ref in (*TRIO, "topic:1"))


def test_the_manifests_of_an_adapter_and_of_a_merge_bind_every_file_of_both_and_of_the_base(
    factory: Any, intent: Any, trio: Any
) -> None:
    def hashes(paths: Any) -> dict[str, str]:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths}

    for version in (intent.outcome.version, trio.version):
        told = json.loads(factory.files(version.manifest)["manifest.json"].read_bytes())
        assert told["base"]["files"] == hashes((path.name, path) for path in factory.base.iterdir())
        assert {entry["path"]: entry["sha256"] for entry in told["artifact"]["files"]} == hashes(
            factory.files(version.artifact).items()
        )
        assert told["quantization"]["scheme"] == "nf4"
        assert {"tokenizer", "chat_template", "head", "spec", "code", "parents"} <= told.keys()


def test_a_retrained_parent_is_judged_on_both_of_its_quarters(factory: Any, trio: Any, moved: Any) -> None:
    rows = {key for name in ("fresh",) for key in moved.replayed.scores["candidate"][name].keys}
    rows |= {key for evaluation in moved.replayed.scores["candidate"].values() for key in evaluation.keys}
    assert set(trio.scores[trio.chosen]["topic"].keys) == rows
    assert trio.scores["experts"]["topic"].keys == trio.scores[trio.chosen]["topic"].keys


def test_the_export_is_the_stored_model_and_a_second_one_takes_its_place(
    factory: Any, solo: Any, at_its_word: None
) -> None:
    def tree(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    folder = factory.folder / "exported solo"
    stored = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in factory.files(solo.version.artifact).items()
    }
    assert tree(folder) == stored
    said = factory.run("merge", factory.folder / "solo recipe.yaml", "--out", folder)
    assert said.code == 0, said.err
    assert tree(folder) == stored
    assert factory.sql("SELECT count(*) FROM versions WHERE name = 'solo'") == [(1,)]
    assert sorted(path.name for path in factory.folder.glob(".exported*")) == []


@pytest.mark.parametrize("there", ["notes.txt", "manifest.json"])
def test_a_folder_of_someone_else_is_refused_before_anything_is_done(
    factory: Any, trio: Any, tmp_path: Path, there: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / there).write_text('{"name": "a web application"}')
    before = factory.remembered()
    recipe = factory.recipe("foreign", TRIO, gates={"min_retention": -0.5, "min_rows": 30})
    said = factory.run("merge", recipe, "--out", folder)
    assert said.code == 2
    assert said.lines[-1].startswith(f"E-MERGE-043 {folder}: ")
    assert [path.name for path in folder.iterdir()] == [there]
    assert (folder / there).read_text() == '{"name": "a web application"}'
    assert factory.remembered() == before


def test_a_model_that_keeps_too_little_is_not_served_and_not_exported(
    factory: Any, trio: Any, tmp_path: Path, at_its_word: None
) -> None:
    recipe = factory.recipe("greedy", TRIO, gates={"min_retention": 1.0, "min_rows": 30})
    said = factory.run("merge", recipe, "--out", tmp_path / "out")
    assert said.code == 5
    lines = [line for line in said.lines if line.startswith("E-")]
    assert lines
    assert all(line.startswith("E-GATE-001 greedy, average (scale 1): retention on ") for line in lines)
    assert list(tmp_path.iterdir()) == []
    assert factory.sql("SELECT * FROM promotions WHERE name = 'greedy'") == []
    assert factory.sql("SELECT kind FROM versions WHERE name = 'greedy'") == [("merged",)]
    assert factory.litter() == []


def test_what_a_merge_borrows_it_gives_back(factory: Any, trio: Any) -> None:
    """The dense base that candidates were scored on is lent to whoever comes next, with the weights of its file."""
    import torch
    from safetensors.torch import load_file

    from tasks.specs import BaseSpec
    from tasks.training.base import load_base

    asked = BaseSpec(model=str(factory.base), revision=None, quantization="none", compute_dtype="float32")
    lent = load_base(asked, kind="generation").model.state_dict()
    for name, stored in load_file(factory.base / "model.safetensors").items():
        assert torch.equal(lent[name], stored)


def test_adapters_of_different_bases_are_refused(factory: Any, intent: Any, mood: Any) -> None:
    before = factory.remembered()
    said = factory.run("--quiet", "merge", factory.recipe("mixed", ["intent:1", "mood:1"]))
    assert said.code == 4
    assert [line.split(": ")[0] for line in said.lines] == ["E-MERGE-011 mood:1"]
    assert factory.remembered() == before


def test_a_classifier_is_merged_with_its_head_and_answers_by_name(
    factory: Any, mood: Any, desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of the task, on the merged body; the words of the fresh process, said in this one."""
    from tasks.export import answer

    def in_this_process(folder: Path, asked: list[str], *, kind: str, head: str) -> tuple[str, ...]:
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr("sys.stdin", io.StringIO("".join(json.dumps({"input": one}) + "\n" for one in asked)))
            assert answer.main([str(folder), "--kind", kind, "--head", head]) == 0
        return tuple(json.loads(line)["output"] for line in out.getvalue().splitlines())

    monkeypatch.setattr(answer, "answer_in_fresh_process", in_this_process)
    recipe = factory.recipe("moods", ["mood:1"], rules=[{"rule": "task_arithmetic"}])
    said = factory.run("--json", "merge", recipe, "--out", tmp_path / "moods")
    assert said.code == 0, said.err
    answer = json.loads(said.out)["result"]
    assert answer["answers"]["mood"][1] in desk["mood"].labels
    assert answer["scores"][answer["chosen"]]["mood"]["score"] == pytest.approx(mood.outcome.scores.score, abs=0.02)
    assert json.loads((tmp_path / "moods" / "labels.json").read_text()) == {"mood": sorted(desk["mood"].labels)}
    assert (tmp_path / "moods" / "heads" / "mood.safetensors").is_file()


def test_a_merged_model_is_promoted_by_its_recipe_and_not_by_hand(factory: Any, trio: Any) -> None:
    said = factory.run("promote", "trio:1")
    assert said.code == 2
    assert said.lines[-1].startswith("E-SPEC-021 trio:1: is a merged model")


@pytest.mark.parametrize(
    ("parents", "rules", "expected"),
    [
        (["intent:1", "topik@champion"], None, "the nearest name is topic"),
        (["intent:1", "topic:99"], None, "is not in the ledger"),
        (["intent:1", "trio@champion"], None, "E-MERGE-040 trio@champion: is a merged model"),
        (
            ["intent:1", "topic:1"],
            [{"rule": "tie"}],
            "E-MERGE-001 rules.0.rule: 'tie' is no merge rule -> did you mean ties?",
        ),
        (["intent:1"], [{"rule": "average", "weights": {"tone": 1.0}}], "'tone' is no parent"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    factory: Any, trio: Any, parents: list[str], rules: Any, expected: str
) -> None:
    before = factory.remembered()
    recipe = factory.recipe("odd", parents, **({"rules": rules} if rules else {}))
    said = factory.run("merge", recipe)
    assert said.code == 2
    assert expected in said.lines[-1]
    assert factory.remembered() == before


def test_a_name_is_that_of_an_adapter_or_of_a_merged_model(factory: Any, trio: Any, desk: Any) -> None:
    before = factory.remembered()
    for words, wrong in (
        (("merge", factory.recipe("intent", TRIO)), "intent: is the name of an adapter, intent:1"),
        (("train", factory.spec(desk["tone"], "namesake", task="trio")), "trio: is the name of a merged model, trio:1"),
    ):
        said = factory.run(*words)
        assert said.code == 2
        assert f"E-SPEC-048 {wrong}" in said.lines[-1]
    assert factory.remembered() == before
