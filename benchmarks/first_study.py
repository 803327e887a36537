"""Studies of three small models: what holds of the paper's claims, over many prompts and in two conventions.

1,000 held-out questions on Atlas, 200 beginnings of stories on stories260K and 200 questions on craftgpt, in the
conventions gate and half; and every layer, which takes ten times as long, on the first of them. What is done is kept,
and the next run goes on from there. docs/science.md says what came out.

    python benchmarks/first_study.py OUT [MODELS]  # MODELS: a folder with stories260K and craftgpt, if there is one
    secant summarize OUT/atlas  # and each of the others
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
    sets = [("atlas", "atlas", questions(1000), 150)]
    if models is not None:
        sets += [("craftgpt", str(models / "craftgpt"), asked(200), 60)]
        sets += [("stories260K", str(models / "stories260K"), stories(200), 60)]
    studies = [(name, model, items, WIDE) for name, model, items, _ in sets]
    studies += [(f"{name}-layers", model, items[:few], DEEP) for name, model, items, few in sets]
    for name, model, items, analyses in studies:
        study = sc.study(
            items, model, out=out / name, analyses=analyses, convention=["gate", "half"], threads=1, progress=show
        )
        rows = study.to_pandas()
        print(f"\n{name}: {len(items)} prompts, {len(rows)} rows, {len(study.failed)} failed, in {study.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
