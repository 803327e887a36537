"""Prompts that several benchmarks use. prompts.txt has prompts of all kinds for real language models. Small models get
prompts of the kind that they know: Atlas' held-out questions, chat lines, or SQL without its last column.
"""

import sys
from itertools import product
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[1] / "tools" / "atlas"))
from secant.studies.prompts import Item

from corpus import read_questions

THINGS = (
    "music food rain nature the_weather the_night stories the_park people friends dreams books games art walking cats",
    "dogs the_sun snow school work birds flowers the_sea trees movies summer winter your_job",
)
ASKED = (
    "do you like {}?", "how do you feel about {}?", "what do you think about {}?", "does {} make you happy?",
    "do you enjoy {}?", "tell me about {}", "is {} good or bad?",
)  # fmt: skip
COLUMNS = ("region", "city", "channel", "product", "status", "tier", "segment", "plan", "priority", "source", "carrier")
SUMMED = ("SUM ( price )", "COUNT ( * )", "AVG ( total )", "MAX ( qty )", "SUM ( spend )")
TABLES = ("sales", "orders", "customers", "items")


OPENINGS = {
    "once": "Once upon a time, there was a {} named {}. {} loved to",
    "day": "One day, a {} named {} went to the park and {}",
    "saw": "The {} named {} was sad because {}", "wanted": "A {} called {} wanted to play with the ball. {} said",
}  # fmt: skip
HEROES = ["little girl,Lily,she", "little boy,Tim,he", "big dog,Max,he", "small cat,Mia,she", "bird,Tom,he"]
FURTHER = ["Sue", "Ben", "Anna", "Jack", "Sara", "Sam", "Amy", "Bob", "Jane"]


def written() -> list[tuple[str, str]]:
    """The kind and the text of each prompt in prompts.txt, where kinds alternate."""
    lines = Path(__file__).with_name("prompts.txt").read_text("utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(kind, text.replace("\\n", "\n")) for kind, text in pairs]


def facts(count: int, seed: int = 0) -> list[str]:
    """Held-out questions of Atlas, drawn evenly over its relations."""
    by_relation: dict[str, list[str]] = {}
    for question in read_questions():
        by_relation.setdefault(question.relation, []).append(question.prompt)
    random = Random(seed)
    shuffled = [random.sample(own, len(own)) for own in by_relation.values()]
    longest = max(map(len, shuffled))
    return [own[i] for i in range(longest) for own in shuffled if i < len(own)][:count]


def chat(count: int, seed: int = 0) -> list[str]:
    """Questions about everyday things, between the marks of a chat."""
    lines = [
        f"[inst] {asked.format(thing.replace('_', ' '))} [/inst]"
        for asked, thing in product(ASKED, " ".join(THINGS).split())
    ]
    return Random(seed).sample(lines, min(count, len(lines)))


def sql(count: int, seed: int = 0) -> list[str]:
    """Queries without the column that they group by, which is the one that they select."""
    every = [f"SELECT {c} , {s} FROM {t} GROUP BY" for c, s, t in product(COLUMNS, SUMMED, TABLES)]
    return Random(seed).sample(every, min(count, len(every)))


def stories(count: int, seed: int = 0) -> list[Item]:
    """Beginnings of children's stories; the category is the kind of beginning."""
    found = []
    for (kind, opening), hero in product(OPENINGS.items(), HEROES):
        who, name, pronoun = hero.split(",")
        found += [(kind, opening.format(who, n, pronoun)) for n in (name, *FURTHER)]
    return items(Random(seed).sample(found, min(count, len(found))))


def questions(count: int, seed: int = 0) -> list[Item]:
    """Held-out questions of Atlas, drawn evenly over its relations, which are the categories."""
    relation = {question.prompt: question.relation for question in read_questions()}
    return items([(relation[prompt], prompt) for prompt in facts(count, seed)])


def asked(count: int, seed: int = 0) -> list[Item]:
    """Questions about everyday things, between the marks of a chat; the category is the form of the question."""
    found = [
        (form.format("it"), f"[inst] {form.format(thing.replace('_', ' '))} [/inst]")
        for form, thing in product(ASKED, " ".join(THINGS).split())
    ]
    return items(Random(seed).sample(found, min(count, len(found))))


def items(pairs: list[tuple[str, str]]) -> list[Item]:
    """Prompts of a study, from pairs of category and text."""
    return [Item(number, text, category) for number, (category, text) in enumerate(pairs)]


SETS = {"facts": facts, "chat": chat, "sql": sql}

OWN_PROMPTS = {"atlas": "facts", "craftgpt": "chat", "tiny-sql-gpt": "sql"}
"""Small models that know one kind of prompt, and the name of the function that writes it."""
