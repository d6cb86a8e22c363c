"""A fresh process answers from files alone as the model does here; what cannot answer is refused in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.evaluation.scoring import answers
from tasks.export import answer
from tasks.export.answer import answer_in_fresh_process
from tasks.export.model import export_model
from tasks.merging.base import open_base
from tasks.merging.merge import Parent, check_parents, merged_updates
from tasks.methods.build import attached
from tasks.specs import BaseSpec
from tasks.training.base import load_base

PROMPTS = ["bado kilu", "zofe mira toga", 'quotes " and \\ and\nlines']


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The same program in this process."""
    lines = "".join(json.dumps({"input": prompt}) + "\n" for prompt in PROMPTS)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert answer.main([str(argument) for argument in arguments]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(record["seconds"] >= 0 for record in records)
    return [record["output"] for record in records]


def test_an_exported_model_answers_in_a_fresh_process_as_the_adapter_did_here(
    tmp_path: Path, tiny_base: Path, adapters: dict[str, Path]
) -> None:
    spec = BaseSpec(model=str(tiny_base), quantization="none", compute_dtype="float32")
    here = load_base(spec, kind="generation")
    with attached(here, adapters["triage"]) as model:
        expected = tuple(found.text for found in answers(here, model, PROMPTS, max_new_tokens=8))
    assert len(set(expected)) > 1, "the prompt decides"
    base = open_base(tiny_base)
    plan = check_parents([Parent("triage:1", "triage", adapters["triage"], "digest")], base)
    export_model(tmp_path / "model", base, merged_updates(plan, "average"))
    answer.expect_a_question()
    (waiting,) = answer._waiting
    assert answer_in_fresh_process(tmp_path / "model", PROMPTS, max_new_tokens=8) == expected
    assert waiting.returncode == 0, "the process that waited is the one that answered, once"
    assert not answer._waiting


def test_an_adapter_on_its_nf4_base_answers_as_it_does_here(
    tiny_base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = load_base(BaseSpec(model=str(tiny_base), quantization="nf4"), kind="generation")
    with attached(here, adapters["route"]) as model:
        expected = [found.text for prompt in PROMPTS for found in answers(here, model, [prompt], max_new_tokens=6)]
    arguments = ("--adapter", adapters["route"], "--quantization", "nf4", "--max-new-tokens", 6)
    assert said(monkeypatch, capsys, tiny_base, *arguments) == expected


@pytest.fixture(scope="module")
def body(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, classifiers: dict[str, Path], build: Any
) -> Path:
    """A merged body that mostly is the "mood" classifier, with both heads."""
    folder = tmp_path_factory.mktemp("merged") / "body"
    base = open_base(tiny_encoder)
    plan = check_parents([Parent(f"{task}:1", task, path, "digest") for task, path in classifiers.items()], base)
    updates = merged_updates(plan, "task_arithmetic", weights={"topic": 0.0})
    export_model(folder, base, updates, heads=plan.heads, labels=build.labels)
    return folder


def test_one_merged_body_answers_each_task_with_its_own_head(
    body: Path,
    tiny_encoder: Path,
    classifiers: dict[str, Path],
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = BaseSpec(model=str(tiny_encoder), quantization="none")
    here = load_base(spec, kind="classification", labels=build.labels["mood"])
    with attached(here, classifiers["mood"]) as model:
        expected = [found.text for found in answers(here, model, PROMPTS)]
    assert said(monkeypatch, capsys, body, "--kind", "classification", "--head", "mood") == expected
    topics = said(monkeypatch, capsys, body, "--kind", "classification", "--head", "topic")
    assert set(topics) <= set(build.labels["topic"])


def test_a_classifier_adapter_answers_with_the_labels_beside_it(
    tiny_encoder: Path,
    classifiers: dict[str, Path],
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (tiny_encoder, "--kind", "classification", "--adapter", classifiers["mood"])
    by_number = said(monkeypatch, capsys, *arguments)
    (classifiers["mood"] / "labels.json").write_text(json.dumps(build.labels["mood"]))
    assert said(monkeypatch, capsys, *arguments) == [build.labels["mood"][int(number)] for number in by_number]


def test_heads_and_labels_must_agree(tmp_path: Path, tiny_encoder: Path, classifiers: dict[str, Path]) -> None:
    base = open_base(tiny_encoder)
    plan = check_parents([Parent("mood:1", "mood", classifiers["mood"], "digest")], base)
    for labels in ({}, {"mood": ("calm", "angry")}, {"topic": ("a", "b", "c")}):
        with pytest.raises(SpecRefused, match="E-MERGE-034"):
            export_model(tmp_path / "model", base, heads=plan.heads, labels=labels)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_load_is_refused_with_the_last_line_it_said(tmp_path: Path) -> None:
    answer.expect_a_question()
    answer._waiting[0].kill()  # one that died while it waited is replaced
    answer._waiting[0].wait()
    with pytest.raises(ArtifactRefused) as refusal:
        answer_in_fresh_process(tmp_path, ["hello"])
    assert "exit 4" in str(refusal.value)
    assert "config.json" in str(refusal.value) or "safetensors" in str(refusal.value)
    assert len(refusal.value.lines()) == 1


def test_a_model_that_takes_too_long_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ArtifactRefused, match=r"within 0\.01 s"):
        answer_in_fresh_process(tiny_base, ["hello"], timeout_seconds=0.01)


@pytest.mark.parametrize(
    ("line", "arguments", "code"),
    [
        ("no json\n", (), 3),
        ('{"prompt": "x"}\n', (), 3),
        ('{"input": "x"}\n', ("--kind", "classification", "--head", "absent"), 4),
    ],
)
def test_bad_requests_end_with_one_line_and_their_exit_code(
    line: str,
    arguments: tuple[str, ...],
    code: int,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    assert answer.main([str(tiny_base), *arguments]) == code
    assert capsys.readouterr().err.startswith("E-")
