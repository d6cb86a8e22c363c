"""From a snapshot to a registered candidate: settle, plan, evaluate, register. What several flows share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from flows.calibration import correction_of
from flows.keep import bound
from flows.policy import cheap, on_gpu
from flows.progress import voice
from flows.publish import figures_of
from flows.validate import Dataset, base_folder, remembered_dataset, token_counter
from flows.wiring import Home, flow_run_id, opened
from registry.fingerprint import version_key
from registry.records import BaseRecord, EvaluationRecord, LeaseRecord, VersionDraft, VersionRecord
from tasks.data.examples import Example
from tasks.errors import ArtifactRefused, SpecRefused
from tasks.evaluation.comparison import interval
from tasks.evaluation.scoring import Scores
from tasks.memory import (
    NOTHING_LEARNED,
    Correction,
    MemoryPlan,
    free_ram_bytes,
    half_on_cpu,
    plan_memory,
    read_shapes,
    refuse_if_too_large,
)
from tasks.planning import Planner, shapes_of
from tasks.specs import SIDES, AdapterSpec, Side
from tasks.training.curve import Curve
from tasks.training.diagnosis import Finding
from tasks.training.recipe import facts_of, with_choices

LEARNED_OR_JUDGED = ("dataset", "replay", "window", "judged")  # roles of data sets, the last one of imported adapters


@dataclass(frozen=True)
class Slice:
    """Rows of one side of one snapshot, on which models are compared."""

    name: str
    dataset: str  # digest
    side: Side
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Candidate:
    """A trained adapter that is not registered yet; its folder lasts as long as the block in which it is used."""

    spec: AdapterSpec
    folder: Path
    curve: Curve
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    run: str | None
    compute: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def settled(spec: AdapterSpec, data: Dataset) -> AdapterSpec:
    """The spec with what data and base decide written in: the classes in a fixed order, and what was left `auto`."""
    learn = data.snapshot.examples("train")
    if spec.kind == "classification" and not spec.data.labels:
        labels = tuple(sorted({example.target for example in learn}))
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"labels": labels})})
    if spec.auto:
        spec = with_choices(spec, facts_of(read_shapes(base_folder(spec.base)), len(learn)))
        for path, reason in spec.chosen.items():
            voice.say(f"  {path} {reason}")
    return spec


def key_of(
    home: Home, spec: AdapterSpec, base: BaseRecord, made_from: Sequence[tuple[str, str]], judged_on: Sequence[str]
) -> str:
    """The version key: all that determines the bytes and the scores. Paths of this machine are no part of it."""
    return version_key(
        kind="adapter",
        spec=portable(spec),
        base=base.digest,
        parents=list(made_from),
        evaluation=list(judged_on),
        code=home.code.digest,
        seed=spec.seed,
    )


def portable(spec: AdapterSpec) -> dict[str, Any]:
    """A spec as it is remembered in keys and cards: the base and the source by name, not by this machine's paths."""
    tree = spec.model_dump(mode="json")
    for section, field in (("base", "model"), ("data", "source")):
        value = tree[section][field]
        tree[section][field] = Path(value).name if Path(value).is_absolute() else value
    return tree


@dataclass(frozen=True)
class Planned:
    """The plan of a run, and how another recipe on its rows is planned: for the same memory, corrected alike."""

    plan: MemoryPlan
    planner: Planner

    def fits(self, spec: AdapterSpec) -> bool:
        """Whether another recipe of this run fits the base and the memory that there was."""
        try:
            return self.planner(spec).fits
        except SpecRefused:
            return False


@cheap
def planned(spec: AdapterSpec, base: BaseRecord, data: Dataset, replay: Sequence[Example] = ()) -> Planned:
    """What a run on these rows, and those that it replays, will need, before a weight is loaded; corrected by what
    earlier runs measured.

    Raises:
        SpecRefused: it cannot fit, or the method does not fit the base; with what would.
    """
    folder = base_folder(spec.base)
    examples = [*(e for side in SIDES for e in data.snapshot.examples(side)), *replay]
    count = token_counter(spec.base)
    longest = max(count([e.input + e.target for e in examples]))
    context = read_shapes(folder).config.get("max_position_embeddings")
    if context and longest > context:
        wrong = f"a row has {longest} tokens, the base reads {context}"
        raise SpecRefused.one("E-SPEC-018", f"{spec.task}:data.max_tokens", wrong, f"set it to {context} or less")
    answers = max(count([e.target for e in examples])) + 1 if spec.kind == "generation" else None
    device = device_memory(spec)
    known = correction_of(opened(), base.architecture, base.parameters, device.card_bytes)
    rows: dict[str, Any] = {"longest_tokens": longest, "longest_answer": answers}
    planner: Planner = partial(plan_run, folder=folder, correction=known, device=device, **rows)
    plan = planner(spec)
    refuse_if_too_large(plan, spec)
    largest = max(plan.causes, key=lambda cause: plan.causes[cause])
    voice.say(
        f"  plan: {plan.peak_bytes / 2**20:.0f} MiB of {plan.available_bytes / 2**30:.1f} GiB, most for {largest}"
        f" ({plan.causes[largest] / 2**20:.0f} MiB); {plan.trainable:,} trainable of {plan.parameters:,} parameters"
        + (f"; {known.sentence}" if known.runs else "")
    )
    return Planned(plan, planner)


