"""The one place where secrets are taken out of text that somebody may read."""

from __future__ import annotations

import re

HIDDEN = "***"
FILE_SCHEMES = frozenset({"sqlite", "file"})
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\S+)")
_SECRET_KEY = re.compile(
    r"([?&;][^=&;#\s]*(?:pass|pwd|secret|token|key|sig|auth|credential)[^=&;#\s]*=)[^&;#\s]*", re.I
)


def redacted(text: str) -> str:
    """The text with passwords, tokens and secret query values of every URL in it hidden.

    >>> redacted("postgresql+psycopg://factory:hunter2@db:5432/ledger?sslmode=require")
    'postgresql+psycopg://factory:***@db:5432/ledger?sslmode=require'
    >>> redacted("cannot reach https://s3cr3t@mlflow.lan/api?token=abc")
    'cannot reach https://***@mlflow.lan/api?token=***'

    A password ends at the last @, so that one with an unescaped @, / or # is hidden too. Files have no password: the
    path of `sqlite:///` and `file:///` stays as it is.
    """
    return _URL.sub(_one, text)


def _one(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    if scheme.lower() not in FILE_SCHEMES and "@" in rest:
        user_and_password, _, place = rest.rpartition("@")
        user, colon, _ = user_and_password.partition(":")
        shown = f"{user}:{HIDDEN}" if colon else HIDDEN if scheme.startswith("http") else user
        rest = f"{shown}@{place}"
    return f"{scheme}://" + _SECRET_KEY.sub(rf"\g<1>{HIDDEN}", rest)
