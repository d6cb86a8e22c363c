"""Two small tasks over made-up words, and specs for the tiny models."""

from __future__ import annotations

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
