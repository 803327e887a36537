"""The stable rank of each position's block over many prompts, as J. Golden (arXiv 2505.24293) has it of two models.

    python benchmarks/ranks.py --prompts 100 --out ranks.png

Held-out prompts of Atlas, drawn evenly over its relations: mean and quartiles of each position that a tenth of them
have, and the figure.
"""

from __future__ import annotations

import argparse

import pandas as pd
from prompts import facts

import secant as sc
from secant.figures import save, stable_rank_distribution


def main(count: int, out: str | None) -> None:
    lm, rows = sc.load("atlas"), []
    for prompt in facts(count):
        ranks = sc.stable_rank(sc.freeze(lm, prompt).operator(), per_token=True)
        rows += [(prompt, position, rank) for position, rank in enumerate(ranks)]
    table = pd.DataFrame(rows, columns=["prompt", "position", "stable_rank"])
    table = table[table.groupby("position")["prompt"].transform("count") >= count / 10]
    print(table.groupby("position")["stable_rank"].describe()[["count", "mean", "25%", "50%", "75%"]].round(2))
    if out:
        save(stable_rank_distribution(table), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--out")
    args = parser.parse_args()
    main(args.prompts, args.out)
