"""What each prompt of a study says: one number for each prompt and what it is of, ready to be averaged over prompts.

Every function takes rows of a study's table, of some prompts, and returns rows with model, convention, prompt,
category, what the number is of, and its `value`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from secant.analyses.compare import compared, jaccard
from secant.studies.reading import KEYS, SUBJECT

TOTAL = ("token", "constant")
"""Kinds of contributions that sum to the logit; those of parts do so too."""

WRITTEN = ("embed", "layer", "outside")

WHERE = {"together": "all tokens", "last": "the last token", "tokens": "each token"}
"""What words are of."""

Words = dict[tuple[str, int | None, str], set[str]]


def scalars(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A prompt's numbers as measures by the name of their column."""
    return rows.melt(KEYS, list(columns), "measure", "value")


def emerged(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For each layer whether the prediction has been seen by then; and measures: whether at all, and at which depth."""
    counts = rows["layer_count"].to_numpy(int)
    curve = rows.loc[rows.index.repeat(counts)].rename(columns={"layer": "first"})
    curve["layer"] = np.concatenate([np.arange(n) for n in counts]) if len(counts) else []
    curve["depth"] = (curve["layer"] + 1) / curve["layer_count"]
    curve["value"] = (curve["first"].astype(float) <= curve["layer"]).astype(float)  # NaN is never
    stream = rows[(rows["part"] == "residual") & (rows["span"] == "cumulative")]
    first = stream["layer"].astype(float)
    seen = stream.assign(seen=first.notna().astype(float), seen_depth=(first + 1) / stream["layer_count"])
    return curve[[*KEYS, "part", "span", "layer", "depth", "value"]], scalars(seen, "seen", "seen_depth")


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of the logit by kind, of layers also by part; where a sum is there, a kind without a row adds 0."""
    layers = rows[rows["kind"] == "layer"]
    parts = layers.assign(kind="layer." + layers["name"].str.split(".").str[-1])
    sums = pd.concat([rows, parts], ignore_index=True).groupby([*KEYS, "kind"], dropna=False)["contribution"].sum()
    sums = sums.unstack("kind")
    for kinds in (TOTAL, WRITTEN):
        sums = sums.reindex(columns=[*sums.columns, *(kind for kind in kinds if kind not in sums)])
        there = sums[list(kinds)].notna().any(axis=1)
        for kind in kinds:
            sums.loc[there & sums[kind].isna(), kind] = 0.0
    total = sums[list(TOTAL)].sum(axis=1)
    found = sums.div(total.where(total != 0), axis=0).reset_index().melt(KEYS, None, "kind", "value")
    found["part"] = found["kind"].str.partition(".")[2].replace("", None)
    return found.assign(kind=found["kind"].str.partition(".")[0])


def decoded(rows: pd.DataFrame) -> pd.DataFrame:
    """Measures of the words of first vectors: whether the prediction is among those written, by all tokens' blocks
    together, the last token's or any token's; and the share of tokens whose own word is among those that they read.
    """
    written = rows[rows["side"] == "output"]
    single = written[written["position"].notna()]
    last = single.groupby(KEYS, dropna=False)["position"].transform("max")
    read = rows[(rows["side"] == "input") & rows["position"].notna()]
    tokens = read.groupby([*KEYS, "position"], dropna=False)["own"].any().reset_index()
    found = {
        "writes_together": written[written["position"].isna()].groupby(KEYS, dropna=False)["predicted"].any(),
        "writes_last": single[single["position"] == last].groupby(KEYS, dropna=False)["predicted"].any(),
        "writes_any": single.groupby(KEYS, dropna=False)["predicted"].any(),
        "reads_own": tokens.groupby(KEYS, dropna=False)["own"].mean(),
    }
    tables = [series.astype(float).rename("value").reset_index().assign(measure=name) for name, series in found.items()]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def distances(rows: pd.DataFrame) -> pd.DataFrame:
    """How far conventions differ, of all tokens together and on average over each token's own block."""
    keys = [*KEYS, "other"]
    long = rows.melt([*keys, "position"], ["distance", "cosine"], "measure", "value")
    whole = long[long["position"].isna()].drop(columns="position").assign(of="together")
    mean = long[long["position"].notna()].groupby([*keys, "measure"], dropna=False)["value"].mean().reset_index()
    return pd.concat([t for t in (whole, mean.assign(of="tokens")) if len(t)] or [whole], ignore_index=True)


def overlaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Jaccard's index of the words of first vectors on the same prompt, of two models or conventions at a time.

    `of` all tokens together, the last token, and each token where both have the same ones (on average). `chance`: the
    same with the other's words on another prompt, the next one that both have.
    """
    words: dict[tuple[str, str], dict[int, Words]] = {}
    tokens: dict[tuple[str, str, int], dict[int, str]] = {}
    categories: dict[int, Any] = {}
    for row in rows[[*KEYS, "position", "token", "side", "word"]].itertuples(index=False):
        place = None if pd.isna(row.position) else int(row.position)
        own = words.setdefault((row.model, row.convention), {}).setdefault(row.prompt, {})
        own.setdefault(("together" if place is None else "tokens", place, row.side), set()).add(compared(row.word))
        categories[row.prompt] = row.category
        if place is not None:
            tokens.setdefault((row.model, row.convention, row.prompt), {})[place] = row.token
    found = []
    for one, other in combinations(words, 2):
        common = sorted(set(words[one]) & set(words[other]))
        for n, prompt in enumerate(common):
            next_one = common[(n + 1) % len(common)]
            same = tokens.get((*one, prompt)) == tokens.get((*other, prompt))
            here = _indices(words[one][prompt], words[other][prompt], same)
            away = {} if len(common) < 2 else _indices(words[one][prompt], words[other][next_one], True)
            names = {"other": other[0], "other_convention": other[1], "prompt": prompt, "category": categories[prompt]}
            found += [
                {**dict(zip(SUBJECT, one, strict=True)), **names, "of": of, "side": side, "value": index,
                 "chance": away.get((of, side))}
                for (of, side), index in here.items()
            ]  # fmt: skip
    return pd.DataFrame(found)


def _indices(one: Words, other: Words, same: bool) -> dict[tuple[str, str], float | None]:
    """Of all tokens together, of the last ones, and the mean over those at the same place."""
    found: dict[tuple[str, str], float | None] = {}
    together = ("together", None, "output")
    if together in one and together in other:
        found["together", "output"] = jaccard(one[together], other[together])
    for side in ("output", "input"):
        places = [sorted(t for _, t, s in own if t is not None and s == side) for own in (one, other)]
        if not places[0] or not places[1]:
            continue
        ends = (one["tokens", places[0][-1], side], other["tokens", places[1][-1], side])
        found["last", side] = jaccard(*ends)
        if same:
            each = [jaccard(one["tokens", t, side], other["tokens", t, side]) for t in set(places[0]) & set(places[1])]
            known = [v for v in each if v is not None]
            found["tokens", side] = sum(known) / len(known) if known else None
    return found
