"""The curve of an adapter, of a run and of a foreign file, read on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_an_adapters_curve_is_shown_with_what_it_says(factory: Any, intent: Any) -> None:
    said = factory.run("diagnose", "intent:1")
    assert said.code == 0, said.err
    assert intent.outcome.candidate.findings[0].cause in said.out
    assert said.out.count("·") > 20
    assert "o" in said.out
    (line,) = [line for line in said.out.splitlines() if line.startswith("figure: ")]
    assert b"<svg" in Path(line.removeprefix("figure: ")).read_bytes()


def test_the_curve_is_the_one_that_was_recorded(factory: Any, intent: Any) -> None:
    told = json.loads(factory.run("--json", "diagnose", "intent:1").out)["result"]
    recorded = intent.outcome.candidate.curve
    assert [(step["step"], step["loss"]) for step in told["curve"]["steps"]] == [
        (step.step, step.loss) for step in recorded.steps
    ]
    assert [look["loss"] for look in told["curve"]["looks"]] == [look.loss for look in recorded.looks]
    assert told["curve"]["start_loss"] == recorded.start_loss
    assert told["curve"]["blind_loss"] == recorded.blind_loss > 0
    mlflow = factory.mlflow()
    shown = json.loads(factory.run("--json", "show", "intent:1").out)["result"]["run"]
    for run in (mlflow.get_model_version("intent", "1").run_id, shown):
        again = json.loads(factory.run("--json", "diagnose", run).out)["result"]
        assert again["curve"] == told["curve"]
        assert again["findings"] == told["findings"]


def test_a_trainers_state_file_is_read_too(factory: Any) -> None:
    path = factory.folder / "trainer_state.json"
    history = [{"step": i, "loss": 4.0, "learning_rate": 1e-9, "grad_norm": 0.1} for i in range(1, 41)]
    path.write_text(json.dumps({"log_history": history, "max_steps": 40}))
    said = factory.run("diagnose", path, "--out", factory.folder / "foreign.svg")
    assert said.code == 0, said.err
    assert "did not move" in said.out
    assert (factory.folder / "foreign.svg").is_file()


FALLING = [{"step": i, "loss": 4.0 - i / 10, "learning_rate": 1e-3, "grad_norm": 0.1} for i in range(1, 31)]


def test_a_file_with_the_longest_name_is_read_and_a_longer_one_is_none(factory: Any) -> None:
    path = factory.folder / ("a" * 255)
    path.write_text(json.dumps({"log_history": FALLING, "max_steps": 30}))
    said = factory.run("diagnose", path)
    assert said.code == 0, said.err
    for name in (f"{path}a", "a" * 5000, "a/" * 3000):
        said = factory.run("diagnose", name)
        assert (said.code, len(said.lines)) == (2, 1), said.err
        assert said.lines[0].startswith("E-LEDGER-")


def test_a_figure_is_refused_a_place_where_no_file_can_be(factory: Any) -> None:
    path = factory.folder / "state.json"
    path.write_text(json.dumps({"log_history": FALLING, "max_steps": 30}))
    (factory.folder / "loop").symlink_to("loop")
    for out in (
        factory.folder,
        path / "x.svg",
        path / "x" / "y.svg",
        factory.folder / ("a" * 300),
        factory.folder / "loop",
    ):
        said = factory.run("diagnose", path, "--out", out)
        assert said.code == 2, said.err
        assert [line.split(":")[0] for line in said.lines] == [f"E-SPEC-049 --out {out}"]


def test_what_is_neither_is_refused_in_one_line(factory: Any, intent: Any) -> None:
    for source, code in (("nobody:1", 2), ("0" * 32, 2)):
        said = factory.run("diagnose", source)
        assert (said.code, len(said.lines)) == (code, 1), said.err


def test_traffic_that_moved_is_a_finding_of_the_adapter(factory: Any, moved: Any) -> None:
    said = factory.run("diagnose", moved.watched.version.ref)
    assert said.code == 0, said.err
    assert f"was judged '{moved.watched.report.verdict}'" in said.out


def test_a_look_inside_an_adapter_shows_every_module_that_it_adapts(factory: Any, intent: Any) -> None:
    said = factory.run("--json", "inspect", "intent:1", "--against", "intent:1")
    assert said.code == 0, said.err
    look = json.loads(said.out)["result"]
    assert len(look["modules"]) == 14
    assert all(0 < module["effective_rank"] <= 8.001 for module in look["modules"])
    assert all(abs(phi - 1) < 1e-6 for phi in look["similarity"].values())
    assert "keeps 99% of every module's update" in look["advice"][0]
