"""What steering gains: one half of the prompts chooses the setting of each form, and the other half measures it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from claims import MODELS, said
from rates import STRENGTHS, UNSTEERED

MOST = (2.0, 10.0, math.inf)
"""The perplexity that a setting may have, as a multiple of the unsteered one."""


def by_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """The rate of the concept's words and the perplexity, for each half of the prompts and each setting."""
    weighed = rows.assign(total=rows["loss"] * rows["tokens"])
    by = ["model", "concept", "half", "form", "layer", "strength"]
    sums = weighed.groupby(by).agg(rate=("found", "mean"), total=("total", "sum"), tokens=("tokens", "sum"))
    return sums.assign(perplexity=np.exp(sums["total"] / sums["tokens"])).reset_index()


def measured(rows: pd.DataFrame) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """For each form and limit, the chosen setting of each concept, measured on the other half of the prompts."""
    found = by_setting(rows[rows["form"] != "cosine"])
    plain = found[found["form"] == UNSTEERED].groupby(["concept", "half"])[["rate", "perplexity"]].mean()
    for form in STRENGTHS:
        for most in MOST:
            chosen = []
            for concept, own in found[found["form"] == form].groupby("concept"):
                base = plain.loc[(concept, "choose")]
                may = own[(own["half"] == "choose") & (own["perplexity"] <= most * base["perplexity"])]
                if may.empty:
                    continue
                best = may.sort_values(["rate", "perplexity"], ascending=[False, True]).iloc[0]
                same = (own["layer"] == best["layer"]) & (own["strength"] == best["strength"])
                again = own[same & (own["half"] == "measure")].iloc[0]
                unsteered = plain.loc[(concept, "measure")]
                chosen.append((concept, best["layer"], best["strength"], unsteered["rate"], again["rate"],
                               again["perplexity"] / unsteered["perplexity"]))  # fmt: skip
            names = ["concept", "layer", "strength", "plain", "rate", "times"]
            yield form, most, pd.DataFrame(chosen, columns=names)


def steering(rows: pd.DataFrame) -> str:
    """The table of steering: the mean over concepts of rates, with its interval, and of perplexities."""
    lines = ["| model | form | perplexity at most | concepts | layers | rate, unsteered | rate | at perplexity |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for model, own in rows.groupby("model"):
        layers = own["layer"].nunique()
        for form, most, chosen in measured(own):
            limit = "any" if math.isinf(most) else f"{most:g}x"
            times = f"{chosen['times'].median():.3g}x" if len(chosen) else "–"
            rates = (said(chosen[name], "share", False) for name in ("plain", "rate"))
            cells = (MODELS[str(model)], form, limit, len(chosen), layers, *rates, times)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
