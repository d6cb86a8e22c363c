"""How many rows a paired bound needs."""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.9  # chance that a difference that is there is shown


def rows_to_show(difference: float, variance: float, confidence: float) -> float:
    """Rows of which the one-sided bound of a mean lies above 0 in nine of ten cases, if the mean is `difference`.

    n = (z(confidence) + z(0.9))^2 variance / difference^2, the variance being that of one row.

    >>> round(rows_to_show(0.1, 0.25, 0.95))
    214
    """
    if difference <= 0:
        return math.inf
    quantiles = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return quantiles**2 * variance / difference**2
