"""Does an operator steer better than plain activation addition? How often do a concept's words appear, and at what
perplexity of the continuations under the unsteered model, for both operator forms and for the baseline?

Continuations are greedy, for every layer x a grid of strengths. For each form, one half of the prompts (every second)
chooses the setting with the highest rate at a perplexity of at most 2, 10 and 100 times the unsteered one, and at any
perplexity; the other half measures it, with an exact 95 % interval. Before that, a table has the direction of a: its
cosine with c, the concept's own stream, at the last token of each prompt. Atlas continues held-out questions; any other
model continues the beginnings of children's stories.

    python benchmarks/steering.py [--model atlas] [--concept TEXT --word WORD] [--out FOLDER]
"""

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

import secant as sc
from secant.steering.kv_cache import accumulated
from secant.steering.steer import Aim

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools" / "atlas"))
from corpus import read_questions  # noqa: E402

MOST = (2.0, 10.0, 100.0)
FORMS = ("mixture", "additive", "activation")
NAMES = ("Lily", "Tom", "Tim", "Sue", "Ben", "Mia", "Max", "Anna", "Sam", "Lucy", "Jack", "Sara")
OPENINGS = (
    "Once upon a time, there was a little girl named {}. She",
    "One day, {} went to the park. There",
    "{} was very sad because",
    "{} and mom were in the kitchen. They",
    "It was a sunny day and {} wanted to",
    "{} had a big box. In the box",
    "In the morning, {} saw a",
    "{} liked to play with",
    "{} found a small",
    "The friend of {} said,",
)


def task(model: str) -> tuple[list[str], str, list[str], int]:
    """Prompts, a concept, its words, and how long continuations are."""
    if model == "atlas":
        words = ["Tokyo", "Japan", "Japanese"]
        prompts = [q.prompt for q in read_questions()]
        free = [p for p in prompts if not any(word in p for word in words)]
        return free[:: len(free) // 120][:120], "The capital of Japan is", words, 10
    stories = [opening.format(name) for opening, name in product(OPENINGS, NAMES)]
    return stories, "Once upon a time, there was a cat. The cat", ["cat", "cats"], 30


def of(sweep: sc.Sweep, form: str) -> sc.Sweep:
    """Only the rows of one form, and the unsteered row."""
    return replace(sweep, table=sweep.table[sweep.table["form"].isin([form, "unsteered"])])


def cosines(lm: sc.LM, run: sc.Run, layer: int, prompts: list[str]) -> list[float]:
    """The cosine of a, the operator's direction, with c, the concept's own stream, at each prompt's last token."""
    aim, found = Aim(run, layer), []
    for prompt in prompts:
        x = lm.embed(lm.encode(prompt))[None]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        a, _ = accumulated(aim.blocks, x, real, real.new_zeros(1, dtype=torch.long))
        found.append(torch.nn.functional.cosine_similarity(a[0, -1].to(aim.stream), aim.stream, dim=0).item())
    return found


def directions(lm: sc.LM, run: sc.Run, prompts: list[str]) -> None:
    """Print the cosines of a and c, layer by layer."""
    print("| layer | cos(a, c), mean | least | greatest |\n|---|---|---|---|")
    for layer in range(len(run.inside.layers)):
        found = cosines(lm, run, layer, prompts)
        print(f"| {layer} | {sum(found) / len(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--concept")
    parser.add_argument("--word", action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lm = sc.load(args.model)
    prompts, concept, words, tokens = task(args.model)
    if args.concept and args.word:
        concept, words = args.concept, args.word
    run = sc.freeze(lm, concept)
    steered = partial(sc.steering_sweep, lm, words=words, tokens=tokens)
    directions(lm, run, prompts[::2])
    sweep = steered(prompts[::2], run, forms=FORMS)
    if args.out is not None:
        sweep.save(args.out)
    plain = sweep.plain
    print(
        f"concept {concept!r}, words {', '.join(words)}, {len(prompts) // 2} prompts to choose on, as many to measure"
    )
    print(f"unsteered: rate {plain['rate']:.0%}, perplexity {plain['perplexity']:.3g}\n")
    head = ("form", "perplexity at most", "layer", "strength", "chosen: rate", "at", "measured: rate", "95 %", "at")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    measured: dict[int, sc.Sweep] = {}
    for form, most in product(FORMS, (*MOST, math.inf)):
        best = of(sweep, form).best(most)
        limit = "any" if math.isinf(most) else f"{most:g}x"
        if best is None:
            print(f"| {form} | {limit} | none is above the unsteered |" + " |" * (len(head) - 3))
            continue
        if best.name not in measured:
            measured[best.name] = steered(
                prompts[1::2], run, layers=[best["layer"]], strengths=[best["strength"]], forms=[form]
            )
        again = measured[best.name]
        row, times = again.table.iloc[1], best["perplexity"] / plain["perplexity"]
        cells = (
            form, limit, best["layer"], f"{best['strength']:g}", f"{best['rate']:.0%}", f"{times:.3g}x",
            f"{row['rate']:.0%}", f"{row['low']:.0%} to {row['high']:.0%}",
            f"{row['perplexity'] / again.plain['perplexity']:.3g}x",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