def plan_run(
    spec: AdapterSpec,
    folder: Path,
    available_bytes: int | None = None,
    longest_tokens: int | None = None,
    longest_answer: int | None = None,
    correction: Correction = NOTHING_LEARNED,
    device: DeviceMemory | None = None,
) -> MemoryPlan:
    """The memory plan of a spec on this machine (or on a GPU with `available_bytes`), for rows of the longest length
    that the spec allows, or of the longest that there is. `device` is what was there before, where that is to count."""
    if available_bytes is not None:
        device = DeviceMemory(True, available_bytes, available_bytes)
    device = device or device_memory(spec)
    free = device.free_bytes
    if available_bytes is None and spec.resources.memory_gib is not None:
        free = int(spec.resources.memory_gib * 2**30)
    free = free if device.on_gpu else free // spec.resources.processes  # they share the host's memory
    shapes = shapes_of(folder)
    hidden = int(shapes.config.get("hidden_size", 0))
    return plan_memory(
        spec,
        shapes,
        available_bytes=free,
        longest_tokens=min(longest_tokens or spec.data.max_tokens, spec.data.max_tokens),
        longest_answer=longest_answer,
        on_gpu=device.on_gpu,
        half=device.on_gpu or half_on_cpu(spec.base.compute_dtype, hidden),
        correction=correction,
    )


@on_gpu
def scored(
    spec: AdapterSpec, slices: Sequence[Slice], adapter: Path | None, train: Sequence[Example] = ()
) -> dict[str, EvaluationRecord]:
    """One model on every slice: the adapter in a folder, or the untouched base.

    Args:
        train: rows that give the untouched base its classes (classification without an adapter).
    """
    from tasks.evaluation.scoring import score
    from tasks.evaluation.yardstick import untouched
    from tasks.methods.build import attached
    from tasks.training.base import load_base

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    with threads(spec.resources.threads), attached(base, adapter) if adapter else untouched(base, train) as model:
        return {s.name: record_of(score(base, model, s.examples, spec.metric), s) for s in slices}


def record_of(scores: Scores, where: Slice) -> EvaluationRecord:
    """Scores as they are remembered, with their interval."""
    found = interval(scores.outcomes)
    return EvaluationRecord(
        dataset=where.dataset,
        side=where.side,
        metric=scores.metric,
        score=found.mean,
        n=found.n,
        low=found.low,
        high=found.high,
        keys=scores.keys,
        outcomes=scores.outcomes,
    )


def subject_of(evaluation: EvaluationRecord, subject: str) -> EvaluationRecord:
    """Scores with the name of what was scored: a pinned version, or `base:<digest>`."""
    return replace(evaluation, subject=subject)


def slice_of(spec: AdapterSpec, data: Dataset, side: Side = "test", name: str | None = None) -> Slice:
    """A side of a snapshot, at most as many rows as the spec judges on: the first by hash, so always the same.

    An input with several right answers is judged once, by the first of them.
    """
    by_hash = sorted(data.snapshot.examples(side), key=lambda example: (example.key, example.target))
    rows = list({example.key: example for example in reversed(by_hash)}.values())[::-1][: spec.evaluation.max_rows]
    return Slice(name or f"{side} of {data.digest[:8]}", data.digest, side, tuple(rows))


