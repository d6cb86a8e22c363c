"""Which rows a person should label: those that say most about what the adapter does not know."""

from __future__ import annotations

import math

import numpy as np

from tasks.drift.observed import Observed

ASKED = 20
AMONG = 5  # times as many of the most doubtful rows are looked at, so that the chosen ones differ from one another


def rows_to_label(window: Observed, count: int = ASKED) -> tuple[int, ...]:
    """Positions of unlabelled rows, most telling first: the least confident, and far from those chosen before.

    Of the `AMONG` * `count` rows answered with most doubt the next one is always the farthest from all that are chosen
    (greedy k-centre: Sener & Savarese 2018, arXiv:1708.00489); without embeddings, the next with another text.

    >>> unsure = Observed(("a", "a", "b"), ((),) * 3, (0.2, 0.1, 0.9), ("x",) * 3, (None,) * 3, (None,) * 3)
    >>> rows_to_label(unsure, 2)
    (1, 2)
    """

    def doubt(row: int) -> float:
        sure = window.confidences[row]
        return 0.5 if sure is None or not math.isfinite(sure) else 1 - sure

    free = [row for row, label in enumerate(window.labels) if label is None and window.inputs[row].strip()]
    first = sorted({window.inputs[row]: row for row in sorted(free, key=doubt)}.values(), key=lambda r: (-doubt(r), r))
    if not window.points or len(first) <= count:
        return tuple(first[:count])
    some = first[: AMONG * count]
    points = np.stack([window.points[row] for row in some])
    chosen = [0]
    nearest = 1 - points @ points[0]
    while len(chosen) < count:
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= 1e-9:
            break
        chosen.append(farthest)
        nearest = np.minimum(nearest, 1 - points @ points[farthest])
    return tuple(some[place] for place in chosen)
