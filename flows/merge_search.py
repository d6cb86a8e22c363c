"""A search over merge settings within a budget: TPE proposes, tasks are scored worst first, and a trial that can no
longer win is ended. Every trial is a child run; updates are shared between trials that differ in scale alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.learn import threads
from flows.merge_candidates import Scorer, Setting, retentions, worst_then_mean
from flows.merge_parents import Expert, Planned
from flows.policy import on_gpu
from flows.progress import voice
from flows.wiring import Home
from registry.records import EvaluationRecord
from tasks.merging.catalogue import reads_density
from tasks.specs import MergeSpec, SearchSpec

if TYPE_CHECKING:
    import optuna

Kept = dict[str, float]
DENSITY_STEP, WEIGHT_STEP = 0.05, 0.25  # coarse on purpose: trials of one step share their updates


@on_gpu
def searched(
    home: Home,
    spec: MergeSpec,
    experts: Sequence[Expert],
    plan: Planned,
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    tried: Mapping[Setting, Kept],
) -> dict[Setting, Kept]:
    """What further settings keep of each task on validation rows; pruned trials are left out.

    Args:
        alone: base and experts on validation rows.
        tried: settings of the recipe and what they kept; the search starts from them.
    """
    asked = spec.search
    if asked is None:
        return {}
    study = _study(spec, asked, experts, tried)
    found: dict[Setting, Kept] = {}
    best = max(map(worst_then_mean, tried.values()))
    began = time.monotonic()
    tags = {"factory.merge": spec.name}
    with (
        home.tracker.run(name=f"{spec.name} search", experiment=spec.name, tags=tags) as parent,
        threads(spec.resources.threads),
        Scorer.opened(spec, experts, plan) as scorer,
    ):
        for number in range(asked.trials):
            seconds = time.monotonic() - began
            if asked.seconds is not None and seconds > asked.seconds:
                voice.say(f"  search: {asked.seconds:g} s are over after {number} of {asked.trials} trials")
                break
            trial = study.ask()
            setting = _setting(trial, asked, experts)
            settings = {
                "rule": setting.rule,
                "density": setting.density,
                "scale": setting.scale,
                **dict(setting.weights),
            }
            with home.tracker.run(
                name=setting.name, experiment=spec.name, tags=tags, params=settings, parent=parent.key
            ) as run:
                kept = found.get(setting) or _scored(scorer, setting, experts, alone, best[0])
                run.log_metrics({f"kept_{task}": share for task, share in kept.items()})
                whole = len(kept) == len(experts)
                worst, mean = worst_then_mean(kept)
                run.log_tags({"pruned": not whole})
            study.tell(trial, worst + mean / 1000)  # a pruned trial's worst only falls: its value is an upper bound
            if whole:
                found[setting] = kept
                best = max(best, (worst, mean))
            left = (time.monotonic() - began) / (number + 1) * (asked.trials - number - 1)
            voice.bar("search: trial", number + 1, asked.trials, left, f"{setting.name}: worst {worst:.2f}")
        parent.log_metrics({"trials": len(study.trials), "scored_whole": len(found), "best_worst_kept": best[0]})
    return {setting: kept for setting, kept in found.items() if setting not in tried}


def _scored(
    scorer: Scorer,
    setting: Setting,
    experts: Sequence[Expert],
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    to_beat: float,
) -> dict[str, float]:
    """Kept shares, task by task; it ends at the first that is worse than the best setting's worst."""
    kept: dict[str, float] = {}
    for e in scorer.hardest_first():
        record = scorer.record(setting, e, "validation")
        kept |= retentions({e.task: record}, alone)
        scorer.note(e.task, kept[e.task])
        if round(kept[e.task], 2) < to_beat:
            break
    return kept


def _study(
    spec: MergeSpec, asked: SearchSpec, experts: Sequence[Expert], tried: Mapping[Setting, Kept]
) -> optuna.Study:
    """A study that begins at the best settings of the recipe, and is the same for the same seed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=spec.seed, multivariate=True, group=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    known = [setting for setting in tried if setting.rule in asked.rules]
    for setting in sorted(known, key=lambda setting: worst_then_mean(tried[setting]), reverse=True)[:3]:
        values: dict[str, Any] = {
            "rule": setting.rule,
            "scale": min(max(setting.scale, asked.scale[0]), asked.scale[1]),
        }
        if reads_density(setting.rule):
            values["density"] = min(max(setting.density, asked.density[0]), asked.density[1])
        study.enqueue_trial(values, skip_if_exists=True)
    return study


def _setting(trial: optuna.Trial, asked: SearchSpec, experts: Sequence[Expert]) -> Setting:
    rule = trial.suggest_categorical("rule", asked.rules)
    scale = trial.suggest_float("scale", *asked.scale, log=True)
    density = 1.0
    if reads_density(rule):
        density = trial.suggest_float("density", *asked.density)
        density = min(1.0, max(DENSITY_STEP, round(density / DENSITY_STEP) * DENSITY_STEP))
    weights: tuple[tuple[str, float], ...] = ()
    if asked.weights:
        drawn = {e.task: trial.suggest_float(f"weight {e.task}", 0.5, 2.0, step=WEIGHT_STEP) for e in experts}
        weights = tuple(sorted(drawn.items()))
    return Setting(rule, weights, round(density, 4), round(scale, 4))
