"""A large ledger answers from its indexes: the benchmark in short."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_question_reads_every_edge_or_every_evaluation_and_the_last_line_is_the_figure():
    command = [sys.executable, "benchmarks/ledger_scale.py", "--versions", "600", "--repeats", "5", "--plans"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    plans, last = said.rsplit("\n", 2)[0], said.splitlines()[-1]
    assert plans.count("SEARCH edges USING") >= 3
    assert re.findall(r"SCAN (?:edges|evaluations|specs)(?! USING COVERING)", plans) == []
    figures = json.loads(last)
    assert figures["versions"] == 600
    assert figures["evaluations"] == 6000
    assert max(q["cpu_p95_ms"] for q in figures["queries"].values()) == figures["worst_cpu_p95_ms"] < 50
