from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

STEPS = 60


def test_a_spec_becomes_a_champion_whose_stored_bytes_are_what_the_ledger_says(factory: Any, intent: Any) -> None:
    version = intent.outcome.version
    ((artifact, kind, spec),) = factory.sql(
        "SELECT artifact, kind, body FROM versions JOIN specs ON spec = digest WHERE name = 'intent' AND number = 1"
    )
    assert (artifact, kind) == (version.artifact, "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "factory.json"} <= set(factory.files(artifact))
    assert json.loads(spec)["data"]["prompt"] == "{text} intent:"
    moves = factory.sql("SELECT seq, move, previous, number FROM promotions WHERE name = 'intent'")
    assert moves[0] == (1, "promote", None, 1)
    assert intent.outcome.promoted


def test_the_second_blessing_is_an_answer_from_a_fresh_process(intent: Any, desk: Any) -> None:
    (answers,) = intent.answers
    assert len(answers) == 3
    assert {answer.strip() for answer in answers} <= set(desk["intent"].labels)


def test_every_step_of_the_training_is_a_point_in_mlflow(factory: Any, intent: Any) -> None:
    mlflow = factory.mlflow()
    run = mlflow.get_run(mlflow.get_model_version("intent", "1").run_id)
    assert run.info.status == "FINISHED"
    for name in ("loss", "rate", "grad_norm"):
        points = mlflow.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    losses = sorted((point.step, point.value) for point in mlflow.get_metric_history(run.info.run_id, "loss"))
    assert [value for _, value in losses] == [step.loss for step in intent.outcome.candidate.curve.steps]
    assert len(mlflow.get_metric_history(run.info.run_id, "validation_loss")) == 2
    assert json.loads(run.data.params["spec"])["method"]["rank"] == 8


def test_the_registered_model_has_alias_lineage_and_figures(factory: Any, intent: Any) -> None:
    mlflow, version = factory.mlflow(), intent.outcome.version
    served = mlflow.get_model_version_by_alias("intent", "champion")
    assert str(served.version) == "1"
    tags = json.dumps(served.tags)
    for digest in (version.artifact, version.base, version.parents[0][1].removeprefix("dataset:")):
        assert digest[:12] in tags
    figures = mlflow.list_artifacts(served.run_id, "figures")
    assert {Path(file.path).name for file in figures} == {"curve.svg", "scores.svg"}
    assert {Path(file.path).name for file in mlflow.list_artifacts(served.run_id, "adapter")} >= {"adapter_config.json"}
    assert b"<svg" in factory.files(version.figures)["curve.svg"].read_bytes()


def test_the_prefect_run_shows_the_data_the_plan_the_scores_and_the_gates(factory: Any, intent: Any) -> None:
    for words in ("Data of intent", "Memory plan", "untouched base", "Scores and gates"):
        assert words in intent.shown
    page = (factory.home / "reports" / "intent-1.html").read_text(encoding="utf-8")
    assert "Scores and gates" in page
    assert "<script" not in page


def test_row_by_row_the_ledger_says_what_plain_peft_answers(factory: Any, intent: Any, desk: Any) -> None:
    """transformers and PEFT alone: NF4 base, adapter from the store, greedy decoding, compared as text."""
    import peft
    import torch
    import transformers

    folder = next(iter(factory.files(intent.outcome.version.artifact).values())).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(factory.base)
    in_4_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        factory.base, quantization_config=in_4_bits, dtype=torch.float32, device_map={"": "cpu"}
    )
    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    wanted = {f"{row['text']} intent:": f" {row['label']}" for row in desk["intent"].rows(280, seed=0)}
    outcomes = dict(zip(intent.outcome.scores.keys, intent.outcome.scores.outcomes, strict=True))
    judged = [
        (prompt, outcomes[key]) for prompt in wanted if (key := hashlib.sha256(prompt.encode()).hexdigest()) in outcomes
    ]
    assert len(judged) == len(outcomes) > 60
    for prompt, outcome in [pair for pair in judged if pair[1] == 0.0] + judged[:20]:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            said = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[
                0, ids["input_ids"].shape[1] :
            ]
        assert (tokenizer.decode(said, skip_special_tokens=True) == wanted[prompt]) == bool(outcome)


def test_the_adapter_beats_the_base_on_the_same_rows_and_the_gate_says_so(intent: Any) -> None:
    adapter, base = intent.outcome.scores, intent.outcome.base_scores
    assert adapter.keys == base.keys
    assert sum(adapter.outcomes) > sum(base.outcomes) + 0.5 * adapter.n
    (gate,) = intent.outcome.decision.gates
    assert (gate.name, gate.n, gate.passed) == ("gain over the base", adapter.n, True)
    assert gate.measured == pytest.approx(adapter.score - base.score)


def test_no_path_of_this_machine_is_in_an_artifact(factory: Any, intent: Any) -> None:
    here = [str(factory.folder), str(factory.base.parent), str(Path.home()), "/tmp/"]
    for path in factory.files(intent.outcome.version.artifact).values():
        assert [place for place in here if place.encode() in path.read_bytes()] == []


