"""K03: the same spec, given to eight processes at once, is trained once, and every one of them comes home with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

EIGHT = """
import multiprocessing, sys
from flows.commands.speaking import ready
ready()
import great_expectations, peft, torch, transformers, flows.train  # once; eight processes share what is loaded
from flows.cli import main
from flows.wiring import opened
opened()  # the code is what it was when they were started, whoever edits it meanwhile

fork = multiprocessing.get_context("fork")
together = fork.Barrier(8)

def work():
    together.wait()
    main(["--json", "train", *sys.argv[1:]])

children = [fork.Process(target=work) for _ in range(8)]
for child in children:
    child.start()
for child in children:
    child.join()
sys.exit(max(abs(child.exitcode) for child in children))
"""


def test_of_eight_processes_with_one_spec_one_trains_and_all_return_its_version(
    new_factory: Callable[[], Any], desk: Any
) -> None:
    factory = new_factory()
    spec = factory.spec(desk["intent"], training__steps=12, training__learning_rate=5e-2)
    settings = {"FACTORY_HOME": str(factory.home), "FACTORY_PREFECT_API_URL": factory.api}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(spec), "--no-promote"],
        cwd=factory.folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["exit_code"], answer["result"]["version"]["number"]) for answer in said] == [(0, 1)] * 8
    assert sum(answer["result"]["candidate"] is not None for answer in said) == 1
    assert factory.sql("SELECT name, number FROM versions") == [("intent", 1)]
    assert factory.sql("SELECT number, state, outcome FROM attempts") == [(1, "done", "intent:1")]
    runs = factory.mlflow().search_runs([factory.mlflow().get_experiment_by_name("intent").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert factory.litter() == []
