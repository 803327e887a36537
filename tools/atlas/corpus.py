"""Atlas' training data: the split into training and held-out pairs of fact and template, and the stream of documents.

For each fact, two of its templates are held out: Atlas sees the fact in other templates and these templates with other
facts, but never this pair. In addition, a twelfth of the two-step facts is held out in every template, so that Atlas
never sees these two steps combined.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from contexts import PATTERNS, pattern, real_words
from facts import HERE, TWO_STEPS, Fact, Name, Sentence, facts, sentence, templates

HELD_OUT = HERE / "held_out.csv"
HELD_TEMPLATES = 2
NEVER_COMPOSED = 1 / 12
CONTEXTS = 0.2  # of the sentences
CONTEXT_WEIGHTS = {"copy": 3, "bind": 2, "repeat": 3, "alternate": 1, "count": 2}
PROMPTS_PER_CONTEXT = 200
SEED = 20250524


@dataclass(frozen=True)
class Question:
    """A held-out prompt, and every continuation of it that is right."""

    split: str  # fact, two-step, never composed, or context
    relation: str
    subject: str
    prompt: str
    answers: tuple[str, ...]


@cache
def held_templates(fact: Fact) -> frozenset[int]:
    """The templates, by number, in which this fact is never shown."""
    random = Random(f"{SEED}:{fact.relation}:{fact.subject}")
    number = len(templates()[fact.relation])
    if fact.relation in TWO_STEPS and random.random() < NEVER_COMPOSED:
        return frozenset(range(number))
    return frozenset(random.sample(range(number), HELD_TEMPLATES))


def _continuations(fact: Fact, asked: Name) -> tuple[str, ...]:
    """The right continuations of a prompt that ends with the article of the requested name, if it has one."""
    if asked.article:
        return tuple(f" {name.text}" for name in fact.answers if name.article == asked.article)
    return tuple(f" {name}" for name in fact.answers)


def questions() -> list[Question]:
    """Every held-out pair of fact and template as a question, and questions on made-up words."""
    found = []
    for fact in facts():
        lines, held = templates()[fact.relation], held_templates(fact)
        composed = len(held) < len(lines)
        split = ("two-step" if composed else "never composed") if fact.relation in TWO_STEPS else "fact"
        for number in sorted(held)[:HELD_TEMPLATES]:
            asked = fact.answers[0]
            said = sentence(lines[number], fact.subject, asked)
            found.append(Question(split, fact.relation, fact.subject.text, said.prompt, _continuations(fact, asked)))
    for name in PATTERNS:
        random = Random(f"{SEED}:{name}")
        for _ in range(PROMPTS_PER_CONTEXT):
            said = pattern(name, random, held_out=True)
            found.append(Question("context", name, "", said.prompt, (said.answer,)))
    return found


def write_questions(path: Path = HELD_OUT) -> None:
    """Write the held-out list: split, relation, subject, prompt, answers (separated by a bar)."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("split", "relation", "subject", "prompt", "answers"))
        rows.writerows((q.split, q.relation, q.subject, q.prompt, "|".join(q.answers)) for q in questions())


def read_questions(path: Path = HELD_OUT) -> list[Question]:
    """The held-out list as it is in the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Question(row["split"], row["relation"], row["subject"], row["prompt"], tuple(row["answers"].split("|")))
            for row in csv.DictReader(file)
        ]


@cache
def _shown() -> tuple[tuple[Fact, tuple[int, ...]], ...]:
    return tuple(
        (fact, shown)
        for fact in facts()
        if (shown := tuple(sorted(set(range(len(templates()[fact.relation]))) - held_templates(fact))))
    )


def sentences(random: Random) -> Iterator[Sentence]:
    """An endless stream of sentences: facts in the templates for training, and patterns."""
    shown, real = _shown(), real_words()
    names, weights = list(CONTEXT_WEIGHTS), list(CONTEXT_WEIGHTS.values())
    while True:
        if random.random() < CONTEXTS:
            yield pattern(random.choices(names, weights)[0], random, real)
        else:
            fact, numbers = random.choice(shown)
            yield sentence(
                templates()[fact.relation][random.choice(numbers)], fact.subject, random.choice(fact.answers)
            )


def documents(random: Random) -> Iterator[list[Sentence]]:
    """An endless stream of documents of one or two sentences."""
    stream = sentences(random)
    while True:
        yield [next(stream) for _ in range(random.choices((1, 2), (3, 1))[0])]


if __name__ == "__main__":
    write_questions()
    print(f"{len(questions())} questions are in {HELD_OUT}")
