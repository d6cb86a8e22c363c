"""What a merge shows: forecast, what was tried, what each candidate kept, who it owes what, gates and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report import Figure, Section, Table

if TYPE_CHECKING:
    from flows.merge import MergeOutcome
    from registry.records import EvaluationRecord

ROUTING = "routing (own adapter)"


def merge_sections(outcome: MergeOutcome) -> list[Section]:
    """Sections of the page, in the order in which a merge is made."""
    from flows.publish import gates_table

    tasks = list(outcome.scores["base"])
    pairs = tuple(
        (p.first, p.second, p.conflict_share, p.cosine, p.norm_ratio, p.input_overlap) for p in outcome.forecast.pairs
    )
    forecast = Table(
        "Parents, pair by pair", ("first", "second", "sign conflict", "cosine", "norm ratio", "inputs shared"), pairs
    )
    alone = Table(
        f"Verdict: {outcome.forecast.verdict}",
        ("parent", "interference", "agreement", "departure from the base"),
        tuple((p.task, p.interference, p.agreement, p.departure) for p in outcome.forecast.parents),
    )
    tried = tuple(
        (name, *(kept[t] for t in tasks), sum(kept.values()) / len(kept), min(kept.values()))
        for name, kept in outcome.tried.items()
    )
    answers = tuple((task, asked, said.strip()) for task, (asked, said) in outcome.answers.items())
    return [
        Section("Forecast", tuple(outcome.forecast.summary.splitlines()), (forecast, alone), overlap_figures(outcome)),
        Section(
            "Tried",
            ("Share of each expert's gain that is kept, on validation rows.",),
            (Table("Tried", ("setting", *tasks, "mean", "worst"), tried),),
            (front_figure(outcome),),
        ),
        Section("Kept", (f"Chosen: {outcome.chosen}.",), (models_table(outcome),), (kept_figure(outcome),)),
        *attribution_section(outcome),
        Section("Gates", (outcome.decision.sentence,), (gates_table(outcome.decision),)),
        Section("In a fresh process", (), (Table("Answers", ("task", "request", "answer"), answers),)),
    ]


def overlap_figures(outcome: MergeOutcome) -> tuple[Figure, ...]:
    """Sign conflict and cosine of every pair; none where no two parents meet."""
    from tasks.figures.merging import parent_overlap

    if not outcome.forecast.pairs:
        return ()
    names = [parent.task for parent in outcome.forecast.parents]
    met = {frozenset((p.first, p.second)): p for p in outcome.forecast.pairs}
    pairs = [[met.get(frozenset((one, other))) for other in names] for one in names]
    conflict = [[p.conflict_share if p else 0.0 for p in row] for row in pairs]
    cosine = [[p.cosine if p else 0.0 for p in row] for row in pairs]
    image = parent_overlap(names, conflict, cosine, title="How the parents stand to one another")
    note = f"Read from the adapters alone. Verdict: {outcome.forecast.verdict}."
    return (Figure(image, note),)


def models_table(outcome: MergeOutcome) -> Table:
    """Score on test rows with n, interval and the kept share of the expert's gain. Routing every request to its task's
    own adapter keeps all of it, and is what the experts' row shows."""
    tasks = list(outcome.scores["base"])
    base, experts = outcome.scores["base"], outcome.scores["experts"]

    def cell(found: EvaluationRecord, task: str) -> str:
        gain = experts[task].score - base[task].score
        kept = f", keeps {(found.score - base[task].score) / gain:.0%}" if gain > 0 else ""
        return f"{found.score:.3f} [{found.low:.3f}, {found.high:.3f}] n={found.n}{kept}"

    models = {ROUTING if who == "experts" else who: found for who, found in outcome.scores.items()}
    if outcome.in_4_bits:
        models[f"{outcome.chosen}, rounded to 4 bits"] = outcome.in_4_bits
    rows = tuple((who, *(cell(found[task], task) for task in tasks)) for who, found in models.items())
    return Table("Score on test rows, 95 % intervals", ("model", *tasks), rows)


def attribution_section(outcome: MergeOutcome) -> list[Section]:
    """What each task keeps when a parent takes no part."""
    if not outcome.attribution:
        return []
    tasks = list(outcome.scores["base"])
    rows = tuple((left, *(kept[task] for task in tasks)) for left, kept in outcome.attribution.items())
    note = ("Share of each expert's gain that the chosen merge keeps without one parent, on validation rows.",)
    return [Section("Leave one out", note, (Table("Leave one out", ("without", *tasks), rows),))]


def kept_figure(outcome: MergeOutcome) -> Figure:
    """What each candidate keeps of each task."""
    from tasks.figures.merging import retention

    points = {who: {task: e.score for task, e in found.items()} for who, found in outcome.scores.items()}
    base, experts = points.pop("base"), points.pop("experts")
    metric = next(iter(outcome.scores["base"].values())).metric
    image = retention(
        points, base=base, expert=experts, chosen=outcome.chosen, metric=metric, title="What the merge kept"
    )
    return Figure(image, "Each candidate on each task, between the untouched base and the task's own expert.")


def front_figure(outcome: MergeOutcome) -> Figure:
    """Mean against worst task, a point per setting."""
    from tasks.figures.merging import front

    image = front(outcome.tried, chosen=outcome.chosen, title="Settings tried")
    return Figure(image, "Kept share of the experts' gain on validation rows: mean over tasks, and the worst task.")
