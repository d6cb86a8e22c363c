"""One window, at most one retraining, however often it is judged; one lease, one holder."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest

from registry.errors import Conflict, Unknown
from registry.ledger import Ledger
from registry.records import FindingRecord

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def finding(workshop) -> FindingRecord:
    workshop.ledger.register(workshop.draft("triage"))
    return FindingRecord("triage", "triage:1", "a" * 64, "drifted", "retrain", {"drop": 0.2, "signals": ["length"]})


def test_the_newest_verdict_on_a_window_stands_and_the_same_again_is_no_other_finding(workshop, finding):
    remember = workshop.ledger.remember_finding
    first = remember(finding)
    assert remember(replace(finding, report={})) == first
    assert (first.verdict, first.report) == ("drifted", {"drop": 0.2, "signals": ["length"]})
    assert first.created_at is not None
    other = remember(replace(finding, window_digest="b" * 64, verdict="quiet"))
    fault = remember(replace(finding, verdict="fault", action="stop"))
    patient = remember(replace(finding, action="label"))
    again = remember(finding)
    assert [(one.verdict, one.action) for one in (fault, patient, again)] == [
        ("fault", "stop"),
        ("drifted", "label"),
        ("drifted", "retrain"),
    ]
    assert workshop.ledger.findings("triage") == (first, other, fault, patient, again)
    assert workshop.ledger.findings() == (first, other, fault, patient, again)
    assert workshop.ledger.findings("routing") == ()


def test_of_many_that_judge_alike_at_once_one_finding_comes(url, workshop, finding, together):
    workshop.ledger.remember_finding(replace(finding, verdict="quiet"))

    def judged(place: int, ready) -> str:
        with Ledger.open(url) as ledger:
            ready()
            return ledger.remember_finding(replace(finding, report={"by": place})).verdict

    assert together(8, judged) == ["drifted"] * 8
    assert [one.verdict for one in workshop.ledger.findings("triage")] == ["quiet", "drifted"]


def test_a_finding_needs_its_version(workshop, finding):
    with pytest.raises(Unknown):
        workshop.ledger.remember_finding(replace(finding, version="triage:2"))


def test_a_window_is_claimed_once_and_its_claimant_may_try_again(workshop, finding):
    workshop.ledger.remember_finding(finding)
    assert workshop.ledger.claim_retrain(finding, claimant="run-1")
    assert not workshop.ledger.claim_retrain(finding, claimant="run-2")
    assert workshop.ledger.claim_retrain(finding, claimant="run-1")
    (claim,) = workshop.ledger.retrain_claims("triage")
    assert (claim.window_digest, claim.claimant) == ("a" * 64, "run-1")


def test_a_window_that_is_judged_otherwise_and_back_again_stays_claimed(workshop, finding):
    workshop.ledger.remember_finding(finding)
    assert workshop.ledger.claim_retrain(finding, claimant="run-1")
    workshop.ledger.remember_finding(replace(finding, verdict="fault", action="stop"))
    assert not workshop.ledger.claim_retrain(finding, claimant="run-2")
    workshop.ledger.remember_finding(finding)
    assert not workshop.ledger.claim_retrain(finding, claimant="run-2")
    assert [claim.claimant for claim in workshop.ledger.retrain_claims("triage")] == ["run-1"]


def test_a_window_that_was_claimed_for_one_version_is_claimed_for_the_next(workshop, finding):
    workshop.ledger.register(workshop.draft("triage", "next"))
    for version in ("triage:1", "triage:2"):
        workshop.ledger.remember_finding(replace(finding, version=version))
    assert workshop.ledger.claim_retrain(finding, claimant="run-1")
    assert not workshop.ledger.claim_retrain(replace(finding, version="triage:2"), claimant="run-2")


def test_of_many_duplicate_events_exactly_one_wins(url, workshop, finding, together):
    workshop.ledger.remember_finding(finding)

    def won(place: int, ready) -> int:
        with Ledger.open(url) as ledger:
            ready()
            return sum(ledger.claim_retrain(finding, claimant=f"{place}-{turn}") for turn in range(5))

    assert sorted(together(8, won)) == [0] * 7 + [1]


def test_a_lease_has_one_holder_until_it_is_given_back(workshop):
    ledger = workshop.ledger
    lease = ledger.take_lease("train:x", holder="one", seconds=60)
    assert ledger.take_lease("train:x", holder="two", seconds=60) is None
    assert ledger.take_lease("train:y", holder="two", seconds=60) is not None
    assert ledger.renew_lease(lease, seconds=60).token == lease.token
    ledger.release_lease(lease)
    assert ledger.take_lease("train:x", holder="two", seconds=60).token > lease.token


def test_a_holder_whose_time_ran_out_is_fenced_off_by_its_successor(workshop):
    ledger = workshop.ledger
    late = ledger.take_lease("train:x", holder="one", seconds=0)
    assert ledger.renew_lease(late, seconds=0).token == late.token  # nobody came: going on is safe
    successor = ledger.take_lease("train:x", holder="two", seconds=60)
    with pytest.raises(Conflict, match="two took it"):
        ledger.renew_lease(late, seconds=60)
    ledger.release_lease(late)  # too late to matter
    assert ledger.take_lease("train:x", holder="three", seconds=60) is None
    assert ledger.renew_lease(successor, seconds=60).token == successor.token


def test_of_eight_that_want_a_lease_one_gets_it(url, workshop, together):
    def got(place: int, ready) -> bool:
        with Ledger.open(url) as ledger:
            ready()
            return ledger.take_lease("train:x", holder=str(place), seconds=60) is not None

    assert sum(together(8, got)) == 1
