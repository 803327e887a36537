"""Does screening flag the words that a model writes, and no others? Random lists, unrelated lists, and facts on Atlas.

Random lists are five tokens drawn at random: p should be uniform, and at most one list in twenty flagged. Unrelated
lists are real words (animals, colours, opposites), or words and signs that appear everywhere (frequent words,
punctuation). Facts are held-out prompts about capitals, each screened for the answer that Atlas gives, for another
prompt's answer, and for an animal: the shares flagged in any layer, and in the last.

    python benchmarks/screening.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
from scipy.stats import kstest

import secant as sc

sys.path.append(str(Path(__file__).parents[1] / "tools" / "atlas"))
from corpus import read_questions
from facts import table

SEED, LISTS, PROMPTS, FACTS = 0, 20, 2, 6
BESIDE = {
    "animals": [row["animal"] for row in table("animals")],
    "colours": ["red", "green", "blue", "white", "black", "yellow", "orange", "brown", "pink"],
    "opposites": [word for row in table("opposites") for word in row.values()],
    "frequent words": ["the", "of", "is", "a", "in", "and"],
    "punctuation": [".", ",", "?", "!"],
}


def lists(lm: sc.LM, prompts: list[str]) -> None:
    """Print the results of random and unrelated lists."""
    random = Random(SEED)
    words = sorted({text.strip().casefold() for text in lm.texts} - {""})
    found = [sc.screen(lm, prompts, random.sample(words, 5), samples=2000) for _ in range(LISTS)]
    p = pd.concat([one.table["p"] for one in found])
    distance = kstest(p, "uniform").statistic
    print(
        f"{LISTS} lists of 5 random words, {len(found[0].table)} tests each: mean p {p.mean():.3f}, "
        f"Kolmogorov-Smirnov distance from uniform {distance:.3f}, {(p <= 0.05).mean():.1%} at most 0.05, "
        f"{(p <= 0.01).mean():.1%} at most 0.01; flagged {sum(len(one.flagged) for one in found)} of {len(p)}, "
        f"in {sum(len(one.flagged) > 0 for one in found)} of {LISTS} lists"
    )
    for one in found:
        if len(one.flagged):
            print(f"  flagged: {dict(one.flagged['word'].value_counts())}")
    for name, own in BESIDE.items():
        one = sc.screen(lm, prompts, own)
        print(
            f"{name}, {len(one.lexicon)} words known and {len(one.unknown)} not: among the first {one.top} of "
            f"{one.found:.1%} of vectors and {one.chance:.1%} of random directions; flagged {len(one.flagged)} of "
            f"{len(one.table)}"
        )


def facts(lm: sc.LM) -> None:
    """Print the results of facts that Atlas knows."""
    asked = [q for q in read_questions() if q.relation == "capital"]
    rows: list[tuple[str, str]] = []
    for question in Random(SEED).sample(asked, len(asked)):
        said = sc.freeze(lm, question.prompt).prediction[0].token.strip()
        if said in {answer.strip() for answer in question.answers} and said not in {word for _, word in rows}:
            rows.append((question.prompt, said))
        if len(rows) == FACTS:
            break
    shares: dict[str, list[tuple[bool, bool, float]]] = {"its answer": [], "another's answer": [], "an animal": []}
    for number, (prompt, said) in enumerate(rows):
        for name, word in zip(shares, (said, rows[number - 1][1], "cow"), strict=True):
            one = sc.screen(lm, [prompt], [word])
            last = one.flagged[one.flagged["layer"] == one.table["layer"].max()]
            shares[name].append((len(one.flagged) > 0, len(last) > 0, len(one.flagged) / len(one.table)))
    for name, own in shares.items():
        some, late, each = np.mean(own, axis=0)
        print(f"{len(rows)} facts, {name}: flagged in {some:.0%}, in the last layer in {late:.0%}; {each:.1%} of tests")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lm = sc.load("atlas")
    lists(lm, [q.prompt for q in Random(SEED).sample(read_questions(), PROMPTS)])
    facts(lm)


if __name__ == "__main__":
    main()
