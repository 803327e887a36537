"""How does the convention change J? All conventions reproduce y, but their Jacobians differ.

J maps the embeddings of all tokens to the final norm at the last position. For two conventions: ‖J - J'‖/‖J‖
(Frobenius), the relative difference of σ₁, the largest angle between the leading four-dimensional output subspaces, and
the share of the top tokens of U₀ of the last token that both have. For each convention: ‖b‖/‖y‖, the stable rank of the
first and of the last token's block, the share of prompts whose predicted token is the first or among the first eight in
U₀ of the last token, and the mean z of that direction's top token over random directions. Tables have medians over
prompts, and means of shares and of z. --families prints the first table for small random models of the paper's gated
families. Claim: gate and up differ by 30 % or more. --markdown prints tables for the documentation.

    python benchmarks/conventions.py [--models MODEL ...] [--prompts N] [--families] [--markdown]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from statistics import fmean, median

import torch
from prompts import OWN_PROMPTS, SETS, written
from trained_models import models  # puts tests on the path

import secant as sc
from secant.stream.decode import null
from secant.stream.words import Null

K, TOP = 4, 8
FROZEN, ALL = ("gate", "up", "half"), ("gate", "up", "half", "secant")
PAIRED = ("model", "conventions", "‖J - J'‖ / ‖J‖", "σ₁ differs by", "angle of U, k = 4", "top tokens in common")
SINGLE = ("model", "convention", "‖b‖ / ‖y‖", "stable rank, first", "last", "predicted is first", "in top 8", "z")

Column = tuple[Callable[[Sequence[float]], float], Callable[[float], str]]
"""How a column's numbers are averaged and formatted."""


class Measured:
    """The measures of one convention at one prompt."""

    def __init__(self, lm: sc.LM, text: str | list[int], convention: str, random: Null) -> None:
        run = sc.freeze(lm, text, convention=convention)
        op = run.operator().solidified()
        self.J, self.whole, blocks = op.dense().flatten(1), sc.svd(op, K), sc.svd(op, 1, per_token=True)
        top = sc.decode(lm, blocks[-1].U, "output", TOP, null=random)[0]
        self.words = [word.id for word in top]
        predicted = run.prediction[0].id
        self.row = (
            run.certificate.constants, blocks[0].stable_rank, blocks[-1].stable_rank,
            float(self.words[0] == predicted), float(predicted in self.words), top[0].z or 0.0,
        )  # fmt: skip

    def against(self, other: "Measured") -> tuple[float, float, float, float]:
        """Distance, difference of σ₁, angle in degrees, share of top tokens in common."""
        cosine = torch.linalg.svdvals(self.whole.U.mT @ other.whole.U).min().clamp(max=1)
        return (
            ((self.J - other.J).norm() / self.J.norm()).item(),
            abs(other.whole.S[0] / self.whole.S[0] - 1).item(),
            torch.rad2deg(torch.acos(cosine)).item(),
            len({*self.words} & {*other.words}) / TOP,
        )


def prompts_of(name: str, count: int) -> list[str]:
    """The first prompts of a model: of every kind for a language model."""
    kind = OWN_PROMPTS.get(name)
    return [text for _, text in written()][:count] if kind is None else [str(p) for p in SETS[kind](count)]


def measured(
    cases: Iterable[tuple[sc.LM, str | list[int]]], conventions: Sequence[str], name: str
) -> tuple[dict[tuple[str, str], list[tuple[float, ...]]], dict[str, list[tuple[float, ...]]]]:
    """The measures of each pair of conventions, and of each convention, at each prompt."""
    pairs: dict[tuple[str, str], list[tuple[float, ...]]] = {pair: [] for pair in combinations(conventions, 2)}
    alone: dict[str, list[tuple[float, ...]]] = {c: [] for c in conventions}
    drawn: tuple[sc.LM, Null] | None = None
    began = time.time()
    for number, (lm, text) in enumerate(cases, 1):
        if drawn is None or drawn[0] is not lm:
            drawn = lm, null(lm, "output", TOP)
        of = {c: Measured(lm, text, c, drawn[1]) for c in conventions}
        for a, b in pairs:
            pairs[a, b].append(of[a].against(of[b]))
        for c in conventions:
            alone[c].append(of[c].row)
        print(f"{name}: prompt {number}, {(time.time() - began) / number:.0f} s each", file=sys.stderr)
    return pairs, alone


def table(head: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool) -> None:
    """Print a table."""
    if markdown:
        print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    else:
        print("\n" + "  ".join(f"{cell:>20}" for cell in head))
    for cells in rows:
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(f"{cell:>20}" for cell in cells))


def percent(value: float) -> str:
    return f"{value:.0%}"


def lines(name: str, found: dict[str, list[tuple[float, ...]]], how: Sequence[Column]) -> Iterator[list[str]]:
    """A line of a table for each label."""
    for label, rows in found.items():
        values = zip(how, zip(*rows, strict=True), strict=True)
        yield [name, label, *(write(mean(column)) for (mean, write), column in values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=18)
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    paired, single = list[list[str]](), list[list[str]]()
    of_pairs: list[Column] = [(median, percent), (median, percent), (median, lambda v: f"{v:.0f}°"), (median, percent)]
    ranks: list[Column] = [(median, lambda v: f"{v:.2g}"), *[(median, lambda v: f"{v:.2f}")] * 2]
    of_one: list[Column] = [*ranks, *[(fmean, percent)] * 2, (fmean, lambda v: f"{v:.1f}")]
    if args.families:
        from families import GATED, model_of, prompt

        for family in GATED:
            cases = ((model_of(family, seed=seed), prompt(seed=seed)) for seed in range(1, 6))
            pairs, _ = measured(cases, FROZEN, family)
            paired += lines(family, {", ".join(pair): rows for pair, rows in pairs.items()}, of_pairs)
    else:
        for name, place in models(args.models):
            lm = sc.load(place, dtype="float64" if name in OWN_PROMPTS else "float32")
            pairs, alone = measured(((lm, text) for text in prompts_of(name, args.prompts)), ALL, name)
            paired += lines(name, {", ".join(pair): rows for pair, rows in pairs.items()}, of_pairs)
            single += lines(name, alone, of_one)
    table(PAIRED, paired, args.markdown)
    if single:
        table(SINGLE, single, args.markdown)


if __name__ == "__main__":
    main()
