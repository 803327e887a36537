"""The tables and figures of docs/explanation/science.md, from the rows that measurements have added so far.

Each table is between two marks in the page: `<!-- NAME -->` and `<!-- end NAME -->`. Without --write, tables are
printed, and no figure is drawn.

    python benchmarks/science/report.py [--results FOLDER] [--write]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from chosen import steering
from claims import CLAIMS, FEW, MODELS, measured, ranks, said, verdict
from drawings import DRAWINGS
from rows import FAILED, read

from secant.figures.style import save

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results"
PAGE, IMAGES = ROOT / "docs" / "explanation" / "science.md", ROOT / "docs" / "images"
CONVENTIONS = ("gate", "half", "up", "secant")


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def by_model(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model that has any."""
    return {name: own for name in MODELS if len(own := rows[rows["model"] == name])}


def counts(rows: pd.DataFrame) -> str:
    """The number of prompts on which each model was measured, part by part."""
    parts = list(dict.fromkeys(rows["part"]))
    lines = []
    for name, own in by_model(rows).items():
        every = [str(own[own["part"] == part]["text"].nunique()) for part in parts]
        failed = own[own["measure"] == FAILED]["text"].nunique()
        lengths = own[own["measure"] == "tokens"].groupby("text")["value"].mean()
        between = f"{lengths.median():.0f} ({lengths.min():.0f} to {lengths.max():.0f})"
        lines.append([MODELS[name], str(own["text"].nunique()), *every, between, str(failed)])
    return table(["model", "prompts", *parts, "tokens", "failed"], lines)


def claims(rows: pd.DataFrame) -> str:
    """Each claim, the paper's number, and each model's with its verdict."""
    models, group, lines = by_model(rows), "", []
    for claim in CLAIMS:
        cells = []
        for own in models.values():
            values = claim.values(own)
            mark = verdict(claim, values)
            cells.append(f"{f'**{mark}** ' if mark else ''}{said(values, claim.form)}")
        lines.append([claim.group if claim.group != group else "", claim.name, claim.paper, *cells])
        group = claim.group
    return table(["", "claim", "the paper", *(MODELS[name] for name in models)], lines)


OF_CONVENTION: dict[str, tuple[str, Callable[[pd.DataFrame, str], pd.Series]]] = {
    "‖b‖ / ‖y‖": ("number", lambda rows, c: measured(rows, "bias", convention=c)),
    "R of the first token": ("number", partial(ranks, first=True)),
    "R of a later token": ("number", ranks),
    "R of all tokens": ("number", lambda rows, c: measured(rows, "stable_rank", "together", c)),
    "σ₁ of all tokens, relative to gate's": ("number", lambda rows, c: measured(rows, "sigma_ratio", convention=c)),
    "prediction in U₀ of all tokens": ("share", lambda rows, c: measured(rows, "writes_together", convention=c)),
    "prediction in U₀ of the last": ("share", lambda rows, c: measured(rows, "writes_last", convention=c)),
    "tokens in their own V₀": ("share", lambda rows, c: measured(rows, "reads_own", convention=c)),
    "z of U₀'s top token": ("number", lambda rows, c: measured(rows, "z_output", convention=c)),
    "z of V₀'s top token": ("number", lambda rows, c: measured(rows, "z_input", convention=c)),
    "mean angle of U to gate's": ("number", lambda rows, c: measured(rows, "angle_U", "mean", c)),
    "mean angle of V to gate's": ("number", lambda rows, c: measured(rows, "angle_V", "mean", c)),
    "U₀'s top tokens shared with gate": ("share", lambda rows, c: measured(rows, "common_output", "tokens", c)),
    "V₀'s top tokens shared with gate": ("share", lambda rows, c: measured(rows, "common_input", "tokens", c)),
}
"""The rows of the table of conventions: how numbers are written, and the function that returns each prompt's."""


def conventions(rows: pd.DataFrame) -> str:
    """How conventions change J, on the prompts that were measured under all of them."""
    lines = []
    for name, own in by_model(rows[rows["part"] == "conventions"]).items():
        for what, (form, values) in OF_CONVENTION.items():
            each = [said(values(own, convention), form, False) for convention in CONVENTIONS]
            lines.append([MODELS[name], str(own["text"].nunique()), what, *each])
    return table(["model", "prompts", "", *CONVENTIONS], lines)


