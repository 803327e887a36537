"""Do the paper's claims hold? Spectra, top tokens, depth and exactness on real language models, prompt by prompt.

There are four parts, each a study (`sc.study`) of some of the prompts, in the order of prompts.txt, where kinds
alternate:

- spectra: for every prompt, J under `gate`, the paper's convention and the default of operators: reconstruction, the
  ordinary Jacobian, stable ranks, and the top tokens of U₀ and V₀ next to those of random directions.
- conventions: for every fifth prompt, the same under `half`, `up` and `secant`, too, and how far U and V turn.
- precision: for every fifth prompt, reconstruction in float64 and bfloat16.
- depth: for every twentieth prompt, each layer's residual stream, cumulative and layerwise, and where the prediction
  emerges.

Rows are added to a Parquet file after each batch. Rows that it has are not measured again, so that a run can be stopped
at any time and resumed on another machine. If a batch is interrupted, its finished prompts are kept. Batches that were
killed resume from FOLDER. Seeds are fixed. The time left is estimated before anything is measured; `--forecast` ends
there.

    python benchmarks/science/measure.py [--models MODEL ...] [--prompts N] [--threads T] [--out FILE] [--work FOLDER]
        [--forecast]
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path += [str(HERE.parent)]

import pandas as pd  # noqa: E402
from prompts import OWN_PROMPTS, SETS, written  # noqa: E402
from rows import Chance, add, condensed, read  # noqa: E402
from trained_models import REAL_MODELS, ROOT, SMALL_MODELS, models  # noqa: E402

import secant as sc  # noqa: E402
from secant.errors import BadPrompt, SecantError  # noqa: E402
from secant.memory import multiplications  # noqa: E402
from secant.operators.cost import measured_pace, row_plan  # noqa: E402
from secant.stream.layers import plan_of  # noqa: E402
from secant.studies.prompts import Item, digest  # noqa: E402

RESULTS = HERE.parent / "results" / "claims.parquet"
SPECTRA = ("reconstruction", "stable_rank", "words")
SPACING, TOP, SEED = 20, 8, 0
SYSTEM = {"role": "system", "content": "Be brief."}
"""The system message of questions in a chat template, instead of the template's own, which is longer than questions."""


@dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Attributes:
        name: Its name in the rows.
        places: Which of each SPACING prompts it has.
        analyses: Its analyses, as in `sc.study`.
        conventions: Its conventions.
        dtypes: The types that the model is loaded in.
        k: How many singular triplets are kept.
        tensors: Whether they are saved, to be decoded as the paper does and compared between conventions.

    """

    name: str
    places: tuple[int, ...]
    analyses: tuple[str, ...] = SPECTRA
    conventions: tuple[str, ...] = ("gate",)
    dtypes: tuple[str | None, ...] = (None,)
    k: int = 4
    tensors: bool = False

    @property
    def alone(self) -> bool:
        """Whether each prompt has one convention and one type, so that prompts of an interrupted batch are complete."""
        return len(self.conventions) == len(self.dtypes) == 1


FIFTH = tuple(range(0, SPACING, 5))
PARTS = (
    Part("spectra", tuple(i for i in range(SPACING // 2) if i not in FIFTH), tensors=True),
    Part("conventions", FIFTH, conventions=("gate", "half", "up", "secant"), tensors=True),
    Part("depth", (0,), ("layers",), k=2),
    Part("spectra", tuple(i for i in range(SPACING // 2, SPACING) if i not in FIFTH), tensors=True),
    Part("precision", FIFTH, ("reconstruction",), dtypes=("float64", "bfloat16")),
)


@dataclass(frozen=True)
class Prompt:
    """A prompt: its kind, its name in the rows, and the form in which the model gets it."""

    kind: str
    text: str
    given: str | list[dict[str, str]]


def prompts_of(name: str, lm: sc.LM, count: int) -> list[Prompt]:
    """The first prompts of a model. Questions are in its chat template if it has one, and plain otherwise."""
    if name in OWN_PROMPTS:
        own = SETS[OWN_PROMPTS[name]](count)
        return [Prompt(OWN_PROMPTS[name], text, text) for text in own]
    template = getattr(lm.tokenizer, "chat_template", None)
    return [
        Prompt(kind, text, [SYSTEM, {"role": "user", "content": text}] if kind == "question" and template else text)
        for kind, text in written()[:count]
    ]


def batches(prompts: Sequence[Prompt]) -> Iterator[tuple[Part, list[Prompt]]]:
    """Each part's share of each SPACING prompts, so that all parts advance together."""
    for start in range(0, len(prompts), SPACING):
        for part in PARTS:
            if own := [prompts[start + place] for place in part.places if start + place < len(prompts)]:
                yield part, own


def items_of(own: Sequence[Prompt]) -> list[Item]:
    """The prompts of a batch as items of a study."""
    return [Item(number, prompt.given, prompt.kind) for number, prompt in enumerate(own)]


def missing(part: Part, own: Sequence[Prompt], done: set[tuple[str, str]]) -> list[Prompt]:
    """The prompts of a batch that have no rows of its part."""
    return [prompt for prompt in own if (part.name, prompt.text) not in done]


