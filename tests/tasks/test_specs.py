"""What is asked: frozen, bounded, described, and light to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MergeSpec, MethodSpec, TrainingSpec, columns_of, render

ROOT = Path(__file__).parents[2]
GENERATION = {
    "task": "triage",
    "kind": "generation",
    "base": {"model": "/base"},
    "data": {"source": "/rows.jsonl", "prompt": "{message} ->", "completion": " {intent}"},
}
LIGHT = ("specs", "spec_files", "errors", "promotion", "memory", "methods.catalogue", "methods.targets")
HEAVY = ("torch", "peft", "transformers", "bitsandbytes", "great_expectations", "mlflow", "prefect", "scipy", "sklearn")


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    return GENERATION | {section: {**GENERATION.get(section, {}), key: value}}  # type: ignore[dict-item]


def properties(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every property of a JSON Schema by its dotted name, wherever it is defined, with what it refers to."""
    defined = schema.get("$defs", {})
    named = {"": schema} | defined
    return [
        (f"{name}.{key}", defined.get(entry.get("$ref", "").rpartition("/")[2], {}) | entry)
        for name, part in named.items()
        for key, entry in part["properties"].items()
    ]


@pytest.mark.parametrize("module", LIGHT)
def test_what_is_asked_loads_without_the_gpu_stack(module: str) -> None:
    code = f"import sys, tasks.{module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("model", [AdapterSpec, MergeSpec])
def test_every_field_of_the_json_schema_says_what_it_is(model: Any) -> None:
    schema = model.model_json_schema()
    silent = [name for name, entry in properties(schema) if len(entry.get("description", "")) < 10]
    assert silent == []
    assert len(properties(schema)) > 10
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("model", [AdapterSpec, MergeSpec])
def test_the_json_schema_refuses_unknown_keys_at_every_level(model: Any) -> None:
    schema = model.model_json_schema()
    assert [p["title"] for p in (schema, *schema["$defs"].values()) if p.get("additionalProperties") is not False] == []


def test_a_spec_cannot_be_changed_and_equal_specs_are_one_key() -> None:
    first, second = AdapterSpec.model_validate(GENERATION), AdapterSpec.model_validate(GENERATION)
    for spec, name in ((first, "seed"), (first.base, "model"), (first.training, "steps"), (first.data.split, "test")):
        with pytest.raises(ValidationError):
            setattr(spec, name, 1)
    assert first == second
    assert hash(first.base) == hash(second.base)


def test_defaults_are_qlora_on_all_linear_layers() -> None:
    spec = AdapterSpec.model_validate(GENERATION)
    assert (spec.method.name, spec.method.rank, spec.method.alpha_value) == ("lora", 16, 32.0)
    assert (spec.method.targets, spec.method.layers, spec.method.dropout) == ("all-linear", None, 0.05)
    assert (spec.base.quantization, spec.base.double_quant) == ("nf4", True)
    assert spec.metric == "exact_match"
    assert AdapterSpec.model_validate(changed("method", "alpha", 5)).method.alpha_value == 5


