"""Several adapters of one base into one model: forecast, merge, choose on validation rows, judge on test rows."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.learn import Slice, datasets_of, known_scores, record_of, scored, slice_of, subject_of, threads
from flows.policy import cheap, on_gpu
from flows.progress import voice
from flows.publish import mirrored, publish_merge
from flows.validate import base_folder, identified, remembered_dataset
from flows.wiring import Home, flow_run_id, opened
from registry.fingerprint import version_key
from registry.records import BaseRecord, EvaluationRecord, VersionDraft, VersionRecord, base_ref
from tasks.errors import ArtifactRefused, Problem, SpecRefused, raise_if_any
from tasks.evaluation.scoring import Scores
from tasks.export.card import Card, Score
from tasks.merging.rules import MEASURED, check_rules, reads_density
from tasks.promotion import Decision, judge, keeps_share, retention
from tasks.spec_files import load_merge_spec
from tasks.specs import SIDES, AdapterSpec, MergeSpec, Side

if TYPE_CHECKING:
    from tasks.merging.base import BaseWeights
    from tasks.merging.plan import MergePlan
    from tasks.training.base import Base


@dataclass(frozen=True)
class Expert:
    """A parent with its spec and the rows that it is asked about, snapshot by snapshot."""

    version: VersionRecord
    spec: AdapterSpec
    slices: Mapping[Side, tuple[Slice, ...]]

    @property
    def task(self) -> str:
        return self.version.name


@dataclass(frozen=True)
class Setting:
    """One candidate: a rule with weights, a density, and a factor on the merged update."""

    rule: str
    weights: tuple[tuple[str, float], ...]
    density: float
    scale: float

    @property
    def name(self) -> str:
        density = f", density {self.density:g}" if reads_density(self.rule) else ""
        return f"{self.rule} (scale {self.scale:g}{density})"


@dataclass(frozen=True)
class Planned:
    """What is merged: the parents' exact updates, and the base that they are added to."""

    base: BaseWeights
    parents: MergePlan
    measured: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Forecast:
    """What the adapters alone say about the merge: one line per pair of parents, and the same in plain words."""

    pairs: tuple[Any, ...]
    summary: str


