from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from tasks.drift.observed import Observed
from tasks.drift.report import DriftReport
from tasks.drift.signals import SIGNALS
from tasks.drift.statistics import STATISTICS
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

DRIFT = DriftSpec(min_rows=50)
SKEWED = (0.45, 0.25, 0.1, 0.1, 0.05, 0.05)


def figures(report: DriftReport) -> list[float]:
    """Every number of the report."""

    def walk(value: object) -> list[float]:
        if isinstance(value, dict):
            return [number for part in value.values() for number in walk(part)]
        if isinstance(value, list | tuple):
            return [number for part in value for number in walk(part)]
        return [float(value)] if isinstance(value, int | float) else []

    return walk(report.payload())


@pytest.mark.parametrize("labelled", [True, False])
def test_quiet_windows_raise_no_more_alarms_than_stated(labelled: bool, desk) -> None:
    """160 windows of each kind at 5 %; a true rate of 5 % passes in 999 of 1,000 cases."""
    drift = DriftSpec(min_rows=20, false_alarm=0.05)
    alarms = 0
    for number in range(160):
        reference, window = desk().seen(150, number), desk().seen(60, 10_000 + number, labelled=labelled)
        alarms += judge(reference, window, drift, seed=number).verdict != "no drift"
    assert alarms <= binom.ppf(0.999, 160, 0.05)


@pytest.mark.parametrize(
    ("verdict", "action", "changes", "labelled"),
    [
        ("no drift", "nothing", {}, True),
        ("input shift", "retrain with replay", {"new_rows": 0.3}, True),
        ("input shift", "ask for labels", {"new_rows": 0.3}, False),
        ("input shift", "watch", {"new_rows": 0.3, "skill_on_new": 0.99, "skill": 0.99}, True),
        ("label shift", "watch", {"mix": SKEWED, "skill": 0.99}, True),
        ("label shift", "ask for labels", {"mix": SKEWED}, False),
        ("label shift", "retrain with replay", {"mix": SKEWED, "skill": 0.6}, True),
        ("concept shift", "stop and look", {"relabelled": True}, True),
        ("performance loss", "retrain with replay", {"skill": 0.7}, True),
    ],
)
def test_each_cause_gets_its_name_and_its_action(
    verdict: str, action: str, changes: dict, labelled: bool, desk
) -> None:
    for seed in range(3):
        reference = desk(skill=changes.get("skill", 0.92) if action == "watch" else 0.92).seen(600, seed)
        report = judge(reference, desk(**changes).seen(300, 50 + seed, labelled=labelled), DRIFT, seed=seed)
        assert (report.verdict, report.action) == (verdict, action), report.sentence


def test_a_fall_that_comes_with_new_words_is_explained_by_them(desk) -> None:
    report = judge(desk().seen(600, 0), desk(new_rows=0.3).seen(300, 1), DRIFT, seed=0)
    assert report.verdict == "input shift"
    assert report.drop_low is not None
    assert 0.05 < report.drop_low < report.score_reference - report.score_window
    moved = {one.signal: one for one in report.moved}
    assert {"score", "vocabulary", "new words"} <= set(moved)
    assert all("pluto" in example for example in moved["new words"].examples)
    for words in ("score fell from 0.9", "95 % bound of the fall", "new words moved", "retrain with replay"):
        assert words in report.sentence


def test_new_words_are_not_explained_away_by_a_mix_that_moved_as_well(desk) -> None:
    report = judge(desk().seen(600, 0), desk(mix=SKEWED, new_rows=0.4).seen(300, 1), DRIFT, seed=0)
    assert {"labels", "new words"} <= {one.signal for one in report.moved}
    assert report.verdict == "input shift"


def test_answers_that_pile_up_on_one_label_while_truth_and_inputs_stay_are_a_loss(desk) -> None:
    window = desk().seen(300, 1)
    answers = ("billing",) * 120 + window.predictions[120:]
    outcomes = tuple(float(a == t) for a, t in zip(answers, window.labels, strict=True))
    report = judge(desk().seen(600, 0), replace(window, predictions=answers, outcomes=outcomes), DRIFT, seed=0)
    assert "predicted labels" in {one.signal for one in report.moved}
    assert (report.verdict, report.action) == ("performance loss", "retrain with replay")


