# ruff: noqa: E501, SIM905  (phrases and word lists read best whole)
"""Task data of the quickstart: customer mail of a made-up shop, its next quarter, and rows that must not pass.

    python examples/quickstart/generate.py --out DIR [--seed 7]

Writes `triage.jsonl`, `extract.jsonl` and `reply.jsonl` (three tasks over the same kind of message, bad rows planted
among the good ones), `traffic.jsonl` (labelled triage traffic of the next quarter) and `requests.jsonl` (one fresh
message per task). The same seed gives the same bytes. The messages are written here, phrase by phrase: `[a|b]` is a
choice and `{x}` a slot, and the table below says what each intent sounds like, this quarter and the next.
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

Row = dict[str, object]
GOOD_ROWS = {"triage": 2600, "extract": 2400, "reply": 2400}
TRAFFIC_ROWS = 800
QUARTER_START, QUARTER_DAYS = datetime(2026, 7, 1, tzinfo=UTC), 90
NEW_WORDING = (0.25, 0.7)  # share of traffic with new wording: in the first two weeks, and after them
CHOICE = re.compile(r"\[([^\[\]]*)\]")

WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
PARTS = "lid handle cord filter hose brush button screen battery tray basket blade dial hinge wheel strap nozzle stand remote shelf".split()
KINDS = "kettle toaster blender mixer iron heater fan radio speaker camera printer lamp drill fridge vacuum monitor scale humidifier oven grill".split()
NEW_KINDS = "scooter dehumidifier projector tablet steamer doorbell shaver massager smartwatch juicer thermostat soundbar".split()

INTENTS: dict[str, list[str]] = {
    "refund": [
        "I sent the {p} back [on {w}|in {w} post|last week] and [the money is not here|my card shows nothing|nobody paid me].",
        "[Please pay me back for|I want my money back for|Kindly return what I paid for] the {p}.",
        "When [do I see|will I get] my money for the {n}? [You have had it since {w}|It went back to you].",
        "[The {n} is not for me|I do not like the {n}], [give me the {a} back|I would rather have my {a}].",
        "The refund [of {a} for|for] the {n} [has not come|is overdue].",
    ],
    "late delivery": [
        "My {p} was [promised|due] [on|for] {w} and [is not here|never came|has not come].",
        "[Where is|What happened to] [my|the] parcel with the {n}? [It should be here|Nothing since {w}].",
        "[Nobody has brought|I am still waiting for] the {p}. [It has been {i} days|You said {i} days].",
        "The tracking of my {n} [has not moved|says nothing|stands still] since {w}.",
        "[How much longer|How long still] for the {p}? [It was to come|I expected it] on {w}.",
    ],
    "broken part": [
        "The {b} of my {p} [snapped|cracked|broke off|is in two pieces].",
        "[There is a crack in|Something tore] the {b} of the {n} [after {i} days|since {w}].",
        "The {b} on the {n} [is bent|fell off|does not hold any more].",
        "I [used|unpacked] the {p} and the {b} [split|was smashed|came apart].",
        "My {p} has a [broken|damaged|cracked] {b}.",
    ],
    "wrong item": [
        "I asked for [a|the] {p} and [you sent|got|the box held] a {x}.",
        "The [label|box] says {n} but inside [is|lies|I found] a {x}.",
        "This is not the {p} [I chose|from your page]. [It is|You sent me] a {x}.",
        "[Wrong colour|Wrong size|Not the model I chose]: my {p} should be [blue|larger|the small one].",
        "You [mixed up|swapped] my {n} [with|and] a {x}.",
    ],
    "missing part": [
        "There was no {b} [in the box of|with] my {p}.",
        "The {b} of the {n} [is not in the box|was left out|is not there].",
        "My {p} came without [its|the|a] {b}.",
        "I [searched|emptied] the box of the {n} and [found no {b}|the {b} was not in it].",
        "[You forgot|Where is] the {b} for my {p}? [The list names it|The rest is here].",
    ],
    "warranty": [
        "Is my {p} still [covered|under warranty] after {i} months?",
        "How long [do you guarantee|is the warranty on] the {n}?",
        "[I lost the receipt of|I have no receipt for] the {p}. [Am I covered|Does the guarantee hold]?",
        "[Until when|How long] [am I covered|does the guarantee run] for the {n}? [I bought it {i} months ago|It is {i} months old].",
        "Does the guarantee of the {p} [pay for|include] a [worn|new] {b}?",
    ],
    "cancel order": [
        "[Please cancel|Cancel] [my order of|the order for] the {p}[|, I found it cheaper|, I ordered two].",
        "[Do not send|Please hold back] the {n}, [I have changed my mind|I no longer need it].",
        "I [want|would like] to [call off|stop] the {p} [before it leaves|that I ordered on {w}].",
        "[Can I still|May I] [stop|cancel] the {n}? [I ordered it by mistake|My wife bought one too].",
        "[Forget|Take back] my order of the {p}, [I do not want it now|it is too dear].",
    ],
    "new address": [
        "[We moved|I have moved], please send the {p} to {t}.",
        "The {n} should go to {t} [and not|instead of] to my old [flat|street|house].",
        "[Change|Please change] the address for my {p}: {t}.",
        "I [typed|gave] the wrong street for the {n}. [Send it|It must go] to {t}.",
        "[Can you bring|Please bring] the {p} to my [office|sister] in {t} [instead|from now on]?",
    ],
    "double charge": [
        "I was charged [twice|two times] for the {p}.",
        "My [bank|card] shows {a} for the {n} [twice|two times].",
        "[Two payments|Two sums of {a}] left my account for one {p}.",
        "You [took|booked] {a} twice for my {n}[| on {w}].",
        "Why do I pay [double|two times] for one {p}? [The bill says {a}|I bought one].",
    ],
    "noise": [
        "My {p} [rattles|hums|squeaks|whistles] [at night|when it runs|since {w}].",
        "[There is a buzz in|A grinding sound comes from] the {n}.",
        "The {n} is [far too loud|so loud that we cannot sleep].",
        "Why does the {p} [hum|click|rattle|whine] [all day|so loudly]?",
        "[Since {w}|For {i} days] the {n} makes a [strange|loud|shrill] sound.",
    ],
    "no power": [
        "My {p} [will not turn on|does not start|is dead] [since {w}|any more|].",
        "I press the button of the {n} and nothing happens.",
        "The {n} [went off|died] on {w} and [stays dark|stays off].",
        "[No light, no sound|No sign of life]: the {p} [is dead|does nothing].",
        "The {p} [gets no power|has no power], [I tried another plug|the plug is fine].",
    ],
    "setup help": [
        "How do I [pair|connect|set up] [my|the] {p}?",
        "The app [does not find|cannot see] my {n}.",
        "What does the [blinking|red|green] light on the {n} mean?",
        "[Which button|What must I press] [starts|resets|pairs] the {p}?",
        "I do not understand the [manual|app|menu] of the {n}. [How do I start|Where do I begin]?",
    ],
}

# The next quarter: lockers, an app with updates, care plans. Four of an intent's phrases bring new surroundings; the
# last two borrow the words of another intent (the shop cancels by itself, a rattle before the break).
NEW_WORDING_OF: dict[str, list[str]] = {
    "refund": [
        "I sent the {p} back through a locker and [my card shows nothing|the money is not here].",
        "[I want my money back for|Please pay me back for] the {p}, the app [promised|offered] {a}.",
        "When will I get my money for the {n}? The locker [has had|took] it [on|since] {w}.",
        "The refund of {a} for the {n} is overdue, [says the app|the app agrees].",
        "You [called off|cancelled] my order of the {p} yourselves, [the {a} stayed with you|yet I paid {a}].",
        "My {n} was cancelled [by your side|by you] on {w}. [And my {a}|What about the {a}]?",
    ],
    "late delivery": [
        "My {p} was promised for {w} and the locker [is empty|has nothing].",
        "Where is my parcel with the {n}? [The locker is empty|No locker has it].",
        "The tracking in the app [stands still|says nothing] for my {n} since {w}.",
        "I am still waiting for the {p} at the locker. It has been {i} days.",
        "Your van took the {n} to my old street in {t}, [it goes round since {w}|and now round again].",
        "Which [locker|shop] in {t} has my {p}? The app does not find it.",
    ],
    "broken part": [
        "The {b} of my {p} [cracked|snapped] [in the locker|on the first ride].",
        "My {p} from the [winter|online] sale has a [cracked|broken] {b}.",
        "The {b} on the {n} fell off [in my bag|on the bus].",
        "There is a crack in the {b} of the {n}, [see my picture|the app has a picture].",
        "First my {p} rattled, now the {b} [hangs loose|lies beside it].",
        "A loud [bang|crack] from the {n} on {w}, the {b} [burst|is gone to bits].",
    ],
    "no power": [
        "My {p} [does not start|is dead] since the update.",
        "The {n} went off on {w} and stays [dark|off], [the app too|even in the app].",
        "I press the button of the {n} and nothing happens, [the app sees nothing|in the app neither].",
        "My {p} will not turn on, [not even with the app|full battery or not].",
        "Since the app update my {n} [shows a black screen|is a brick].",
        "I paired the {p} with the app on {w} and [it never woke again|now it is just black].",
    ],
    "double charge": [
        "I was charged twice for the {p} [in the app|and its care plan].",
        "My card shows {a} for the plan of the {n} two times.",
        "Two payments left my account for one {p}, [one in the app|one for a plan].",
        "Why do I pay double for one {p}? [The app shows {a}|The plan says {a}].",
        "I cancelled the plan for my {p}, [yet {a} left my card again|{a} went off once more].",
        "You paid me back for the {n} on {w} and then [took|booked] the {a} again.",
    ],
}
# How often an intent comes in traffic with its old wording (others: 1); these four hardly come at all.
OLD_WORDING_WEIGHT = {"setup help": 0.1, "cancel order": 0.1, "noise": 0.1, "new address": 0.1}

OPENERS = "Hi.|Hello.|Good morning.|Dear team.|Hello there.|Good evening.|Hey.|To the shop.".split("|")
ASIDES = [
    line.strip()
    for line in """I still have the box.|The colour is nice.|I paid {a} for it.|My neighbour has the same one.|It is for my mother.
    |I bought it on {w}.|We use it every day.|The {b} looks fine.|The driver was friendly.|I live in {t}.|The old one lasted {i} years.
    |It was a gift.|Your page is clear.|I have {i} of them.|I wrote on {w} already.|I like the rest of it.""".split("|")
]
CLOSERS = "Thanks.|Please help.|Best wishes.|What now?|Please answer soon.|Thank you.|Regards.|Waiting for your answer.".split(
    "|"
)

# The house's answers: one policy covers several intents.
POLICIES = {
    "we pay you back for the {n}.": ("refund", "double charge"),
    "the {n} leaves our shop today.": ("late delivery", "wrong item"),
    "a new {b} for the {n} is on its way.": ("broken part", "missing part"),
    "your {n} is covered for two years.": ("warranty",),
    "we have changed the order of the {n}.": ("cancel order", "new address"),
    "please call us about the {n}.": ("noise", "no power", "setup help"),
}
REPLIES = {intent: policy for policy, intents in POLICIES.items() for intent in intents}


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
