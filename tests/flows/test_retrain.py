from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pyarrow.parquet
import pytest


def edges(factory: Any, ref: str) -> list[tuple[str, str]]:
    """(role, what) of a version, from the tables."""
    name, number = ref.split(":")
    return factory.sql(
        "SELECT e.role, coalesce(p.name || ':' || p.number, e.dataset, e.base, e.code) FROM edges e"
        " JOIN versions v ON v.id = e.child_id LEFT JOIN versions p ON p.id = e.parent_id"
        " WHERE v.name = ? AND v.number = ? ORDER BY e.place",
        name,
        number,
    )


def sides(factory: Any, task: str) -> dict[str, set[str]]:
    """Keys of every row of every snapshot of a task by the side that it lies on, read as Parquet."""
    found: dict[str, set[str]] = {}
    for (digest,) in factory.sql("SELECT digest FROM datasets WHERE task = ?", task):
        table = pyarrow.parquet.read_table(factory.files(digest)["examples.parquet"]).to_pylist()
        for row in table:
            found.setdefault(row["side"], set()).add(hashlib.sha256(row["input"].lower().encode()).hexdigest())
    return found


def test_replay_learns_the_new_keeps_the_old_and_is_served(factory: Any, moved: Any) -> None:
    done = moved.replayed
    assert done.decision.passed, done.decision.sentence
    assert done.promoted
    assert done.version.ref == "topic:4"
    assert factory.sql("SELECT number FROM promotions WHERE name = 'topic' ORDER BY seq")[:2] == [(1,), (4,)]
    (old,) = [name for name in done.scores["champion"] if name != "fresh"]
    assert done.scores["candidate"]["fresh"].score > done.scores["champion"]["fresh"].score + 0.5
    assert done.expected_gain == moved.event["payload"]["expected_gain"] == moved.watched.report.expected_gain
    assert f"expected {done.expected_gain:+.3f}, came {done.gain.mean:+.3f}" in done.kept_promise
    assert done.scores["candidate"][old].score > done.scores["champion"][old].score - 0.2
    for name in ("fresh", old):
        assert len({done.scores[who][name].keys for who in ("base", "champion", "candidate")}) == 1


def test_a_plain_retrain_forgets_and_is_refused_with_the_slice_named(factory: Any, moved: Any) -> None:
    ((old,),) = factory.sql("SELECT digest FROM datasets WHERE task = 'topic' AND purpose = 'training'")
    answer = json.loads(moved.plain.out)
    assert (moved.plain.code, answer["ok"], answer["exit_code"]) == (5, False, 5)
    (problem,) = answer["problems"]
    assert (problem["code"], problem["where"]) == ("E-GATE-001", "topic:2")
    assert problem["wrong"].startswith(f"kept on test of {old[:8]}: ")
    scores = answer["result"]["scores"]
    assert scores["candidate"]["fresh"]["score"] > 0.5 > 0.3 > scores["candidate"][f"test of {old[:8]}"]["score"]
    assert factory.sql("SELECT count(*) FROM promotions WHERE name = 'topic' AND number = 2") == [(0,)]
    assert factory.sql("SELECT count(*) FROM versions WHERE name = 'topic' AND number = 2") == [(1,)]


def test_lineage_names_the_window_the_replay_and_the_champion_before(factory: Any, moved: Any) -> None:
    ((old,),) = factory.sql("SELECT digest FROM datasets WHERE task = 'topic' AND purpose = 'training'")
    ((new,),) = factory.sql("SELECT digest FROM datasets WHERE task = 'topic' AND purpose = 'traffic'")
    assert [edge for edge in edges(factory, "topic:4") if edge[0] not in ("base", "code")] == [
        ("window", new),
        ("replay", old),
        ("previous", "topic:1"),
    ]
    assert ("start", "topic:1") in edges(factory, "topic:2")  # that one continued from the champion
    said = factory.run("lineage", "topic:4")
    assert said.code == 0
    assert all(word in said.out for word in (new[:12], old[:12], "topic:1"))
    below = factory.run("lineage", "topic:1", "--down").out
    assert "topic:2" in below
    assert "topic:4" in below