@dataclass(frozen=True)
class MergeOutcome:
    """Scores by model and task on the test rows: "base", "experts" and each rule's best; `chosen` is one of them.

    `tried` maps every setting to its retention per task on the validation rows. `answers` maps a task to a request and
    what the exported model said to it in a fresh process.
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
    if out:
        refuse_foreign(Path(out))
    experts = [expert(home, ref) for ref in spec.parents]
    base = same_base(home, experts)
    voice.say(f"{spec.name}: merging {', '.join(e.version.ref for e in experts)}")
    plan = planned_merge(home, spec, experts)
    forecast = foreseen(plan)

    alone = {side: before_and_alone(home, experts, side) for side in ("validation", "test")}
    tried = merged_and_scored(spec, experts, plan, settings_of(spec), "validation")
    kept = {setting: retentions(scores, alone["validation"]) for setting, scores in tried.items()}
    best = best_of_each_rule(kept)
    chosen = max(best, key=lambda setting: worst_then_mean(kept[setting]))
    voice.say(f"  chosen on validation rows: {chosen.name}")

    tests = merged_and_scored(spec, experts, plan, best, "test")
    scores = {**alone["test"], **{setting.name: found for setting, found in tests.items()}}
    decision = judged(spec, experts, scores, chosen.name)
    version = remembered(home, spec, experts, base, plan, tests[chosen], alone["test"], chosen)
    answers = answered(home, version, experts)
    promoted = decision.passed and served(home, version, decision)
    folder = exported(home, version, out) if out and decision.passed else None
    shown = {setting.name: values for setting, values in kept.items()}
    outcome = MergeOutcome(version, scores, shown, chosen.name, decision, promoted, forecast, answers, folder)
    publish_merge(home, outcome)
    mirrored(home)
    return outcome


def expert(home: Home, ref: str) -> Expert:
    """A parent by reference, with the rows of all the data that it learned from.

    Raises:
        SpecRefused: it is a merged model.
    """
    version = home.ledger.version(ref)
    if version.kind != "adapter":
        raise SpecRefused.one("E-MERGE-040", ref, "is a merged model", "name the adapters it was made from")
    spec = AdapterSpec.model_validate(version.spec)
    known = [remembered_dataset(home, digest) for digest in datasets_of(version)]
    return Expert(version, spec, {side: tuple(slice_of(spec, data, side) for data in known) for side in SIDES})


def same_base(home: Home, experts: Sequence[Expert]) -> BaseRecord:
    """The base that all parents share, as it lies on this machine.

    Raises:
        ArtifactRefused: parents of different bases, or a base folder that changed since.
    """
    first = experts[0]
    remedy = "merge adapters of one base"
    raise_if_any(
        ArtifactRefused,
        [
            Problem(
                "E-MERGE-011", e.version.ref, f"base {e.version.base[:12]} is not {first.version.base[:12]}", remedy
            )
            for e in experts
            if e.version.base != first.version.base or e.spec.base.quantization != first.spec.base.quantization
        ],
    )
    base = identified(home, first.spec.base)
    if base.digest != first.version.base:
        wrong = f"has changed: {base.digest[:12]}, the adapters were trained on {first.version.base[:12]}"
        raise ArtifactRefused.one("E-MERGE-042", first.spec.base.model, wrong, "restore the base")
    return base


@cheap
def planned_merge(home: Home, spec: MergeSpec, experts: Sequence[Expert]) -> Planned:
    """The parents' exact updates over one base; every mismatch is listed before anything is computed.

    Raises:
        ArtifactRefused: with all of them.
    """
    import torch

    from tasks.merging.base import nf4_modules, open_base
    from tasks.merging.plan import Parent, check_parents

    base = experts[0].spec.base
    folder = base_folder(base)
    rounded = base.quantization == "nf4" and spec.merge_base == "dequantized"
    as_seen = nf4_modules(folder, experts[0].spec.kind) if rounded else ()
    weights = open_base(folder, nf4=as_seen, double_quant=base.double_quant, dtype=torch.float32)
    parents = [
        Parent(
            e.version.ref, e.task, home.store.path(e.version.artifact), e.version.base, quantization=base.quantization
        )
        for e in experts
    ]
    return Planned(weights, check_parents(parents, weights))


def before_and_alone(home: Home, experts: Sequence[Expert], side: Side) -> dict[str, dict[str, EvaluationRecord]]:
    """The untouched base and each expert alone, per task; what the ledger knows is not measured again."""
    found: dict[str, dict[str, EvaluationRecord]] = {"base": {}, "experts": {}}
    for e in experts:
        for who, subject, adapter in (
            ("base", base_ref(e.version.base), None),
            ("experts", e.version.ref, home.store.path(e.version.artifact)),
        ):
            known = known_scores(home, subject, e.slices[side], e.spec.metric)
            missing = [s for s in e.slices[side] if s.dataset not in known]
            if missing:
                learned = [x for s in e.slices["train"] for x in s.examples]
                measured = scored(e.spec, missing, adapter, learned)
                home.ledger.remember_evaluations([subject_of(m, subject) for m in measured.values()])
                known |= {m.dataset: m for m in measured.values()}
            found[who][e.task] = pooled([known[s.dataset] for s in e.slices[side]])
    return found


@on_gpu
def merged_and_scored(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, settings: Sequence[Setting], side: Side
) -> dict[Setting, dict[str, EvaluationRecord]]:
    """Each setting's model on every task. A rule's update is computed once per density."""
    from tasks.evaluation.scoring import score
    from tasks.merging.apply import applied

    bases = {e.task: dense_base(e) for e in experts}
    found: dict[Setting, dict[str, EvaluationRecord]] = {}
    began = time.monotonic()
    with threads(spec.resources.threads), as_merged(bases.values(), plan):
        for _, alike in itertools.groupby(settings, key=lambda s: (s.rule, s.weights, s.density)):
            group = list(alike)
            updates = updates_of(spec, experts, plan, group[0])
            for setting in group:
                found[setting] = {}
                for e in experts:
                    base, head = bases[e.task], plan.parents.heads.get(e.task)
                    with applied(base.model, updates, scale=setting.scale, head=head) as model:
                        scores = [record_of(score(base, model, s.examples, e.spec.metric), s) for s in e.slices[side]]
                    found[setting][e.task] = pooled(scores)
                left = (time.monotonic() - began) / len(found) * (len(settings) - len(found))
                voice.bar(f"merging, scored on {side} rows:", len(found), len(settings), left, setting.name)
    return found


@contextmanager
def as_merged(bases: Iterable[Base], plan: Planned) -> Iterator[None]:
    """Dense bases with the weights that are merged into; whoever borrows them next finds the stored ones again."""
    import torch

    from tasks.merging.apply import fill
    from tasks.merging.base import open_base

    bases = tuple(bases)
    stored = open_base(plan.base.folder, dtype=torch.float32)
    try:
        for base in bases:
            fill(base.model, plan.base)
        yield
    finally:
        for base in bases:
            fill(base.model, stored)


def updates_of(spec: MergeSpec, experts: Sequence[Expert], plan: Planned, setting: Setting) -> dict[str, Any]:
    """The merged update of a setting, unscaled, by module. What was measured on rows is measured once per recipe."""
    from tasks.merging.merge import merged_updates

    if setting.rule in MEASURED:
        if setting.rule not in plan.measured:
            plan.measured[setting.rule] = measured_updates(experts, plan)
        return plan.measured[setting.rule]
    weights = dict(setting.weights)
    return dict(merged_updates(plan.parents, setting.rule, weights=weights, density=setting.density, seed=spec.seed))


def measured_updates(experts: Sequence[Expert], plan: Planned) -> dict[str, Any]:
    """The regression mean over the parents' validation rows."""
    from tasks.merging.apply import fill
    from tasks.merging.regression import regression_mean
    from tasks.training.encoding import encode

    base = dense_base(experts[0])
    fill(base.model, plan.base)
    rows = {e.task: encode(base, [x for s in e.slices["validation"] for x in s.examples]) for e in experts}
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        voice.bar("regression mean: layer", done, total, (time.monotonic() - began) / done * (total - done))

    return regression_mean(base, plan.parents, rows, on_layer=show)


