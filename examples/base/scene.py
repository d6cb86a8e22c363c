# ruff: noqa: SIM905  (syllables and word lists read best as one string)
"""One purchase in a made-up shop, with invented people, places and goods, and the phrases that speak of it."""

import random
import re
import zlib

import words

ONSETS = """b br c ch cl d dr f fl g gl gr h j k kl kn l m n p pl pr qu r s sc sh sk sl sn sp st t th tr v vl w y z
    b b d d f g h j k k l l m m n n p r r s s t t v w z""".split()
VOWELS = "a a a a e e e e i i i i o o o o u u u ai ea ee ia io oa oo y".split()
CODAS = ["", "", "", "", "", "", "", *"d k l m n n p r r s t x z ck ft ld lm nd nk rd rk rn st th".split()]
CHOICE = re.compile(r"\[([^\[\]]*)\]")
TABLES = {
    key: [entry.replace("_", " ") for entry in getattr(words, key).split()]
    for key in ("KINDS", "PARTS", "COLOURS", "ROOMS", "WEEKDAYS", "MONTHS", "FEELINGS")
}
LINES = {
    key: [" ".join(line.split()) for line in getattr(words, key).split("|")]
    for key in ("OPENINGS", "CLOSINGS", "POLICIES", "NOTES")
}


def is_reserved(name: str) -> bool:
    """Whether a name is kept out of the training text."""
    return zlib.crc32(name.lower().encode()) % 16 == 0


def invented(rng: random.Random, *, held_out: bool) -> str:
    """A capitalised name of two or three syllables, reserved exactly when `held_out`."""
    while True:
        syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 2, 3)))]
        if rng.random() < 0.25:
            syllables[0] += rng.choice(CODAS)
        name = ("".join(syllables) + rng.choice(CODAS)).capitalize()
        if len(name) > 3 and is_reserved(name) == held_out:
            return name


def order_number(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.choice((1, 1, 2))))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((4, 4, 4, 5, 6))))
    return rng.choice(
        (f"{letters}-{digits}", f"{letters}-{digits}", f"{letters}{digits}", digits, f"{digits}-{letters}")
    )


class Scene:
    """One purchase: who bought what, where and when; `say` fills phrases with it and varies what may vary."""

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng, self.held_out = rng, held_out
        new = lambda: invented(rng, held_out=held_out)  # noqa: E731  (one name per call, four calls below)
        self.name = new() + (
            f" {rng.choice((rng.randrange(2, 10), rng.randrange(10, 900)))}" if rng.random() < 0.12 else ""
        )
        self.kind, self.first, self.last, self.town = rng.choice(TABLES["KINDS"]), new(), new(), new()
        self.order, self.agent = order_number(rng), new()
        self.product = f"{self.name} {self.kind}"
        self.part, self.amount = rng.choice(TABLES["PARTS"]), self.price()
        self.weekday, self.date = rng.choice(TABLES["WEEKDAYS"]), self.day()
        self.topic = rng.choice(list(words.TOPICS))

    def price(self) -> str:
        value = self.rng.choice((self.rng.randrange(3, 40), self.rng.randrange(10, 700)))
        return self.rng.choice((f"{value} euros", f"{value}.{self.rng.choice(('00', '50', '90', '95'))}", f"${value}"))

    def day(self) -> str:
        day, month = self.rng.randrange(1, 29), self.rng.choice(TABLES["MONTHS"])
        return self.rng.choice(
            (f"{day} {month}", f"{month} {day}", f"the {day}th of {month}" if 3 < day < 21 else f"{day} {month}")
        )

    def say(self, phrase: str) -> str:
        """Choose each `[a|b]`, fill each `{slot}`, open with a capital."""
        while match := CHOICE.search(phrase):
            phrase = phrase[: match.start()] + self.rng.choice(match[1].split("|")) + phrase[match.end() :]
        pick = lambda key: self.rng.choice(TABLES[key])  # noqa: E731
        text = phrase.format(
            p=self.product if self.rng.random() < 0.75 else f"{self.kind} ({self.name})",
            n=self.name,
            k=self.kind,
            o=self.order,
            c=f"{self.first} {self.last}",
            f=self.first,
            d=self.date,
            w=self.weekday if self.rng.random() < 0.8 else pick("WEEKDAYS"),
            a=self.amount,
            i=self.rng.choice((2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 20, 24, 30)),
            b=self.part,
            l=pick("COLOURS"),
            r=pick("ROOMS"),
            t=self.town,
            e=pick("FEELINGS"),
        )
        return text[0].upper() + text[1:]

    def complaint(self, sentences: int) -> str:
        """What the customer writes: the topic in one to three sentences, in a random dress, now and then mistyped."""
        says = words.TOPICS[self.topic][0]
        said = [self.say(phrase) for phrase in self.rng.sample(says, min(sentences, len(says)))]
        dress = [
            f"My order number is {self.order}.",
            f"Order {self.order}.",
            f"It is about the {self.product}.",
            f"I am {self.say('{e}').lower()}.",
            f"I bought it on {self.date}.",
            f"This is {self.first} {self.last} from {self.town}.",
            f"It cost {self.amount}.",
            f"It has been like this since {self.weekday}.",
        ]
        said = (
            self.rng.sample(dress, self.rng.choice((0, 1, 1, 2)))
            + said
            + self.rng.sample(dress, self.rng.choice((0, 0, 1)))
        )
        if self.rng.random() < 0.35:
            said.insert(0, self.rng.choice(LINES["OPENINGS"]))
        if self.rng.random() < 0.35:
            said.append(self.rng.choice(LINES["CLOSINGS"]))
        text = " ".join(said)
        text = mistyped(text, self.rng) if self.rng.random() < 0.15 else text
        return text.lower() if self.rng.random() < 0.1 else text

    def answer(self) -> str:
        return self.say(self.rng.choice(words.TOPICS[self.topic][1]))

    def matter(self) -> str:
        return self.rng.choice(words.MATTERS[self.topic].split("|"))

    def gist(self) -> str:
        return self.say(self.rng.choice(words.TOPICS[self.topic][2]))


def mistyped(text: str, rng: random.Random) -> str:
    """One or two plain words with two letters swapped, one dropped or one doubled; names and numbers stay whole."""
    tokens = text.split(" ")
    plain = [at for at, token in enumerate(tokens) if token.isalpha() and token.islower() and len(token) > 3]
    for at in rng.sample(plain, min(len(plain), rng.choice((1, 2)))):
        word, cut = tokens[at], rng.randrange(1, len(tokens[at]) - 1)
        tokens[at] = rng.choice(
            (
                word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :],
                word[:cut] + word[cut + 1 :],
                word[:cut] + word[cut : cut + 1] + word[cut:],
            )
        )
    return " ".join(tokens)
