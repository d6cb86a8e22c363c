from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.examples import VISIBLE, normalised
from tasks.data.validation import great_expectations, implied_rules, suite_for, verdicts
from tasks.errors import DataRefused, SpecRefused
from tasks.specs import ExpectationSpec

COLUMNS = ("text", "label", "age")


def rule(expect, severity="critical", **arguments):
    return ExpectationSpec(expect=expect, severity=severity, arguments=arguments)


def table(texts, labels=None, ages=None):
    labels = labels or ["x", "y"] * len(texts)
    return {"text": texts, "label": labels[: len(texts)], "age": ages or ["1"] * len(texts)}


def verdict_on(said, name, column=""):
    (found,) = [one for one in said if one.rule == name and (not column or one.column == column)]
    return found


def test_a_suite_survives_json_with_the_same_verdicts(asks):
    gx, _ = great_expectations()
    own = (rule("expect_column_values_to_match_regex", "warning", column="age", regex="^[0-9]+$", mostly=0.5),)
    suite = suite_for(asks("/a.csv", labels=("x", "y"), min_rows=2, expectations=own), COLUMNS)
    again = gx.ExpectationSuite(**json.loads(json.dumps(suite.to_json_dict())))
    rows = table(["a", None, " ", "d"], ["x", "y", "z", "x"], ["1", "b", "3", None])
    assert verdicts(again, rows) == verdicts(suite, rows)
    assert [one.passed for one in verdicts(suite, rows)].count(False) == 3


def test_the_implied_suite_states_what_great_expectations_lets_pass(asks):
    gx, gxe = great_expectations()
    rows = {"text": [], "label": []}
    usual = [
        gxe.ExpectColumnValuesToNotBeNull(column="text"),
        gxe.ExpectColumnValuesToBeInSet(column="label", value_set=["x", "y"]),
        gxe.ExpectColumnValuesToMatchRegex(column="text", regex="a"),
    ]
    batch = gx.get_context(mode="ephemeral").data_sources.add_pandas("p").add_dataframe_asset("t")
    import pandas as pd

    empty = batch.add_batch_definition_whole_dataframe("b").get_batch({"dataframe": pd.DataFrame(rows, dtype=object)})
    alone = empty.validate(gx.ExpectationSuite(name="usual", expectations=usual))
    assert alone.success  # an empty table passes: this is why the suite states rows and classes
    said = verdicts(suite_for(asks("/a.csv", labels=("x", "y")), ("text", "label")), rows)
    assert not verdict_on(said, "expect_table_row_count_to_be_between").passed
    assert not verdict_on(said, "expect_column_unique_value_count_to_be_between").passed
    assert not any(one.passed for one in said if one.offenders is not None)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(max_size=3), min_size=20, max_size=60))
def test_the_rule_on_visible_text_agrees_with_the_normal_form(asks, texts):
    said = verdicts(suite_for(asks("/a.csv"), COLUMNS), table(texts))
    (found,) = [one for one in said if one.column == "text" and one.arguments.get("regex") == VISIBLE]
    assert found.offenders == tuple(at for at, text in enumerate(texts) if not normalised(text))


MIXED = ["text", 3, 2.5, True, None, [1], {"a": {"b": [1]}}, "NA", "null", "\0", float("nan")]


def test_types_nulls_and_literal_na_are_told_apart(asks):
    said = verdicts(suite_for(asks("/a.csv"), COLUMNS), table(MIXED))
    assert verdict_on(said, "expect_column_values_to_not_be_null", "text").offenders == (4, 10)
    assert verdict_on(said, "expect_column_values_to_be_of_type", "text").offenders == (1, 2, 3, 5, 6)
    assert verdict_on(said, "expect_column_values_to_not_match_regex", "text").offenders == (9,)
    assert not any(one.error for one in said)


def test_a_rule_that_raised_or_saw_nothing_did_not_pass(asks):
    own = (
        rule("expect_column_values_to_be_between", column="age", min_value=0),  # text is not between numbers
        rule("expect_column_values_to_match_regex", column="age", regex="^x"),
    )
    suite = suite_for(asks("/a.csv", expectations=own), COLUMNS)
    raised = verdict_on(verdicts(suite, table(["a", "b"], ages=["1", "2"])), "expect_column_values_to_be_between")
    assert raised.error
    assert not raised.passed
    said = verdicts(suite, table(["a", "b"], ages=[None, None]))
    unseen = next(one for one in said if one.column == "age" and one.rule == "expect_column_values_to_match_regex")
    assert (unseen.passed, unseen.evaluated, unseen.error) == (False, 0, "it saw no value")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (rule("expect_column_values_to_be_uniqe", column="text"), "did you mean 'expect_column_values_to_be_unique'?"),
        (rule("ExpectColumnValuesToBeUniqe", column="text"), "did you mean 'ExpectColumnValuesToBeUnique'?"),
        (rule("expect_query_results_to_match_comparison"), "Great Expectations has no"),
        (rule("expect_column_values_to_match_regex", column="text", regexp="a"), "did you mean 'regex'?"),
        (rule("expect_column_values_to_match_regex", column="text"), "nothing to check -> give regex"),
        (rule("expect_column_mean_to_be_between", column="text"), "nothing to check -> give min_value or max_value"),
        (rule("expect_column_values_to_match_regex", column="text", regex="("), "is not a regular expression"),
        (rule("expect_column_value_lengths_to_equal", column="text"), "value: field required"),
        (rule("expect_column_values_to_be_in_set", column="text", value_set="ab"), "value_set"),
        (rule("expect_column_values_to_be_unique", column="text", row_condition="@f()"), "is run as code"),
        (rule("expect_column_values_to_be_unique", column="text", mostly=2), "mostly"),
    ],
)
def test_a_rule_that_is_wrong_or_cannot_fail_is_refused_by_name(asks, wrong, said):
    fine = rule("expect_column_values_to_be_unique", column="text")
    with pytest.raises(SpecRefused) as refused:
        suite_for(asks("/a.csv", expectations=(fine, wrong)), COLUMNS)
    assert said in str(refused.value)
    assert "data.expectations[1]" in str(refused.value)
    assert wrong.expect in str(refused.value)
    assert refused.value.exit_code == 2


def test_all_wrong_rules_are_named_together(asks):
    wrong = (rule("expect_nothing", column="text"), rule("expect_column_mean_to_be_between", column="age"))
    with pytest.raises(SpecRefused) as refused:
        suite_for(asks("/a.csv", expectations=wrong), COLUMNS)
    assert [problem.code for problem in refused.value.problems] == ["E-SPEC-035", "E-SPEC-036"]


def test_every_missing_column_is_named_with_what_there_is(asks):
    own = (rule("expect_compound_columns_to_be_unique", column_list=["text", "day"]),)
    with pytest.raises(DataRefused, match="columns 'label', 'split', 'day' missing; found 'text', 'Label'"):
        suite_for(asks("/a.csv", split={"column": "split"}, expectations=own), ("text", "Label"))


def test_every_text_column_of_a_template_is_under_the_same_rules(asks):
    spec = asks(
        "/a.csv", prompt="{title} {body} {title}", completion=" {answer}", label_column="topic", labels=("a", "b")
    )
    rules = implied_rules(spec)
    for column in ("title", "body", "answer", "topic"):
        assert len([name for name, arguments in rules if arguments.get("column") == column]) >= 6
    assert ("expect_column_values_to_be_in_set", {"column": "topic", "value_set": ["a", "b"]}) in rules
