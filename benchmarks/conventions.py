"""How far do the conventions differ? All reproduce y; their Jacobians do not agree. Claim: 30 % or more in norm.

For Atlas, over prompts of its held-out list, and for small random models of the paper's gated families: between each
pair of conventions, ‖J - J'‖ / ‖J‖ (Frobenius), the relative difference of σ₁, the largest angle between the leading
four-dimensional output subspaces, and the share of the words decoded from U₀ of the last token that they have in
common. Medians over prompts or seeds. `--markdown` prints the table of docs/explanation/small-models.md.

    python benchmarks/conventions.py [--markdown]
"""

import sys
from itertools import combinations
from pathlib import Path
from statistics import median

import torch

import secant as sc

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "tools" / "atlas")]
from families import GATED, model_of, prompt  # noqa: E402

from corpus import read_questions  # noqa: E402

PAIRS = tuple(combinations(("gate", "up", "half"), 2))
K, TOP = 4, 8


def measured(lm: sc.LM, text: object) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    """For each pair of conventions: distance, difference of σ₁, angle in degrees, share of words in common."""
    ops = {c: sc.freeze(lm, text, convention=c).operator().solidified() for c in ("gate", "up", "half")}
    J = {c: op.dense().flatten(1) for c, op in ops.items()}
    f = {c: sc.svd(op, K) for c, op in ops.items()}
    last = {c: sc.svd(op, 1, per_token=True)[-1].U for c, op in ops.items()}
    words = {c: {w.id for w in sc.decode(lm, U, "output", TOP)[0]} for c, U in last.items()}
    return {
        (a, b): (
            ((J[a] - J[b]).norm() / J[a].norm()).item(),
            abs(f[b].S[0] / f[a].S[0] - 1).item(),
            torch.rad2deg(torch.acos(torch.linalg.svdvals(f[a].U.mT @ f[b].U).min().clamp(max=1))).item(),
            len(words[a] & words[b]) / TOP,
        )
        for a, b in PAIRS
    }


def main(markdown: bool) -> None:
    atlas = sc.load("atlas", dtype="float64")
    rows = {"Atlas": [measured(atlas, q.prompt) for q in read_questions()[::400]]}
    for family in GATED:
        rows[family] = [measured(model_of(family, seed=seed), prompt(seed=seed)) for seed in range(1, 6)]
    head = ("model", "conventions", "‖J - J'‖ / ‖J‖", "σ₁ differs by", "angle of U, k = 4", "words in common")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head) if markdown else "  ".join(head))
    smallest = 1.0
    for name, found in rows.items():
        for pair in PAIRS:
            distance, sigma, angle, words = (median(one[pair][i] for one in found) for i in range(4))
            smallest = min(smallest, distance) if pair == ("gate", "up") else smallest
            cells = (name, f"{pair[0]}, {pair[1]}", f"{distance:.0%}", f"{sigma:.0%}", f"{angle:.0f}°", f"{words:.0%}")
            print("| " + " | ".join(cells) + " |" if markdown else "  ".join(f"{cell:>14}" for cell in cells))
    if not markdown:
        print(f"smallest distance of gate and up: {smallest:.0%} (claim: 30 % or more)")


if __name__ == "__main__":
    main("--markdown" in sys.argv[1:])
