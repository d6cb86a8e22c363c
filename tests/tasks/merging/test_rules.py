"""A spec's rules are checked without loading torch, and the documentation shows the catalogue that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import SpecRefused
from tasks.merging.rules import RULES, check_rules, dialects_table, rules_table
from tasks.specs import MergeSpec, RuleSpec

ROOT = Path(__file__).parents[3]


def spec_of(*rules: dict[str, Any]) -> MergeSpec:
    return MergeSpec(
        name="desk",
        parents=("triage@champion", "route:3"),
        rules=tuple(RuleSpec.model_validate(rule) for rule in rules),
    )


def test_the_default_rules_of_a_spec_are_in_the_catalogue() -> None:
    check_rules(MergeSpec(name="desk", parents=("triage@champion",)))


@pytest.mark.parametrize("rule", RULES)
def test_every_row_is_accepted_by_name(rule: str) -> None:
    check_rules(spec_of({"rule": rule, "weights": {"triage": 0.5, "route": 1}}))


def test_all_problems_of_all_rules_are_listed_at_once() -> None:
    with pytest.raises(SpecRefused) as refusal:
        check_rules(
            spec_of(
                {"rule": "tiess"},
                {"rule": "average", "density": [0.5]},
                {"rule": "ties", "weights": {"triage@champion": 1}},
                {"rule": "average", "weights": {"triage": 1, "route": -1}},
                {"rule": "task_arithmetic", "weights": {"triage": 0, "route": 0}},
                {"rule": "task_arithmetic", "weights": {"triage": 1, "route": -1}},
            )
        )
    found = [(problem.code, problem.where) for problem in refusal.value.problems]
    assert found == [
        ("E-MERGE-001", "rules.0.rule"),
        ("E-MERGE-002", "rules.1.density"),
        ("E-MERGE-003", "rules.2.weights"),
        ("E-MERGE-004", "rules.3.weights"),
        ("E-MERGE-004", "rules.4.weights"),
    ]
    assert "did you mean ties" in str(refusal.value)


def test_a_rule_is_refused_before_torch_is_loaded() -> None:
    code = "import sys; import tasks.merging.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_documentation_shows_the_catalogue_that_runs() -> None:
    text = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")
    for table in (rules_table(), dialects_table()):
        assert table in text, f"paste this into docs/merging.md:\n{table}"


def test_the_recipe_in_the_documentation_is_one(tmp_path: Path) -> None:
    import re

    from tasks.spec_files import load_merge_spec

    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "merging.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "general.jsonl").touch()
    (tmp_path / "desk.yaml").write_text(block)
    spec = load_merge_spec(tmp_path / "desk.yaml")
    check_rules(spec)
    assert spec.general is not None
    assert spec.general.source == str(tmp_path / "general.jsonl")
    assert spec.search is not None


def test_the_baselines_of_every_table_are_tried_unless_named_declined_or_pointless() -> None:
    from tasks.specs.merge import BASELINES

    named = RuleSpec(rule="ties", scale=(0.7,))
    spec = MergeSpec(name="x", parents=("a", "b"), rules=(named,))
    assert [rule.rule for rule in spec.tried] == ["ties", "average", "task_arithmetic", "knots_ties"]
    assert spec.tried[0] == named
    check_rules(spec.model_copy(update={"rules": BASELINES}))
    for quiet in ({"baselines": False}, {"parents": ("a",)}):
        assert spec.model_copy(update=quiet).tried == (named,)
