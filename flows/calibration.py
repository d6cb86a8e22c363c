"""What earlier runs measured corrects the memory plan of the next: per device, and per family of models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flows.wiring import Home

ENOUGH_RUNS, NEWEST_RUNS = 3, 50
ALIKE = 4  # times the parameters
BOUND = 2.0  # a correction doubles or halves at most
PLANNED, MEASURED, CARD_BYTES = "planned_above_start_bytes", "peak_above_start_bytes", "card_bytes"


@dataclass(frozen=True)
class Correction:
    """Measured over planned bytes above the loaded base, as the middle of so many runs has it; 1 of too few."""

    factor: float = 1.0
    runs: int = 0


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

    ratios = [
        version.metrics[MEASURED] / version.metrics[PLANNED]
        for version in home.ledger.versions()
        if version.metrics.get(PLANNED) and MEASURED in version.metrics
        if int(version.metrics.get(CARD_BYTES, 0)) == card_bytes and is_alike(version.base)
    ][-NEWEST_RUNS:]
    if len(ratios) < ENOUGH_RUNS:
        return Correction()
    middle = sorted(ratios)[len(ratios) // 2]
    return Correction(min(BOUND, max(1 / BOUND, middle)), len(ratios))
