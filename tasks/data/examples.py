"""One example: what the model reads, what it must say, and the key by which two inputs count as the same."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.specs import AdapterSpec, columns_of, render

# Unicode white space, and the Default_Ignorable code points (zero-width marks, fillers, variation selectors, tags).
SPACES = "\\t-\\r\\x1c-\\x20\\x85\\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
IGNORED = (
    "\\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
VISIBLE = f"[^{SPACES}{IGNORED}]"

_IGNORED = re.compile(f"[{IGNORED}]")


@dataclass(frozen=True, slots=True)
class Example:
    """`key` is the SHA-256 of the normalised input; `row` counts from 1 in `file`, a name below the source."""

    key: str
    input: str
    target: str
    row: int
    file: str = ""


def normalised(text: str) -> str:
    """The text up to case, width, compatibility forms, invisible characters and white space (after UAX 31).

    >>> normalised("  Ｃａｆｅ\\u0301\\u200b \\n AU  lait") == "caf\\u00e9 au lait"
    True
    """
    if not text.isascii():
        for _ in range(2):  # folding can open a new composition, so once is not a fixed point
            text = unicodedata.normalize("NFKC", _IGNORED.sub("", text).casefold())
        text = _IGNORED.sub("", text)
    return " ".join(text.casefold().split())


def key_of(text: str) -> str:
    """SHA-256 of the normalised text, in hex.

    >>> key_of("Where is my card?") == key_of("where  is my CARD?\\n")
    True
    """
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def input_columns(spec: AdapterSpec) -> tuple[str, ...]:
    """Columns that the input is made of, each once."""
    return _unique(columns_of(spec.data.prompt) if spec.data.prompt is not None else (spec.data.text,))


def target_columns(spec: AdapterSpec) -> tuple[str, ...]:
    """Columns that the answer is made of, each once."""
    return _unique(columns_of(spec.data.completion) if spec.data.completion is not None else (spec.data.label,))


def label_column(spec: AdapterSpec) -> str | None:
    """Column whose values are classes, if the task has one."""
    return spec.data.label if spec.kind == "classification" else spec.data.label_column


def text_columns(spec: AdapterSpec) -> tuple[str, ...]:
    """Columns that must hold text in every row."""
    label = label_column(spec)
    return _unique((*input_columns(spec), *target_columns(spec), *((label,) if label else ())))


def example_of(spec: AdapterSpec, record: Mapping[str, Any], row: int, file: str = "") -> Example:
    """The example that a row with text in all its columns becomes.

    Raises:
        KeyError: if the record lacks a column of the spec.
    """
    data = spec.data
    asked = render(data.prompt, dict(record)) if data.prompt is not None else record[data.text]
    answer = render(data.completion, dict(record)) if data.completion is not None else record[data.label]
    return Example(key_of(asked), asked, answer, row, file)


def without_template(template: str | None, text: str) -> str:
    """An input without the words that its template puts before and behind it in every row.

    >>> without_template("Question: {text}\\nAnswer:", "Question: where is it?\\nAnswer:")
    'where is it?'
    """
    if template is None:
        return text
    before, behind, fields = "", "", 0
    for literal, name, _, _ in string.Formatter().parse(template):
        before, behind = before + literal * (not fields), behind + literal * bool(fields)
        if name is not None:
            fields, behind = fields + 1, ""
    return text.removeprefix(before).removesuffix(behind)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
