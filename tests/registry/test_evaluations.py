"""Scores keep the outcome of every example."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from registry.errors import DraftRefused, Unknown
from registry.records import base_ref


@pytest.fixture
def data(workshop) -> str:
    return workshop.dataset("triage")


@pytest.fixture
def sqlite_data(sqlite_workshop) -> str:
    return sqlite_workshop.dataset("triage")


def test_outcomes_come_back_paired_with_their_keys_in_the_order_of_keys(workshop, data):
    record = workshop.evaluation(data, rows=40, hits=23)
    order = list(range(40))
    random.Random(1).shuffle(order)
    confidences = tuple(place / 40 for place in range(40))
    shuffled = replace(
        record,
        keys=tuple(record.keys[i] for i in order),
        outcomes=tuple(record.outcomes[i] for i in order),
        confidences=tuple(confidences[i] for i in order),
    )
    workshop.ledger.register(workshop.draft("triage", evaluations=(shuffled,)))
    (read,) = workshop.ledger.evaluations("triage:1")
    expected = {key: (record.outcomes[i], confidences[i]) for i, key in enumerate(record.keys)}
    assert dict(zip(read.keys, zip(read.outcomes, read.confidences, strict=True), strict=True)) == expected
    assert list(read.keys) == sorted(read.keys)
    assert (read.score, read.n, read.low, read.high) == (record.score, 40, record.low, record.high)
    assert (read.subject, read.dataset) == ("triage:1", data)


def test_two_subjects_on_the_same_rows_align_row_by_row(workshop, data):
    one = workshop.evaluation(data, hits=3)
    other = replace(one, keys=one.keys[::-1], outcomes=one.outcomes[::-1])
    workshop.ledger.register(workshop.draft("triage", 1, evaluations=(one,)))
    workshop.ledger.register(workshop.draft("triage", 2, evaluations=(other,)))
    first, second = (workshop.ledger.evaluations(ref)[0] for ref in ("triage:1", "triage:2"))
    assert (first.keys, first.outcomes) == (second.keys, second.outcomes)


def test_the_base_has_scores_of_its_own(workshop, data):
    subject = base_ref(workshop.base)
    record = workshop.evaluation(data, subject=subject, hits=1)
    workshop.ledger.register(workshop.draft("triage", evaluations=(record, workshop.evaluation(data, hits=9))))
    assert [e.score for e in workshop.ledger.evaluations(subject)] == [0.1]
    assert [e.score for e in workshop.ledger.evaluations(f"base:{workshop.base}")] == [0.1]
    assert [e.score for e in workshop.ledger.evaluations("triage:1")] == [0.9]


def test_scores_on_new_slices_can_be_added_later(workshop, data):
    workshop.ledger.register(workshop.draft("triage", evaluations=(workshop.evaluation(data),)))
    fresh = workshop.dataset("fresh traffic")
    told = workshop.ledger.remember_evaluations([workshop.evaluation(fresh, subject="triage:1", hits=2)])
    assert [(record.dataset, record.score) for record in told] == [(fresh, 0.2)]
    assert [record.dataset for record in workshop.ledger.evaluations("triage")] == [data, fresh]
    assert ("evaluation", "triage", 1) in [
        (entry.topic, entry.name, entry.number) for entry in workshop.ledger.pending()
    ]


def test_the_first_answer_to_a_question_stands_and_is_what_the_second_asker_gets(workshop, data):
    workshop.ledger.register(workshop.draft("triage"))
    first = workshop.evaluation(data, subject="triage:1", hits=7)
    second = workshop.evaluation(data, subject="triage:1", hits=3)
    other_rows = workshop.evaluation(data, subject="triage:1", hits=3, rows=5)
    other_side = workshop.evaluation(data, subject="triage:1", hits=3, side="validation")
    workshop.ledger.remember_evaluations([first])
    told = workshop.ledger.remember_evaluations([second, other_rows, other_side])
    assert [record.score for record in told] == [0.7, 0.6, 0.3]
    assert len(workshop.ledger.evaluations("triage:1")) == 3


def test_rows_that_many_versions_were_scored_on_are_kept_once(sqlite_workshop, raw):
    data = sqlite_workshop.dataset("triage")
    for place in range(5):
        record = sqlite_workshop.evaluation(data, hits=place)
        sqlite_workshop.ledger.register(sqlite_workshop.draft("triage", place, evaluations=(record,)))
    assert raw.execute("SELECT count(*), sum(n) FROM row_sets").fetchone() == (1, 10)
    assert raw.execute("SELECT count(DISTINCT outcomes) FROM evaluations").fetchone() == (5,)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 11},
        {"keys": ("a",) * 10},
        {"outcomes": (1.0,) * 9},
        {"confidences": (0.5,)},
        {"outcomes": (float("nan"),) + (1.0,) * 9},
        {"score": float("inf")},
        {"low": 0.9, "high": 0.1},
        {"n": 0, "keys": (), "outcomes": ()},
    ],
)
def test_an_evaluation_without_an_outcome_for_every_row_is_refused_with_its_version(
    sqlite_workshop, sqlite_data, change
):
    record = replace(sqlite_workshop.evaluation(sqlite_data), **change)
    with pytest.raises(DraftRefused):
        sqlite_workshop.ledger.register(sqlite_workshop.draft("triage", evaluations=(record,)))
    assert sqlite_workshop.ledger.names() == ()


@pytest.mark.parametrize(
    ("subject", "dataset"), [("triage:2", None), ("base:" + "0" * 12, None), ("", None), ("triage:1", "0" * 64)]
)
def test_scores_of_unknown_subjects_or_data_are_refused_and_none_of_the_batch_is_kept(
    sqlite_workshop, sqlite_data, subject, dataset
):
    sqlite_workshop.ledger.register(sqlite_workshop.draft("triage"))
    good = sqlite_workshop.evaluation(sqlite_data, subject="triage:1")
    bad = replace(sqlite_workshop.evaluation(sqlite_data, subject=subject), dataset=dataset or sqlite_data)
    with pytest.raises(Unknown):
        sqlite_workshop.ledger.remember_evaluations([good, bad])
    assert sqlite_workshop.ledger.evaluations("triage:1") == ()
