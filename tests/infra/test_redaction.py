from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.redaction import HIDDEN, redacted

# Three letters or more, so that a hit in the shown text is the secret and not chance; none of our own words.
SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=3, max_size=30).filter(
    lambda text: text not in "postgresql+psycopg://factory:@db.example:5432/ledger?sslmode=require ***"
)


@given(SECRETS)
def test_a_password_never_shows_whether_or_not_it_was_escaped(secret: str) -> None:
    for written in (secret, quote(secret, safe="")):
        shown = redacted(f"postgresql+psycopg://factory:{written}@db.example:5432/ledger?sslmode=require")
        assert written not in shown
        assert shown == f"postgresql+psycopg://factory:{HIDDEN}@db.example:5432/ledger?sslmode=require"


@pytest.mark.parametrize("key", ["password", "token", "access_key", "sig", "client_secret", "sslpassword", "api-key"])
def test_a_secret_in_the_query_never_shows_and_its_neighbours_do(key: str) -> None:
    assert redacted(f"https://host/x?a=1&{key}=CANARY&b=2#top") == f"https://host/x?a=1&{key}={HIDDEN}&b=2#top"


def test_every_url_of_a_sentence_is_redacted_and_the_words_between_stay() -> None:
    shown = redacted("cannot move s3://key:CANARY@bucket/x to https://CANARY@mlflow.lan/api (timeout)")
    assert shown == f"cannot move s3://key:{HIDDEN}@bucket/x to https://{HIDDEN}@mlflow.lan/api (timeout)"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/a:b/ledger.db",
        "file:///srv/a@b",
        "http://127.0.0.1:4200/api",
        "postgresql://factory@db/ledger",
        "no url: a@b.example",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text
