"""What is asked of the factory: frozen, typed, torch-free values read from YAML 1.2.

A spec names everything that determines an adapter's bytes. Defaults are the field's current practice: LoRA of rank 16
with alpha 2r on all linear layers (Hu et al. 2021, arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314, section 4:
"all linear layers" is what closes the gap to full fine-tuning) over an NF4 base with double quantisation.
"""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.methods.catalogue import METHODS, refusal_of

Share = Annotated[float, Field(ge=0, le=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Severity = Literal["critical", "warning"]
Side = Literal["train", "validation", "test"]
AUTO = "auto"
LEFT_TO_THE_RECIPE: tuple[str, ...] = ("method.rank", "method.dropout", "method.targets")
LEFT_TO_THE_RECIPE += ("training.weight_decay", "training.learning_rate", "training.epochs")
SIDES: tuple[Side, ...] = ("train", "validation", "test")


class Spec(BaseModel):
    """A frozen value that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseSpec(Spec):
    """The pretrained model that all adapters of a task family share."""

    model: str = Field(description="Folder of a transformers model (relative to the spec), or a hub id.")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Full commit hash; required for a hub id, refused for a folder."
    )
    quantization: Literal["nf4", "none"] = Field(
        "nf4", description="Precision of the frozen weights: 4-bit NormalFloat, or as stored."
    )
    double_quant: bool = Field(True, description="Quantise the NF4 scales too (0.37 bit per weight less).")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of the matrix products; auto takes bfloat16 where the device makes it faster."
    )

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_absolute()


class SplitSpec(Spec):
    """Which rows are learned from, which choose, which judge. By hash of the input, so a row never changes side."""

    column: str | None = Field(
        None, description="Column that already names the side (train, validation/valid/dev, test)."
    )
    group: str | None = Field(
        None, description="Column whose rows stay together (a customer, a thread): its value is hashed, not the input."
    )
    time: str | None = Field(None, description="Column of ISO 8601 dates or times: what comes later judges.")
    validation_from: str | None = Field(None, description="time: first moment that chooses, such as 2026-01-01.")
    test_from: str | None = Field(None, description="time: first moment that judges, such as 2026-03-01.")
    stratify: bool = Field(
        False, description="Every class of three or more rows lies on every side; the hash decides which rows."
    )
    validation: Share = Field(0.1, description="Share of inputs that choose (early stop, merge weights).")
    test: Share = Field(0.1, description="Share of inputs that judge; never learned from, also not later.")

    @model_validator(mode="after")
    def _something_is_left_to_learn_from(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1: something must be left to learn from")
        return self

    @model_validator(mode="after")
    def _one_rule_decides(self) -> Self:
        if sum(rule is not None for rule in (self.column, self.group, self.time)) > 1:
            raise ValueError("column, group and time exclude one another: one rule decides the side")
        if self.stratify and (self.column or self.group or self.time):
            raise ValueError("stratify goes with the hash rule alone, without column, group or time")
        if (self.time is None) != (self.test_from is None) or (self.validation_from and not self.time):
            raise ValueError("time needs test_from (and may have validation_from): fixed moments, so no row ever moves")
        if self.time is None:
            return self
        moments = [moment_of(text) for text in (self.validation_from, self.test_from) if text is not None]
        if moments != sorted(moments):
            raise ValueError("validation_from must not be later than test_from")
        return self


class NearSpec(Spec):
    """Inputs that are nearly the same: Jaccard index of their 5-character shingles."""

    similarity: float = Field(0.8, ge=0.5, le=1, description="From this index on two inputs count as nearly the same.")
    leaks: Literal["warn", "quarantine", "refuse"] = Field(
        "warn",
        description="A row that is learned from and nearly a row that judges: shown, kept out, or the set is refused. "
        "Shown by default, since 'order 17 is late' and 'order 18 is late' may both be right.",
    )
    repeats: Literal["warn", "drop"] = Field(
        "warn", description="Rows of one side that nearly repeat an earlier one: shown, or deduplicated."
    )


class ExpectationSpec(Spec):
    """One Great Expectations rule, by its own name."""

    expect: str = Field(
        pattern=r"^(expect_[a-z_]+|Expect[A-Za-z]+)$",
        description="Name in Great Expectations: expect_column_values_to_match_regex.",
    )
    severity: Severity = Field(
        "critical", description="critical refuses the rows or the set; warning is shown and recorded."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the rule, such as column and regex."
    )


class DataSpec(Spec):
    """Where the rows are, how a row becomes an example, and how many may be bad."""

    source: str = Field(
        description="JSONL, CSV, Parquet or Arrow file, a folder of one of them, a `datasets` hub id, or (with "
        "`query`) an SQLAlchemy URL without a password (drivers read theirs from PGPASSWORD, ~/.pgpass, ...)."
    )
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Full commit hash; required for a hub id."
    )
    query: str | None = Field(None, min_length=1, description="SQL that reads the rows; state an order.")
    layout: Literal["columns", "messages", "instruction"] = Field(
        "columns",
        description="generation: what a row is. messages: a chat, whose last turn is the answer; instruction: "
        "instruction, input (may be empty) and output. Both give the columns prompt and completion.",
    )
    where: dict[str, str] = Field(default_factory=dict, description="Keep only rows whose column equals this text.")
    prompt: str | None = Field(None, description="generation: template over columns, such as '{message}\\nintent:'.")
    completion: str | None = Field(
        None, description="generation: template of what the model must say, such as ' {intent}'."
    )
    text: str = Field("text", description="classification: column of the input.")
    label: str = Field("label", description="classification: column of the class name.")
    labels: tuple[str, ...] = Field(
        (), description="Closed set: class names (classification) or allowed `label_column` values."
    )
    label_column: str | None = Field(
        None, description="generation: column that must lie in `labels`, if the answer is a label."
    )
    split: SplitSpec = Field(default_factory=SplitSpec, description="Train, validation and test.")
    min_rows: int = Field(30, ge=1, description="Refuse a set with fewer accepted rows.")
    max_quarantined: Share = Field(0.05, description="Refuse a set of which more than this share is bad.")
    max_tokens: int = Field(256, ge=8, le=131072, description="Longest example in tokens, its end token included.")
    overlong: Literal["refuse", "drop", "truncate"] = Field(
        "refuse",
        description="Rows above max_tokens: refuse the set, quarantine the rows, or cut the longest input column at "
        "its end. The answer is never cut.",
    )
    min_class_rows: int = Field(0, ge=0, description="Refuse a set of which a class has fewer train rows.")
    scripts: tuple[str, ...] = Field(
        (), description="Scripts that an input may be written in, such as Latin; others are quarantined."
    )
    target_format: Literal["text", "json"] = Field("text", description="generation: what every answer must parse as.")
    target_regex: str | None = Field(
        None, min_length=1, description="generation: what every answer must match, from its first character on."
    )
    near: NearSpec = Field(default_factory=lambda: NearSpec(), description="Near duplicates and near leaks.")
    suite: str | None = Field(
        None, description="Great Expectations suite (JSON, relative to the spec); its rules join `expectations`."
    )
    expectations: tuple[ExpectationSpec, ...] = Field((), description="Further Great Expectations rules of your own.")

    @model_validator(mode="after")
    def _a_layout_gives_prompt_and_completion(self) -> Self:
        if self.layout != "columns":  # before anyone sees the value, which is frozen from then on
            object.__setattr__(self, "prompt", self.prompt or "{prompt}\n")
            object.__setattr__(self, "completion", self.completion or "{completion}")
        return self

    @field_validator("target_regex")
    @classmethod
    def _regex_compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @field_validator("prompt", "completion")
    @classmethod
    def _template_parses(cls, template: str | None) -> str | None:
        if template is not None and not columns_of(template):
            raise ValueError("a template reads at least one column, such as {message}")
        return template


def _or_auto(schema: dict[str, Any]) -> None:
    """The JSON schema of a field that a file may leave to the recipe with the word auto."""
    own = {key: schema.pop(key) for key in list(schema) if key not in ("title", "default", "description")}
    schema["anyOf"] = [*own.pop("anyOf", [own]), {"const": AUTO}]


class MethodSpec(Spec):
    """How the weights may change."""

    name: str = Field("lora", description="Row of the method catalogue: " + ", ".join(METHODS) + ".")
    rank: int = Field(16, ge=1, le=4096, description="Rank r of the update.", json_schema_extra=_or_auto)
    alpha: float | None = Field(None, gt=0, description="Scale numerator; default 2 * rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapter's input.", json_schema_extra=_or_auto)
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Module names that get an adapter; all linear layers but the head by default.",
        json_schema_extra=_or_auto,
    )
    layers: tuple[int, ...] | None = Field(None, description="Only these transformer layers; all by default.")

    @field_validator("name")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"'{name}' is not a method; the catalogue has {', '.join(METHODS)}")
        return name

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_names(cls, targets: Any) -> Any:
        names = isinstance(targets, list | tuple) and targets and all(isinstance(name, str) for name in targets)
        if targets != "all-linear" and not names:
            raise ValueError("targets is all-linear, or a list of at least one module name such as [q_proj, v_proj]")
        return targets

    @field_validator("layers")
    @classmethod
    def _layers_are_some(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers == ():
            raise ValueError("layers lists at least one layer number, or is left out for all")
        return layers

    @property
    def alpha_value(self) -> float:
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class TrainingSpec(Spec):
    """The optimisation of one adapter."""

    epochs: float = Field(
        3.0,
        gt=0,
        le=1000,
        description="Passes over the training rows; ignored when `steps` is given.",
        json_schema_extra=_or_auto,
    )
    steps: int | None = Field(None, ge=1, description="Optimiser steps, instead of epochs.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak rate.", json_schema_extra=_or_auto)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Shape of the rate after the warm-up."
    )
    warmup: Share = Field(0.05, description="Share of the steps in which the rate rises.")
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimiser step.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples held in memory at once; default: the whole batch."
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="Decoupled weight decay on the adapter.", json_schema_extra=_or_auto
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    head_rate: float = Field(10.0, gt=0, description="classification: rate of the fresh head over the adapter's rate.")
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = Field(
        "auto", description="auto: paged 8-bit AdamW on a GPU, AdamW on a CPU."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: memory of one layer instead of all, for about one more forward pass."
    )
    validations: int = Field(8, ge=1, le=1000, description="How often the validation loss is read during training.")
    checkpoint_minutes: float = Field(
        5.0, ge=0, description="Time between checkpoints, from which an interrupted run goes on; 0: after every step."
    )


class RepairSpec(Spec):
    """What may be tried where the curve of a run names a fault: one change at a time, the best run is kept."""

    attempts: int = Field(0, ge=0, le=10, description="Further runs, each with one bounded change; 0: none.")
    budget_minutes: float = Field(
        60.0, gt=0, description="Training time of all attempts together; none starts that would exceed it."
    )


class GateSpec(Spec):
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
    max_calibration_error: Share | None = Field(
        None, description="Upper bound of |confidence - share of right answers| over ten bins may not exceed this."
    )
    max_answer_seconds: float | None = Field(
        None, gt=0, description="Upper bound of the time in which 95 % of single answers come may not exceed this."
    )
    min_rows: int = Field(50, ge=1, description="Refuse to judge on fewer rows.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of each one-sided bound.")


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
        0.5, description="Share of the training rows drawn from all data the champion learned from."
    )
    start: Literal["base", "champion"] = Field(
        "champion", description="Continue from the champion, or a fresh adapter on the base."
    )
    rate_factor: float = Field(
        0.5, gt=0, le=1, description="Peak rate when continuing from the champion, over training.learning_rate."
    )
    cooldown_hours: float = Field(
        24.0, ge=0, description="At most one retrain of a task in this time; each one in vain doubles it."
    )
    attempts: int = Field(
        2, ge=1, le=10, description="Candidates that one retrain may train: each after a refusal changes one thing."
    )
    fresh_rows: int = Field(1000, ge=50, description="Newest labelled requests that a retrain learns from.")
    daily_budget: int = Field(2, ge=1, description="At most so many retrains of a task in 24 hours.")


class ResourceSpec(Spec):
    """What the run may take."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU where there is one.")
    memory_gib: float | None = Field(
        None, gt=0, description="Memory that the plan must fit; default: what the device has free."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: all that the process may use.")


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
        return self

    @property
    def metric(self) -> str:
        return self.evaluation.metric_for(self.kind)


class RuleSpec(Spec):
    """One merge rule with the settings that are tried for it."""

    rule: str = Field(description="Row of the merge catalogue: average, task_arithmetic, ties, ...")
    scale: tuple[float, ...] = Field((1.0,), min_length=1, description="Factors on the merged update; each is tried.")
    density: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="Shares of entries kept by a trimming rule; each is tried."
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="Weight per parent task; 1 by default, negative removes a skill."
    )

    @field_validator("density")
    @classmethod
    def _density_keeps_something(cls, density: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in density):
            raise ValueError("density must lie in (0, 1]")
        return density


class MergeGateSpec(Spec):
    """What a merged model must keep. Retention = (merged - base) / (expert - base), per task."""

    min_retention: float = Field(0.5, le=1, description="Every task keeps at least this share of its expert's gain.")
    min_rows: int = Field(50, ge=1, description="Refuse to judge a task on fewer rows.")


class SearchSpec(Spec):
    """A search over merge settings by TPE (Bergstra et al. 2011), beyond the rules that the recipe lists."""

    trials: int = Field(30, ge=1, le=10_000, description="Settings that are proposed; hopeless ones end early.")
    seconds: float | None = Field(None, gt=0, description="No new trial begins after this time.")
    rules: tuple[str, ...] = Field(
        ("task_arithmetic", "ties", "knots_ties"), min_length=1, description="Rows of the merge catalogue to search."
    )
    scale: tuple[float, float] = Field((0.2, 2.0), description="Smallest and largest factor on the merged update.")
    density: tuple[float, float] = Field((0.1, 1.0), description="Smallest and largest share of entries kept.")
    weights: bool = Field(False, description="Search a weight per parent too, from 0.5 to 2.")

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        if not 0 < self.scale[0] < self.scale[1]:
            raise ValueError("scale is [smallest, largest], both above 0")
        if not 0 < self.density[0] < self.density[1] <= 1:
            raise ValueError("density is [smallest, largest] in (0, 1]")
        return self


class GeneralSpec(Spec):
    """Text of no task, on which the merged model may not become worse."""

    source: str = Field(description="A .jsonl file with a `text` per line, or a file with one text per line.")
    max_loss: Share = Field(
        0.02, description="Lower bound of (merged - base) in right next tokens may not fall below minus this."
    )
    max_rows: int = Field(200, ge=1, description="At most this many texts (the first by hash).")


class MergeSpec(Spec):
    """Several adapters of one base into one model."""

    name: Slug = Field(description="Name of the merged model in the ledger and in MLflow.")
    parents: tuple[str, ...] = Field(min_length=1, description="Adapters as name@alias or name:version.")
    rules: tuple[RuleSpec, ...] = Field(
        (
            RuleSpec(rule="average"),
            RuleSpec(rule="task_arithmetic", scale=(0.4, 0.6, 0.8, 1.0)),
            RuleSpec(rule="ties", scale=(0.8, 1.0, 1.5), density=(0.2, 0.5)),
        ),
        min_length=1,
        description="Rules to try; the choice is made on validation rows, the gate on test rows.",
    )
    search: SearchSpec | None = Field(None, description="Search further settings within a budget; none by default.")
    general: GeneralSpec | None = Field(None, description="Text of no task that the gate looks at too.")
    attribution: bool = Field(True, description="Score the chosen merge without each parent in turn, and store it.")
    merge_base: Literal["dequantized", "stored"] = Field(
        "dequantized",
        description="Add the update to the NF4 weights as the adapters saw them, or to the weights as stored.",
    )
    dtype: Literal["base", "float32", "bfloat16"] = Field(
        "base", description="Type of the written weights; base keeps the type of the base's own files."
    )
    gates: MergeGateSpec = Field(default_factory=lambda: MergeGateSpec(), description="What the model must keep.")
    resources: ResourceSpec = Field(default_factory=lambda: ResourceSpec(), description="What the merge may take.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds the rules that draw.")

    @field_validator("parents")
    @classmethod
    def _parents_are_distinct(cls, parents: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parents)) < len(parents):
            raise ValueError("a parent is named twice; give it a weight instead")
        return parents


def moment_of(text: str) -> datetime:
    """A date or time with its zone; UTC where it names none.

    Raises:
        ValueError: it is no ISO 8601 date or time.
    """
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def columns_of(template: str) -> tuple[str, ...]:
    """Column names that a template reads, in order.

    >>> columns_of("{message}\\nintent:")
    ('message',)

    Raises:
        ValueError: for a field with attributes, indexes, conversions or formats; templates only insert text.
    """
    names = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(f"a template inserts plain columns such as {{message}}; found {{{name}}}")
        names.append(name)
    return tuple(names)


def render(template: str, row: dict[str, Any]) -> str:
    """The template with the row's text inserted; braces in the data stay as they are.

    >>> render("{message} ->", {"message": "a {b}"})
    'a {b} ->'
    """
    return template.format_map(row)