def test_no_row_that_judges_is_ever_learned_from(factory: Any, moved: Any) -> None:
    """The traffic repeated twelve frozen rows with their very answers: tempting, and kept out of every training."""
    kept = sides(factory, "topic")
    tempting = {hashlib.sha256(f"{row['text']} topic:".encode()).hexdigest() for row in moved.frozen}
    assert len(tempting) == 12
    assert tempting <= kept["test"]
    assert kept["test"].isdisjoint(kept["train"] | kept["validation"])
    assert len(moved.taught) == 3
    for learned, chosen in moved.taught:
        assert {example.key for example in (*learned, *chosen)}.isdisjoint(kept["test"])


def test_the_asked_share_is_replayed_and_every_answer_of_the_past_equally_often(
    factory: Any, moved: Any, desk: Any
) -> None:
    learned, _ = moved.taught[-1]
    old = Counter(example.target for example in learned if example.target.strip() in desk["topic"].labels)
    new = Counter(example.target for example in learned if example.target.strip() in desk["moved"].labels)
    ((digest,),) = factory.sql("SELECT digest FROM datasets WHERE task = 'topic' AND purpose = 'training'")
    table = pyarrow.parquet.read_table(factory.files(digest)["examples.parquet"]).to_pylist()
    stock = Counter(row["target"] for row in table if row["side"] == "train")
    assert old.total() == pytest.approx(min(new.total(), stock.total()), abs=1)  # replay_share 0.5, of all there are
    assert set(old) == set(stock) == {f" {label}" for label in desk["topic"].labels}
    assert all(old[label] >= min(stock[label], max(old.values()) - 1) for label in stock)
    plain, _ = moved.taught[0]
    assert not {example.target.strip() for example in plain} & set(desk["topic"].labels)


def test_one_finding_causes_one_retrain(factory: Any, moved: Any) -> None:
    from flows.retrain import retrain
    from tasks.errors import GateRefused

    before = factory.remembered()
    with factory.active(), pytest.raises(GateRefused, match="has caused a retrain already") as refused:
        retrain("topic", finding=dict(moved.event["payload"]))
    assert refused.value.exit_code == 5
    assert factory.remembered() == before
    assert factory.sql("SELECT count(*) FROM retrain_claims WHERE task = 'topic'") == [(1,)]


def test_whoever_comes_is_held_against_the_champion_on_every_slice_that_it_was_ever_judged_on(
    factory: Any, moved: Any
) -> None:
    """The champion was asked about the new traffic when a retrain was refused; a training on old rows is asked too."""
    slices = factory.sql("SELECT digest FROM datasets WHERE task = 'topic'")
    asked = factory.sql(
        "SELECT e.dataset FROM evaluations e JOIN versions v ON v.id = e.version_id"
        " WHERE v.name = 'topic' AND v.number = 3 AND e.side = 'test'"
    )
    assert sorted(asked) == sorted(slices)
    assert len(slices) == 2
    assert moved.meanwhile.code == 5
    assert any("kept on test of " in line for line in moved.meanwhile.lines)
    assert not any("scored on" in line for line in moved.meanwhile.lines)


def test_traffic_that_lacks_the_prompt_s_column_is_refused_and_nothing_is_left(factory: Any, moved: Any) -> None:
    before = factory.remembered()
    rows = [{"id": str(n), "time": "2026-01-01T00:00:00", "words": "a b", "label": "c"} for n in range(60)]
    said = factory.run("retrain", "topic", "--traffic", factory.rows("other columns.jsonl", rows))
    assert said.code == 3
    assert "60 are malformed (row 1: text missing)" in said.lines[-1]
    assert factory.remembered() == before
    assert factory.litter() == []


def test_every_version_stands_in_the_matrix_on_every_slice_that_it_was_asked_about(factory: Any, moved: Any) -> None:
    """The witness reads the scores from the tables."""
    from flows.forgetting import class_changes, matrix_of
    from flows.wiring import opened

    with factory.active():
        matrix = matrix_of(opened(), "topic", "exact_match")
        changes = class_changes(opened(), moved.replayed)
    wanted = {
        (f"topic:{number}", dataset[:12]): score
        for number, dataset, score in factory.sql(
            "SELECT v.number, e.dataset, e.score FROM evaluations e JOIN versions v ON v.id = e.version_id"
            " WHERE v.name = 'topic' AND e.side = 'test'"
        )
    }
    found = {
        (version, name.removeprefix("dataset:")): score
        for version, scores in zip(matrix.versions, matrix.scores, strict=True)
        for name, score in zip(matrix.slices, scores, strict=True)
        if score is not None
    }
    assert found == wanted
    assert {"topic:1", "topic:2", "topic:3", "topic:4"} <= set(matrix.versions)
    assert len(matrix.slices) == 2
    ((figures,),) = factory.sql("SELECT figures FROM versions WHERE name = 'topic' AND number = 4")
    assert b"topic:1" in factory.files(figures)["forgetting.svg"].read_bytes()
    old = moved.replayed.scores["champion"]
    (name,) = [name for name in old if name != "fresh"]
    assert sum(change.n * change.before for change in changes) == pytest.approx(sum(old[name].outcomes))
    assert all(change.low <= change.after - change.before <= change.high for change in changes)