def registered(
    home: Home,
    key: str,
    candidate: Candidate,
    base: BaseRecord,
    parents: Sequence[tuple[str, str]],
    evaluations: Sequence[EvaluationRecord],
    beside: Mapping[str, EvaluationRecord],
    lease: LeaseRecord | None = None,
    images: Mapping[str, bytes] = MappingProxyType({}),
) -> VersionRecord:
    """The candidate's files into the store, then its row into the ledger; a killed run leaves either nothing or all.

    Args:
        beside: models and their scores on the same rows, for the figure that is kept with the version.
        lease: the turn to make it; whoever lost it registers nothing.
        images: further figures that are kept with the version, by file name.
    """
    own = figures_of(candidate.spec.task, candidate.curve, candidate.findings, beside)
    figures = home.store.put_files({**own, **images})
    artifact = home.store.put(candidate.folder)
    version = home.ledger.register(
        VersionDraft(
            name=candidate.spec.task,
            kind="adapter",
            version_key=key,
            artifact=artifact,
            base=base.digest,
            code=home.code.digest,
            spec=candidate.spec.model_dump(mode="json"),
            parents=tuple(parents),
            metrics=dict(candidate.figures),
            evaluations=tuple(evaluations),
            figures=figures,
            run=candidate.run,
            flow_run=flow_run_id(),
            binds=bound(candidate.spec, base_folder(candidate.spec.base), candidate.folder),
        ),
        lease=lease,
    )
    voice.say(f"  registered {version.ref}, sha256 {artifact[:12]}")
    return version


def threads(count: int | None) -> Any:
    """Torch limited to a number of CPU threads while the block runs."""
    from tasks.training.base import cpu_threads

    return cpu_threads(count)


@dataclass(frozen=True)
class DeviceMemory:
    """Where a spec trains here. `card_bytes` is 0 on the CPU."""

    on_gpu: bool
    free_bytes: int
    card_bytes: int


def device_memory(spec: AdapterSpec) -> DeviceMemory:
    """The memory there; torch is asked only where an NVIDIA driver is to be seen."""
    if spec.resources.device == "cpu" or not Path("/proc/driver/nvidia").exists():
        if spec.resources.device == "cuda":
            from tasks.training.base import device_for

            device_for("cuda")
        return DeviceMemory(False, free_ram_bytes(), 0)
    import torch

    if not torch.cuda.is_available():
        return DeviceMemory(False, free_ram_bytes(), 0)
    free, card = torch.cuda.mem_get_info()
    return DeviceMemory(True, int(free), int(card))


def datasets_of(version: VersionRecord) -> list[str]:
    """Digests of the snapshots that a version learned from and was judged on."""
    return [ref.removeprefix("dataset:") for role, ref in version.parents if role in LEARNED_OR_JUDGED]


def earlier_slices(home: Home, spec: AdapterSpec, data: Dataset) -> list[Slice]:
    """The frozen slices on which the champion was judged: whoever follows it is judged there too."""
    champion = home.ledger.champion(spec.task)
    scores = home.ledger.evaluations(champion.ref) if champion is not None else ()
    known = dict.fromkeys(e.dataset for e in scores if e.side == "test" and e.dataset != data.digest)
    return [slice_of(spec, remembered_dataset(home, digest)) for digest in known]


def known_scores(home: Home, subject: str, slices: Sequence[Slice], metric: str) -> dict[str, EvaluationRecord]:
    """What the ledger knows of a subject on exactly these rows, by the data's digest."""
    rows: dict[tuple[str, str], tuple[str, ...]] = {
        (s.dataset, s.side): tuple(example.key for example in s.examples) for s in slices
    }
    found = (e for e in home.ledger.evaluations(subject) if e.metric == metric)
    return {e.dataset: e for e in found if rows.get((e.dataset, e.side)) == e.keys}


def answers_are_wanted_soon() -> None:
    """Have the fresh process of `answers_when_loaded` load its libraries beside what comes first."""
    from tasks.export.answer import expect_a_question

    expect_a_question()


def answers_when_loaded(home: Home, version: VersionRecord, rows: int = 3) -> tuple[str, ...]:
    """What a registered adapter says to a few of its test prompts, loaded from its stored files in a fresh process.

    Raises:
        ArtifactRefused: it does not load, or says nothing at all.
    """
    from tasks.export.answer import answer_in_fresh_process

    spec = AdapterSpec.model_validate(version.spec)
    examples = remembered_dataset(home, datasets_of(version)[0]).snapshot.examples("test")[:rows]
    said = answer_in_fresh_process(
        base_folder(spec.base),
        [example.input for example in examples],
        adapter=home.ledger.files(version.ref),
        kind=spec.kind,
        quantization=spec.base.quantization,
        double_quant=spec.base.double_quant,
        compute_dtype=spec.base.compute_dtype,
    )
    if not any(answer.strip() for answer in said):
        raise ArtifactRefused.one(
            "E-ADAPTER-010", version.ref, "says nothing in a fresh process", "it stays unpromoted"
        )
    return said
