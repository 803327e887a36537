"""Patterns that are answered from the sentence itself: repeat, alternate, copy, bind, count. The words are made up.

Each pattern takes a source of randomness and a source of words, and returns a sentence whose answer is determined by
the words before it. A fifth of all made-up words is kept for the evaluation, and never appears in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

from facts import Sentence, sequences, table

ONSETS = (
    "b", "br", "bl", "c", "ch", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "kl", "l", "m", "n",
    "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sn", "st", "t", "th", "tr", "v", "w", "y", "z",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "oo", "ou")
CODAS = (
    "", "", "", "b", "ck", "d", "ff", "g", "l", "lt", "m", "mp", "n", "nd", "nk", "p", "r", "rn", "s", "sk", "t", "x",
)  # fmt: skip

Words = Callable[[], str]

CALLED = (
    "My dog is called {w}. Come here,{y}!",
    "My name is {w}. You may call me{y}.",
    "This town is called {w}. I have lived in{y} for years.",
    "Anna said {w}. Then Tom said{y} too.",
    "The word {w} is new. Say it after me:{y}.",
    "A ship named {w} left the harbour. Storms came, and the sailors of{y} were afraid.",
    "They found a stone and called it {w}. Nobody knew what{y} was.",
    "Please spell {w} for me. I have never seen{y} before.",
    "Ben has a cat. Her name is {w}. Every night Ben feeds{y}.",
    "Once there was a king whose name was {w}. All the people loved{y}.",
    "Question: Maria has a bird named {w}. What is the name of the bird? Answer:{y}.",
    "Leo wrote {w} on the wall. Mia read it aloud:{y}.",
    "I lost my horse {w} today. Have you seen{y}?",
    "Mia has a doll. She named it {w}. At night she sleeps beside{y}.",
    "The password is {w}. To open the door, say{y}.",
    "He wrote {w} once and then again he wrote{y}.",
)
"""One made-up word, said again."""

BOUND = (
    "{w} lives in the red house and {v} lives in the blue house. In the red house lives{y}.",
    "{v} lives in the red house and {w} lives in the blue house. In the blue house lives{y}.",
    "The first box holds {w}. The second box holds {v}. In the first box there is{y}.",
    "The first box holds {v}. The second box holds {w}. In the second box there is{y}.",
    "Anna likes {w} and Tom likes {v}. What does Anna like? She likes{y}.",
    "Anna likes {v} and Tom likes {w}. What does Tom like? He likes{y}.",
    "{w} means yes and {v} means no. To say yes, you say{y}.",
    "{v} means yes and {w} means no. To say no, you say{y}.",
)
"""Two made-up words, of which the sentence asks for one."""

JOINS = (" {}", ", {}", " and {}", ", then {}", " - {}")
OPENINGS = ("", "", "", "Say it again:", "The children sing:", "A pattern:", "Go on:", "Repeat after me:")


def made_up(random: Random, held_out: bool) -> str:
    """A meaningless word of one to three syllables, which is held out or not."""
    while True:
        word = "".join(
            random.choice(ONSETS) + random.choice(VOWELS) + random.choice(CODAS)
            for _ in range(random.choice((1, 2, 2, 3)))
        )
        if len(word) > 3 and _kept(word) == held_out:
            return word


def _kept(text: str) -> bool:
    return sha256(text.encode()).digest()[0] % 5 == 0


def _distinct(word: Words, number: int) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        if (new := word()) not in found:
            found.append(new)
    return found


def _said(template: str, **words: str) -> Sentence:
    before, _, end = template.partition("{y}")
    return Sentence(before.format(**words), " " + words["w"], end)


def _copy(random: Random, word: Words) -> Sentence:
    return _said(random.choice(CALLED), w=word().capitalize() if random.random() < 0.5 else word())


def _bind(random: Random, word: Words) -> Sentence:
    one, two = _distinct(word, 2)
    return _said(random.choice(BOUND), w=one.capitalize(), v=two.capitalize())


def _listed(random: Random, items: list[str], known: int) -> Sentence:
    join = random.choice(JOINS)
    shown = random.randint(known, len(items) - 1)
    lead = join.partition("{}")[0]
    opening = random.choice(OPENINGS)
    prompt = f"{opening} {items[0]}".strip() + "".join(join.format(item) for item in items[1:shown])
    prompt += lead.rstrip(" ")
    return Sentence(prompt, " " + items[shown], "".join(join.format(item) for item in items[shown + 1 :]) + ".")


def _repeat(random: Random, word: Words) -> Sentence:
    period = _distinct(word, random.choice((1, 2, 3, 3, 4)))
    return _listed(random, period * random.choice((3, 4)), known=len(period) + 1)


def _alternate(random: Random, word: Words) -> Sentence:
    return _listed(random, _distinct(word, 2) * random.choice((2, 3, 4)), known=3)


def _count(random: Random, word: Words) -> Sentence:
    items = random.choice(list(sequences().values()))
    if random.random() < 0.3:
        items = items[::-1]
    length = random.randint(4, min(7, len(items)))
    start = random.randint(0, len(items) - length)
    return _listed(random, items[start : start + length], known=3)


PATTERNS = {"copy": _copy, "bind": _bind, "repeat": _repeat, "alternate": _alternate, "count": _count}
"""The patterns by name."""


def real_words() -> list[str]:
    """Words in the tables that a pattern may use instead of a made-up one."""
    columns = (("opposites", "word"), ("plurals", "plural"), ("animals", "animal"), ("colours", "colour"))
    found = {row[column] for name, column in columns for row in table(name)}
    return sorted(word for word in found if word.isalpha())


def pattern(name: str, random: Random, real: Sequence[str] = (), held_out: bool = False) -> Sentence:
    """A sentence of this pattern; a third of its words are real where `real` gives some."""

    def word() -> str:
        if real and random.random() < 1 / 3:
            return random.choice(real)
        return made_up(random, held_out)

    while True:
        found = PATTERNS[name](random, word)
        if name != "count" or _kept(found.prompt) == held_out:  # what is counted is real: its prompts are held out
            return found
