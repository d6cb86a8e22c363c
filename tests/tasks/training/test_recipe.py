"""What is left to us is chosen within the published ranges, and every choice says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.memory import read_shapes
from tasks.spec_files import load_adapter_spec
from tasks.specs import LEFT_TO_THE_RECIPE, AdapterSpec
from tasks.training.recipe import Facts, facts_of, rate_at, with_choices

Make = Callable[..., Any]
# rows, dropout, weight decay: the table of the issue, its ends included
PUBLISHED = [
    (range(1, 1000, 37), (0.1, 0.15), (0.05, 0.1)),
    (range(1000, 10_000, 371), (0.05, 0.1), (0.01, 0.05)),
    (range(10_000, 100_000, 3701), (0.0, 0.05), (0.01, 0.01)),
    (range(100_000, 10**6, 37_001), (0.0, 0.0), (0.01, 0.01)),
]


@pytest.fixture
def asked(make_spec: Make) -> AdapterSpec:
    return make_spec("generation", Path("/base"), batch_size=16).model_copy(update={"auto": LEFT_TO_THE_RECIPE})


@pytest.mark.parametrize(("rows", "dropout", "decay"), PUBLISHED)
def test_dropout_and_decay_lie_in_the_published_ranges(rows: Any, dropout: Any, decay: Any, asked: AdapterSpec) -> None:
    for count in rows:
        made = with_choices(asked, Facts(count, 2048, 2048))
        assert dropout[0] <= made.method.dropout <= dropout[1]
        assert decay[0] <= made.training.weight_decay <= decay[1]


def test_more_rows_never_ask_for_more_holding_back_or_less_rank(asked: AdapterSpec) -> None:
    made = [with_choices(asked, Facts(10 ** (i / 5), 2048, 2048)) for i in range(5, 35)]  # type: ignore[arg-type]
    for field in (lambda s: -s.method.dropout, lambda s: -s.training.weight_decay, lambda s: s.method.rank):
        values = [field(spec) for spec in made]
        assert values == sorted(values)


def test_the_rate_falls_with_the_hidden_size_and_not_with_the_rank(asked: AdapterSpec) -> None:
    for hidden in (128, 256, 2000):
        assert rate_at(2 * hidden) == pytest.approx(rate_at(hidden) / 2**0.781)
    for rows in (100, 10**6):
        made = with_choices(asked, Facts(rows, 4096, 4096))
        assert made.training.learning_rate == pytest.approx(5e-5 * 10 * (2000 / 4096) ** 0.781, rel=0.03)


def test_every_choice_has_its_value_and_its_reason_and_nothing_is_left_open(asked: AdapterSpec) -> None:
    made = with_choices(asked, Facts(5000, 256, 64))
    assert made.auto == ()
    assert set(made.chosen) == set(LEFT_TO_THE_RECIPE)
    assert made.chosen["method.rank"].startswith(f"{made.method.rank}: 5,000 rows of generation")
    assert AdapterSpec.model_validate(json.loads(made.model_dump_json())) == made


def test_a_rank_fits_the_smallest_layer(asked: AdapterSpec) -> None:
    assert with_choices(asked, Facts(10**6, 32, 12)).method.rank == 12


def test_facts_come_from_the_headers(tiny_base: Path) -> None:
    assert facts_of(read_shapes(tiny_base), 77) == Facts(77, 64, 32)


def spec_file(folder: Path, method: str, training: str) -> Path:
    path = folder / "spec.yaml"
    (folder / "rows.jsonl").write_text("{}\n")
    path.write_text(
        "task: t\nkind: generation\nbase: {model: .}\n"
        "data: {source: rows.jsonl, prompt: '{a}', completion: '{b}'}\n"
        f"method: {method}\ntraining: {training}\n"
    )
    return path


def test_a_file_says_auto_and_the_loader_notes_it(tmp_path: Path) -> None:
    method, training = (
        "{rank: auto, dropout: auto, targets: auto}",
        "{learning_rate: auto, weight_decay: auto, epochs: auto}",
    )
    assert set(load_adapter_spec(spec_file(tmp_path, method, training)).auto) == set(LEFT_TO_THE_RECIPE)
    assert load_adapter_spec(spec_file(tmp_path, "{rank: 4}", "{steps: 3}")).auto == ()


@pytest.mark.parametrize("method", ["{rank: automatic}", "{alpha: auto}"])
def test_auto_is_a_word_for_these_fields_alone(tmp_path: Path, method: str) -> None:
    from tasks.errors import SpecRefused

    with pytest.raises(SpecRefused):
        load_adapter_spec(spec_file(tmp_path, method, "{steps: 3}"))


def test_the_schema_lets_editors_write_auto() -> None:
    schema = AdapterSpec.model_json_schema()["$defs"]
    for path in LEFT_TO_THE_RECIPE:
        section, field = path.split(".")
        entry = schema[{"method": "MethodSpec", "training": "TrainingSpec"}[section]]["properties"][field]
        assert {"const": "auto"} in entry["anyOf"], path
