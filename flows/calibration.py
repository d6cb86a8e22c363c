"""What earlier runs measured corrects the memory plan of the next: per device, and per family of models."""

from __future__ import annotations

from functools import cache
from statistics import median_low

from flows.wiring import Home
from tasks.memory import Correction

ENOUGH_RUNS, NEWEST_RUNS = 3, 50
ALIKE = 4  # times the parameters
BOUND = 2.0  # a factor doubles or halves at most; what is further off is no matter of proportion
PLANNED, MEASURED, CARD_BYTES = "planned_above_start_bytes", "peak_above_start_bytes", "card_bytes"


def correction_of(home: Home, architecture: str, parameters: int, card_bytes: int) -> Correction:
    """The correction for a family of models on a device.

    Args:
        architecture: the class that the base's config names, such as LlamaForCausalLM.
        parameters: of the base. Only runs on bases of at most four times more or fewer count: what a process takes
            besides the model is most of a small run and nothing of a large one.
        card_bytes: memory of the card that trains, which tells one device from another; 0 for the CPU.
    """

    @cache
    def is_alike(digest: str) -> bool:
        base = home.ledger.base(digest)
        return base.architecture == architecture and 1 / ALIKE <= base.parameters / parameters <= ALIKE

    found = [
        (version.metrics[MEASURED], version.metrics[PLANNED])
        for version in home.ledger.versions()
        if version.metrics.get(PLANNED) and MEASURED in version.metrics
        if int(version.metrics.get(CARD_BYTES, 0)) == card_bytes and is_alike(version.base)
    ][-NEWEST_RUNS:]
    if len(found) < ENOUGH_RUNS:
        return Correction()
    factor = median_low(measured / planned for measured, planned in found)
    if 1 / BOUND <= factor <= BOUND:
        return Correction(factor, 0, len(found))
    return Correction(1.0, round(median_low(measured - planned for measured, planned in found)), len(found))
