"""The paper's claims: what is measured for each at every prompt, and which mean supports it.

The paper: J. Golden, "Equivalent Linear Mappings of Large Language Models" (TMLR 2025, arXiv 2505.24293).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from secant.studies.statistics import interval

MODELS = {"smollm2": "SmolLM2 135M", "gemma3": "Gemma 3 270M", "atlas": "Atlas 0.3M", "craftgpt": "craftgpt"}
"""The name of each model in tables and figures, in their order."""

RESAMPLES, SEED = 4000, 0
FEW = 8
"""With fewer prompts there is neither an interval nor a verdict."""

DEFAULT = "gate"
"""The paper's convention, which is also the default of operators."""

Values = Callable[[pd.DataFrame], pd.Series]
"""One number for each prompt, from a model's rows."""


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        group: What it is about.
        name: What is measured.
        paper: What the paper says.
        values: The number of each prompt.
        form: How numbers are written: number, share, or error (the median and the largest).
        holds: Whether a mean supports it; None if there is nothing to decide.

    """

    group: str
    name: str
    paper: str
    values: Values
    form: str = "number"
    holds: Callable[[float], bool] | None = None


def measured(
    rows: pd.DataFrame, measure: str, at: str | None = None, convention: str = DEFAULT, precision: str = "float32"
) -> pd.Series:
    """One measure of each prompt.

    Args:
        rows: A model's rows.
        measure: The measure.
        at: The place; by default the only one.
        convention: The convention.
        precision: The type that the model ran in.

    """
    own = rows[(rows["measure"] == measure) & (rows["convention"] == convention) & (rows["precision"] == precision)]
    own = own if at is None else own[own["at"] == at]
    return own.groupby("text")["value"].mean()


def ranks(rows: pd.DataFrame, convention: str = DEFAULT, first: bool = False) -> pd.Series:
    """The stable rank of the first token's block, or the mean of the later ones'."""
    own = rows[(rows["measure"] == "stable_rank") & (rows["convention"] == convention) & (rows["at"] != "together")]
    return own[(own["at"] == "0") == first].groupby("text")["value"].mean()


def first_is_largest(rows: pd.DataFrame) -> pd.Series:
    """Whether the first token's block has the largest norm."""
    own = rows[(rows["measure"] == "frobenius") & (rows["convention"] == DEFAULT) & (rows["at"] != "together")]
    norms = own.groupby(["text", "at"])["value"].mean().unstack()
    return (norms.idxmax(axis=1) == "0").astype(float)


def curve(rows: pd.DataFrame, span: str, at: str = "together") -> pd.DataFrame:
    """Stable ranks of the residual stream: a row for each prompt, a column for each layer."""
    own = rows[(rows["measure"] == span) & (rows["at"] == at)]
    return own.pivot_table(index="text", columns="layer", values="value")


def at_layer(rows: pd.DataFrame, span: str, number: int) -> pd.Series:
    """The stable rank after a layer, counted from the first or from the last."""
    own = curve(rows, span)
    return own.iloc[:, number] if own.shape[1] else own.squeeze(axis=1)


def falls(rows: pd.DataFrame, every: bool) -> pd.Series:
    """Whether the cumulative rank is lower after the last layer than after the first; or after every layer."""
    own = curve(rows, "cumulative")
    if not own.shape[1]:
        return pd.Series(dtype=float)
    lower = (own.diff(axis=1).iloc[:, 1:] < 0).all(axis=1) if every else own.iloc[:, -1] < own.iloc[:, 0]
    return lower.astype(float)


def peak(rows: pd.DataFrame) -> pd.Series:
    """The depth of the layer with the highest layerwise rank: 1 is the last layer."""
    own = curve(rows, "layerwise")
    return (own.idxmax(axis=1).astype(float) + 1) / own.shape[1] if own.shape[1] else pd.Series(dtype=float)


def peaks_late(rows: pd.DataFrame) -> pd.Series:
    """Whether that layer is in the last quarter."""
    return (peak(rows) > 0.75).astype(float)


def _of(measure: str, at: str | None = None, precision: str = "float32") -> Values:
    return partial(measured, measure=measure, at=at, precision=precision)