def test_relabelled_rows_are_shown_with_both_labels(desk) -> None:
    report = judge(desk().seen(600, 0), desk(relabelled=True).seen(300, 1), DRIFT, seed=0)
    (pairs,) = [one for one in report.moved if one.signal == "labels of near-same inputs"]
    assert all("was '" in example and "now '" in example for example in pairs.examples)
    assert len(pairs.examples) >= 3


def test_a_class_that_the_reference_lacks_is_a_new_topic_and_a_renamed_one_is_not(desk) -> None:
    reference, window = desk().seen(600, 0), desk(new_rows=0.2).seen(300, 1)
    fresh = tuple(
        "planets" if "pluto" in text else label for text, label in zip(window.inputs, window.labels, strict=True)
    )
    entered = judge(reference, replace(window, labels=fresh), DRIFT, seed=0)
    assert entered.verdict == "new topic"
    assert "'planets'" in entered.sentence
    quiet = desk().seen(300, 2)
    renamed = judge(reference, replace(quiet, labels=tuple(label.upper() for label in quiet.labels)), DRIFT, seed=0)
    assert (renamed.verdict, renamed.action) == ("concept shift", "stop and look")


def test_without_labels_the_report_says_what_the_confidences_suggest(desk) -> None:
    window = desk(new_rows=0.3).seen(300, 1)
    report = judge(desk().seen(600, 0), replace(window, labels=(None,) * 300, outcomes=(None,) * 300), DRIFT, seed=0)
    assert report.score_window is None
    assert report.score_estimated is not None
    assert abs(report.score_estimated.score - np.mean(window.outcomes)) < 0.15
    assert "score not measured (0 of 300 rows graded), confidence suggests 0." in report.sentence


def gibberish(seen: Observed) -> Observed:
    ticks = (f"{row:b}".replace("1", "zig ").replace("0", "zag ") for row in range(999, 999 + seen.rows))
    return replace(seen, inputs=tuple(f"{tick}{chr(97 + row % 26) * 3}" for row, tick in enumerate(ticks)))


def everything_unknown(seen: Observed) -> Observed:
    nans = (math.nan,) * seen.rows
    return replace(seen, inputs=("",) * seen.rows, confidences=nans, outcomes=nans)


SPOILED = {
    "no rows": lambda seen: seen.at([]),
    "one row": lambda seen: seen.at([0]),
    "49 rows": lambda seen: seen.at(range(49)),
    "blank": lambda seen: replace(seen, inputs=("",) * seen.rows),
    "constant": lambda seen: replace(seen, inputs=("hello",) * seen.rows),
    "mostly copies": lambda seen: replace(seen, inputs=tuple(seen.inputs[row % 30] for row in range(seen.rows))),
    "confidence NaN": lambda seen: replace(seen, confidences=(math.nan,) * seen.rows),
    "confidence infinite": lambda seen: replace(seen, confidences=(math.inf,) * seen.rows),
    "outcomes NaN": lambda seen: replace(seen, outcomes=(math.nan,) * seen.rows),
    "all words new": gibberish,
    "everything NaN": everything_unknown,
}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("false_alarm", [0.01, 0.4])
def test_a_spoiled_window_never_retrains_and_never_shows_a_nan(spoiled: str, false_alarm: float, desk) -> None:
    window: Observed = SPOILED[spoiled](desk(skill=0.3).seen(300, 1))
    drift = DriftSpec(min_rows=50, false_alarm=false_alarm)
    report = judge(desk().seen(600, 0), window, drift, seed=0)
    assert report.verdict in {"not enough data", "pipeline fault"}
    assert report.action in {"nothing", "stop and look"}
    assert all(math.isfinite(number) for number in figures(report))
    assert "nan" not in report.sentence.lower()


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_spoiled_reference_gives_a_finite_report(spoiled: str, desk) -> None:
    report = judge(SPOILED[spoiled](desk().seen(300, 1)), desk().seen(300, 0), DRIFT, seed=0)
    json.dumps(report.payload(), allow_nan=False)
    assert report.sentence


