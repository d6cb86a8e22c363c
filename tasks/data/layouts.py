"""Rows that hold an exchange become a prompt and a completion: chats, and instructions with or without an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tasks.data.admission import Quarantined, shown, type_found
from tasks.data.reading import Rows, missing_columns, read_rows
from tasks.data.talks import SPEAKERS, takes_turns, turns_of, written
from tasks.errors import DataRefused
from tasks.specs import DataSpec

Exchange = tuple[str, str]


def laid_out(data: DataSpec, rows: Rows) -> Rows:
    """The rows with the columns `prompt` and `completion` that their layout gives; what has not that layout falls out.

    Raises:
        DataRefused: a column of the layout is missing, or `prompt` or `completion` is there already.
    """
    if data.layout == "columns" or not rows.records:
        return rows
    needed, read = LAYOUTS[data.layout]
    if missing := [name for name in needed if name not in rows.columns]:
        raise missing_columns(rows.source, missing, rows.columns)
    if taken := [name for name in ("prompt", "completion") if name in rows.columns]:
        wrong = f"layout '{data.layout}' makes the column '{taken[0]}', which is there already"
        raise DataRefused.one("E-DATA-023", rows.source, wrong, "leave data.layout out, or rename the column")
    kept: list[dict[str, Any]] = []
    places: list[tuple[str, int]] = []
    fallen: list[Quarantined] = []
    for record, place in zip(rows.records, rows.places, strict=True):
        try:
            prompt, completion = read(record)
        except _Other as other:
            field, reason = other.args
            fallen.append(Quarantined(place[1], field, reason, record, "row_has_its_layout", place[0]))
        else:
            kept.append({**record, "prompt": prompt, "completion": completion})
            places.append(place)
    columns = (*rows.columns, "prompt", "completion")
    return replace(rows, columns=columns, records=kept, places=places, malformed=(*rows.malformed, *fallen))


def columns_of_rows(data: DataSpec) -> dict[str, list[Any]]:
    """All rows of a source, column by column."""
    rows = laid_out(data, read_rows(data))
    return {name: [record.get(name) for record in rows.records] for name in rows.columns}


class _Other(ValueError):
    """(field, reason) of a row that has another layout."""


def chat(record: Mapping[str, Any]) -> Exchange:
    """All turns but the last, as `talks.written` writes them, and the last, which is the assistant's.

    >>> chat({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    ('Hi', 'Hello')
    """
    turns = record.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Other("messages", f"{type_found(turns)} where a list of turns is expected: {shown(turns)}")
    for number, turn in enumerate(turns, start=1):
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(content, str):
            raise _Other("messages", f"turn {number}: {type_found(content)} where content is text")
        if role not in SPEAKERS or (role == "system" and number > 1):
            allowed = "user or assistant" if number > 1 else "system, user or assistant"
            raise _Other("messages", f"turn {number}: role {shown(role)} where {allowed} is expected")
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["assistant"] or not takes_turns(roles[:-1]):
        said = ", ".join(roles[:6]) or "nothing"
        raise _Other("messages", f"user and assistant take turns and the assistant has the last word; found {said}")
    asked = [{"role": turn["role"], "content": turn["content"].rstrip("\r\n")} for turn in turns[:-1]]
    prompt = written(asked)
    if turns_of(prompt) != asked:
        raise _Other("messages", "a turn holds a line that begins like another turn, with 'User:' or 'Assistant:'")
    return prompt, turns[-1]["content"]


def instruction(record: Mapping[str, Any]) -> Exchange:
    """The instruction, then the input if there is one, and the output.

    >>> instruction({"instruction": "Add.", "input": "1 2", "output": "3"})
    ('Add.\\n\\n1 2', '3')
    """
    for name in ("instruction", "output"):
        if not isinstance(record.get(name), str):
            raise _Other(name, f"{type_found(record.get(name))} where text is expected: {shown(record.get(name))}")
    more = record.get("input")
    if more is not None and not isinstance(more, str):
        raise _Other("input", f"{type_found(more)} where text is expected: {shown(more)}")
    return record["instruction"] + (f"\n\n{more}" if more and more.strip() else ""), record["output"]


LAYOUTS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Exchange]]] = MappingProxyType(
    {
        "messages": (("messages",), chat),
        "instruction": (("instruction", "output"), instruction),
    }
)
