"""The measures of each prompt of a study: one number each, ready to be averaged over prompts.

Every function takes rows of a study's table for some of the prompts. It returns rows with model, convention, prompt,
category, the columns that say what is measured, and the number as `value`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from secant.analyses.compare import compared, jaccard
from secant.studies.reading import KEYS, SUBJECT

TOTAL = ("token", "constant")
"""The kinds of contributions that sum to the logit. Those in WRITTEN do so too."""

WRITTEN = ("embed", "layer", "outside")
"""The kinds of contributions of parts, which also sum to the logit."""

WHERE = {"together": "all tokens", "last": "the last token", "tokens": "each token"}
"""How figures and pages say whose top tokens are meant."""

Words = dict[tuple[str, int | None, str], set[str]]
"""The top tokens of first vectors, by owner ("together" or "tokens"), position and side."""


def scalars(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Columns of numbers as measures.

    Args:
        rows: Rows with one number of each kind for a prompt.
        columns: The columns, whose names become the measures' names.

    """
    return rows.melt(KEYS, list(columns), "measure", "value")


def emerged(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """When the prediction becomes the top token of U₀.

    Args:
        rows: Rows of the table `first_seen`.

    Returns:
        For each layer whether the prediction was seen there or before; and the measures `seen` (whether at any layer)
        and `seen_depth` (the depth of the first such layer).

    """
    counts = rows["layer_count"].to_numpy(int)
    curve = rows.loc[rows.index.repeat(counts)].rename(columns={"layer": "first"})
    curve["layer"] = np.concatenate([np.arange(n) for n in counts]) if len(counts) else []
    curve["depth"] = (curve["layer"] + 1) / curve["layer_count"]
    curve["value"] = (curve["first"].astype(float) <= curve["layer"]).astype(float)  # NaN: never seen
    stream = rows[(rows["part"] == "residual") & (rows["span"] == "cumulative")]
    first = stream["layer"].astype(float)
    seen = stream.assign(seen=first.notna().astype(float), seen_depth=(first + 1) / stream["layer_count"])
    return curve[[*KEYS, "part", "span", "layer", "depth", "value"]], scalars(seen, "seen", "seen_depth")


def coupled(rows: pd.DataFrame) -> pd.DataFrame:
    """The measure `coupling`: how far neighbouring layers have the same singular vectors.

    Args:
        rows: Rows of the table `coupling`.

    """
    mismatch = rows.groupby(KEYS, dropna=False)["mismatch"].mean()
    return (1 - mismatch).rename("value").reset_index().assign(measure="coupling")


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of the logit by kind of contribution, and of layers also by part.

    Args:
        rows: Rows of the table `contributions`.

    Returns:
        The shares. A kind without a row has share 0 if other kinds of its sum are there.

    """
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
    """Measures of the top tokens of first vectors.

    Args:
        rows: Rows of the table `words` for first vectors.

    Returns:
        `writes_together`, `writes_last` and `writes_any`: whether the prediction is among the top tokens of U₀ of all
        tokens together, of the last token and of any token. `reads_own`: the share of tokens that are themselves among
        the top tokens of their V₀.

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
    """How far conventions differ, for all tokens together and as the mean over each token's block.

    Args:
        rows: Rows of the table `conventions`.

    """
    keys = [*KEYS, "other"]
    long = rows.melt([*keys, "position"], ["distance", "cosine"], "measure", "value")
    whole = long[long["position"].isna()].drop(columns="position").assign(of="together")
    mean = long[long["position"].notna()].groupby([*keys, "measure"], dropna=False)["value"].mean().reset_index()
    return pd.concat([t for t in (whole, mean.assign(of="tokens")) if len(t)] or [whole], ignore_index=True)


def overlaps(rows: pd.DataFrame) -> pd.DataFrame:
    """The Jaccard index of the top tokens of first vectors, for each pair of models or conventions on the same prompt.

    Args:
        rows: Rows of the table `words` for first vectors.

    Returns:
        The indices `of` all tokens together, of the last token, and of each token (the mean, if both models have the
        same tokens). `chance` is the same index with the other model's top tokens on the next prompt that both have.

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
    """The indices of all tokens together, of the last tokens, and the mean over tokens at the same position."""
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
