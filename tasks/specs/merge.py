"""Several adapters into one model: what is tried, and what the model must keep."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.specs.common import AnswerGateSpec, Share, Slug, Spec
from tasks.specs.training import ResourceSpec


class RuleSpec(Spec):
    """One merge rule with the settings that are tried for it."""

    rule: str = Field(description="Row of the merge catalogue: average, task_arithmetic, ties, ...")
    scale: tuple[float, ...] = Field((1.0,), min_length=1, description="Factors on the merged update; each is tried.")
    density: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="Shares of entries kept by a trimming rule; each is tried."
    )
    rows: int = Field(400, ge=1, description="Training rows of each task that regmean and distilled read.")
    steps: tuple[int, ...] = Field((300,), min_length=1, description="Steps of distilled; each number is tried.")
    weights: dict[str, float] = Field(
        default_factory=dict, description="Weight per parent task; 1 by default, negative removes a skill."
    )

    @field_validator("density")
    @classmethod
    def _density_keeps_something(cls, density: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in density):
            raise ValueError("density must lie in (0, 1]")
        return density

    @field_validator("steps")
    @classmethod
    def _steps_are_taken(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if min(steps) < 1:
            raise ValueError("steps must be at least 1")
        return steps


BASELINES = (
    RuleSpec(rule="average"),
    RuleSpec(rule="task_arithmetic", scale=(0.3, 0.5, 1.0)),
    RuleSpec(rule="ties", scale=(1.0, 1.5), density=(0.2,)),
    RuleSpec(rule="knots_ties", scale=(1.0, 1.5), density=(0.2,)),
)


class MergeGateSpec(AnswerGateSpec):
    """What a merged model must keep. Retention = (merged - base) / (expert - base), per task."""

    min_retention: float = Field(0.5, le=1, description="Every task keeps at least this share of its expert's gain.")


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
    baselines: bool = Field(
        True, description="Try average, task arithmetic, TIES and aligned TIES too where the recipe does not name them."
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

    @property
    def tried(self) -> tuple[RuleSpec, ...]:
        """The recipe's rules, and of several parents the baselines that every table of merges holds."""
        named = {rule.rule for rule in self.rules}
        wanted = self.baselines and len(self.parents) > 1
        return (*self.rules, *(rule for rule in BASELINES if wanted and rule.rule not in named))

    @field_validator("parents")
    @classmethod
    def _parents_are_distinct(cls, parents: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parents)) < len(parents):
            raise ValueError("a parent is named twice; give it a weight instead")
        return parents
