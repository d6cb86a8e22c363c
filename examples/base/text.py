"""Seeded text of a made-up electronics and household shop: what the base is pretrained on.

Every document invents its own people, products and order numbers and then repeats them, so that the one way
to predict a name is to look it up earlier in the document. One name in sixteen (by checksum) is reserved: no
training document contains it, so that held-out documents copy names never seen.

>>> document(3) == document(3)
True
>>> from scene import is_reserved
>>> is_reserved(Scene(random.Random(0), held_out=True).first)
True
"""

import random
from collections.abc import Callable

from scene import LINES, Scene


def letter(scenes: list[Scene], rng: random.Random) -> str:
    s = scenes[0]
    sign = rng.choice((s.first, f"{s.first} {s.last}", f"{s.first} {s.last}, {s.town}"))
    body = f"{s.complaint(rng.choice((1, 2, 2, 3)))}\n{sign}"
    greeting = rng.choice((f"Dear {s.first},", f"Hello {s.first},", f"Dear {s.first} {s.last},"))
    close = rng.choice((f"{s.agent}, customer care", f"Best wishes, {s.agent}", s.agent))
    extra = rng.choice(
        (
            "",
            f" This is about order {s.order}.",
            f" Your {s.product} matters to us.",
            f" {s.say(rng.choice(LINES['POLICIES']))}",
        )
    )
    return f"{body}\n\n{greeting}\n{s.answer()}{extra}\n{close}"


def chain(scenes: list[Scene], rng: random.Random) -> str:
    """A letter, then the answer that quotes it word for word."""
    s = scenes[0]
    first = s.complaint(2)
    quoted = f"From {s.first} {s.last}\n{first}\n\nFrom {s.agent}\n> {first}\n{s.answer()}"
    thanks = rng.choice(("Thank you,", "Thanks,", "Good,", "All right,"))
    then = ("I will wait for the {n}.", "Then I keep the {n}.", "Please note the order, {o}.", "The {p} is for my {r}.")
    return f"{quoted}\n\nFrom {s.first} {s.last}\n{thanks} {s.agent}. {s.say(rng.choice(then))}"


def chat(scenes: list[Scene], rng: random.Random) -> str:
    s = scenes[0]
    turns = [
        (s.first, s.complaint(1)),
        (
            s.agent,
            rng.choice(
                (
                    f"Hello {s.first}. Which order is it?",
                    "What is the order number, please?",
                    f"Hello, {s.agent} here. May I have the number of your order?",
                )
            ),
        ),
        (s.first, rng.choice((s.order, f"It is {s.order}.", f"{s.order}, the {s.product}."))),
        (
            s.agent,
            rng.choice(
                (
                    f"Thank you. {s.order}, a {s.product} for {s.first} {s.last}, is that right?",
                    f"I see {s.order}, the {s.product}.",
                    f"So {s.first} {s.last}, the {s.name}, {s.order}.",
                )
            ),
        ),
        (s.first, rng.choice(("Yes.", "That is right.", f"Yes, the {s.name}.", f"Yes, {s.first} {s.last}."))),
        (s.agent, s.answer()),
    ]
    if rng.random() < 0.4:
        turns += [(s.first, f"Thank you, {s.agent}."), (s.agent, f"You are welcome, {s.first}.")]
    return "\n".join(f"{who}: {what}" for who, what in turns[rng.choice((0, 0, 1)) :])


def handover(scenes: list[Scene], rng: random.Random) -> str:
    """Notes for the next shift: every case told once, then looked up again in another order by another key."""
    told = [
        rng.choice(
            (
                f"{s.first} {s.last} ({s.order}): {s.gist()}.",
                f"{s.gist()}. {s.first} {s.last}, order {s.order}.",
                f"{s.order}, {s.product}: {s.gist()}. Customer {s.first} {s.last}.",
            )
        )
        for s in scenes
    ]
    again = rng.sample(scenes, len(scenes))
    recall = [
        rng.choice(
            (
                f"Call {s.first} {s.last} about the {s.name}.",
                f"{s.order} is for {s.first} {s.last}.",
                f"The {s.product} belongs to {s.first} {s.last}.",
                f"{s.first} waits, order {s.order}.",
                f"{s.name}: ask {s.agent}.",
            )
        )
        for s in again
    ]
    return (
        f"{rng.choice(('Notes for', 'Handover on', 'Open cases,'))} {scenes[0].weekday}\n"
        + "\n".join(told)
        + "\n"
        + rng.choice(("To do", "Next", "Remember"))
        + "\n"
        + "\n".join(recall)
    )