def test_malformed_traffic_is_a_fault_even_if_the_rest_looks_well(desk) -> None:
    reference, window = desk().seen(600, 0), desk().seen(300, 1)
    assert judge(reference, window, DRIFT, seed=0, set_aside=10).verdict == "no drift"
    report = judge(reference, window, DRIFT, seed=0, set_aside=100)
    assert (report.verdict, report.action) == ("pipeline fault", "stop and look")
    assert "25% of the traffic rows are malformed (100 of 400)" in report.sentence


def test_a_flood_of_one_sender_stops_the_loop(desk) -> None:
    def from_shops(seen: Observed, flooded: int) -> Observed:
        return replace(seen, sources=tuple("bot" if row < flooded else f"shop-{row % 7}" for row in range(seen.rows)))

    report = judge(from_shops(desk().seen(600, 0), 0), from_shops(desk(skill=0.3).seen(300, 1), 280), DRIFT, seed=0)
    assert (report.verdict, report.action) == ("pipeline fault", "stop and look")
    assert "one and the same source" in report.sentence


def test_the_same_arguments_give_the_same_report_and_it_survives_json(desk) -> None:
    arguments = desk().seen(300, 0), desk(new_rows=0.2).seen(150, 1), DRIFT
    first, second = judge(*arguments, seed=3), judge(*arguments, seed=3)
    assert first == second
    payload = json.loads(json.dumps(first.payload(), allow_nan=False))
    assert payload["verdict"] == first.verdict
    assert [one["value"] for one in payload["evidence"]] == [one.value for one in first.evidence]


def test_a_large_sample_does_not_make_a_tiny_difference_an_alarm(desk) -> None:
    reference, window = desk(skill=0.92).seen(6000, 0), desk(skill=0.895).seen(6000, 1)
    report = judge(reference, window, DRIFT, seed=0)
    (score,) = [one for one in report.evidence if one.signal == "score"]
    assert score.p < 1e-4
    assert (report.verdict, report.action) == ("no drift", "watch")


def test_a_handful_of_new_words_among_thousands_of_rows_does_not_matter(desk) -> None:
    report = judge(desk().seen(3000, 0), desk(new_rows=0.006).seen(2500, 1, labelled=False), DRIFT, seed=0)
    (words,) = [one for one in report.evidence if one.signal == "new words"]
    assert words.p < 1e-3
    assert words.value < words.threshold
    assert report.verdict == "no drift"


def with_score(seen: Observed, right: int) -> Observed:
    return replace(seen, outcomes=(1.0,) * right + (0.0,) * (seen.rows - right))


def test_a_fall_asks_for_a_retrain_only_when_its_bound_exceeds_the_limit(desk) -> None:
    """0.92 to 0.86 is a sure fall of about 0.06, but it may well be 0.04."""
    reference, window = with_score(desk().seen(1000, 0), 920), with_score(desk().seen(600, 1), 516)
    near = judge(reference, window, DriftSpec(score_drop=0.05), seed=0)
    assert (near.verdict, near.action) == ("performance loss", "watch")
    assert near.drop_low is not None
    assert 0 < near.drop_low < 0.05 < near.score_reference - near.score_window
    over = judge(reference, window, DriftSpec(score_drop=0.03), seed=0)
    assert (over.verdict, over.action) == ("performance loss", "retrain with replay")


def test_a_limit_of_zero_does_not_loosen_the_false_alarm_rate(desk) -> None:
    """0.92 to 0.86 on 200 rows has a bound above 0 and a p-value of 0.03: too weak among eight signals at 1 %."""
    reference, window = with_score(desk().seen(200, 0), 184), with_score(desk().seen(200, 1), 171)
    report = judge(reference, window, DriftSpec(score_drop=0.0), seed=0)
    assert report.drop_low is not None
    assert report.drop_low > 0
    assert (report.verdict, report.action) == ("no drift", "nothing")


