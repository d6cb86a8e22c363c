"""Lengths in tokens of this base's tokenizer, and what is done with a row that is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tasks.data.admission import Fallen
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.data.guards import COUNTED_AT_ONCE, CountTokens, Records
from tasks.data.leakage import Placed
from tasks.specs import AdapterSpec


class Lengths(NamedTuple):
    """Tokens of each example by its place, and the rows whose answer has none: such a row would be masked whole."""

    tokens: dict[int, int]
    untold: list[Fallen]


def token_counts(
    spec: AdapterSpec,
    placed: Sequence[Placed],
    count_tokens: CountTokens,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Lengths:
    """Tokens of prompt, completion and end token; of a classification those of the text alone.

    Raises:
        ValueError: if `count_tokens` does not return one count per text.
    """
    generates, column = spec.kind == "generation", ", ".join(target_columns(spec))
    around = _counted(count_tokens, [""])[0] if generates else 0  # what the tokenizer puts around every text
    answers: dict[str, int] = {}
    counts: dict[int, int] = {}
    untold = []
    for start in range(0, len(placed), COUNTED_AT_ONCE):
        rows = placed[start : start + COUNTED_AT_ONCE]
        lengths = _counted(count_tokens, [row.example.input for row in rows])
        if generates:
            new = list({row.example.target for row in rows} - answers.keys())
            answers |= zip(new, (count - around for count in _counted(count_tokens, new)), strict=True)
            untold += [
                Fallen(row.at, "target_has_tokens", column, "the answer has no token, so nothing would be learned")
                for row in rows
                if answers[row.example.target] < 1
            ]
            lengths = [n + answers[row.example.target] + 1 for n, row in zip(lengths, rows, strict=True)]
            if len(answers) > 100_000:  # free text seldom comes twice
                answers.clear()
        counts |= zip((row.at for row in rows), lengths, strict=True)
        on_progress(start + len(rows), len(placed))
    return Lengths(counts, untold)


def _counted(count_tokens: CountTokens, texts: Sequence[str]) -> list[int]:
    counts = count_tokens(texts) if texts else []
    if len(counts) != len(texts):
        raise ValueError(f"count_tokens gave {len(counts)} counts, shorter or longer than {len(texts)} texts")
    return counts


def cut(
    spec: AdapterSpec, rows: Sequence[Placed], records: Records, count_tokens: CountTokens
) -> tuple[dict[int, Example], dict[int, int]]:
    """Rows that are too long with as many characters of their longest input column as fit, and their tokens then.

    The end of the column goes, what the template puts behind it stays, and so does the answer. A row of which nothing
    would be left is not among the answers.
    """
    wanted = {row.at: _longest(spec, records[row.at]) for row in rows}
    fits: dict[int, int] = dict.fromkeys(wanted, 0)
    over = {at: len(records[at][name]) for at, name in wanted.items()}
    tokens: dict[int, int] = {}
    done: dict[int, Example] = {}
    by_place = {row.at: row for row in rows}
    while open_rows := [at for at in wanted if over[at] - fits[at] > 1]:
        tried = {at: (fits[at] + over[at]) // 2 for at in open_rows}
        made = {at: _shortened(spec, records[at], wanted[at], tried[at], by_place[at]) for at in open_rows}
        placed = [Placed(made[at], by_place[at].side, at) for at in open_rows]
        lengths = token_counts(spec, placed, count_tokens).tokens
        for at in open_rows:
            if lengths[at] <= spec.data.max_tokens:
                fits[at], tokens[at], done[at] = tried[at], lengths[at], made[at]
            else:
                over[at] = tried[at]
    return done, tokens


def _longest(spec: AdapterSpec, record: Any) -> str:
    return max(input_columns(spec), key=lambda name: len(record[name]))


def _shortened(spec: AdapterSpec, record: Any, column: str, characters: int, row: Placed) -> Example:
    text = record[column][:characters].rstrip()
    return example_of(spec, {**record, column: text}, row.example.row, row.example.file)
