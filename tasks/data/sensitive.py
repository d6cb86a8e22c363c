"""Secrets and personal data among the texts: a warning, by well-kept detectors where the extra `inspect` is installed.

`detect-secrets` knows the forms of keys and tokens, `phonenumbers` those of telephone numbers; an e-mail address is a
pattern. Rules that measure entropy or look for the word "password" are left out: ordinary text sets them off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

SAMPLED = 2000
_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_NOISY = ("Entropy", "Keyword", "IPPublic", "Cloudant", "Softlayer", "BasicAuth")


class Sensitive(NamedTuple):
    """What was looked for in how many texts, and what was found: (place in the texts, what it looks like)."""

    searched: int
    kinds: tuple[str, ...]
    found: tuple[tuple[int, str], ...]


def sensitive(texts: Sequence[str]) -> Sensitive:
    """Evenly drawn texts that hold what looks like a secret or somebody's address or number; the find is not repeated.

    >>> sensitive(["where is it", "write to ann.berg@example.org"]).found
    ((1, 'e-mail address'),)
    """
    step = max(1, len(texts) // SAMPLED)
    places = range(0, len(texts), step)[:SAMPLED]
    secrets, phones = _secret_detectors(), _phone_matcher()
    kinds = ("e-mail address", *(("telephone number",) if phones else ()), *(("secret",) if secrets else ()))
    found = []
    for at in places:
        text = texts[at]
        if _EMAIL.search(text):
            found.append((at, "e-mail address"))
        elif phones and "+" in text and any(True for _ in phones(text, None)):
            found.append((at, "telephone number"))
        elif kind := next((d.secret_type for d in secrets if any(True for _ in d.analyze_string(text))), None):
            found.append((at, kind))
    return Sensitive(len(places), kinds, tuple(found))


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
