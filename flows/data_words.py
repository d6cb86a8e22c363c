"""How far the door is, and what a snapshot says of itself, in lines that a person reads while a flow runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flows.progress import voice
from tasks.data.admission import Check
from tasks.data.snapshot import Snapshot

PATIENT_SECONDS = 3.0  # a set that is through by then needs no bar


class Pace:
    """Says how far the door is, stage by stage, once that takes a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.stage = clock, ""
        self.opened = self.began = clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self.clock()
        if stage != self.stage:
            self.stage, self.began = stage, now
        if now - self.opened < PATIENT_SECONDS:
            return
        spent = now - self.began
        voice.bar(f"data: {stage}", done, total, spent * (total - done) / done if done else 0.0)


def kept_out(snapshot: Snapshot) -> list[str]:
    """The quarantine in a few lines: what was wrong, how often, in which rows, and one of the reasons."""
    lines = []
    for line in snapshot.reasons:
        first = line["first"]
        places = ", ".join(str(row["row"]) for row in first[:4]) + (", ..." if line["rows"] > 4 else "")
        name = line["guard"].removeprefix("expect_column_values_to_").replace("_", " ")
        where = f"{name}; {snapshot.row_unit} {places}"
        lines.append(f"{line['rows']} x {line['field']} ({where}): {first[0]['reason'][:100]}")
    return lines


def warned_of(checks: Sequence[Check]) -> list[str]:
    """Warnings, each with its count and its first sample."""
    lines = []
    for check in checks:
        if check.severity == "warning" and not check.passed:
            sample = f", such as {check.samples[0][:160]}" if check.samples else ""
            name = check.name.replace("_", " ")
            lines.append(f"warning: {name}: {check.unexpected:,} of {check.evaluated:,}{sample}")
    return lines
