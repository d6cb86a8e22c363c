# ruff: noqa: SIM905  (syllables read best as one string)
"""Task data of the quickstart: customer mail of a made-up shop, its next quarter, and rows that must not pass.

    python examples/quickstart/generate.py --out DIR [--seed 7]

Writes `triage.jsonl`, `extract.jsonl` and `reply.jsonl` (three tasks over the same kind of message, bad rows planted
among the good ones), `traffic.jsonl` (labelled triage traffic of the next quarter) and `requests.jsonl` (one fresh
message per task). The same seed gives the same bytes. `wording.py` says what each intent sounds like, this quarter and
the next.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from wording import (
    ASIDES,
    CLOSERS,
    INTENTS,
    KINDS,
    NEW_KINDS,
    NEW_WORDING_OF,
    OLD_WORDING_WEIGHT,
    OPENERS,
    PARTS,
    REPLIES,
    WEEKDAYS,
)

Row = dict[str, object]
GOOD_ROWS = {"triage": 2600, "extract": 2400, "reply": 2400}
TRAFFIC_ROWS = 800
QUARTER_START, QUARTER_DAYS = datetime(2026, 7, 1, tzinfo=UTC), 90
NEW_WORDING = (0.25, 0.7)  # share of traffic with new wording: in the first two weeks, and after them
CHOICE = re.compile(r"\[([^\[\]]*)\]")


class Catalogue(NamedTuple):
    onsets: list[str]
    middles: list[str]
    endings: list[str]
    kinds: list[str]


class Shop:
    """What a message may speak of. Two grammars of invented names: this quarter's catalogue, and the next one's."""

    NOW = Catalogue(
        "v b d g k l m n p r s t br tr fl".split(), "l m n r s t d v".split(), "o a en is um et".split(), KINDS
    )
    NEXT = Catalogue(
        "z x qu sn gl pr dw y kr sk".split(), "x z nt rk sh ck pl".split(), "ara ix oon ey ual".split(), NEW_KINDS
    )

    def __init__(self, rng: random.Random, catalogue: Catalogue = NOW) -> None:
        self.rng = rng
        pick = rng.choice
        vowels = "a e i o u".split()
        self.name = (
            pick(catalogue.onsets)
            + pick(vowels)
            + pick(catalogue.middles)
            + pick(vowels)
            + pick(catalogue.middles)
            + pick(catalogue.endings)
        ).capitalize()
        self.name = (
            self.name
            if rng.random() < 0.3
            else (
                pick(catalogue.onsets) + pick(vowels) + pick(catalogue.middles) + pick(catalogue.endings)
            ).capitalize()
        )
        self.customer = (
            pick("m t j l r h s n".split())
            + pick("a e i o".split())
            + pick("r l n v m".split())
            + pick(["a", "o", "in", "ek", "is"])
        ).capitalize()
        self.town = (
            pick("b d f gr h l m n st w".split())
            + pick("a e o u".split())
            + pick("l n r ck st".split())
            + pick(["by", "ford", "holm", "mar", "wick"])
        ).capitalize()
        self.kind, self.other = rng.sample(catalogue.kinds, 2)
        self.order = f"{pick('ABCDEFGHKLMNPRSTVWXZ')}-{rng.randrange(1000, 10_000)}"
        self.weekday, self.part = pick(WEEKDAYS), pick(PARTS)
        self.amount = f"{rng.randrange(9, 400)} euros"

    def filled(self, phrase: str) -> str:
        """The phrase with each choice made and each slot filled."""
        while match := CHOICE.search(phrase):
            phrase = phrase[: match.start()] + self.rng.choice(match[1].split("|")) + phrase[match.end() :]
        text = phrase.format(
            p=f"{self.name} {self.kind}",
            n=self.name,
            x=self.other,
            w=self.weekday,
            b=self.part,
            t=self.town,
            a=self.amount,
            i=self.rng.randrange(2, 13),
        )
        return re.sub(r"\ba (?=[aeiou])", "an ", text)

    def say(self, phrase: str) -> str:
        """The filled phrase as a sentence."""
        text = self.filled(phrase)
        return text[0].upper() + text[1:]


def mistyped(text: str, rng: random.Random) -> str:
    """The text with two letters of one plain word swapped; names and numbers stay whole."""
    tokens = text.split(" ")
    at = rng.choice(
        [i for i, token in enumerate(tokens) if token.isalpha() and token.islower() and len(token) > 3] or [0]
    )
    word, cut = tokens[at], len(tokens[at]) // 2
    tokens[at] = word[: cut - 1] + word[cut] + word[cut - 1] + word[cut + 1 :] if word.isalpha() else word
    return " ".join(tokens)


def message(shop: Shop, phrases: list[str], *, extras: tuple[str, ...] = ()) -> str:
    """One customer message: a phrase of the intent among asides, greetings and what else must be said."""
    rng = shop.rng
    said = (
        [shop.say(rng.choice(phrases))]
        + [shop.say(aside) for aside in rng.sample(ASIDES, rng.choice((0, 1, 1, 2)))]
        + list(extras)
    )
    rng.shuffle(said)
    said = (
        ([rng.choice(OPENERS)] if rng.random() < 0.4 else [])
        + said
        + ([rng.choice(CLOSERS)] if rng.random() < 0.3 else [])
    )
    text = " ".join(said)
    return mistyped(text, rng) if rng.random() < 0.1 else text


def triage_row(rng: random.Random) -> Row:
    intent = rng.choice(list(INTENTS))
    return {"message": message(Shop(rng), INTENTS[intent]), "intent": intent}


def extract_row(rng: random.Random) -> Row:
    """Product, order and customer of a message that also names towns, other things and other numbers."""
    shop = Shop(rng)
    phrases = [phrase for phrase in INTENTS[rng.choice(list(INTENTS))] if "{p}" in phrase] or ["It is about the {p}."]
    number = rng.choice(
        (
            f"Order {shop.order}.",
            f"My order is {shop.order}.",
            f"The number is {shop.order}.",
            f"It was order {shop.order}.",
        )
    )
    signed = rng.choice((f"I am {shop.customer}.", f"My name is {shop.customer}.", f"{shop.customer} here."))
    said = [shop.say(rng.choice(phrases)), number, signed] + [
        shop.say(aside) for aside in rng.sample(ASIDES, rng.choice((0, 0, 1)))
    ]
    rng.shuffle(said)
    return {"message": " ".join(said), "fields": f"{shop.name} {shop.kind}; {shop.order}; {shop.customer}"}


def reply_row(rng: random.Random) -> Row:
    """What follows "Dear": the customer's name, and the policy of the intent for this product."""
    shop, intent = Shop(rng), rng.choice(list(INTENTS))
    policy = REPLIES[intent]
    phrases = [phrase for phrase in INTENTS[intent] if "{b}" in phrase or "{b}" not in policy]
    signed = rng.choice((f"I am {shop.customer}.", f"My name is {shop.customer}.", f"{shop.customer} here."))
    said = message(shop, phrases, extras=(signed,))
    return {"message": said, "reply": f"{shop.customer}, {shop.filled(policy)}"}