def order_log(scenes: list[Scene], rng: random.Random) -> str:
    steps = (
        "ordered",
        "paid",
        "packed",
        "shipped",
        "at the depot",
        "delivered",
        "sent back",
        "refunded",
        "cancelled",
        "lost",
    )
    rows = [(s, step) for s in scenes for step in steps[: rng.randrange(1, 6)]]
    gap = rng.choice(("  ", ", ", " - ", "; "))
    body = [
        gap.join(
            rng.choice(((s.order, s.product, step), (s.day(), s.order, step), (s.order, s.first + " " + s.last, step)))
        )
        for s, step in rng.sample(rows, min(len(rows), 8))
    ]
    told = [
        rng.choice(
            (
                f"{s.order} is the {s.product}.",
                f"The {s.name} went to {s.town}.",
                f"{s.order} was ordered by {s.first} {s.last}.",
                f"The {s.product}: order {s.order}.",
            )
        )
        for s in scenes
    ]
    return "\n".join(told + body + [t.replace(" is ", " was ") for t in rng.sample(told, len(told))])


def product_note(scenes: list[Scene], rng: random.Random) -> str:
    s = scenes[0]
    return f"{s.product}\n" + " ".join(s.say(line) for line in rng.sample(LINES["NOTES"], rng.randrange(3, 8)))


def policy(scenes: list[Scene], rng: random.Random) -> str:
    s = scenes[0]
    lines = [f"{n}. {s.say(line)}" for n, line in enumerate(rng.sample(LINES["POLICIES"], rng.randrange(3, 7)), 1)]
    return (
        f"Rules of the shop in {s.town}, from {s.date}\n"
        + "\n".join(lines)
        + f"\nSigned in {s.town}, {s.agent} {s.last}"
    )


def ticket(scenes: list[Scene], rng: random.Random) -> str:
    """A complaint, then a form that copies its particulars; marks, labels, order and punctuation vary."""
    s = scenes[0]
    particulars = (
        "The {p}, order {o}.",
        "Order {o} from {d}, a {p}.",
        "It is the {p} that I bought on {d}. Number {o}.",
        "Order {o}. The {p}. On {w}.",
        "My {p} has the number {o}.",
    )
    known = f"{s.complaint(rng.choice((1, 2)))} {s.say(rng.choice(particulars))}"
    if rng.random() < 0.7:
        known += rng.choice((f" {s.first} {s.last}, {s.town}", f" I am {s.first}.", f" {s.first} {s.last}"))
    labels = [
        (("Machine", "Thing", "Model", "What"), s.product),
        (("Number", "No.", "Ref"), s.order),
        (("Owner", "Who", "Buyer"), f"{s.first} {s.last}"),
        (("Called",), s.first),
        (("Day", "When"), s.weekday),
        (("Part",), s.part),
        (("Town", "Where"), s.town),
        (("Sum",), s.amount),
        (("Name",), s.name),
        (("Kind",), s.kind),
    ]
    kept = [(rng.choice(names), value) for names, value in labels if value in known]
    kept.append((rng.choice(("Matter", "About", "Case", "Shelf")), s.matter()))
    kept = rng.sample(kept, min(len(kept), rng.choice((2, 3, 3, 4, 5))))
    gap, end = rng.choice((" ", "  ", " = ", " - ", ": ")), rng.choice(("\n", "\n", "; ", ", ", " / "))
    head = rng.choice(("\n\nRepair slip\n", "\nCase sheet\n", "\nDesk card ", "\n", "\n> ", "\nNoted: "))
    return known + head + end.join(f"{a}{gap}{b}" for a, b in kept)


def sorting(scenes: list[Scene], rng: random.Random) -> str:
    """Several letters, each put on its pile: a word or two for its matter after a mark that holds for the document."""
    mark = rng.choice(
        ("\n= ", "\n-> ", "\nmatter ", "\nPile: ", "\nabout ", " # ", " (", "\nGoes to: ", "\n", "\ncase: ")
    )
    return "\n\n".join(
        f"{s.complaint(rng.choice((1, 1, 1, 2)))}{mark}{s.matter()}{')' if mark == ' (' else ''}" for s in scenes
    )


