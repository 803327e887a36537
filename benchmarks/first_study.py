"""Studies of three small models: which of the paper's claims hold, over many prompts and under two conventions.

1,000 held-out questions on Atlas, 200 beginnings of stories on stories260K and 200 questions on craftgpt, under gate
and half: first single spectra and then every layer, which takes ten times as long. Finished shards are kept, and the
next run resumes. docs/explanation/small-models.md has the results.

    python benchmarks/first_study.py OUT [MODELS]  # MODELS: a folder with stories260K and craftgpt, if there is one
    secant summarize OUT/atlas  # and each of the others
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from prompts import asked, questions, stories

import secant as sc
from secant.studies.statistics import interval

WIDE = ["reconstruction", "spectra", "stable_rank", "attribution", "words"]
DEEP = ["layers", "conventions"]


def show(what: str, done: int, of: int) -> None:
    print(f"\r{what} {done} of {of}", end="", file=sys.stderr, flush=True)


def said(values: pd.Series, share: bool = False) -> str:
    """The mean over prompts, and its interval."""
    numbers = values.dropna().to_numpy(float)
    low, high, _ = interval(numbers, 0, 2000)
    few = 0 < min(numbers.mean(), 1 - numbers.mean()) < 0.01  # all but some, or some alone
    form = ("{:.1%}" if few else "{:.0%}") if share else "{:.3g}"
    ends = "" if low != low else f" [{form.format(low)}, {form.format(high)}]"
    return form.format(numbers.mean()) + ends


def wide(study: sc.Study) -> dict[str, pd.Series]:
    """The claims about single spectra and top tokens, by convention."""
    ranks, words = study.to_pandas("stable_ranks"), study.to_pandas("words")
    first = words[(words["vector"] == 0) & (words["side"] == "output")]
    last = first["position"] == first.groupby(["convention", "prompt"])["position"].transform("max")
    read = words[(words["vector"] == 0) & (words["side"] == "input")]
    by = ["convention", "prompt"]
    own = read.groupby([*by, "position"])["own"].any().groupby(by).mean()
    places = {"first token": ranks["position"] == 0, "later tokens": ranks["position"] > 0}
    found = {
        f"R of the {name}": ranks[at.fillna(False)].groupby(by)["stable_rank"].mean() for name, at in places.items()
    }
    found["R of all tokens together"] = ranks[ranks["position"].isna()].groupby(by)["stable_rank"].mean()
    found["% prediction in U₀, all tokens"] = first[first["position"].isna()].groupby(by)["predicted"].any()
    found["% prediction in U₀, last token"] = first[last.fillna(False)].groupby(by)["predicted"].any()
    found["% tokens with their own word in V₀"] = own
    return found


def deep(study: sc.Study) -> dict[str, pd.Series]:
    """The claims about depth, by convention: for all tokens together, through the final norm."""
    rows, seen = study.to_pandas("layers"), study.to_pandas("first_seen")
    by, count = ["convention", "prompt"], int(seen["layer_count"].max())
    stream = rows[(rows["part"] == "residual") & rows["position"].isna()]
    spans = {span: own.set_index([*by, "layer"])["stable_rank"].unstack() for span, own in stream.groupby("span")}
    grown, own = spans["cumulative"], spans["layerwise"]
    found = {f"cumulative R after layer {i}": grown[i] for i in sorted({0, count // 2, count - 1})}
    found["% cumulative R lower after the last layer than after the first"] = grown[count - 1] < grown[0]
    found["% cumulative R lower after every layer than before it"] = (grown.diff(axis=1).iloc[:, 1:] < 0).all(axis=1)
    found |= {f"layerwise R of layer {i}": own[i] for i in sorted({0, count // 2, count - 1})}
    found["% layerwise R highest in the second half"] = own.idxmax(axis=1) >= count / 2
    found["layer of the highest layerwise R, from 0"] = own.idxmax(axis=1)
    together = seen[(seen["part"] == "residual") & (seen["span"] == "cumulative") & seen["position"].isna()]
    first = together.set_index(by)["layer"]
    found["% prediction first of U₀ after some layer"] = first.notna()
    found["layer after which it first is, where it is, from 0"] = first
    return found


def table(title: str, found: dict[str, pd.Series]) -> None:
    """Print the results in Markdown, with conventions side by side."""
    print(f"\n| {title} | gate | half |\n|---|---|---|")
    for name, values in found.items():
        share = name.startswith("% ")
        cells = [said(values.xs(which, level="convention"), share) for which in ("gate", "half")]
        print(f"| {name.removeprefix('% ')} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="?", type=Path)
    args = parser.parse_args()
    sets = [("atlas", "atlas", questions(1000))]
    if args.models is not None:
        sets += [("craftgpt", str(args.models / "craftgpt"), asked(200))]
        sets += [("stories260K", str(args.models / "stories260K"), stories(200))]
    studies = [(name, model, items, WIDE) for name, model, items in sets]
    studies += [(f"{name}-layers", model, items, DEEP) for name, model, items in sets]
    for name, model, items, analyses in studies:
        study = sc.study(
            items, model, out=args.out / name, analyses=analyses, convention=["gate", "half"], threads=1, progress=show
        )
        rows = study.to_pandas()
        print(f"\n{name}: {len(items)} prompts, {len(rows)} rows, {len(study.failed)} failed, in {study.folder}")
        table(f"{name}, {len(items)} prompts", deep(study) if "layers" in analyses else wide(study))


if __name__ == "__main__":
    main()