def traffic_rows(rng: random.Random, taken: set[str]) -> list[Row]:
    """A quarter of labelled messages: the next catalogue's names, and mostly new wording after two weeks."""
    rows: list[Row] = []
    times = sorted(QUARTER_START + timedelta(seconds=rng.randrange(QUARTER_DAYS * 86_400)) for _ in range(TRAFFIC_ROWS))
    weights = [OLD_WORDING_WEIGHT.get(intent, 1.0) for intent in INTENTS]
    for number, time in enumerate(times, 1):
        share = NEW_WORDING[time >= QUARTER_START + timedelta(days=14)]
        table = NEW_WORDING_OF if rng.random() < share else INTENTS
        while True:
            intent = rng.choice(list(table)) if table is NEW_WORDING_OF else rng.choices(list(INTENTS), weights)[0]
            said = message(Shop(rng, Shop.NEXT), table[intent])
            if normalised(said) not in taken:
                break
        taken.add(normalised(said))
        source = rng.choice(("app", "app", "mail") if table is NEW_WORDING_OF else ("mail", "form", "phone", "app"))
        rows.append(
            {"id": f"q1-{number:04d}", "time": time.isoformat(), "message": said, "intent": intent, "source": source}
        )
    return rows


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def good_rows(make: Callable[[random.Random], Row], count: int, rng: random.Random) -> list[Row]:
    """Rows with pairwise different messages."""
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = make(rng)
        rows.setdefault(normalised(str(row["message"])), row)
    return list(rows.values())