def test_free_text_answers_are_not_taken_for_classes(desk) -> None:
    def free(seen: Observed) -> Observed:
        texts = tuple(f"it is {text}" for text in seen.inputs)
        return replace(seen, predictions=texts, labels=texts)

    report = judge(free(desk().seen(300, 0)), free(desk().seen(150, 1)), DRIFT, seed=0)
    assert report.verdict == "no drift"
    answers = {"words of answers", "length of answers"}
    inputs = {"score", "input length", "vocabulary", "new words", "confidence"}
    assert {one.signal for one in report.evidence} == inputs | answers


def test_text_without_blanks_is_watched_by_its_tokens(desk) -> None:
    def glued(seen: Observed) -> Observed:
        return replace(
            seen,
            inputs=tuple(text.replace(" ", "") for text in seen.inputs),
            tokens=tuple(row * 4 for row in seen.tokens),
        )

    quiet = judge(glued(desk().seen(300, 0)), glued(desk().seen(200, 1)), DRIFT, seed=0)
    moved = judge(glued(desk().seen(300, 0)), glued(desk(new_rows=0.3).seen(200, 1)), DRIFT, seed=0)
    assert quiet.verdict == "no drift"
    assert moved.verdict == "input shift"
    assert "vocabulary" in {one.signal for one in moved.moved}


def test_every_signal_names_a_statistic_of_the_catalogue() -> None:
    assert {signal.statistic for signal in SIGNALS} <= set(STATISTICS)
    assert len({signal.name for signal in SIGNALS}) == len(SIGNALS)


def test_where_no_label_is_left_to_ask_for_a_sure_shift_with_a_measured_fall_asks_for_a_retrain(desk) -> None:
    """55 rows of reference cannot prove a fall of ten points; that the inputs moved is sure, and asking is no use."""
    reference, window = with_score(desk().seen(55, 0), 30), with_score(desk(new_rows=0.5).seen(140, 1), 62)
    known = judge(reference, window, DRIFT, seed=0)
    assert known.drop_low is not None
    assert known.drop_low < DRIFT.score_drop < known.score_reference - known.score_window
    assert (known.verdict, known.action) == ("input shift", "retrain with replay")
    open_ones = replace(window, labels=(*window.labels[:100], *(None,) * 40))
    assert judge(reference, open_ones, DRIFT, seed=0).action == "ask for labels"
    risen = judge(reference, with_score(window, 90), DRIFT, seed=0)
    assert (risen.verdict, risen.action) == ("input shift", "watch")


def test_where_too_few_labels_are_known_for_a_candidate_to_be_judged_labels_are_asked_for_instead(desk) -> None:
    reference, known = desk().seen(600, 0), desk(skill=0.7).seen(300, 1)
    some = replace(known, labels=(*known.labels[:90], *(None,) * 210), outcomes=(*known.outcomes[:90], *(None,) * 210))
    assert judge(reference, some, DRIFT, seed=0).action == "retrain with replay"
    asked = judge(reference, some, DRIFT, seed=0, judgeable=False)
    assert (asked.verdict, asked.action) == ("performance loss", "ask for labels")
    assert set(asked.to_label) <= set(range(90, 300))
    assert asked.to_label
    assert judge(reference, known, DRIFT, seed=0, judgeable=False).action == "watch"


def test_a_new_topic_that_the_adapter_could_not_take_up_asks_for_an_adapter_of_its_own(desk) -> None:
    reference, window = desk().seen(600, 0), desk(new_rows=0.3).seen(300, 1)
    fresh = tuple("planets" if "pluto" in x else label for x, label in zip(window.inputs, window.labels, strict=True))
    entered = replace(window, labels=fresh)
    first, again = (judge(reference, entered, DRIFT, seed=0, in_vain=vain) for vain in (0, 1))
    assert (first.verdict, first.action) == ("new topic", "retrain with replay")
    assert (again.verdict, again.action) == ("new topic", "new adapter")
    other = judge(reference, desk(skill=0.7).seen(300, 2), DRIFT, seed=0, in_vain=3)
    assert (other.verdict, other.action) == ("performance loss", "retrain with replay")