def dense_base(expert: Expert) -> Any:
    """The base as float32 weights, to put updates on; 4-bit weights would round them away."""
    from tasks.training.base import load_base

    spec = expert.spec
    dense = spec.base.model_copy(update={"quantization": "none", "compute_dtype": "float32"})
    return load_base(dense, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)


def settings_of(spec: MergeSpec) -> list[Setting]:
    """Every combination that the recipe asks for, those of one update side by side."""
    return [
        Setting(rule.rule, tuple(sorted(rule.weights.items())), density, scale)
        for rule in spec.rules
        for density in rule.density
        for scale in rule.scale
    ]


def retentions(
    scores: Mapping[str, EvaluationRecord], alone: Mapping[str, Mapping[str, EvaluationRecord]]
) -> dict[str, float]:
    """Share of each expert's gain that is kept."""
    return {
        task: retention(found.outcomes, alone["experts"][task].outcomes, alone["base"][task].outcomes)
        for task, found in scores.items()
    }


def worst_then_mean(kept: Mapping[str, float]) -> tuple[float, float]:
    """The order of candidates: a mean hides a dead task, so the worst task counts first."""
    return round(min(kept.values()), 2), sum(kept.values()) / len(kept)


def best_of_each_rule(kept: Mapping[Setting, Mapping[str, float]]) -> list[Setting]:
    """One setting per rule, in the order of the recipe."""
    best: dict[str, Setting] = {}
    for setting, values in kept.items():
        other = best.get(setting.rule)
        if other is None or worst_then_mean(values) > worst_then_mean(kept[other]):
            best[setting.rule] = setting
    return list(best.values())


def judged(
    spec: MergeSpec, experts: Sequence[Expert], scores: Mapping[str, Mapping[str, EvaluationRecord]], chosen: str
) -> Decision:
    """Every task keeps its stated share, on rows that took no part in the choice."""
    gates = [
        keeps_share(
            e.task,
            scores[chosen][e.task].outcomes,
            scores["experts"][e.task].outcomes,
            scores["base"][e.task].outcomes,
            spec.gates,
        )
        for e in experts
    ]
    return judge(f"{spec.name}, {chosen}", gates)


def remembered(
    home: Home,
    spec: MergeSpec,
    experts: Sequence[Expert],
    base: BaseRecord,
    plan: Planned,
    scores: Mapping[str, EvaluationRecord],
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    chosen: Setting,
) -> VersionRecord:
    """The chosen model written as a transformers folder, stored, and registered with its parents."""
    key = version_key(
        kind="merged",
        spec={"recipe": spec.model_dump(mode="json"), "chosen": chosen.name},
        base=base.digest,
        parents=[("parent", e.version.artifact) for e in experts],
        evaluation=[s.dataset for e in experts for s in e.slices["test"]],
        code=home.code.digest,
        seed=spec.seed,
    )
    if known := home.ledger.by_key(key):
        return known
    staging = Path(tempfile.mkdtemp(dir=home.scratch()))
    try:
        card = card_of(spec, experts, base, scores, alone, chosen)
        written(spec, experts, plan, chosen, card, staging / "model")
        artifact = home.store.put(staging / "model")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    version = home.ledger.register(
        VersionDraft(
            name=spec.name,
            kind="merged",
            version_key=key,
            artifact=artifact,
            base=base.digest,
            code=home.code.digest,
            spec={**spec.model_dump(mode="json"), "chosen": chosen.name},
            parents=tuple(("parent", e.version.ref) for e in experts),
            metrics={f"{task}_{found.metric}": found.score for task, found in scores.items()},
            evaluations=tuple(scores.values()),
            flow_run=flow_run_id(),
        )
    )
    voice.say(f"  registered {version.ref}, sha256 {artifact[:12]}")
    return version


