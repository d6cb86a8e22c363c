"""What PEFT does not carry or cannot merge is served all the same: a fresh process loads it on NF4 and answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation.scoring import answers
from tasks.export import answer
from tasks.methods.build import attached
from tasks.specs import MethodSpec
from tasks.training.base import load_base
from tasks.training.loop import train_adapter

Make = Callable[..., Any]


@pytest.mark.parametrize("name", ["bottleneck", "prefix", "prompt", "ptuning"])
def test_the_process_that_answers_says_what_this_one_says(
    name: str,
    tiny_base: Path,
    tmp_path: Path,
    make_rows: Make,
    make_spec: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The one that only we know is asked in a process of its own; the others, as that process does, in this one."""
    method = MethodSpec(name=name, rank=4, dropout=0.0)
    spec = make_spec("generation", tiny_base, method=method, steps=40, learning_rate=1e-2, batch_size=16)
    base = load_base(spec.base, kind="generation")
    train_adapter(base, spec, make_rows("generation", 96), [], tmp_path)
    asked = [row.input for row in make_rows("generation", 2, 1)]
    with attached(base, tmp_path) as model:
        here = answers(base, model, asked)
    if name == "bottleneck":
        said = answer.answer_in_fresh_process(tiny_base, asked, adapter=tmp_path, quantization="nf4")
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps({"input": row}) + "\n" for row in asked)))
        assert answer.main([str(tiny_base), "--adapter", str(tmp_path), "--quantization", "nf4"]) == 0
        said = tuple(json.loads(line)["output"] for line in capsys.readouterr().out.splitlines())
    assert said == tuple(one.text for one in here)
    assert any(text.strip() for text in said)
