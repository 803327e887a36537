"""The tables that the page of an explanation shows, each cut to the page's size.

The page is one file, so tables that grow with the model or the prompt are cut. `about` names each cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from secant.stream.depths import Layers
from secant.stream.sweep import STREAM

UNITS = 1024
"""The number of elements of y, evenly spaced, that the page compares with J x + b."""

MOST = 20_000
"""The most top tokens of all depths on a page; long prompts get fewer for each vector."""

IN_MAP = 3
"""Top tokens of each block in which the map of layers and tokens can be searched; it shows the first."""

OF_HEADS = 2
"""Top tokens of each head and sign: a model has hundreds of heads, and a page has at most a megabyte."""

DRAWN = {
    "tokens": ["position", "token", "id", "contribution", "effect", "received", "sink", "norm", "stable_rank"],
    "predictions": ["token", "probability", "logit"],
    "written": ["position", "word", "score"],
    "by_convention": ["convention", "position", "contribution"],
    "agreement": ["convention", "signs", "ranks", "largest", "deletion", "deletion_rest"],
    "lens": ["layer", "part", "position", "probability", "rank", "logit", "top", "top_probability"],
    "lens_words": ["layer", "part", "word", "probability"],
    "lens_terms": ["layer", "part", "position", "contribution"],
    "singular_values": ["position", "vector", "block", "sigma"],
    "words": ["position", "vector", "side", "word", "score"],
    "contributions": ["kind", "name", "layer", "head", "contribution", "all_paths"],
    "flow": ["name", "path", "position", "layer", "head", "contribution"],
    "head_words": ["layer", "head", "sign", "word", "score"],
    "patterns": ["layer", "head", "position", "attention"],
    "faithfulness": ["method", "value", "comprehensiveness", "sufficiency", "correlation"],
    "depth_words": ["layer", "part", "position", "sign", "word", "score"],
    "largest_columns": ["rank", "position", "unit", "norm", "word", "score"],
    "largest_rows": ["rank", "position", "unit", "norm", "word", "score"],
    "versus": ["prediction", "versus", "difference", "kind", "contribution"],
    "rebuilt": ["output", "rebuilt", "ordinary"],
    "chance": ["side", "mean", "std", "samples"],
    "image": ["size"],
    "layers": ["layer", "part", "span", "position", "stable_rank", "sigma_0", "reconstruction"],
    "spectra": ["layer", "position", "vector", "block", "sigma"],
    "layer_words": ["layer", "part", "span", "position", "vector", "side", "word", "score"],
    "path": ["layer", "vector", "x", "y"],
    "steps": ["step", "generated", "probability", "logit", "reconstruction", "contribution"],
}
"""The tables that the page draws, and the columns of each. Ranks are left out because rows are in order, and z because
the page computes it from `chance`."""

SCORED = ("words", "written", "depth_words", "head_words", "layer_words")
DIGITS = {"image": {"size": 3}} | {name: {"score": 4} for name in SCORED}
"""Digits of columns that have many numbers, of which a page shows fewer digits."""


def drawn(tables: Mapping[str, pd.DataFrame], d_out: int, shown: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Returns the tables that the page draws, each with the rows and columns that fit.

    Args:
        tables: The tables of an explanation and of its evidence.
        d_out: The number of elements of the final hidden state.
        shown: The positions of the tokens that have a row of their own on the page.

    """
    rows: dict[str, Any] = {
        "rebuilt": sorted({i * d_out // min(d_out, UNITS) for i in range(min(d_out, UNITS))}),
        "flow": lambda flow: flow["position"].isna() | flow["position"].isin(shown),
        "depth_words": lambda words: words["rank"] < _room(words),
        "head_words": lambda words: words["rank"] < min(OF_HEADS, _room(words)),
        "patterns": lambda patterns: patterns["position"].isin(shown),
        "spectra": lambda spectra: of_stream(spectra) & spectra["position"].notna(),
        "steps": lambda steps: steps["kind"] == "token",
    }
    found = {
        name: frame.loc[rows.get(name, slice(None)), DRAWN[name]] for name, frame in tables.items() if name in DRAWN
    }
    found = {name: frame for name, frame in found.items() if len(frame) or name in ("tokens", "predictions")}
    for name, columns in DIGITS.items():
        if name in found:
            brief = {c: [float(f"{x:.{n}g}") for x in found[name][c]] for c, n in columns.items()}
            found[name] = found[name].assign(**brief)
    return found


def _room(words: pd.DataFrame) -> int:
    """The number of top tokens of each contribution that fit on a page."""
    return max(1, MOST // max(1, int((words["rank"] == 0).sum())))


def of_stream(rows: pd.DataFrame) -> pd.Series:
    """Returns which rows of a table of layers belong to the residual stream and to cumulative operators.

    Args:
        rows: The rows.

    """
    return (rows["part"] == STREAM) & (rows["span"] == "cumulative")


def layer_words(layers: Layers, most: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the top tokens of each token's block of the residual stream, and the numbers of vectors and top tokens.

    Both numbers are as large as fits on a page. The first vector of every operator has at least three top tokens, for
    the map.

    Args:
        layers: The layers.
        most: The most top tokens of a vector.

    """
    depths = [replace(depth, whole=None) for depth in layers.depths]
    stream = [depth for depth in depths if (depth.part, depth.span) == (STREAM, "cumulative")]
    kept = max((len(f.S) for depth in stream for f in depth.tokens), default=0)
    tokens = max((len(depth.tokens) for depth in stream), default=0)
    each = MOST // max(1, 2 * tokens * len(stream))  # of both sides of a block
    vectors = max(1, min(kept, each // 4))
    top = max(1, min(most, each // vectors))
    words = replace(layers, depths=stream).words(top=top, vectors=vectors)
    first = replace(layers, depths=depths).words(top=IN_MAP, sides=["output"])
    both = pd.concat([words, first]).drop_duplicates(["layer", "part", "span", "position", "vector", "side", "rank"])
    return both, {"vectors": vectors, "top": top, "count": len(stream)}
