"""Statistics of a number over prompts: its mean with a confidence interval, its quantiles, and how many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy

from secant.results.schema import Column

LEVEL = 0.95
"""The confidence level of intervals."""

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

JACKKNIFE = 1000
"""Up to this number of prompts, intervals are bias-corrected and accelerated, at a quadratic cost."""

ROOM = 2**22
"""The number of resampled numbers that are in memory together."""

ONE, ALIKE, UNDEFINED = "none: one prompt", "none: all alike", "none: too few distinct values"
"""The reasons why there is no interval."""


def statistics(unit: str) -> tuple[Column, ...]:
    """The columns of a number's statistics over prompts.

    Args:
        unit: The number's unit.

    """
    return (
        Column("n", int, "how many prompts have such a number", "prompts"),
        Column("mean", float, "the mean over them", unit),
        Column(
            "low", float, "lower end of its 95 % bootstrap interval over prompts; missing where there is none", unit
        ),
        Column("high", float, "upper end of it", unit),
        Column("interval", str, "how it was found: BCa or percentile; or why there is none"),
        Column("q05", float, "5th percentile over the prompts", unit),
        Column("q25", float, "first quartile", unit),
        Column("median", float, "median", unit),
        Column("q75", float, "third quartile", unit),
        Column("q95", float, "95th percentile", unit),
    )


def interval(values: np.ndarray[Any, Any], seed: int, resamples: int) -> tuple[float, float, str]:
    """The 95 % bootstrap interval of a mean.

    Args:
        values: The numbers, one for each prompt.
        seed: The seed of the resamples.
        resamples: How many resamples to draw.

    Returns:
        Its ends and the method, BCa or percentile; or NaN twice, and the reason why there is no interval.

    >>> interval(np.array([3.0]), 0, 100)
    (nan, nan, 'none: one prompt')
    """
    if len(values) < 2:
        return np.nan, np.nan, ONE
    if np.ptp(values) == 0:
        return np.nan, np.nan, ALIKE  # all resamples are equal and would give a width of 0
    method = "BCa" if len(values) <= JACKKNIFE else "percentile"
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=max(1, ROOM // len(values)), vectorized=True, axis=-1,
        confidence_level=LEVEL, method=method, random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    if np.isnan(found.low) or np.isnan(found.high):
        return np.nan, np.nan, UNDEFINED
    return float(found.low), float(found.high), method


def described(values: pd.DataFrame, keys: Sequence[str], seed: int, resamples: int) -> list[dict[str, Any]]:
    """The statistics of the column `value` over prompts, for each combination of keys.

    Args:
        values: One row for each prompt and combination of keys. Missing values are left out.
        keys: The names of the key columns.
        seed: The seed of the bootstrap.
        resamples: How many resamples each interval uses.

    Returns:
        The rows: over all prompts (category missing), and over the prompts of each category.

    """
    values = values[values["value"].notna()]
    several = values[values["category"].notna()]
    groups = [(frame, by) for frame, by in ((values, [*keys]), (several, [*keys, "category"])) if len(frame)]
    rows = []
    for frame, by in groups:
        for key, own in frame.groupby(by, sort=False, dropna=False):
            numbers = own["value"].to_numpy(float)
            low, high, how = interval(numbers, seed, resamples)
            quantiles = np.quantile(numbers, list(QUANTILES.values()))
            rows.append(
                {"category": None, **dict(zip(by, key, strict=True)), "n": len(numbers), "mean": numbers.mean(),
                 "low": low, "high": high, "interval": how, **dict(zip(QUANTILES, quantiles, strict=True))}
            )  # fmt: skip
    return rows
