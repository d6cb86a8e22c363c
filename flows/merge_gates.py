"""What a merge is held against: rows that chose nothing, each parent's absence, and text of no task at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flows.blessings import MOST_ROWS, answer_gates, one_by_one
from flows.learn import threads
from flows.merge_candidates import Scorer, Setting, retentions
from flows.merge_parents import Expert, Planned, dense_base, without
from flows.policy import on_gpu
from flows.progress import voice
from registry.records import EvaluationRecord
from tasks.data.examples import Example, key_of
from tasks.errors import DataRefused, Problem, SpecRefused, raise_if_any
from tasks.evaluation.scoring import Scores
from tasks.merging.catalogue import RULES
from tasks.merging.rules import weight_problems
from tasks.promotion import Decision, Gate, judge, keeps_share, keeps_slice
from tasks.specs import GateSpec, MergeSpec


def refuse_tuning_on_acceptance(experts: Sequence[Expert]) -> None:
    """Rows that choose settings and rows that accept the model are different rows, over all parents.

    Raises:
        SpecRefused: one problem per pair of parents that share some.
    """
    keys = {
        side: {e.task: {example.key for s in e.slices[side] for example in s.examples} for e in experts}
        for side in ("validation", "test")
    }
    remedy = "split the data of both by the same column or hash, so that an input is on one side everywhere"
    raise_if_any(
        SpecRefused,
        [
            Problem(
                "E-MERGE-044",
                f"{chooser}, {judged}",
                f"{len(shared)} validation rows of {chooser} are test rows of {judged}",
                remedy,
            )
            for chooser, chosen_on in keys["validation"].items()
            for judged, judged_on in keys["test"].items()
            if (shared := chosen_on & judged_on)
        ],
    )


def judged(
    spec: MergeSpec,
    experts: Sequence[Expert],
    scores: Mapping[str, Mapping[str, EvaluationRecord]],
    chosen: str,
    general: tuple[Scores, Scores] | None,
    answers: Sequence[Gate] = (),
) -> Decision:
    """Every task keeps its stated share, on rows that took no part in the choice, text of no task its score, and the
    answers what the recipe asks of them."""
    gates: list[Gate] = [
        keeps_share(
            e.task,
            scores[chosen][e.task].outcomes,
            scores["experts"][e.task].outcomes,
            scores["base"][e.task].outcomes,
            spec.gates,
        )
        for e in experts
    ]
    if general is not None and spec.general is not None:
        before, after = general
        bounds = GateSpec(max_forgetting=spec.general.max_loss, min_rows=spec.gates.min_rows)
        gates.append(keeps_slice("general text", after.outcomes, before.outcomes, bounds))
    return judge(f"{spec.name}, {chosen}", [*gates, *answers])


def general_rows(spec: MergeSpec, experts: Sequence[Expert]) -> tuple[Example, ...]:
    """The recipe's general texts: the first half of each is read, the second continued; none if it names no file.

    Raises:
        SpecRefused: the parents classify, and write no text.
        DataRefused: the file cannot be read, or has too few texts.
    """
    if spec.general is None:
        return ()
    if experts[0].spec.kind == "classification":
        wrong = "the parents classify, and continue no text"
        raise SpecRefused.one("E-MERGE-045", "general", wrong, "leave it out")
    path, rows = Path(spec.general.source), []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = json.loads(line)["text"] if path.suffix == ".jsonl" else line
            words = text.split()
            if len(words) >= 4:
                middle = len(words) // 2
                asked, answer = " ".join(words[:middle]), " " + " ".join(words[middle:])
                rows.append(Example(key_of(text), asked, answer, number))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"cannot be read: {type(error).__name__}"
        raise DataRefused.one(
            "E-MERGE-046", path, wrong, 'write one text a line, or {"text": ...} in .jsonl'
        ) from error
    found = {row.key: row for row in rows}
    if len(found) < spec.gates.min_rows:
        wrong = f"has {len(found)} texts of four words or more, the gate wants {spec.gates.min_rows}"
        raise DataRefused.one("E-MERGE-046", path, wrong, "give more texts")
    return tuple(sorted(found.values(), key=lambda row: row.key)[: spec.general.max_rows])


@on_gpu
def on_general_text(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, chosen: Setting, rows: Sequence[Example]
) -> tuple[Scores, Scores] | None:
    """Share of right next tokens of the base and of the merged model, text by text."""
    from tasks.evaluation.scoring import score
    from tasks.merging.apply import applied

    if not rows:
        return None
    with threads(spec.resources.threads), Scorer.opened(spec, experts, plan) as scorer:
        base = dense_base(experts[0])
        before = score(base, base.model, rows, "token_accuracy")
        with applied(base.model, scorer.updates(chosen), scale=chosen.scale) as model:
            after = score(base, model, rows, "token_accuracy")
    voice.say(f"  general text: {before.mean:.3f} before, {after.mean:.3f} merged")
    return before, after


@on_gpu
def of_its_answers(spec: MergeSpec, experts: Sequence[Expert], plan: Planned, chosen: Setting) -> list[Gate]:
    """Calibration and time of the merged model's answers to each task's test rows, if the recipe asks for them."""
    from tasks.merging.apply import applied

    if not spec.gates.asks_of_answers:
        return []
    gates: list[Gate] = []
    with threads(spec.resources.threads), Scorer.opened(spec, experts, plan) as scorer:
        for e in experts:
            base, head = dense_base(e), plan.parents.heads.get(e.task)
            rows = [example for part in e.slices["test"] for example in part.examples][:MOST_ROWS]
            with applied(base.model, scorer.updates(chosen), scale=chosen.scale, head=head) as model:
                gates += answer_gates(spec.gates, *one_by_one(base, model, rows), on=e.task)
    return gates


@on_gpu
def rounded_to_4_bits(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, chosen: Setting
) -> dict[str, EvaluationRecord]:
    """The chosen model on test rows with the linear weights that its base holds in NF4 rounded to NF4 again: what it
    would cost to serve the merge in 4 bits. Empty where the base is not quantised."""
    from tasks.merging.apply import applied, rounded
    from tasks.merging.base import nf4_modules

    base = experts[0].spec.base
    if base.quantization != "nf4":
        return {}
    names = nf4_modules(plan.base.folder, experts[0].spec.kind)
    found = {}
    with threads(spec.resources.threads), Scorer.opened(spec, experts, plan) as scorer:
        for e in experts:

            def measure(e: Expert = e) -> EvaluationRecord:
                model, updates = dense_base(e).model, scorer.updates(chosen)
                with applied(model, updates, scale=chosen.scale), rounded(model, names, double_quant=base.double_quant):
                    return scorer.as_it_is(e, "test")

            found[e.task] = plan.place.score(f"{chosen} in 4 bits on test of {e.task}", measure)
    return found


@on_gpu
def attributed(
    spec: MergeSpec,
    experts: Sequence[Expert],
    plan: Planned,
    chosen: Setting,
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
) -> dict[str, dict[str, float]]:
    """Leave-one-out: parent to what each task would keep, on validation rows, had that parent taken no part.

    Empty for a single parent, and for rules that merge a fixed number; a parent is not in it without whom the others'
    weights cannot be merged.
    """
    row = RULES.get(chosen.rule)
    if not spec.attribution or len(experts) < 2 or (row is not None and row.parents is not None):
        return {}
    found = {}
    with threads(spec.resources.threads):
        for left_out in experts:
            others = [e for e in experts if e.task != left_out.task]
            weights = tuple((task, weight) for task, weight in chosen.weights if task != left_out.task)
            taken = [dict(weights).get(e.task, 1.0) for e in others]
            if row is not None and (problems := weight_problems(row, taken, left_out.task)):
                voice.say(f"  without {left_out.task} there is nothing to merge: {problems[0].wrong}")
                continue
            setting = replace(chosen, weights=weights)
            with Scorer.opened(spec, others, without(plan, left_out.task), heads=plan.parents.heads) as scorer:
                records = {e.task: scorer.record(setting, e, "validation") for e in experts}
            found[left_out.task] = retentions(records, alone)
            voice.say(
                f"  without {left_out.task}: "
                + ", ".join(f"{task} keeps {share:.0%}" for task, share in found[left_out.task].items())
            )
    return found