EXACT, RANK, DEPTH, WORDS = "Exactness", "Low rank", "Depth", "Words"
CLAIMS = (
    Claim(EXACT, "reconstruction error, float64", "about 1e-14", _of("reconstruction", precision="float64"), "error",
          lambda most: most < 1e-13),
    Claim(EXACT, "float32", "about 1e-6", _of("reconstruction"), "error", lambda most: most < 1e-5),
    Claim(EXACT, "bfloat16", "about 1e-2", _of("reconstruction", precision="bfloat16"), "error",
          lambda most: most < 0.05),
    Claim(EXACT, "error of the ordinary Jacobian", "fails: 1.2 to 1.4", _of("ordinary"), "number", lambda m: m > 0.5),
    Claim(RANK, "R of the first token", "1.06 (BOS), 1.01 (none)", partial(ranks, first=True), "number",
          lambda m: m < 1.1),
    Claim(RANK, "R of a later token", "low", ranks, "number", lambda m: m < 30),
    Claim(RANK, "R of all tokens together", "1.3 to 6.6", _of("stable_rank", "together"), "number", lambda m: m < 10),
    Claim(RANK, "the first token's J_t has the largest norm", "yes", first_is_largest, "share", lambda m: m > 0.5),
    Claim(DEPTH, "cumulative R after the first layer", "122.8", partial(at_layer, span="cumulative", number=0)),
    Claim(DEPTH, "cumulative R after the last layer", "1.3", partial(at_layer, span="cumulative", number=-1)),
    Claim(DEPTH, "cumulative R falls from the first layer to the last", "yes", partial(falls, every=False), "share",
          lambda m: m > 0.5),
    Claim(DEPTH, "cumulative R falls at every layer", "", partial(falls, every=True), "share"),
    Claim(DEPTH, "layerwise R peaks in the last quarter of the layers", "yes, layer 26 of 28", peaks_late, "share",
          lambda m: m > 0.5),
    Claim(DEPTH, "depth of that peak (1: the last layer)", "0.93", peak),
    Claim(DEPTH, "prediction is the top token of U₀ after some layer", "yes", _of("seen"), "share", lambda m: m > 0.5),
    Claim(DEPTH, "depth at which it first is", "late", _of("seen_depth"), "number", lambda m: m > 0.5),
    Claim(WORDS, "prediction in U₀ of all tokens", "yes", _of("writes_together"), "share", lambda m: m > 0.5),
    Claim(WORDS, "prediction in U₀ of the last token", "", _of("writes_last"), "share", lambda m: m > 0.5),
    Claim(WORDS, "prediction in U₀ of any token", "yes", _of("writes_any"), "share", lambda m: m > 0.5),
    Claim(WORDS, "prediction in U₀ of all tokens, by logit", "yes", _of("logit_together"), "share", lambda m: m > 0.5),
    Claim(WORDS, "prediction in U₀ of the last token, by logit", "", _of("logit_last"), "share", lambda m: m > 0.5),
    Claim(WORDS, "in a random direction", "", _of("writes_chance"), "share"),
    Claim(WORDS, "another prompt's prediction in U₀ of all tokens", "", _of("writes_other"), "share"),
    Claim(WORDS, "tokens in their own V₀", "yes", _of("reads_own"), "share", lambda m: m > 0.5),
    Claim(WORDS, "tokens in their own V₀, by plain cosine", "yes", _of("reads_plain"), "share", lambda m: m > 0.5),
    Claim(WORDS, "in a random direction ", "", _of("reads_chance"), "share"),
)  # fmt: skip
"""Every claim. A verdict depends on the mean's interval: yes if both ends support the claim, no if neither does, open
otherwise. For errors, it depends on the largest.
"""


def said(values: pd.Series, form: str, counted: bool = True) -> str:
    """The mean over prompts and its 95 % bootstrap interval; for errors the median and the largest.

    Args:
        values: The number of each prompt.
        form: How numbers are written.
        counted: Whether to say how many prompts there are if they are few.

    """
    numbers = values.dropna().to_numpy(float)
    if not len(numbers):
        return "–"
    few = f" (n = {len(numbers)})" if counted and len(numbers) < FEW else ""
    if form == "error":
        return f"{pd.Series(numbers).median():.1e}, at most {numbers.max():.1e}{few}"
    written = _share if form == "share" else _number
    low, high, _ = interval(numbers, SEED, RESAMPLES) if len(numbers) >= FEW else (float("nan"),) * 3
    ends = "" if low != low else f" [{written(low)}, {written(high)}]"
    return f"{written(numbers.mean())}{ends}{few}"


def _share(value: float) -> str:
    return f"{value:.1%}" if 0 < min(value, 1 - value) < 0.0095 else f"{value:.0%}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def verdict(claim: Claim, values: pd.Series) -> str:
    """Whether a model supports a claim: yes, no, or open if the interval contains both; empty if nothing is decided."""
    numbers = values.dropna().to_numpy(float)
    if claim.holds is None or len(numbers) < (1 if claim.form == "error" else FEW):
        return ""
    if claim.form == "error":
        return "yes" if claim.holds(numbers.max()) else "no"
    low, high, _ = interval(numbers, SEED, RESAMPLES)
    ends = {claim.holds(end) for end in ((low, high) if low == low else (numbers.mean(),))}
    return "open" if len(ends) == 2 else "yes" if ends == {True} else "no"