OF_KIND = ("R of the first token", "R of a later token", "prediction in U₀ of all tokens", "tokens in their own V₀")


def kinds(rows: pd.DataFrame) -> str:
    """Four of the claims by kind of prompt, for kinds that have enough prompts."""
    chosen = [claim for claim in CLAIMS if claim.name in OF_KIND]
    lines = []
    for name, own in by_model(rows[rows["part"].isin(["spectra", "conventions"])]).items():
        for kind, some in own.groupby("kind") if own["kind"].nunique() > 1 else ():
            if some["text"].nunique() < FEW:
                continue
            cells = [said(claim.values(some), claim.form) for claim in chosen]
            lines.append([MODELS[name], str(kind), str(some["text"].nunique()), *cells])
    head = ["model", "kind", "prompts", *(claim.name for claim in chosen)]
    return table(head, lines) if lines else f"No kind has {FEW} prompts yet."


def mechanism(rows: pd.DataFrame) -> str:
    """How much of J exactness decides, and how alike the rest is."""
    lines = []
    for name, own in by_model(rows).items():
        precision = own["precision"].iloc[0]
        get = partial(measured, own, precision=precision)
        forced = [said(get("forced", convention=convention), "share", False) for convention in ("gate", "up", "half")]
        alike = [said(get("cosine", convention=convention), "number", False) for convention in ("up", "half")]
        several = [said(get("rank", convention=convention), "number", False) for convention in ("gate", "up", "half")]
        lines.append([MODELS[name], str(own["text"].nunique()), *forced, *alike, *several])
    head = ["model", "prompts", "decided: gate", "up", "half", "the rest, cosine with gate's: up", "half"]
    return table([*head, "R: gate", "up", "half"], lines)


def defects(rows: pd.DataFrame) -> str:
    """The layer whose gain is largest at the first token, and how well singular vectors predict it."""
    lines = []
    for name, own in by_model(rows).items():
        values = own.pivot_table(index=["text", "at", "layer"], columns="measure", values="value")
        first = values.xs("first", level="at")
        layer = int(first["norm"].groupby("layer").mean().diff().fillna(0).idxmax())
        there = first.xs(layer, level="layer")
        cells = [str(own["text"].nunique()), str(layer)]
        cells += [said(there[key], "number", False) for key in ("gain", "sigma", "on_sink", "trigger")]
        last = values.xs(("last", layer), level=("at", "layer"))
        cells += [said(last[key], "number", False) for key in ("gain", "on_sink", "own")]
        lines.append([MODELS[name], *cells])
    head = ["model", "prompts", "layer", "gain of the first token", "σ₁", "cos(u, s)", "cos(v, h before)"]
    return table([*head, "last token: gain", "cos(u, s)", "cos(h, s)"], lines)


TABLES = {
    "claims": {"counts": counts, "claims": claims, "conventions": conventions, "kinds": kinds},
    "mechanism": {"mechanism": mechanism}, "defects": {"defects": defects}, "rates": {"steering": steering},
}  # fmt: skip
"""The tables of each file of rows."""


def replaced(page: str, found: dict[str, str]) -> str:
    """A page with the tables between its marks. Marks without a table are left as they are."""

    def filled(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}{found[name]}\n{end}" if name in found else match[0]

    return re.sub(r"(<!-- (\w+) -->\n).*?(<!-- end \2 -->)", filled, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write them into the page")
    args = parser.parse_args()
    rows = {name: own for name in TABLES if len(own := read(args.results / f"{name}.parquet"))}
    found = {name: make(own) for file, own in rows.items() for name, make in TABLES[file].items()}
    if not args.write:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in found.items()))
        return
    PAGE.write_text(replaced(PAGE.read_text("utf-8"), found), "utf-8")
    for name, (file, draw) in DRAWINGS.items():
        if file in rows and (figure := draw(rows[file])) is not None:
            save(figure, IMAGES / f"science-{name}.svg")


if __name__ == "__main__":
    main()
