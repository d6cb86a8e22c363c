"""X07, X08, C19: words that are paths or SQL, and a clock that jumps, change nothing but what they say."""

from __future__ import annotations

import random
import string
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from registry.errors import IntegrityError, RegistryError, Unknown
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.records import BaseRecord
from registry.store import Store

SQL = [
    "' OR '1'='1",
    "'; DROP TABLE versions; --",
    "%",
    "_",
    "triage%",
    "tri_ge",
    '"triage"',
    "triage\0",
    "a' UNION SELECT 1 --",
]
PARTS = ["..", "/", "\\", "%2e%2e", "~", "\0", "\n", "etc/passwd", "C:", ".", "sha256", "tmp", "$HOME", "｡｡／"]


def words(count: int) -> list[str]:
    """Paths, percent-encoded up to three times, and noise."""
    chance = random.Random(0)
    found = []
    for _ in range(count):
        word = "".join(chance.choice(PARTS + list(string.printable)) for _ in range(chance.randint(1, 8)))
        for _ in range(chance.randrange(4)):
            word = quote(word, safe="")
        found.append(word)
    return found


def test_x07_no_word_is_a_digest_that_leaves_the_store_or_a_name_that_leaves_its_rules(sqlite_workshop, tmp_path):
    ledger, store = sqlite_workshop.ledger, sqlite_workshop.store
    ledger.register(sqlite_workshop.draft("triage"))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for word in words(5000):
        for ask in (store.path, store.holds, store.hide, ledger.dataset):
            with pytest.raises(RegistryError):
                ask(word)
    for word in words(300):
        with pytest.raises(RegistryError):
            ledger.version(word + "/")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("word", SQL)
def test_x08_words_of_sql_match_literally_or_not_at_all(workshop, word):
    ledger = workshop.ledger
    ledger.register(workshop.draft("triage"))
    for ask in (ledger.version, ledger.versions, ledger.history, ledger.listed, ledger.lineage, ledger.containing):
        with pytest.raises(Unknown):
            ask(word)
    if "\0" not in word:  # PostgreSQL has no such text
        assert ledger.datasets(word) == ledger.findings(word) == ()
        assert ledger.take_lease(word, holder=word, seconds=1).name == word
        named = ledger.remember_base(BaseRecord("d" * 64, word, None, word, 1))
        assert ledger.base("d" * 64) == named
        ledger.register(workshop.draft("routing", spec={"note": word}, run=word))
        ledger.promote("routing", 1, expected=None, decision={"why": word}, actor=word, reason=word)
        assert ledger.version("routing").spec == {"note": word}
        assert ledger.history("routing")[0].reason == word
        ledger.withdraw("routing:1", reason=word)
        assert ledger.withdrawal("routing:1").reason == word
    assert len(ledger.versions()) == (1 if "\0" in word else 2)
    assert fsck(ledger, workshop.store) == ()


def test_c19_order_comes_from_the_ledger_and_leases_from_the_database_whatever_the_clock_says(
    url, make_workshop, store
):
    """The clock jumps 300 s forwards and backwards at every look."""
    chance = random.Random(2)

    def clock() -> datetime:
        return datetime(2026, 10, 25, 1, 30, tzinfo=UTC) + timedelta(seconds=chance.uniform(-300, 300))

    workshop = make_workshop(url, store)
    with Ledger.open(url, store=Store(store.root), clock=clock) as ledger:
        for place in range(4):
            assert ledger.register(workshop.draft("triage", place)).number == place + 1
            ledger.promote("triage", place + 1, expected=place or None, decision={})
        assert [link.number for link in ledger.history("triage")] == [1, 2, 3, 4]
        assert [version.number for version in ledger.versions("triage")] == [1, 2, 3, 4]
        assert [entry.number for entry in ledger.pending() if entry.topic == "version"] == [1, 2, 3, 4]
        assert ledger.rollback("triage").number == 3
        assert ledger.take_lease("once", holder="one", seconds=60) is not None
        assert ledger.take_lease("once", holder="two", seconds=60) is None
        assert fsck(ledger, store) == ()


def test_a_digest_in_capitals_or_of_another_length_names_nothing(store):
    digest = store.put_files({"x": b"x"})
    for word in (digest.upper(), digest[:-1], digest + "0", f" {digest}"):
        with pytest.raises(IntegrityError):
            store.path(word)