def test_the_same_rows_and_base_elsewhere_are_the_same_version_and_nothing_is_trained(
    factory: Any, intent: Any, desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train

    shutil.copytree(factory.base, tmp_path / factory.base.name)
    shutil.copy(factory.folder / "intent.jsonl", tmp_path)
    spec = factory.spec(
        desk["intent"], "moved house", data=tmp_path / "intent.jsonl", base__model=str(tmp_path / factory.base.name)
    )
    monkeypatch.setattr("tasks.training.loop.train_adapter", lambda *_, **__: pytest.fail("it was trained again"))
    before = factory.remembered()
    with factory.active():
        again = train(str(spec))
    assert again.version == intent.outcome.version
    assert (again.scores.outcomes, again.scores.keys) == (intent.outcome.scores.outcomes, intent.outcome.scores.keys)
    assert again.promoted
    assert factory.remembered() == before


def test_a_worse_candidate_is_kept_but_not_served_and_each_gate_it_fails_has_a_line(
    factory: Any, intent: Any, desk: Any
) -> None:
    """The data grew meanwhile, and the spec judges on fewer rows: it is held against the champion all the same."""
    grown = [*desk["intent"].rows(280, seed=0), *desk["intent"].rows(60, seed=9)]
    data = factory.rows("intent grown.jsonl", grown)
    hasty = {"training__steps": 1, "training__learning_rate": 1e-6, "evaluation__max_rows": 60}
    said = factory.run("train", factory.spec(desk["intent"], "hasty", data=data, **hasty))
    assert said.code == 5
    first = f"test of {intent.outcome.scores.dataset[:8]}"
    lines = [line for line in said.lines if line.startswith("E-GATE")]
    assert all("gain over the base" in line or f"kept on {first}" in line for line in lines)
    assert len({line.split(":")[2] for line in lines}) == len(lines) == 3, "a gain on either slice, and what is kept"
    ((number, artifact),) = factory.sql(
        "SELECT number, artifact FROM versions WHERE name = 'intent' ORDER BY id DESC LIMIT 1"
    )
    assert number > 1
    assert factory.files(artifact)
    assert factory.sql("SELECT number FROM promotions WHERE name = 'intent'") == [(1,)]
    assert str(factory.mlflow().get_model_version_by_alias("intent", "champion").version) == "1"
    assert factory.mlflow().get_model_version("intent", str(number)).aliases in ([], ["challenger"])
    assert factory.litter() == []


def test_another_seed_is_another_version(hasty: Any) -> None:
    one, other = hasty
    assert one.version_key != other.version_key
    assert one.artifact != other.artifact
    assert (one.parents, one.base, one.code) == (other.parents, other.base, other.code)


def test_what_says_nothing_in_a_fresh_process_is_not_served_until_it_does(
    factory: Any, fleet: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = factory.spec(desk["tone"])
    monkeypatch.setattr("tasks.training.loop.train_adapter", lambda *_, **__: pytest.fail("it was trained again"))
    monkeypatch.setattr("tasks.export.answer.answer_in_fresh_process", lambda *_, **__: ("", " \n", ""))
    mute = factory.run("train", spec)
    assert mute.code == 4
    assert mute.lines[-1].startswith("E-ADAPTER-010 tone:1: says nothing")
    assert factory.sql("SELECT * FROM promotions WHERE name = 'tone'") == []
    monkeypatch.setattr("tasks.export.answer.answer_in_fresh_process", lambda *_, **__: ("", "a word", ""))
    assert factory.run("train", spec).code == 0
    assert factory.sql("SELECT move, number FROM promotions WHERE name = 'tone'") == [("promote", 1)]


def test_a_run_that_blows_up_leaves_its_curve_in_mlflow_and_nothing_else(factory: Any, fleet: Any, desk: Any) -> None:
    before = factory.remembered()
    said = factory.run("train", factory.spec(desk["tone"], "wild", method__alpha=1e38, training__learning_rate=1.0))
    assert said.code == 5
    assert said.lines[-1].startswith("E-TRAIN-001 tone: not a number: ")
    tried = {table: before[table] + 1 for table in ("runs", "attempts", "leases")}  # that it was tried, and no more
    assert factory.remembered() == before | tried
    assert factory.litter() == []
    mlflow = factory.mlflow()
    experiment = mlflow.get_experiment_by_name("tone")
    failed = mlflow.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    assert len(failed) == 1
    assert mlflow.get_metric_history(failed[0].info.run_id, "loss")


def test_a_classifier_is_trained_registered_served_and_answers_by_name(factory: Any, mood: Any, desk: Any) -> None:
    assert mood.outcome.promoted, mood.outcome.decision.sentence
    ((spec, artifact),) = factory.sql(
        "SELECT body, artifact FROM versions JOIN specs ON spec = digest WHERE name = 'mood' AND number = 1"
    )
    assert json.loads(spec)["data"]["labels"] == sorted(desk["mood"].labels)
    assert json.loads(factory.files(artifact)["labels.json"].read_text()) == sorted(desk["mood"].labels)
    assert factory.sql("SELECT number FROM promotions WHERE name = 'mood'") == [(1,)]
    (answers,) = mood.answers
    assert len(answers) == 3
    assert set(answers) <= set(desk["mood"].labels)
