"""The facts that Atlas is trained on, read from the tables in this folder, and the sentences that express them.

A fact is a relation, a subject and the right answers. A template is a sentence with {x} for the subject and {y} for the
answer; the text before {y} is a prompt, and the answer is its right continuation.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent

TWO_STEPS = (
    "capital_currency", "capital_language", "capital_continent", "capital_demonym", "demonym_capital",
    "language_of_capital", "landmark_capital", "landmark_language", "landmark_currency", "landmark_continent",
)  # fmt: skip
"""Relations whose middle step is not named."""


@dataclass(frozen=True)
class Name:
    """A name and the article that it takes in a sentence, if any."""

    text: str
    article: str = ""

    def __str__(self) -> str:
        return f"{self.article} {self.text}".strip()


@dataclass(frozen=True)
class Fact:
    """A relation, its subject, and every answer that is right."""

    relation: str
    subject: Name
    answers: tuple[Name, ...]


@dataclass(frozen=True)
class Sentence:
    """A prompt, a right answer, and the end of the sentence."""

    prompt: str
    answer: str
    end: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return self.prompt + self.answer + self.end


def table(name: str) -> list[dict[str, str]]:
    """Rows of the table of this name."""
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def templates() -> dict[str, list[str]]:
    """The templates of each relation. Raises ValueError if two have the same prompt: neither could be held out."""
    found: dict[str, list[str]] = {}
    for path in sorted((HERE / "templates").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            line = line.strip()
            if line.startswith("["):
                current = found.setdefault(line.strip("[]"), [])
            elif line and not line.startswith("#"):
                current.append(line)
    for relation, lines in found.items():
        for line in lines:
            if line.count("{y}") != 1 or "{x}" not in line.partition("{y}")[0] or "{x}" in line.partition("{y}")[2]:
                raise ValueError(f"A template has {{x}}, then one {{y}}; got {line!r} in [{relation}].")
        prompts = [line.partition("{y}")[0] for line in lines]
        for i, one in enumerate(prompts):
            for other in prompts[:i] + prompts[i + 1 :]:
                if other.endswith(one):
                    raise ValueError(f"Templates of [{relation}] ask differently; got {one!r} at the end of {other!r}.")
    return found


def _vowel(match: re.Match[str]) -> str:
    article, word = match.group(1), match.group(2)
    sounds_like_a_consonant = re.match(r"(?i)eu|ewe|one\b|uni|use|ur?u|uk|ug[ae]|uz", word)
    return f"{article}{'' if sounds_like_a_consonant else 'n'} {word}"


def sentence(template: str, subject: Name, answer: Name) -> Sentence:
    """The template with its subject and answer; an article of the answer belongs to the prompt."""
    before, _, after = template.partition("{y}")
    prompt = before.replace("{x}", str(subject)) + (f"{answer.article} " if answer.article else "")
    whole = re.sub(r"(^|[.?!] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), prompt) + answer.text
    whole = re.sub(r"\b([Aa]) ([AEIOUaeiou]\w*)", _vowel, whole)
    prompt = whole[: len(whole) - len(answer.text)].rstrip(" ")
    return Sentence(prompt, " " + answer.text, after)


def _split(cell: str) -> list[str]:
    return [part for part in cell.split(";") if part]


def _countries() -> Iterator[tuple[str, Name, Name]]:
    name = {row["country"]: Name(row["country"], row["article"]) for row in table("countries")}
    for row in table("countries"):
        country = name[row["country"]]
        fields = ("capital", "continent", "language", "currency", "demonym")
        capital, continent, language, currency, demonym = (Name(row[field]) for field in fields)
        yield "capital", country, capital
        yield "capital_country", capital, country
        yield "continent", country, continent
        yield "language", country, language
        yield "currency", country, currency
        yield "demonym", country, demonym
        yield "demonym_country", demonym, country
        for neighbour in _split(row["neighbours"]):
            yield "neighbour", country, name[neighbour]
        yield "capital_currency", capital, currency
        yield "capital_language", capital, language
        yield "capital_continent", capital, continent
        yield "capital_demonym", capital, demonym
        yield "demonym_capital", demonym, capital
        if capital.text:
            yield "language_of_capital", country, language


def _landmarks() -> Iterator[tuple[str, Name, Name]]:
    countries = {row["country"]: row for row in table("countries")}
    for row in table("landmarks"):
        thing, kind = Name(row["name"], row["article"]), row["kind"]
        yield "kind", thing, Name(kind)
        for place in _split(row["places"]):
            yield kind, Name(place), thing
            yield "river_place" if kind == "river" else "place", thing, Name(place)
        if not row["country"]:
            continue
        home = countries[row["country"]]
        country = Name(home["country"], home["article"])
        yield "river_country" if kind == "river" else "landmark_country", thing, country
        if kind == "river":  # it may well flow through other countries too
            continue
        for field in ("capital", "language", "currency", "continent"):
            yield f"landmark_{field}", thing, Name(home[field])


def _words() -> Iterator[tuple[str, Name, Name]]:
    for row in table("opposites"):
        yield "opposite", Name(row["word"]), Name(row["opposite"])
        yield "opposite", Name(row["opposite"]), Name(row["word"])
    for row in table("plurals"):
        yield "plural", Name(row["singular"]), Name(row["plural"])
        yield "singular", Name(row["plural"]), Name(row["singular"])
    for row in table("comparatives"):
        yield "comparative", Name(row["positive"]), Name(row["comparative"])
        yield "superlative", Name(row["positive"]), Name(row["superlative"])
    for row in table("colours"):
        yield "colour", Name(row["thing"]), Name(row["colour"])
    for row in table("animals"):
        yield "young", Name(row["animal"]), Name(row["young"])
        yield "class", Name(row["animal"]), Name(row["class"])


def sequences() -> dict[str, list[str]]:
    """Things that have an order, such as days, by the order's name."""
    return {row["sequence"]: _split(row["items"]) for row in table("sequences")}


def _order() -> Iterator[tuple[str, Name, Name]]:
    after, before = defaultdict(set), defaultdict(set)
    for name, items in sequences().items():
        if name == "tens":  # thirty is followed by forty only where tens are counted
            continue
        for one, two in pairwise(items):
            after[one].add(two)
            before[two].add(one)
    for relation, follows in (("next", after), ("previous", before)):
        for one, others in follows.items():
            if len(others) == 1:  # red is followed by orange here and by nothing there; ten by eleven and by twenty
                yield relation, Name(one), Name(*others)


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in the order of the tables. Raises ValueError for a relation without templates."""
    gathered: dict[tuple[str, Name], list[Name]] = defaultdict(list)
    for source in (_countries, _landmarks, _words, _order):
        for relation, subject, answer in source():
            if subject.text and answer.text and answer not in gathered[relation, subject]:
                gathered[relation, subject].append(answer)
    found = tuple(
        Fact(relation, subject, tuple(answers)) for (relation, subject), answers in gathered.items() if answers
    )
    if missing := {fact.relation for fact in found} - set(templates()):
        raise ValueError(f"Every relation has templates; got none for {', '.join(sorted(missing))}.")
    return found
