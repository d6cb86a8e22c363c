"""What all specs share: the frozen value, and the words they use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class AnswerGateSpec(Spec):
    """What single answers may be asked for, whoever gives them. Bounds are one-sided, at `confidence`."""

    max_calibration_error: Share | None = Field(
        None, description="Upper bound of |confidence - share of right answers| over ten bins may not exceed this."
    )
    max_answer_seconds: float | None = Field(
        None, gt=0, description="Upper bound of the time in which 95 % of single answers come may not exceed this."
    )
    min_rows: int = Field(50, ge=1, description="Refuse to judge on fewer rows.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of each one-sided bound.")

    @property
    def asks_of_answers(self) -> bool:
        """Whether the model has to answer for them, one request after the other."""
        return self.max_calibration_error is not None or self.max_answer_seconds is not None