def pooled(records: Sequence[EvaluationRecord]) -> EvaluationRecord:
    """The scores on several slices as one, named by the first slice; a row that is in two of them counts once."""
    if len(records) == 1:
        return records[0]
    rows = {key: outcome for record in records for key, outcome in zip(record.keys, record.outcomes, strict=True)}
    where = Slice("", records[0].dataset, records[0].side, ())  # type: ignore[arg-type]
    return record_of(Scores(records[0].metric, tuple(rows), tuple(rows.values())), where)


@cheap
def foreseen(plan: Planned) -> Forecast:
    """How far the parents pull the same weights apart, said before anything is merged."""
    from tasks.merging.overlap import forecast, summary

    pairs = forecast(plan.parents)
    for line in summary(pairs).splitlines():
        voice.say(f"  {line}")
    return Forecast(pairs, summary(pairs))


def card_of(
    spec: MergeSpec,
    experts: Sequence[Expert],
    base: BaseRecord,
    scores: Mapping[str, EvaluationRecord],
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    chosen: Setting,
) -> Card:
    """What the exported folder says about itself."""
    return Card(
        name=spec.name,
        kind=experts[0].spec.kind,
        base=f"{base.name}, sha256 {base.digest}",
        lineage={e.version.ref: f"adapter, sha256 {e.version.artifact}" for e in experts},
        recipe={
            "rule": chosen.rule,
            "scale": chosen.scale,
            "density": chosen.density,
            **dict(chosen.weights),
            "seed": spec.seed,
        },
        scores=[
            Score(e.task, s.metric, alone["base"][e.task].score, alone["experts"][e.task].score, s.score, s.n)
            for e in experts
            for s in [scores[e.task]]
        ],
        limits=["Judged on the test rows of the tasks above and on nothing else."],
    )


def written(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, chosen: Setting, card: Card, folder: Path
) -> None:
    """The chosen model as a plain transformers folder; one module is in memory at a time. Classifiers share the body,
    and each task's own head lies beside it."""
    import torch

    from tasks.export.model import export_model
    from tasks.merging.base import open_base

    stored = open_base(plan.base.folder).dtypes
    dtype = (
        max(stored.values(), key=list(stored.values()).count) if spec.dtype == "base" else getattr(torch, spec.dtype)
    )
    heads = plan.parents.heads
    export_model(
        folder,
        plan.base,
        updates_of(spec, experts, plan, chosen).items(),
        scale=chosen.scale,
        dtype=dtype,
        card=card,
        heads=heads,
        labels={e.task: e.spec.data.labels for e in experts if e.task in heads},
    )


@cheap
def answered(home: Home, version: VersionRecord, experts: Sequence[Expert]) -> dict[str, tuple[str, str]]:
    """One request per task, answered by the stored model in a fresh process: task to (request, answer).

    Raises:
        ArtifactRefused: it does not load or does not answer.
    """
    from tasks.export.answer import answer_in_fresh_process

    folder = home.store.path(version.artifact)
    asked = {e.task: e.slices["test"][-1].examples[0].input for e in experts}
    if experts[0].spec.kind == "classification":  # one body, and the head of the task that is asked
        said = {t: answer_in_fresh_process(folder, [q], kind="classification", head=t)[0] for t, q in asked.items()}
    else:
        said = dict(zip(asked, answer_in_fresh_process(folder, list(asked.values())), strict=True))
    return {task: (request, said[task]) for task, request in asked.items()}


def served(home: Home, version: VersionRecord, decision: Decision) -> bool:
    """The merged model made champion of its name."""
    champion = home.ledger.champion(version.name)
    if champion is None or champion.number != version.number:
        expected = champion.number if champion else None
        gates = {"gates": [asdict(gate) for gate in decision.gates], "sentence": decision.sentence}
        home.ledger.promote(
            version.name, version.number, expected=expected, decision=gates, actor="factory", reason=decision.sentence
        )
        voice.say(f"  {version.ref} is champion: {decision.sentence}, and it answers in a fresh process")
    return True


def refuse_foreign(target: Path) -> None:
    """An export takes the place of nothing, of an empty folder, or of an earlier export as it was written.

    Raises:
        SpecRefused: something else lies there.
    """
    from tasks.export.model import verify_export

    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            verify_export(target)
    except ArtifactRefused:
        wrong = "is there already, and is no exported model or was changed since"
        raise SpecRefused.one("E-MERGE-043", target, wrong, "name another folder") from None


def exported(home: Home, version: VersionRecord, out: str) -> Path:
    """A copy of the stored model where the user wants it; a model that lies there already is replaced whole."""
    target = Path(out)
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(home.store.path(version.artifact), staging, copy_function=shutil.copyfile)
        refuse_foreign(target)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    voice.say(f"  exported to {target}")
    return target
