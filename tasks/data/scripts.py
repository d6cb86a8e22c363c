"""What a text is written in: its script by Unicode, and its language where the optional detector is installed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

LANGUAGE_SAMPLE = 1000
TELLING = 40  # characters from which a text's language can be told
_SHOWN = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}


def script_of(text: str) -> str:
    """The script of most of its letters, by the first word of their Unicode names; "" where there is no letter.

    >>> script_of("Where is my card?"), script_of("где моя карта"), script_of("私のカード"), script_of("42!")
    ('Latin', 'Cyrillic', 'Kana', '')
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else ""
    letters = Counter(filter(str.isalpha, text))
    found: Counter[str] = Counter()
    for letter, count in letters.items():
        found[_script(letter)] += count
    return min(found, key=lambda name: (-found[name], name)) if found else ""


@lru_cache(maxsize=65_536)
def _script(letter: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNKNOWN").split()[0]
    return _SHOWN.get(name, name.capitalize())


def languages(texts: Sequence[str]) -> dict[str, int]:
    """ISO 639-1 codes of evenly drawn texts of 40 characters or more, with their number, most frequent first.

    Empty where the extra `inspect` is not installed.
    """
    try:
        from py3langid.langid import classify
    except ImportError:
        return {}
    telling = [text for text in texts if len(text) >= TELLING]
    step = -(-len(telling) // LANGUAGE_SAMPLE) or 1
    found = Counter(str(classify(text)[0]) for text in telling[::step])
    return dict(found.most_common())