def planted(
    good: list[Row], label: str, make: Callable[[random.Random], Row], rng: random.Random
) -> list[tuple[str, Row]]:
    """Bad rows and what is bad about each. Copies and contradictions come in addition to good rows."""
    fresh = lambda: make(rng)  # noqa: E731
    other = lambda row: next(r[label] for r in good if r[label] != row[label])  # noqa: E731
    bad: list[tuple[str, Row]] = [("empty message", fresh() | {"message": ""}) for _ in range(2)]
    bad += [("whitespace message", fresh() | {"message": space}) for space in ("   ", "\n\t ")]
    bad += [
        ("null message", fresh() | {"message": None}),
        (f"null {label}", fresh() | {label: None}),
        (f"null {label}", fresh() | {label: None}),
    ]
    bad += [(f"empty {label}", fresh() | {label: ""}), (f"whitespace {label}", fresh() | {label: "  "})]
    bad += [
        ("message of a wrong type", fresh() | {"message": rng.randrange(1000)}),
        (f"{label} of a wrong type", fresh() | {label: [1, 2]}),
    ]
    bad += [(f"no {label} column", {"message": fresh()["message"]}), ("no message column", {label: fresh()[label]})]
    bad += [("exact duplicate", dict(row)) for row in rng.sample(good, 4)]
    outside = {
        "intent": ["praise", "Refund!!", "12"],
        "fields": ["Velmo kettle, order 12", "Velmo kettle; 12"],
        "reply": ["ok", "x" * 3000],
    }[label]
    bad += [(f"{label} outside what is allowed", fresh() | {label: value}) for value in outside]
    for row in (fresh(), fresh()):
        bad += [("one message with two labels", row), ("one message with two labels", row | {label: other(row)})]
    return bad


def written(path: Path, rows: list[Row]) -> None:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def generate(out: Path, seed: int) -> dict[str, Counter[str]]:
    """Write the five files; returns, for each task, how many bad rows of which kind were planted."""
    out.mkdir(parents=True, exist_ok=True)
    makers = {"triage": (triage_row, "intent"), "extract": (extract_row, "fields"), "reply": (reply_row, "reply")}
    report, requests, taken = {}, [], set()
    for task, (make, label) in makers.items():
        rng = random.Random(f"{task}-{seed}")
        good = good_rows(make, GOOD_ROWS[task] + 1, rng)
        taken |= {normalised(str(row["message"])) for row in good}
        request = good.pop()
        requests.append({"task": task, "message": request["message"], "expected": request[label]})
        bad = planted(good, label, make, rng)
        rows = good + [row for _, row in bad]
        rng.shuffle(rows)
        written(out / f"{task}.jsonl", rows)
        report[task] = Counter(kind for kind, _ in bad)
    written(out / "traffic.jsonl", traffic_rows(random.Random(f"traffic-{seed}"), taken))
    written(out / "requests.jsonl", requests)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    for task, kinds in generate(options.out, options.seed).items():
        print(
            f"{task}: {GOOD_ROWS[task]} good rows, {kinds.total()} planted: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        )
    print(f"traffic: {TRAFFIC_ROWS} rows; requests: 3 rows; all in {options.out}")


if __name__ == "__main__":
    main()
