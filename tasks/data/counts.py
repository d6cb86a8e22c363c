"""What an admitted set is made of: classes, rows per class and side, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tasks.data.admission import Check, shown
from tasks.data.examples import input_columns, label_column, text_columns
from tasks.data.leakage import Placed
from tasks.data.reading import Rows
from tasks.data.scripts import script_of
from tasks.data.sensitive import sensitive
from tasks.specs import SIDES, AdapterSpec, Side

SAMPLES = 3
FEW_ROWS = 5  # a class of fewer is warned of, unless the spec names its own number
IMBALANCE = 20
RARE = 0.01
NO_LETTERS = "no letters"
ONE_LANGUAGE = 0.9  # detectors err on a few of a hundred


def classes(spec: AdapterSpec, rows: Rows, kept: Sequence[Placed]) -> tuple[str, ...]:
    """The closed set in its order, else the classes found, sorted; empty if the task has none."""
    column = label_column(spec)
    if column is None:
        return ()
    return spec.data.labels or tuple(sorted({rows.records[row.at][column] for row in kept}))


def rows_per_class(spec: AdapterSpec, rows: Rows, kept: Sequence[Placed]) -> dict[Side, dict[str, int]]:
    """Accepted rows by side and class; empty if the task has no classes."""
    column = label_column(spec)
    if column is None:
        return {}
    counted = {side: Counter(rows.records[row.at][column] for row in kept if row.side == side) for side in SIDES}
    return {side: dict(sorted(counts.items())) for side, counts in counted.items()}


def classes_are_taught(spec: AdapterSpec, per_class: Mapping[Side, Mapping[str, int]]) -> list[Check]:
    """Classes that are asked for and never shown, shown too seldom, or drowned by the largest."""
    if not per_class:
        return []
    column, taught = label_column(spec) or "", per_class["train"]
    asked = {*spec.data.labels, *(label for counts in per_class.values() for label in counts)}
    unseen = sorted(asked - taught.keys())
    least = spec.data.min_class_rows or FEW_ROWS
    few = sorted(
        (count, label)
        for label in asked
        if (count := taught.get(label, 0)) < least and (count or spec.data.min_class_rows)
    )
    most = max(taught.values(), default=0)
    small = sorted((count, label) for label, count in taught.items() if count * IMBALANCE < most)
    return [
        _warning("every_class_has_train_rows", column, len(asked), [shown(label) for label in unseen]),
        Check(
            "every_class_has_enough_train_rows",
            column,
            "critical" if spec.data.min_class_rows else "warning",
            not few,
            len(asked),
            len(few),
            tuple(f"{shown(label)} has {count}" for count, label in few[:SAMPLES]),
            f"{least} or more",
        ),
        _warning(
            "classes_are_balanced",
            column,
            len(taught),
            [f"{shown(label)} has {count} of {most}" for count, label in small],
            f"no class has more than {IMBALANCE} times the rows of another",
        ),
    ]


def warnings_of(spec: AdapterSpec, rows: Rows, kept: Sequence[Placed], written: Mapping[str, int]) -> list[Check]:
    """What does not refuse a row and should be known: columns that nothing reads, a rare script."""
    asked, data = ", ".join(input_columns(spec)), spec.data
    used = {*text_columns(spec), *data.where, data.split.column, data.split.group, data.split.time}
    layout = {"messages": ("messages",), "instruction": ("instruction", "input", "output"), "columns": ()}[data.layout]
    idle = [shown(name) for name in rows.columns if name not in used and name not in layout]
    scripts = Counter({name: count for name, count in written.items() if name != NO_LETTERS})
    rare = [(name, count) for name, count in scripts.most_common()[1:] if count < RARE * scripts.total()]
    return [
        _warning("every_column_is_read", "", len(rows.columns), idle, "columns that no template and no split reads"),
        _warning(
            "inputs_share_a_script",
            asked,
            len(kept),
            [f"{count:,} in {name}" for name, count in rare],
            ", ".join(f"{count:,} {name}" for name, count in scripts.most_common()),
            unexpected=sum(count for _, count in rare),
        ),
    ]


def one_language(found: Mapping[str, int]) -> list[Check]:
    """Whether nine of ten inputs are in one language, of those that are long enough to tell; none if none is."""
    if not found:
        return []
    total, (most, *others) = sum(found.values()), found.items()
    mixed = [f"{count:,} in {code}" for code, count in others] if most[1] < ONE_LANGUAGE * total else []
    detail = f"sampled: {most[1]:,} in {most[0]}"
    strangers = (total - most[1]) * bool(mixed)
    return [_warning("inputs_share_a_language", "", total, mixed, detail, unexpected=strangers)]


def no_secret(kept: Sequence[Placed]) -> Check:
    """Secrets and personal data, as far as this machine can tell."""
    hidden = sensitive([f"{row.example.input}\n{row.example.target}" for row in kept])
    return _warning(
        "no_secret_or_personal_data",
        "",
        hidden.searched,
        [f"row {kept[at].example.row}: {kind}" for at, kind in hidden.found],
        f"looked for {', '.join(hidden.kinds)}",
    )


def _warning(
    name: str, column: str, evaluated: int, samples: Sequence[str], detail: str = "", unexpected: int | None = None
) -> Check:
    count = len(samples) if unexpected is None else unexpected
    return Check(name, column, "warning", not samples, evaluated, count, tuple(samples[:SAMPLES]), detail)


def histograms(kept: Sequence[Placed], tokens: Mapping[int, int]) -> dict[str, dict[str, int]]:
    """Rows by length of the input (in tokens where they were counted, else in characters), script and language."""
    texts = [row.example.input for row in kept]
    measured = [tokens[row.at] for row in kept] if tokens else list(map(len, texts))
    found = {"tokens" if tokens else "characters": _bins(measured)}
    found["script"] = dict(Counter(script_of(text) or NO_LETTERS for text in texts).most_common())
    return found


def _bins(values: Sequence[int]) -> dict[str, int]:
    """At most 20 bins of one width from 0 to the largest value, by their names.

    >>> _bins([1, 2, 39])
    {'0-1': 1, '2-3': 1, '38-39': 1}
    """
    width = max(1, -(-(max(values, default=0) + 1) // 20))
    counts = Counter(value // width for value in values)
    return {f"{at * width}-{(at + 1) * width - 1}": counts[at] for at in sorted(counts)}


def lengths(kept: Sequence[Placed], tokens: Mapping[int, int]) -> dict[Side, dict[str, dict[str, int]]]:
    """Median, 95th percentile and maximum of input and target in characters, and of the example in tokens, by side."""
    measures: dict[str, Callable[[Placed], int]] = {
        "input_characters": lambda row: len(row.example.input),
        "target_characters": lambda row: len(row.example.target),
    }
    if tokens:
        measures["tokens"] = lambda row: tokens[row.at]
    found: dict[Side, dict[str, dict[str, int]]] = {}
    for side in SIDES:
        rows = [row for row in kept if row.side == side]
        found[side] = {name: _spread(sorted(map(measure, rows))) for name, measure in measures.items() if rows}
    return found


def _spread(values: Sequence[int]) -> dict[str, int]:
    last = len(values) - 1
    return {"median": values[last // 2], "p95": values[round(last * 0.95)], "max": values[last]}
