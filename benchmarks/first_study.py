"""Studies of three small models: what holds of the paper's claims, over many prompts and in two conventions.

1,000 held-out questions on Atlas, 200 beginnings of stories on stories260K and 200 questions on craftgpt, in the
conventions gate and half; every layer on the first 300 of the questions and on all of the others. What is done is kept,
and the next run goes on from there. docs/science.md says what came out.

    python benchmarks/first_study.py OUT [MODELS]  # MODELS: a folder with stories260K and craftgpt, if there is one
    secant summarize OUT/atlas OUT/atlas-layers
"""

import sys
from pathlib import Path

from prompts import asked, questions, stories

import secant as sc

WIDE = ["reconstruction", "spectra", "stable_rank", "attribution", "words"]
DEEP = ["layers", "conventions"]


def show(what: str, done: int, of: int) -> None:
    print(f"\r{what} {done} of {of}", end="", file=sys.stderr, flush=True)


def main(out: Path, models: Path | None) -> None:
    studies = [("atlas", "atlas", questions(1000), WIDE), ("atlas-layers", "atlas", questions(300), DEEP)]
    if models is not None:
        for name, items in (("stories260K", stories(200)), ("craftgpt", asked(200))):
            studies.insert(1, (name, str(models / name), items, WIDE + DEEP))
    for name, model, items, analyses in studies:
        study = sc.study(
            items, model, out=out / name, analyses=analyses, convention=["gate", "half"], threads=1, progress=show
        )
        rows = study.to_pandas()
        print(f"\n{name}: {len(items)} prompts, {len(rows)} rows, {len(study.failed)} failed, in {study.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