def test_what_a_refused_candidate_lost_decides_what_the_next_one_does(
    factory: Any, moved: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first attempt is said to have lost the old rows, all of which it replayed; two versions come of one retrain,
    none is served."""
    import flows.retrain as flow
    from tasks.promotion import Decision, Gate

    told, decided = [], flow.judged

    def judged(spec: Any, version: Any, scores: Any, *rest: Any) -> Any:
        told.append((version.ref, (spec.retrain.replay_share, spec.method.rank)))
        if len(told) > 1:
            return decided(spec, version, scores, *rest)
        return Decision(version.ref, (Gate("kept on test of old", -0.31, -0.4, -0.2, 126, False),))

    monkeypatch.setattr(flow, "judged", judged)
    monkeypatch.setattr("flows.progress.voice.quiet", False)
    with factory.active():
        done = flow.retrain("topic", str(moved.traffic), promote=False)
    assert [recipe for _, recipe in told] == [(0.5, 8), (0.5, 16)]
    assert done.version.ref == told[1][0] != told[0][0]
    assert not done.promoted
    assert (
        "is refused: it lost test of old by 0.310, and no more is left to replay: rank 8 -> 16"
        in capsys.readouterr().err
    )


def test_a_class_that_enters_a_sorted_task_gets_its_place_and_the_champion_is_wrong_there(
    factory: Any, mood: Any, desk: Any
) -> None:
    from flows.retrain import retrain
    from flows.wiring import opened

    entered = desk["moved"].rows(120, seed=8)
    traffic = factory.traffic("entered.jsonl", [*desk["mood"].rows(60, seed=7), *entered])
    with factory.active():
        done = retrain("mood", str(traffic), promote=False)
        fresh = opened().ledger.dataset(dict(done.version.parents)["window"])
    old, new = desk["mood"].labels, {row["label"] for row in entered}
    assert list(done.version.spec["data"]["labels"]) == [*sorted(old), *sorted(new)]
    table = pyarrow.parquet.read_table(factory.files(fresh.digest)["examples.parquet"]).to_pylist()
    target = {row["key"]: row["target"] for row in table}
    champion, candidate = (done.scores[who]["fresh"] for who in ("champion", "candidate"))
    assert champion.keys == candidate.keys
    strange = [o for key, o in zip(champion.keys, champion.outcomes, strict=True) if target.get(key) in new]
    assert set(strange) == {0.0}
    assert candidate.score > champion.score + 0.2


def test_where_a_person_says_that_the_new_labels_hold_the_old_ones_are_neither_replayed_nor_judged_on(
    factory: Any, mood: Any, desk: Any
) -> None:
    """Two labels are swapped in the traffic; the witness counts the frozen rows of the other two."""
    from flows.retrain import retrain
    from flows.watch import reference_examples
    from flows.wiring import opened
    from tasks.specs import AdapterSpec

    first, second = desk["mood"].labels[:2]
    swap = {first: second, second: first}
    rows = [{**row, "label": swap.get(row["label"], row["label"])} for row in desk["mood"].rows(120, seed=12)]
    with factory.active():
        done = retrain("mood", str(factory.traffic("swapped.jsonl", rows)), promote=False, labels_changed="2026-01-01")
    (old,) = done.version.spec["retrain"]["outdated"]
    assert set(done.version.spec["retrain"]["outdated"][old]) == {first, second}
    assert done.version.spec["retrain"]["start"] == "base"  # the champion has learned the opposite
    table = pyarrow.parquet.read_table(factory.files(old)["examples.parquet"]).to_pylist()
    kept = [row for row in table if row["side"] == "test" and row["target"] not in swap]
    (gate,) = [gate for gate in done.decision.gates if gate.name.startswith("kept on ")]
    assert 30 <= gate.n == len(kept)
    with factory.active():  # nor is any later window held against them
        watched = reference_examples(opened(), done.version, AdapterSpec.model_validate(done.version.spec))
    asked = {(example.key, example.target) for example in watched}
    assert {(row["key"], row["target"]) for row in kept} <= asked
    assert asked.isdisjoint((row["key"], row["target"]) for row in table if row["target"] in swap)
    assert done.scores["candidate"]["fresh"].score > done.scores["champion"]["fresh"].score + 0.2


def test_what_is_no_date_is_refused_before_anything_is_read(factory: Any, mood: Any) -> None:
    before = factory.remembered()
    said = factory.run("--quiet", "retrain", "mood", "--labels-changed", "lately")
    assert said.code == 2
    assert said.lines[-1].startswith("E-SPEC-014 --labels-changed: 'lately' is no date or time")
    assert factory.remembered() == before


def test_a_run_that_came_to_nothing_is_followed_by_a_gentler_one(
    factory: Any, mood: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt is said to have diverged; where all attempts do, that is the end."""
    import flows.retrain as flow
    from flows.teach import Unfit
    from tasks.specs import AdapterSpec
    from tasks.training.diagnosis import Finding

    rates: list[float] = []
    done: Any = type("Done", (), {"decision": type("All", (), {"passed": True}), "version": mood.outcome.version})

    def attempted(home: Any, spec: Any, champion: Any, fresh: Any, spent_seconds: float) -> Any:
        rates.append(spec.retrain.rate_factor)
        if len(rates) != 2:
            raise Unfit.of("mood", [Finding("diverged", "loss 9 at the end", "lower the rate", fatal=True)], 1.0)
        return done

    monkeypatch.setattr(flow, "attempted", attempted)
    spec = AdapterSpec.model_validate(mood.outcome.version.spec)
    spec = spec.model_copy(update={"retrain": spec.retrain.model_copy(update={"start": "champion"})})
    nothing: Any = None
    assert flow.best_of(nothing, spec, mood.outcome.version, nothing, 2) is done
    assert rates == pytest.approx([1.0, 1 / 3])
    with pytest.raises(Unfit):
        flow.best_of(nothing, spec, mood.outcome.version, nothing, 2)


@pytest.mark.parametrize(("minutes_each", "attempts"), [(10, 5), (12, 5), (13, 4), (31, 1), (70, 1)])
def test_the_candidates_of_a_retrain_keep_to_one_budget(
    factory: Any, mood: Any, monkeypatch: pytest.MonkeyPatch, minutes_each: int, attempts: int
) -> None:
    """Five candidates may be made, in an hour; the witness is a clock that each of them moves on."""
    import flows.retrain as flow
    from flows.teach import Unfit
    from tasks.promotion import Decision, Gate
    from tasks.specs import AdapterSpec
    from tasks.training.diagnosis import Finding

    minutes, spent = [100.0], []
    refused = Decision("mood:2", (Gate("gain on fresh rows", 0.0, -0.1, 0.0, 90, False),))
    spec = AdapterSpec.model_validate(mood.outcome.version.spec)
    spec = spec.model_copy(update={"repair": spec.repair.model_copy(update={"budget_minutes": 60.0})})
    answered = type("Done", (), {"decision": refused, "version": mood.outcome.version})
    come_to_nothing = False

    def attempted(home: Any, spec: Any, champion: Any, fresh: Any, spent_seconds: float) -> Any:
        spent.append(spent_seconds / 60)
        minutes[0] += minutes_each
        if come_to_nothing:
            raise Unfit.of("mood", [Finding("diverged", "loss 9 at the end", "lower the rate", fatal=True)], 1.0)
        return answered

    def made() -> Any:
        spent.clear()
        return flow.best_of(nothing, spec, mood.outcome.version, nothing, 5, lambda: 60 * minutes[0])

    monkeypatch.setattr(flow, "attempted", attempted)
    monkeypatch.setattr(flow, "all_replayed", lambda *_: 1.0)
    monkeypatch.setattr(flow, "next_attempt", lambda spec, *_: flow.gentler(spec, "refused"))
    nothing: Any = None
    assert made() is answered
    assert spent == pytest.approx([n * minutes_each for n in range(attempts)])
    come_to_nothing = True
    with pytest.raises(Unfit):
        made()
    assert len(spent) == attempts
