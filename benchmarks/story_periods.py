"""A story's rows, period by period: what comes as traffic, and what is held out and only judges.

data: clinc150/data.csv         # CSV or JSONL below $FACTORY_DATA
column: domain                  # what tells the periods apart
periods: ["2016", "2022"]       # where each begins, by the order of that column; or, for values of the column:
  - {travel: 200, banking: 200} # how many rows of which values come in it, traffic and held out together
  - {travel: 100, work: 100}
where: {domain: length}         # only rows whose columns say this
held_out: 0.3                   # share of every period that never comes and only judges
labels_of_each: 5               # of each value only the five labels that most rows have
min_class_rows: 30              # classes with fewer rows are left out
asked: input                    # generation: the columns of what is asked and answered
answered: target
without: [thrice]               # rows in which none of these words is asked
longest: 10                     # and at most so many words are answered
written: {TURN_LEFT: l}         # words of the answers that are written otherwise here
relabel: {2: {a: b, b: a}}      # from period 2 on, counted from 0, these labels are called otherwise
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]
HELD_OUT = 0.3


@dataclass(frozen=True)
class Period:
    """Rows that come as traffic, and rows that never come and only judge. `renamed`: what labels are called by now."""

    name: str
    coming: tuple[Row, ...]
    judging: tuple[Row, ...]
    label: str
    renamed: Mapping[str, str]

    @property
    def traffic(self) -> list[Row]:
        return self.as_now(self.coming)

    @property
    def held_out(self) -> list[Row]:
        return self.as_now(self.judging)

    def as_now(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of any period with the labels that they would have in this one."""
        return [{**row, self.label: self.renamed.get(row[self.label], row[self.label])} for row in rows]


def periods_of(story: Mapping[str, Any], data: Path, seed: int) -> list[Period]:
    """The story's periods; each row is in one of them at most. The seed shuffles which rows come when.

    Raises:
        ValueError: the file has too few rows of a value.
    """
    text, label = columns_of(story)
    rows = list({row[text]: row for row in asked_rows(story, read(data / story["data"]))}.values())
    rows = list(kept(story, shuffled(rows, text, f"{seed}"), label))
    made: list[Period] = []
    renamed: dict[str, str] = {}
    for place, mine in enumerate(dealt(story, rows)):
        renamed |= story.get("relabel", {}).get(place, {})
        short = [{text: row[text], label: row[label]} for row in shuffled(mine, text, f"{seed} {place}")]
        held = round(story.get("held_out", HELD_OUT) * len(short))
        made.append(Period(str(place), tuple(short[held:]), tuple(short[:held]), label, dict(renamed)))
    return made


def shuffled(rows: Sequence[Row], text: str, salt: str) -> list[Row]:
    """The rows in an order that only their texts and the salt decide."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{salt} {row[text]}".encode()).hexdigest())


def base_of(story: Mapping[str, Any]) -> dict[str, Any]:
    """The base of a story's adapter: the sentence encoder, or the folder below $FACTORY_DATA that it names."""
    base = dict(story["adapter"].get("base", {}))
    if "model" not in base:
        return {"model": os.environ["FACTORY_MINILM"], **base}
    return {**base, "model": str(Path(os.environ["FACTORY_DATA"]) / base["model"])}


def columns_of(story: Mapping[str, Any]) -> tuple[str, str]:
    """The column that is asked and the one that is answered."""
    data = story["adapter"]["data"]
    return (data["text"], data["label"]) if "text" in data else (story["asked"], story["answered"])


def asked_rows(story: Mapping[str, Any], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that the story asks for, their answers written as it says."""
    text, label = columns_of(story)
    without, written = set(story.get("without", ())), story.get("written", {})
    for row in rows:
        said = [written.get(word, word) for word in row[label].split()]
        fits = all(row[column] == value for column, value in story.get("where", {}).items())
        if fits and without.isdisjoint(row[text].split()) and len(said) <= story.get("longest", len(said)):
            yield {**row, label: " ".join(said)} if written else row


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def kept(story: Mapping[str, Any], rows: Sequence[Row], label: str) -> Iterator[Row]:
    """Rows of the classes that the story is about."""
    counts, column = Counter(row[label] for row in rows), story["column"]
    of_each: dict[str, Counter[str]] = {}
    for row in rows:
        of_each.setdefault(row[column], Counter())[row[label]] += 1
    most = story.get("labels_of_each")
    for row in rows:
        ranked = sorted(of_each[row[column]].items(), key=lambda item: (-item[1], item[0]))[:most] if most else ()
        if counts[row[label]] >= story.get("min_class_rows", 1) and (not most or row[label] in dict(ranked)):
            yield row


def dealt(story: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each period."""
    column, periods = story["column"], story["periods"]
    left = {value: [row for row in rows if row[column] == value] for value in {row[column] for row in rows}}
    for place, period in enumerate(periods):
        if isinstance(period, str):
            end = periods[place + 1] if place + 1 < len(periods) else "\uffff"
            yield [row for row in rows if period <= row[column] < end]
            continue
        mine: list[Row] = []
        for value, count in period.items():
            if len(left.get(value, ())) < count:
                raise ValueError(f"{story['name']}: {len(left.get(value, ()))} rows of '{value}' left, {count} needed")
            mine += left[value][:count]
            left[value] = left[value][count:]
        yield mine


def still_true(periods: Sequence[Period]) -> list[Row]:
    """The first period's held-out rows whose label is called the same to the end."""
    label, renamed = periods[-1].label, periods[-1].renamed
    return [row for row in periods[0].held_out if row[label] not in renamed]
