"""One adapter of one task: everything that determines its bytes, and what it must reach."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.methods.catalogue import refusal_of
from tasks.specs.common import LEFT_TO_THE_RECIPE, AnswerGateSpec, Share, Slug, Spec
from tasks.specs.data import DataSpec, columns_of
from tasks.specs.training import BaseSpec, MethodSpec, RepairSpec, ResourceSpec, TrainingSpec

WANT_THE_WHOLE_BASE = {"full": "trains the whole base", "dora": "starts from every weight of the base at once"}


class GateSpec(AnswerGateSpec):
    """What a candidate must show before it is served. Bounds are paired and one-sided, at `confidence`."""

    beat_base_by: float = Field(
        0.0, ge=-1, le=1, description="Lower bound of (candidate - base) on the test rows must exceed this."
    )
    max_forgetting: Share = Field(
        0.03,
        description="Lower bound of (candidate - champion) on each earlier frozen slice may not fall below minus this.",
    )
    min_gain_on_fresh: float = Field(
        0.0, ge=-1, le=1, description="retrain: lower bound of the gain on fresh rows must exceed this."
    )


class EvaluationSpec(Spec):
    """How an answer is judged."""

    metric: Literal["auto", "exact_match", "accuracy", "token_accuracy"] = Field(
        "auto", description="exact_match for generation, accuracy for classification; token_accuracy for free text."
    )
    max_rows: int = Field(2000, ge=1, description="At most this many test rows (the first by hash).")
    gates: GateSpec = Field(default_factory=GateSpec, description="What a candidate must show.")

    def metric_for(self, kind: str) -> str:
        if self.metric != "auto":
            return self.metric
        return "accuracy" if kind == "classification" else "exact_match"


class DriftSpec(Spec):
    """When traffic counts as moved."""

    window_rows: int = Field(300, ge=20, description="Newest rows that are compared with the reference.")
    min_rows: int = Field(50, ge=20, description="Fewer rows give the verdict 'not enough data'.")
    false_alarm: float = Field(
        0.01, gt=0, lt=0.5, description="Share of quiet windows that may raise an alarm, over all signals."
    )
    score_drop: Share = Field(
        0.05, description="A fall of the score by more than this, at the bound, asks for a retrain."
    )
    per_source: Share = Field(
        0.5, gt=0, description="Largest share of a window that one sender may fill, where there are several."
    )
    calm_windows: int = Field(
        2,
        ge=1,
        description="So many windows in a row without any drift end an alarm; a signal that flaps is one alarm.",
    )


class RetrainSpec(Spec):
    """How a moved task is taught again without forgetting."""

    replay_share: Share = Field(
        0.5, description="Share of the training rows drawn from all data the champion learned from; at least."
    )
    replay_rows: int = Field(
        2000,
        ge=0,
        description="Old rows that are replayed whatever the share, if there are so many; not where steps are fixed.",
    )
    start: Literal["base", "champion"] = Field(
        "champion", description="Continue from the champion, or a fresh adapter on the base."
    )
    least_steps: int = Field(
        100,
        ge=0,
        le=1000,
        description="Optimiser steps of a fresh adapter at least: few rows are passed over more often, and the weights "
        "with the lowest validation loss are kept.",
    )
    rate_factor: float = Field(
        1.0, gt=0, le=1, description="Peak rate when continuing from the champion, over training.learning_rate."
    )
    pull: float = Field(
        0.0,
        ge=0,
        description="Continuing from the champion: each step is followed by min(1, rate * pull) of the way back to it.",
    )
    cooldown_hours: float = Field(
        24.0, ge=0, description="At most one retrain of a task in this time; each one in vain doubles it."
    )
    attempts: int = Field(
        2, ge=1, le=10, description="Candidates that one retrain may train: each after a refusal changes one thing."
    )
    fresh_rows: int = Field(1000, ge=50, description="Newest labelled requests that a retrain learns from.")
    daily_budget: int = Field(2, ge=1, description="At most so many retrains of a task in 24 hours.")
    through: datetime | None = Field(
        None, description="Newest request that it learned from; a window begins after it. Written by a retrain."
    )
    outdated: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Labels that hold no longer, by the digest of their data. Written by a retrain.",
    )


class AdapterSpec(Spec):
    """One adapter: a task, a base, data, a method, and what the result must show."""

    task: Slug = Field(description="The ML problem this adapter serves; also its name in the ledger and in MLflow.")
    kind: Literal["generation", "classification"] = Field(
        description="Causal language model, or sequence classification head."
    )
    base: BaseSpec = Field(description="The pretrained model and its precision.")
    data: DataSpec = Field(description="Where the rows are, and how a row becomes an example.")
    method: MethodSpec = Field(default_factory=lambda: MethodSpec(), description="How the weights may change.")
    training: TrainingSpec = Field(default_factory=lambda: TrainingSpec(), description="The optimisation.")
    repair: RepairSpec = Field(
        default_factory=lambda: RepairSpec(), description="What may be tried where the curve names a fault."
    )
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How an answer is judged.")
    drift: DriftSpec = Field(default_factory=lambda: DriftSpec(), description="When traffic counts as moved.")
    retrain: RetrainSpec = Field(default_factory=lambda: RetrainSpec(), description="How a moved task is taught again.")
    resources: ResourceSpec = Field(default_factory=lambda: ResourceSpec(), description="What the run may take.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds splits of chance: batches, dropout, initial weights.")
    auto: tuple[str, ...] = Field((), description="Fields that were given as `auto`: the recipe chooses them.")
    chosen: dict[str, str] = Field(default_factory=dict, description="What the recipe chose, and why. Written by it.")

    @field_validator("auto")
    @classmethod
    def _auto_fields_have_a_recipe(cls, auto: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [path for path in auto if path not in LEFT_TO_THE_RECIPE]:
            raise ValueError(f"{unknown[0]} cannot be auto; the recipe chooses {', '.join(LEFT_TO_THE_RECIPE)}")
        return auto

    @model_validator(mode="after")
    def _kind_has_its_columns(self) -> Self:
        if self.kind == "generation" and not (self.data.prompt and self.data.completion):
            raise ValueError("generation needs data.prompt and data.completion templates")
        if self.kind == "classification" and (self.data.prompt or self.data.completion):
            raise ValueError("classification takes data.text and data.label columns, not prompt and completion")
        if self.kind == "classification" and (self.data.target_regex or self.data.target_format != "text"):
            raise ValueError("the answers of a classification are data.labels; target_format and target_regex are none")
        shaped = self.data.target_regex or self.data.target_format != "text"
        if self.kind == "generation" and shaped and len(set(columns_of(self.data.completion or ""))) > 1:
            raise ValueError("target_format and target_regex need a completion of one column")
        return self

    @model_validator(mode="after")
    def _the_method_can_work(self) -> Self:
        narrowed = self.method.targets != "all-linear" or self.method.layers is not None
        if why := refusal_of(self.method.name, self.base.quantization, self.kind, narrowed):
            raise ValueError(f"method {self.method.name} cannot be trained here: {why}")
        if self.resources.shard_base and (wants := WANT_THE_WHOLE_BASE.get(self.method.name)):
            raise ValueError(
                f"method {self.method.name} {wants}; set resources.shard_base: false, or choose another method"
            )
        return self

    @property
    def metric(self) -> str:
        return self.evaluation.metric_for(self.kind)
