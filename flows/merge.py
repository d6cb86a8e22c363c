"""Several adapters of one base into one model: forecast, merge, choose on validation rows, judge on test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow

from flows.keep import refuse_other_kind
from flows.learn import answers_are_wanted_soon
from flows.merge_candidates import (
    best_of_each_rule,
    merged_and_scored,
    retentions,
    settings_of,
    worst_then_mean,
)
from flows.merge_gates import (
    attributed,
    general_rows,
    judged,
    of_its_answers,
    on_general_text,
    refuse_tuning_on_acceptance,
    rounded_to_4_bits,
)
from flows.merge_parents import Expert, Planned, before_and_alone, expert, key_of_merge, planned_merge, same_base
from flows.merge_place import MergePlace
from flows.merge_result import answered, exported, refuse_foreign, remembered, served, setting_of
from flows.merge_search import searched
from flows.policy import cheap
from flows.progress import voice
from flows.publish import mirrored, publish_merge
from flows.resuming import Workplace, working_on
from flows.wiring import Home, opened
from registry.records import BaseRecord, EvaluationRecord, VersionRecord
from tasks.data.examples import Example
from tasks.merging.rules import check_rules
from tasks.promotion import Decision
from tasks.spec_files import load_merge_spec
from tasks.specs import MergeSpec

if TYPE_CHECKING:
    from tasks.merging.forecast import Forecast


@dataclass(frozen=True)
class MergeOutcome:
    """Scores by model and task on the test rows: "base", "experts" and each rule's best; `chosen` is one of them.

    `tried` maps every setting to its retention per task on the validation rows. `answers` maps a task to a request and
    what the exported model said to it in a fresh process. `attribution` maps a parent to what each task keeps without
    it, on validation rows. `in_4_bits` are the chosen model's scores with its weights rounded to NF4 again.
    """

    version: VersionRecord
    scores: Mapping[str, Mapping[str, EvaluationRecord]]
    tried: Mapping[str, Mapping[str, float]]
    chosen: str
    decision: Decision
    promoted: bool
    forecast: Forecast
    answers: Mapping[str, tuple[str, str]]
    folder: Path | None
    attribution: Mapping[str, Mapping[str, float]]
    in_4_bits: Mapping[str, EvaluationRecord]


@flow(
    name="merge", description="Merge adapters on their exact weight updates, gate the result per task, and export it."
)
def merge(recipe: str, out: str | None = None) -> MergeOutcome:
    """One model from several adapters.

    Args:
        recipe: The merge recipe, a YAML file.
        out: Folder to export the model to, if it passes; it is kept in the store in any case.
    """
    home, spec = opened(), load_merge_spec(recipe)
    check_rules(spec)
    refuse_other_kind(home, spec.name, "merged")
    if out:
        refuse_foreign(Path(out))
    experts = [expert(home, ref) for ref in spec.parents]
    base = same_base(home, experts)
    voice.say(f"{spec.name}: merging {', '.join(e.version.ref for e in experts)}")
    refuse_tuning_on_acceptance(experts)
    general = general_rows(spec, experts)
    with working_on(home, key_of_merge(home, spec, experts, base)) as workplace:
        plan = planned_merge(home, spec, experts, MergePlace.of(workplace.folder / "run-0"))
        outcome = made(home, spec, experts, base, plan, general, workplace, out)
    publish_merge(home, outcome)
    mirrored(home)
    return outcome


def made(
    home: Home,
    spec: MergeSpec,
    experts: Sequence[Expert],
    base: BaseRecord,
    plan: Planned,
    general: tuple[Example, ...],
    workplace: Workplace,
    out: str | None,
) -> MergeOutcome:
    """The merge from its forecast to the served and exported model. A version that was made before from the same
    recipe, parents, base, data and code keeps its setting."""
    forecast = foreseen(plan)
    alone = {side: before_and_alone(home, experts, side) for side in ("validation", "test")}
    tried = merged_and_scored(spec, experts, plan, settings_of(spec), "validation")
    kept = {setting: retentions(scores, alone["validation"]) for setting, scores in tried.items()}
    kept |= searched(home, spec, experts, plan, alone["validation"], kept)
    best = best_of_each_rule(kept)
    chosen = setting_of(home.ledger.by_key(workplace.key)) or max(best, key=lambda one: worst_then_mean(kept[one]))
    best = best if chosen in best else [*best, chosen]
    voice.say(f"  chosen on validation rows: {chosen.name}")

    answers_are_wanted_soon()
    tests = merged_and_scored(spec, experts, plan, best, "test")
    scores = {**alone["test"], **{setting.name: found for setting, found in tests.items()}}
    elsewhere = on_general_text(spec, experts, plan, chosen, general)
    own = of_its_answers(spec, experts, plan, chosen)
    decision = judged(spec, experts, scores, chosen.name, elsewhere, own)
    in_4_bits = rounded_to_4_bits(spec, experts, plan, chosen)
    absent = attributed(spec, experts, plan, chosen, alone["validation"])
    version = remembered(
        home, spec, experts, base, plan, tests[chosen], alone["test"], chosen, absent, in_4_bits, workplace
    )
    answers = answered(home, version, experts)
    promoted = decision.passed and served(home, version, decision)
    folder = exported(home, version, out) if out and decision.passed else None
    shown = {setting.name: values for setting, values in kept.items()}
    return MergeOutcome(
        version, scores, shown, chosen.name, decision, promoted, forecast, answers, folder, absent, in_4_bits
    )


@cheap
def foreseen(plan: Planned) -> Forecast:
    """What the adapters alone foretell, said before anything is merged."""
    from tasks.merging.forecast import foretold

    forecast = foretold(plan.parents, plan.base)
    for line in forecast.summary.splitlines():
        voice.say(f"  {line}")
    return forecast