def test_a_spec_survives_json() -> None:
    spec = AdapterSpec.model_validate(changed("method", "targets", ["q_proj"]))
    assert AdapterSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "rank", 0),
        ("method", "rank", -1),
        ("method", "rank", 10**9),
        ("method", "alpha", 0),
        ("method", "alpha", -8),
        ("method", "dropout", 1.0),
        ("method", "dropout", -1),
        ("method", "name", "lorax"),
        ("method", "targets", []),
        ("method", "targets", "q_proj"),
        ("method", "layers", []),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", -1e-4),
        ("training", "learning_rate", float("nan")),
        ("training", "learning_rate", float("inf")),
        ("training", "learning_rate", 1e9),
        ("training", "epochs", 0),
        ("training", "epochs", float("inf")),
        ("training", "steps", 0),
        ("training", "batch_size", 0),
        ("training", "micro_batch", 0),
        ("training", "warmup", 1.01),
        ("training", "schedule", "polynomial"),
        ("training", "optimizer", "sgd"),
        ("data", "min_rows", 0),
        ("data", "max_tokens", 2),
        ("data", "max_quarantined", 1.5),
        ("data", "prompt", "no column"),
        ("data", "prompt", "{message.__class__}"),
        ("data", "prompt", "{message!r}"),
        ("data", "prompt", "{message:>9}"),
        ("data", "prompt", "{0}"),
        ("data", "prompt", "{}"),
        ("data", "prompt", "{message"),
        ("data", "prompt", None),
        ("data", "split", {"validation": 0.5, "test": 0.5}),
        ("base", "quantization", "int8"),
        ("base", "revision", "main"),
        ("evaluation", "gates", {"confidence": 1.0}),
        ("drift", "false_alarm", 0),
        ("resources", "device", "tpu"),
        ("resources", "memory_gib", 0),
        ("resources", "memory_gib", 1e308),
    ],
)
def test_a_value_out_of_its_range_is_refused_at_its_field(section: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        AdapterSpec.model_validate(changed(section, key, value))
    assert {found["loc"][:2] for found in refused.value.errors()} <= {(section, key), ()}


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5])
def test_a_seed_is_32_bits(seed: Any) -> None:
    with pytest.raises(ValidationError):
        AdapterSpec.model_validate(GENERATION | {"seed": seed})


NAMES = ["../x", "/abs", "a/b", ".", "CON", "a\0b", "a\nb", "a\n", "x" * 64, "'; drop table", "{{7*7}}"]
NAMES += [
    "😀",
    "\u202eabc",
    "",
    "-a",
    "A",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "a_b",
    "\u0663",
]  # a digit, but no ASCII one


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_slug_and_nothing_else(name: str) -> None:
    with pytest.raises(ValidationError):
        AdapterSpec.model_validate(GENERATION | {"task": name})
    with pytest.raises(ValidationError):
        MergeSpec.model_validate({"name": name, "parents": ["a@champion"]})


@given(st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z"))
def test_every_slug_is_a_name(name: str) -> None:
    assert AdapterSpec.model_validate(GENERATION | {"task": name}).task == name


def test_each_kind_asks_for_its_own_columns() -> None:
    source = {"source": "/rows.jsonl"}
    assert AdapterSpec.model_validate(GENERATION | {"kind": "classification", "data": source}).metric == "accuracy"
    with pytest.raises(ValidationError, match="completion"):
        AdapterSpec.model_validate(GENERATION | {"data": source})
    with pytest.raises(ValidationError, match="not prompt"):
        AdapterSpec.model_validate(GENERATION | {"kind": "classification"})


def test_a_merge_names_each_parent_once_and_keeps_something_of_each() -> None:
    assert {rule.rule for rule in MergeSpec(name="one", parents=("a@champion",)).rules} >= {"average", "ties"}
    nothing_kept = {"rules": [{"rule": "ties", "density": [0]}]}
    for wrong in ({"parents": []}, {"parents": ["a", "a"]}, {"rules": []}, nothing_kept):
        with pytest.raises(ValidationError):
            MergeSpec.model_validate({"name": "one", "parents": ["a", "b"]} | wrong)


@given(st.text(), st.text())
def test_a_template_inserts_text_and_interprets_none_of_it(left: str, message: str) -> None:
    literal = left.replace("{", "{{").replace("}", "}}")
    assert columns_of(literal + "{message}") == ("message",)
    assert render(literal + "{message}", {"message": message}) == left + message


def test_every_method_of_the_catalogue_can_be_asked_for() -> None:
    assert [MethodSpec(name=name).name for name in METHODS] == list(METHODS)
    assert len(METHODS) > 1


def test_the_parts_can_be_asked_for_alone() -> None:
    assert BaseSpec(model="/base").is_folder
    assert not BaseSpec(model="owner/name", revision="a" * 40).is_folder
    assert DataSpec(source="x").prompt is None
    assert TrainingSpec().steps is None
