"""Secrets and personal data among the texts: a warning, by well-kept detectors where the extra `inspect` is installed.

`detect-secrets` knows the forms of keys and tokens, `phonenumbers` those of telephone numbers; an e-mail address is a
pattern. Rules that measure entropy or look for the word "password" are left out: ordinary text sets them off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

CLOSELY = 20_000  # texts at most that the detectors read
_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_NUMBER = re.compile(r"\+[\s(]*\d[\d\s()./-]{5}")
_NOISY = ("Entropy", "Keyword", "IPPublic", "Cloudant", "Softlayer", "BasicAuth")
_SIGNS = ("@", "AKC", "AP", "BEGIN", "PuTTY", "eyJ", "sq0csp", "_authToken")
_LONG_WORD = 20  # characters; a secret that bears none of the signs is part of such a word


class Sensitive(NamedTuple):
    """What was looked for in how many texts, and what was found: (place in the texts, what it looks like)."""

    searched: int
    kinds: tuple[str, ...]
    found: tuple[tuple[int, str], ...]


def sensitive(texts: Sequence[str]) -> Sensitive:
    """Texts that hold what looks like a secret or somebody's address or number; the find itself is not repeated.

    Every text is looked at; of more than 20,000 that bear a sign of something, an even draw is read closely.

    >>> sensitive(["where is it", "write to ann.berg@example.org"]).found
    ((1, 'e-mail address'),)
    """
    secrets, phones = _secret_detectors(), _phone_matcher()
    kinds = ("e-mail address", *(("telephone number",) if phones else ()), *(("secret",) if secrets else ()))
    doubtful = [at for at, text in enumerate(texts) if may_be_sensitive(text)]
    step = -(-len(doubtful) // CLOSELY) or 1
    read = doubtful[::step]
    found = []
    for at in read:
        text = texts[at]
        if _EMAIL.search(text):
            found.append((at, "e-mail address"))
        elif phones and _NUMBER.search(text) and any(True for _ in phones(text, None)):
            found.append((at, "telephone number"))
        elif kind := next((d.secret_type for d in secrets if any(True for _ in d.analyze_string(text))), None):
            found.append((at, kind))
    return Sensitive(len(texts) - len(doubtful) + len(read), kinds, tuple(found))


def may_be_sensitive(text: str) -> bool:
    """Whether the detectors must read it: they cost many times what this does, and most texts bear no sign."""
    if any(sign in text for sign in _SIGNS) or "xox" in text.lower() or ("+" in text and _NUMBER.search(text)):
        return True
    return max(map(len, text.split()), default=0) >= _LONG_WORD


@cache
def _secret_detectors() -> tuple[Any, ...]:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError:
        return ()
    known: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return tuple(kind() for kind in known.values() if not any(part in kind.__name__ for part in _NOISY))


@cache
def _phone_matcher() -> Any:
    try:
        from phonenumbers import PhoneNumberMatcher
    except ImportError:
        return None
    return PhoneNumberMatcher
