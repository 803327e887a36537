"""Do operators steer real models? Rates of a concept's words against perplexity, for eight concepts and 60 prompts.

There are three forms (`secant.steering`): mixture, the paper's equation 16; additive, which the paper's code computes;
and activation, plain activation addition. Each concept is a text that ends in its own word, as the paper's do. The
model continues the prose of prompts.txt, without prompts that have a concept's word. Rows have whether each
continuation has a word of the concept, its tokens and its log-perplexity under the unsteered model, by form, layer,
strength, and half of the prompts: every second prompt chooses the setting, and the others measure it. They also have,
at each prompt's last token, the cosine of the operator's direction a with the concept's own stream c, which activation
addition adds.

Each layer in the order halves a gap between earlier ones, and concepts take turns, so that the rows are always a
complete, if coarse, grid. Rows are added after each concept and layer; the same command resumes.

    python benchmarks/science/rates.py [--models MODEL ...] [--layers N] [--prompts N] [--threads T] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path += [str(HERE.parent)]

import pandas as pd  # noqa: E402
from prompts import SETS, written  # noqa: E402
from steering import cosines  # noqa: E402
from trained_models import REAL_MODELS, models  # noqa: E402

import secant as sc  # noqa: E402
from secant.results.paths import replacing  # noqa: E402

RESULTS = HERE.parent / "results" / "rates.parquet"
TOKENS = 12
STRENGTHS = {
    "mixture": (0.1, 0.2, 0.4, 0.6), "additive": (0.25, 0.5, 1.0, 2.0), "activation": (0.125, 0.25, 0.5, 1.0, 2.0),
}  # fmt: skip
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Concept:
    """A concept: the text whose operator is applied, and the words that count as its own."""

    text: str
    words: tuple[str, ...]


CONCEPTS = {
    "bridge": Concept("We drove over the Golden Gate Bridge", ("bridge", "bridges", "golden gate")),
    "cat": Concept("Asleep in the sun lay a small grey cat", ("cat", "cats", "kitten", "kittens")),
    "wedding": Concept("In June they invited us to their wedding", ("wedding", "weddings", "bride", "married")),
    "ocean": Concept("The ship sailed out into the open ocean", ("ocean", "oceans", "sea", "waves")),
    "war": Concept("For five long years the country was at war", ("war", "wars", "soldiers", "army")),
    "doctor": Concept("She went to the hospital to see a doctor", ("doctor", "doctors", "hospital", "patient")),
    "money": Concept("He wanted to be rich and loved nothing but money", ("money", "cash", "dollars", "bank")),
    "music": Concept("The orchestra was playing beautiful music", ("music", "song", "songs", "musical")),
}
OWN_CONCEPTS = {"atlas": {"japan": Concept("The capital of Japan is", ("Tokyo", "Japan", "Japanese"))}}
"""The concepts of small models, instead of these."""

KEYS = ("model", "concept", "layer", "form", "strength", "prompt", "half")


def prompts_of(name: str, concepts: dict[str, Concept], count: int) -> list[str]:
    """Prompts without any concept's words."""
    texts = SETS["facts"](40 * count) if name in OWN_CONCEPTS else [t for kind, t in written() if kind == "prose"]
    words = [word.casefold() for concept in concepts.values() for word in concept.words]
    free = [text for text in texts if not any(word in text.casefold() for word in words)]
    return free[:count]


def halving(count: int) -> list[int]:
    """The layers, ordered so that each halves a gap between earlier ones.

    >>> halving(8)
    [4, 2, 6, 1, 3, 5, 7, 0]
    """
    found: list[int] = []
    parts = 2
    while len(found) < count - 1 and parts <= 2 * count:
        found += [i * count // parts for i in range(1, parts, 2)]
        found = [i for i in dict.fromkeys(found) if 0 < i < count]
        parts *= 2
    return [*found, *(i for i in range(count) if i not in found)]


Wanted = dict[str, list[float]]
"""Strengths by form."""


def missing(there: pd.DataFrame, concept: str, layer: int) -> Wanted:
    """The strengths for which a concept at a layer has no rows."""
    own = there[(there["concept"] == concept) & (there["layer"] == layer)]
    done = set(zip(own["form"], own["strength"].astype(float).round(4), strict=True))
    left = {form: [s for s in each if (form, s) not in done] for form, each in STRENGTHS.items()}
    return {form: each for form, each in left.items() if each}


def measured(lm: sc.LM, concept: Concept, layer: int, prompts: list[str], wanted: Wanted) -> pd.DataFrame:
    """The rows of a concept at a layer: the wanted strengths of each form, the unsteered rows, and cosines."""
    run, parts = sc.freeze(lm, concept.text, top=1), list[pd.DataFrame]()
    for form, strengths in wanted.items():
        sweep = sc.steering_sweep(
            lm, prompts, run, layers=[layer], strengths=strengths, forms=[form], words=concept.words, tokens=TOKENS
        )
        parts.append(sweep.texts if not parts else sweep.texts[sweep.texts["form"] != UNSTEERED])
    texts = pd.concat(parts, ignore_index=True)
    rows = texts[["form", "strength", "prompt", "tokens"]].assign(
        found=texts["found"].astype(float), loss=np.log(texts["perplexity"].astype(float))
    )
    own = pd.DataFrame({"form": "cosine", "strength": 0.0, "prompt": range(len(prompts)),
                        "found": cosines(lm, run, layer, prompts)})  # fmt: skip
    return pd.concat([rows, own], ignore_index=True).assign(layer=layer)


def read(file: Path) -> pd.DataFrame:
    """The rows of a file; none if there is no such file."""
    return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=[*KEYS, "found", "loss", "tokens"])


def add(file: Path, new: pd.DataFrame) -> None:
    """Add rows to a file, which is complete at all times."""
    rows = pd.concat([old for old in (read(file), new) if len(old)], ignore_index=True)
    small = {"layer": "int16", "strength": "float32", "prompt": "int16", "found": "float32", "loss": "float32"}
    with replacing(file) as new_file:
        rows.astype(small).to_parquet(new_file, compression="zstd", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=1000, help="how many of each model's layers; by default all")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, place in models(args.models, list(REAL_MODELS)):
        lm = sc.load(place)
        concepts = OWN_CONCEPTS.get(name, CONCEPTS)
        prompts = prompts_of(name, concepts, args.prompts)
        count = len(sc.freeze(lm, prompts[0], top=1).inside.layers)
        there = read(args.out)
        there = there[there["model"] == name]
        grid = list(product(halving(count)[: args.layers], concepts))
        left = [(layer, concept, want) for layer, concept in grid if (want := missing(there, concept, layer))]
        print(f"{name}: {len(left)} of {len(grid)} layers x concepts are left, {len(prompts)} prompts each", flush=True)
        start = time.perf_counter()
        for number, (layer, concept, want) in enumerate(left, 1):
            rows = measured(lm, concepts[concept], layer, prompts, want)
            rows["half"] = np.where(rows["prompt"] % 2, "measure", "choose")
            add(args.out, rows.assign(model=name, concept=concept))
            hours = (time.perf_counter() - start) / number * (len(left) - number) / 3600
            print(f"{name}: {number} of {len(left)}, {concept} after layer {layer}; {hours:.1f} h left", flush=True)


if __name__ == "__main__":
    main()
