"""Two small tasks over made-up words, and specs for the tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasks.data.examples import Example, key_of
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec

LABELS = ("card", "loan", "theft")
MakeRows = Callable[..., list[Example]]
MakeSpec = Callable[..., AdapterSpec]


@pytest.fixture(scope="session")
def make_rows(made_up_words: list[str]) -> MakeRows:
    """Rows of a task: two to seven words, of which one betrays the class. For generation the class must be written."""

    def rows(kind: str, count: int, seed: int = 0) -> list[Example]:
        draw, made = Random(f"{kind} {seed}"), []
        while len(made) < count:
            label = draw.randrange(len(LABELS))
            words = [*draw.choices(made_up_words[9:], k=draw.randint(1, 6)), made_up_words[label]]
            draw.shuffle(words)
            text, target = " ".join(words), LABELS[label]
            if kind == "generation":
                text, target = f"{text} ->", f" {target}"
            made.append(Example(key_of(text), text, target, len(made) + 1))
        return made

    return rows


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """A spec of either kind over a base folder; a quick recipe unless told otherwise."""

    def spec(
        kind: str,
        folder: Path,
        *,
        quantization: Any = "nf4",
        compute_dtype: Any = "auto",
        method: MethodSpec | None = None,
        seed: int = 0,
        **training: Any,
    ) -> AdapterSpec:
        columns: dict[str, Any] = {"labels": LABELS}
        if kind == "generation":
            columns = {"prompt": "{text} ->", "completion": " {label}"}
        return AdapterSpec(
            task="triage",
            kind=kind,  # type: ignore[arg-type]
            base=BaseSpec(model=str(folder), quantization=quantization, compute_dtype=compute_dtype),
            data=DataSpec(source="/rows.jsonl", **columns),
            method=method or MethodSpec(rank=8, dropout=0.0),
            training=TrainingSpec(**{"steps": 6, "validations": 2, "learning_rate": 3e-3, "batch_size": 8} | training),
            seed=seed,
        )

    return spec


@pytest.fixture(scope="session")
def good_run(
    tiny_base: Path, make_rows: MakeRows, make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A run on the tiny base that really learns its task: most answers are right, some are not."""
    from tasks.training.base import load_base
    from tasks.training.loop import train_adapter

    spec = make_spec("generation", tiny_base, steps=60, learning_rate=6e-3, batch_size=16, validations=6)
    base = load_base(spec.base, kind="generation")
    rows, held_out = make_rows("generation", 200), make_rows("generation", 60, 1)
    return train_adapter(base, spec, rows, held_out, tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def exact_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without its own dropout, so that two ways to the same numbers can be compared."""
    folder = tmp_path_factory.mktemp("exact") / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