def seconds(lm: sc.LM, work: Sequence[tuple[Part, list[Prompt]]]) -> float:
    """The estimated seconds of the work, from the pace of this machine on the first prompt."""
    first, again = work[0][1][0].given, 2
    for _ in range(again):  # the second time, everything is warm
        start = time.perf_counter()
        run = sc.freeze(lm, first, top=1, ordinary=True)
        frozen = time.perf_counter() - start
    op = run.operator()
    pace, speed, T = measured_pace(op), multiplications(op.bias.device, op.bias.dtype), len(run.ids)
    dense = row_plan(op).cost(pace, speed)
    costs = {
        "spectra": frozen + dense,
        "conventions": 5 * (frozen + dense),  # secants cost about twice what frozen factors do
        "precision": 4 * frozen,
        "depth": plan_of(run, 2).cost(pace, speed),
    }
    return sum(costs[part.name] * length(lm, prompt) / T for part, own in work for prompt in own)


def length(lm: sc.LM, prompt: Prompt) -> int:
    """The number of tokens in a prompt; 0 if the model refuses it, as its row will then say."""
    try:
        return len(lm.encode(prompt.given))
    except BadPrompt:
        return 0


@dataclass
class Worked:
    """The result of a batch.

    Attributes:
        rows: Its rows; if it was interrupted, those of the finished prompts.
        whole: Whether it ran to its end.

    """

    rows: pd.DataFrame
    whole: bool


def measured(lm: sc.LM, name: str, part: Part, own: Sequence[Prompt], folder: Path, threads: int) -> Worked:
    """Measure a batch."""
    items, whole = items_of(own), True
    try:
        study = sc.study(
            items, lm, out=folder, analyses=part.analyses, convention=part.conventions, k=part.k, top=TOP,
            seed=SEED, shard=1, threads=threads, tensors=part.tensors,
        )  # fmt: skip
    except KeyboardInterrupt:
        if not part.alone or not list(folder.glob("shards/*")):
            raise
        study, whole = sc.Study.open(folder), False
    chance = chance_of(lm) if "words" in part.analyses else Chance({})
    rows = condensed(study, lm, items, [prompt.text for prompt in own], chance)
    return Worked(rows.assign(model=name, part=part.name), whole)


@cache
def chance_of(lm: sc.LM) -> Chance:
    """What random directions decode to in a model."""
    return Chance.of(lm, TOP, SEED)


EVERY = 10
"""`one_by_one` takes one prompt in this many: nine kinds alternate, so that these prompts have all kinds."""


def one_by_one(
    about: str | None,
    measured: Callable[[sc.LM, Prompt], pd.DataFrame],
    prompts: int,
    out: Path,
    names: Sequence[str] = (*REAL_MODELS, *SMALL_MODELS),
) -> None:
    """The whole of a script that adds the rows of each prompt that a file lacks, of each model.

    Args:
        about: The script's docstring.
        measured: Returns the rows of a prompt.
        prompts: The number of prompts by default.
        out: The file by default.
        names: The models by default, as in `models`.

    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, place in models(args.models, names):
        lm = sc.load(place)
        rows = read(args.out)
        done = set(rows[rows["model"] == name]["text"])
        chosen = prompts_of(name, lm, EVERY * args.prompts)[::EVERY]
        for number, prompt in enumerate(chosen, 1):
            if prompt.text not in done:
                add(args.out, measured(lm, prompt).assign(model=name))
                print(f"{name}: {number} of {len(chosen)} prompts", flush=True)


def every_model(args: argparse.Namespace) -> None:
    """Add the rows of each prompt that the file lacks, of each model, or only say how long that takes."""
    torch.set_num_threads(args.threads)
    for name, place in models(args.models):
        lm = sc.load(place)
        rows = read(args.out)
        rows = rows[rows["model"] == name]
        done = set(zip(rows["part"], rows["text"], strict=True))
        every = list(batches(prompts_of(name, lm, args.prompts)))
        left = [(part, todo) for part, own in every if (todo := missing(part, own, done))]
        count = sum(len(own) for _, own in every)
        if not left:
            print(f"{name}: all {count} measurements are in {args.out}", flush=True)
            continue
        number = sum(len(own) for _, own in left)
        hours = seconds(lm, left) / 3600
        print(f"{name}: {number} of {count} measurements are left, about {hours:.1f} h with {args.threads} threads")
        print(f"Rows are added to {args.out}. Stop at any time: the same command continues.", flush=True)
        if not args.forecast:
            run(lm, name, place, left, args)
        del lm
        gc.collect()


def run(lm: sc.LM, name: str, place: str, left: Sequence[tuple[Part, list[Prompt]]], args: argparse.Namespace) -> None:
    """Run the measurements of a model that are left."""
    begun, count = time.perf_counter(), 0
    for number, (part, own) in enumerate(left, 1):
        found = []
        for dtype in part.dtypes:
            there = lm if dtype is None else sc.load(place, dtype=dtype)
            folder = args.work / name / f"{part.name}-{dtype or 'own'}-{digest(items_of(own))[:12]}"
            found.append(measured(there, name, part, own, folder, args.threads))
        add(args.out, pd.concat([one.rows for one in found]))
        if not found[-1].whole:
            raise KeyboardInterrupt
        count += len(own)
        took = time.perf_counter() - begun
        print(
            f"{name}: {number} of {len(left)} batches ({part.name}, {len(own)} prompts), "
            f"{took / count:.0f} s a measurement", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="names or files; by default all that are there")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "science")
    parser.add_argument("--forecast", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is finished is kept
    try:
        every_model(args)
    except KeyboardInterrupt:
        sys.exit("Interrupted: what was finished is kept. The same command continues.")
    except SecantError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
