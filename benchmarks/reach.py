"""How far does a prompt's linear system reach? Errors of the frozen network and of the ordinary Jacobian on the way to
another prompt, and how far J turns.

The other prompt has the same length, or is the prompt with one token swapped for a random one. At α = 0.1, 0.25, 0.5
and 1 of the way in embedding space, this measures the errors of the frozen network, of the ordinary Jacobian's tangent
and of no change, in norms of the true y(α); the angle of y, and the mean principal angles of the spans of the first
four left and right singular vectors; how often each error is smaller than another; and how often the frozen network and
the first prompt give the network's next token. Tables have medians, and shares for how often, with 95 % bootstrap
intervals.

Prompts for Atlas are from its held-out list; other models get plain sentences. `--markdown` prints tables.

    python benchmarks/reach.py [--model atlas] [--prompts 60] [--convention gate] [--markdown]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

import secant as sc

sys.path.append(str(Path(__file__).parents[1] / "tools" / "atlas"))
from corpus import read_questions

ALPHAS = (0.1, 0.25, 0.5, 1.0)
K, SEED, RESAMPLES = 4, 0, 2000
NAMES = {
    "frozen_error": "frozen", "ordinary_error": "ordinary", "still_error": "no change", "y_angle": "angle of y",
    "u_mean": "of U", "v_mean": "of V", "u_angle": "of U, largest", "j_distance": "J moves",
}  # fmt: skip
ANGLES = ("angle of y", "of U", "of V", "of U, largest")
SHARES = {
    "ordinary_better": "ordinary beats frozen",
    "frozen_helps": "frozen beats no change",
    "agrees": "token, frozen",
    "kept": "token, no change",
}
SENTENCES = [
    f"{opening} {who} {did} {what}"
    for opening in ("Once upon a time", "One day", "In the morning", "Then")
    for who in ("the little dog", "a big bird", "my friend", "the old man")
    for did in ("saw", "wanted", "found", "loved")
    for what in ("a red ball and", "the green tree because", "some food in the", "a song about the")
]

Way = tuple[list[int], list[int] | tuple[int, int]]
"""A prompt, and the other prompt or the position and the token of a swap."""


def prompts_of(lm: sc.LM) -> list[str]:
    """Texts that a model can continue."""
    return [question.prompt for question in read_questions()] if lm.name == "atlas" else SENTENCES


def pairs(lm: sc.LM, count: int) -> list[Way]:
    """Pairs of different prompts of the same length, drawn at random."""
    random = Random(SEED)
    by_length: dict[int, list[list[int]]] = {}
    texts = prompts_of(lm)
    for text in random.sample(texts, min(len(texts), 12 * count)):
        try:
            ids = lm.encode(text)
        except sc.SecantError:  # a word that the model does not know
            continue
        by_length.setdefault(len(ids), []).append(ids)
    if sum(len(same) * (len(same) - 1) for same in by_length.values()) < 2 * count:
        sys.exit(f"There are not {count} pairs of prompts of the same length that the model knows: ask for fewer.")
    found: list[Way] = []
    while len(found) < count:
        one = random.choice([ids for same in by_length.values() if len(same) > 1 for ids in same])
        other = random.choice(by_length[len(one)])
        if one != other and (one, other) not in found:
            found.append((one, other))
    return found


def swaps(lm: sc.LM, starts: list[list[int]]) -> list[Way]:
    """Swaps of one token of each prompt, not the first, for another token of the vocabulary."""
    random = Random(SEED)
    return [(ids, (random.randrange(1, len(ids)), random.randrange(lm.size))) for ids in starts]


def measured(lm: sc.LM, way: Way, convention: str) -> pd.DataFrame:
    """The table of `sc.reach` from one prompt to another."""
    start, other = way
    run = sc.freeze(lm, start, convention=convention)
    table = sc.reach(run, other, steps=ALPHAS, k=K).to_pandas()
    return table.assign(
        kept=table["predicted"] == run.prediction[0].token,
        ordinary_better=table["ordinary_error"] < table["frozen_error"],
        frozen_helps=table["frozen_error"] < table["still_error"],
        agrees=table["predicted"] == table["frozen_predicted"],
    )


def interval(values: np.ndarray, mean: bool) -> tuple[float, float, float]:
    """The median (or mean) and its 95 % bootstrap interval."""
    statistic = np.mean if mean else np.median
    drawn = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), (0.025, 0.975))
    return float(statistic(values)), float(low), float(high)


def summary(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """A row for each α, with every column as "median [low, high]"."""
    every = pd.concat(tables)
    rows = {}
    for alpha, own in every.groupby("alpha"):
        cells = {}
        for name, shown in (NAMES | SHARES).items():
            values = interval(own[name].to_numpy(dtype=float), name in SHARES)
            if name in SHARES:
                cells[shown] = "{:.0%} [{:.0%}, {:.0%}]".format(*values)
            else:
                form = "{:.0f}° [{:.0f}, {:.0f}]" if shown in ANGLES else "{:.3f} [{:.3f}, {:.3f}]"
                cells[shown] = form.format(*values)
        rows[alpha] = cells
    return pd.DataFrame(rows).T.rename_axis("α").reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas", help="a folder, or a name")
    parser.add_argument("--prompts", type=int, default=60, help="how many pairs, and as many swaps")
    parser.add_argument("--convention", default="gate", help="which exact affine map replaces each operation")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    args = parser.parse_args()
    lm = sc.load(args.model, dtype="float64")
    chosen = pairs(lm, args.prompts)
    for what, ways in (("pairs of prompts", chosen), ("token swaps", swaps(lm, [one for one, _ in chosen]))):
        found = summary([measured(lm, way, args.convention) for way in ways])
        print(f"\n{Path(lm.name).name}, {len(ways)} {what}, convention {args.convention}\n")
        if args.markdown:
            rows = [list(found.columns), ["---"] * len(found.columns), *found.astype(str).to_numpy().tolist()]
            print("\n".join("| " + " | ".join(row) + " |" for row in rows))
        else:
            print(found.set_index("α").T.to_string())


if __name__ == "__main__":
    main()
