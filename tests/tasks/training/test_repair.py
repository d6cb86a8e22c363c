"""One finding, one bounded change, never the same configuration twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec, MethodSpec, ResourceSpec
from tasks.training.diagnosis import Finding
from tasks.training.repair import CHANGES, as_read, next_repair

Make = Callable[..., Any]


@pytest.fixture
def asked(make_spec: Make) -> AdapterSpec:
    method = MethodSpec(rank=4, targets=("q_proj",), dropout=0.02)
    return make_spec("generation", Path("/base"), method=method, learning_rate=1e-3, steps=50)


def finding(cause: str) -> Finding:
    return Finding(cause, "some figures", "")


def differing(one: AdapterSpec, other: AdapterSpec) -> set[str]:
    def leaves(tree: Any, at: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {at: tree}
        return {path: leaf for key, value in tree.items() for path, leaf in leaves(value, f"{at}.{key}").items()}

    first, second = leaves(one.model_dump()), leaves(other.model_dump())
    return {path.removeprefix(".") for path in first if first[path] != second[path]}


@pytest.mark.parametrize("cause", sorted(CHANGES))
def test_a_finding_asks_for_one_change_and_says_which(cause: str, asked: AdapterSpec) -> None:
    repair = next_repair(asked, asked, [finding(cause)], [asked])
    assert repair is not None
    changed = differing(asked, repair.spec) - {"method.alpha"}
    assert len(changed) == (2 if cause == "overfit" else 1)
    assert all(path in repair.reason for path in changed)
    assert repair.reason.endswith(f"because: {cause}, some figures")


def test_every_reading_of_a_curve_but_a_good_one_has_its_remedies() -> None:
    source = Path("tasks/training/diagnosis.py").read_text(encoding="utf-8")
    causes = set(re.findall(r'Finding\(\s*"([a-z ]+)"', source))
    assert len(causes) > 5
    assert causes - {"healthy", "no steps", "nothing to learn", "too few points"} == set(CHANGES)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_found_no_configuration_comes_twice_bounds_hold_and_it_ends(seed: int, asked: AdapterSpec) -> None:
    draw, tried, now = Random(seed), [asked], asked
    for _ in range(200):
        repair = next_repair(asked, now, [finding(draw.choice(sorted(CHANGES)))], tried)
        if repair is None:
            break
        assert repair.spec not in tried
        AdapterSpec.model_validate(repair.spec.model_dump())
        tried.append(repair.spec)
        now = repair.spec
        assert 1e-3 / 101 < now.training.learning_rate < 1e-3 * 101
        assert now.method.rank <= 16
        assert now.method.alpha_value / now.method.rank == 2
        assert 12 <= (now.training.steps or 0) <= 200
        assert now.method.dropout <= 0.3
        assert (now.seed, now.data, now.base, now.task) == (asked.seed, asked.data, asked.base, asked.task)


def test_a_change_that_does_not_fit_is_passed_over(asked: AdapterSpec) -> None:
    steady = lambda spec: spec.training.learning_rate == 1e-3  # noqa: E731
    repair = next_repair(asked, asked, [finding("did not move")], [asked], fits=steady)
    assert repair is not None
    assert differing(asked, repair.spec) == {"method.targets"}


def test_a_run_whose_base_is_shared_is_not_given_a_method_that_needs_it_whole(asked: AdapterSpec) -> None:
    shared = asked.model_copy(update={"resources": ResourceSpec(processes=2, shard_base=True)})
    for spec, expected in ((asked, True), (shared, False)):
        tried, methods = [spec], set()
        while repair := next_repair(spec, spec, [finding("rank too low")], tried):
            tried.append(repair.spec)
            methods.add(repair.spec.method.name)
        assert ("dora" in methods) is expected


def test_a_healthy_run_is_left_alone(asked: AdapterSpec) -> None:
    assert next_repair(asked, asked, [finding("healthy")], [asked]) is None


def test_the_worst_finding_is_taken_first_and_the_next_one_when_its_remedies_are_used_up(asked: AdapterSpec) -> None:
    findings, tried, seen = [finding("no gradient"), finding("still improving")], [asked], []
    while repair := next_repair(asked, asked, findings, tried):
        tried.append(repair.spec)
        seen.append(repair.reason.split(" ")[0])
    assert seen == ["method.targets", "training.steps", "training.learning_rate"]


@pytest.mark.parametrize("method", ["ia3", "layernorm", "prefix", "vera", "bottleneck", "full", "dora"])
@pytest.mark.parametrize("cause", sorted(CHANGES))
def test_what_a_method_does_not_read_is_never_changed(cause: str, method: str, make_spec: Make) -> None:
    fields = {"name": method, "rank": 4} | ({"targets": ("q_proj",)} if METHODS[method].takes_targets else {})
    quick = {"learning_rate": 1e-3, "steps": 50, "quantization": "none"}
    spec = make_spec("generation", Path("/base"), method=MethodSpec(**fields), **quick)
    tried = [spec]
    while repair := next_repair(spec, spec, [finding(cause)], tried):
        tried.append(repair.spec)
        changed = {path.split(".")[1] for path in differing(spec, repair.spec) if path.startswith("method.")}
        assert changed <= METHODS[method].reads
        assert all(f"method.{field}" not in repair.reason for field in {"rank", "dropout"} - METHODS[method].reads)
    assert len({as_read(one).model_dump_json() for one in tried}) == len(tried)


def test_a_recipe_that_is_held_back_already_is_held_back_to_the_bound_then_shortened_then_narrowed(
    make_spec: Make,
) -> None:
    """As `auto` chooses for a few rows: dropout 0.15, decay 0.1."""
    method = MethodSpec(rank=8, dropout=0.15)
    now = asked = make_spec("generation", Path("/base"), method=method, weight_decay=0.1, steps=50)
    tried, seen = [asked], []
    while repair := next_repair(asked, now, [finding("overfit")], tried):
        seen.append(repair.reason.split(", because")[0])
        now = repair.spec
        tried.append(now)
    assert seen[:2] == ["method.dropout 0.15 -> 0.3", "training.steps 50 -> 25"]
    assert seen[2].startswith("method.rank 8 -> 4")
