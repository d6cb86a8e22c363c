"""What one task's traffic looked like: the reference an adapter was promoted on, or a window of newer rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from tasks.errors import DataRefused, Problem, raise_if_any


@dataclass(frozen=True)
class Observed:
    """Parallel columns, one entry a row.

    `tokens` are the ids of the base's tokenizer, or empty tuples where it was not at hand. `confidences` are the served
    adapter's own (mean token probability, or largest softmax), None where not logged. `labels` and `outcomes` (0 to 1,
    graded against ground truth, never against the adapter's answer) are None until they are known. The others may be
    left out: `sources` names the senders, `points` are embeddings (width,) of unit length, `entropies` (nats) those of
    the adapter's answers, `perplexities` of the inputs to it, `well_formed` whether an answer has the asked format.

    >>> Observed(("hi",), tokens=((7,),), confidences=(0.9,), predictions=("a",), labels=(None,), outcomes=(None,)).rows
    1

    Raises:
        DataRefused: if the columns differ in length.
    """

    inputs: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    confidences: tuple[float | None, ...]
    predictions: tuple[str, ...]
    labels: tuple[str | None, ...]
    outcomes: tuple[float | None, ...]
    sources: tuple[str, ...] = ()
    points: tuple[np.ndarray, ...] = field(default=(), compare=False)
    entropies: tuple[float | None, ...] = ()
    perplexities: tuple[float | None, ...] = ()
    well_formed: tuple[bool | None, ...] = ()

    def __post_init__(self) -> None:
        columns = {column.name: len(getattr(self, column.name)) for column in fields(self)}
        for name in ("sources", "points", "entropies", "perplexities", "well_formed"):
            if not getattr(self, name):
                del columns[name]
        raise_if_any(
            DataRefused,
            (
                Problem(
                    "E-DRIFT-001",
                    name,
                    f"{length} entries for {self.rows} rows",
                    "give one entry a row, None where unknown",
                )
                for name, length in columns.items()
                if length != self.rows
            ),
        )

    @property
    def rows(self) -> int:
        return len(self.inputs)

    def at(self, rows: Sequence[int]) -> Observed:
        """The rows at these positions, in this order."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return replace(self, **{name: tuple(column[row] for row in rows) for name, column in columns.items() if column})


NOTHING_OBSERVED = Observed(inputs=(), tokens=(), confidences=(), predictions=(), labels=(), outcomes=())
