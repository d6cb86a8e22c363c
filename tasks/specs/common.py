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