def short_answer(scenes: list[Scene], rng: random.Random) -> str:
    """Several letters with the name inside, each answered in one line that names the customer."""
    mark = rng.choice(("\n-- ", "\nAnswer ", "\nDesk: ", "\n", "\nSent: "))
    lines = []
    for s in scenes:
        who = rng.choice((f"I am {s.first}.", f"My name is {s.first}.", f"{s.first} here.", f"This is {s.first}."))
        said = rng.choice((f"{who} {s.complaint(1)}", f"{s.complaint(1)} {who}"))
        lines.append(f"{said}{mark}{rng.choice(('Hello', 'Dear', 'To'))} {s.first}, {s.answer()}")
    return "\n\n".join(lines)


def questions(scenes: list[Scene], rng: random.Random) -> str:
    """A story with several people, then questions that only the story answers."""
    told = [
        rng.choice(
            (
                f"{s.first} bought a {s.product} in {s.town}.",
                f"In {s.town}, {s.first} {s.last} ordered the {s.product}.",
                f"{s.agent} sold a {s.product} to {s.first} from {s.town}.",
            )
        )
        + f" {s.gist()}. Order {s.order}."
        for s in scenes
    ]
    asked = [
        rng.choice(
            (
                (f"What did {s.first} buy?", f"The {s.product}."),
                (f"Who has the {s.name}?", f"{s.first}, in {s.town}."),
                (f"Which order is the {s.product}?", f"{s.order}."),
                (f"Where does {s.first} live?", f"In {s.town}."),
                (f"Whose order is {s.order}?", f"The order of {s.first}."),
            )
        )
        for s in rng.sample(scenes, len(scenes))
        for _ in range(2)
    ]
    return " ".join(told) + "\n" + "\n".join(f"{q} {a}" for q, a in asked)


def read_back(scenes: list[Scene], rng: random.Random) -> str:
    """A list read aloud and repeated, whole or from the back: plain copying."""
    items = [rng.choice((s.name, s.product, s.order, f"{s.first} {s.last}", s.town)) for s in scenes for _ in range(2)]
    again = items if rng.random() < 0.7 else items[::-1]
    opening, closing = rng.choice(
        (("On the shelf", "Once more"), ("I read", "I repeat"), ("Labels", "The same labels"), ("Sent", "Received"))
    )
    return f"{opening}: {', '.join(items)}.\n{closing}{'' if again is items else ' from the back'}: {', '.join(again)}."


def printed_codes(scenes: list[Scene], rng: random.Random) -> str:
    """Codes of every script and sign, printed and read: no byte stays a token that the model has never met."""

    def sign() -> str:
        low, high = rng.choice(
            (
                (33, 48),
                (58, 65),
                (91, 97),
                (123, 127),
                (33, 127),
                (161, 592),
                (880, 1424),
                (0x3040, 0xA000),
                (0x1F300, 0x1FA00),
            )
        )
        return chr(rng.randrange(low, high))

    codes = ["".join(sign() for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(2, 5))]
    gap = rng.choice((" ", ", ", "  ", "\n"))
    return f"{scenes[0].product}\nPrinted on the {scenes[0].part}: {gap.join(codes)}\nRead: {gap.join(codes)}"


FORMS: list[tuple[Callable[[list[Scene], random.Random], str], int, int]] = [
    (letter, 1, 4),
    (chain, 1, 1),
    (chat, 1, 3),
    (handover, 4, 2),
    (order_log, 3, 1),
    (product_note, 1, 1),
    (policy, 1, 1),
    (ticket, 1, 8),
    (sorting, 4, 5),
    (short_answer, 3, 3),
    (questions, 3, 2),
    (read_back, 3, 1),
    (printed_codes, 1, 1),
]  # form, most purchases in one document, weight


def document(seed: int, *, held_out: bool = False) -> str:
    """The document of this seed; the kind of document, its facts and its wording all follow from the seed."""
    rng = random.Random(f"{seed}{'-held-out' if held_out else ''}")
    form, most, _ = rng.choices(FORMS, [weight for *_, weight in FORMS])[0]
    return form([Scene(rng, held_out=held_out) for _ in range(rng.randint(min(2, most), most))], rng)
