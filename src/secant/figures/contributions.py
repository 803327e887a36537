"""Figures of attributions: bars for tokens and parts, and a map of tokens x parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from secant.analyses.attribution import Attribution
from secant.analyses.explain import Explanation
from secant.errors import BadArgument, integer
from secant.figures import style
from secant.figures.style import COLOURS, clipped, drawn, named, panels, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONSTANTS = "constants"
PATHS = {"direct": "straight to the logit", "all": "by all paths"}


@drawn(of=Explanation, take=lambda e: e.attribution)
def attribution(a: Attribution, axes: Any = None, *, most: int = 40, columns: int | None = None) -> Figure:
    """Draw a logit as two sums of bars: over tokens, and over the parts that write it.

    Args:
        a: The attribution. Without parts, the figure has one panel.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        most: How many tokens or parts have a bar of their own, the largest first. The rest share one bar.
        columns: The width of a new figure, in columns of a paper; by default one for each panel.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    most = integer(most, 1, 10**6, "A figure requires at least one bar", "most = ")
    sums = [("where it comes from", ["token", "constant"])]
    if a.direct is not None:
        sums.append((f"what writes it, {PATHS['direct']}", ["embed", "layer", "outside"]))
    table = a.table[~((a.table["kind"] == "token") & a.table["position"].isin(a.left_out))]
    bars = [(title, _bars(table[table["kind"].isin(kinds)], most)) for title, kinds in sums]
    heights = [0.95 + style.ROW * len(found) for _, found in bars]
    figure, found = panels(axes, len(bars), columns or len(bars), heights)
    for panel, (title, own) in zip(found, bars, strict=True):
        values = [value for _, value in own]
        colours = [COLOURS["blue"] if value >= 0 else COLOURS["orange"] for value in values]
        drawn = panel.barh(range(len(own)), values, color=colours, height=0.75)
        numbers = [style.number(value) for value in values]
        panel.bar_label(drawn, numbers, padding=2, fontsize=style.SMALL)
        panel.axvline(0, color=COLOURS["black"], linewidth=0.6)
        named(panel, "y", [name for name, _ in own])
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set(xlim=_ends(panel, values, numbers), ylim=(len(own) - 0.5, -0.5), title=title)
        panel.set_xlabel(_logit(a), parse_math=False)
    return figure


def _bars(table: pd.DataFrame, most: int) -> list[tuple[str, float]]:
    """Names and contributions: tokens or parts in order, then all constants, then all others."""
    constants = table["kind"].isin(["constant", "outside"])
    rows = table[~constants]
    kept = rows["contribution"].abs().sort_values(ascending=False, kind="stable").index[:most]
    found = [
        (clipped(shown(row.name) if row.kind == "token" else row.name), row.contribution)
        for row in rows[rows.index.isin(kept)].itertuples(index=False)
    ]
    if constants.any():
        found.append((CONSTANTS, float(table[constants]["contribution"].sum())))
    if len(rows) > most:
        found.append((f"{len(rows) - most} others", float(rows[~rows.index.isin(kept)]["contribution"].sum())))
    return found


def _ends(panel: Any, values: Sequence[float], numbers: Sequence[str]) -> tuple[float, float]:
    """The limits of the axis of bars, with room for the numbers at their ends."""
    low, high = min(0.0, *values), max(0.0, *values)
    widest = 6 + max(style.width_of(number, style.SMALL) for number in numbers)
    room = 0.7 * panel.figure.get_figwidth() * 72 * panel.get_position().width
    each = (high - low or 1.0) / max(1.0, room - 2 * widest) * widest
    return low - (each if low < 0 else 0), high + each


def _logit(a: Attribution) -> str:
    """The axis label that names the logit, on two lines if it is long."""
    of, over = f"logit of {clipped(shown(a.target))}", "" if a.versus is None else f"over {clipped(shown(a.versus))}"
    gap = "\n" if len(of + over) > 22 else " "
    return f"{of}{gap if over else ''}{over}, {a.logit:.4g} in all"


@drawn
def flow(a: Attribution, ax: Any = None, *, path: str = "direct", columns: int = 2) -> Figure:
    """Draw what each token and the constants contribute to each part, as a map.

    Args:
        a: The attribution, computed with `flow=True`.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        path: "direct", straight to the logit, in which case the map sums to the logit; or "all", by all paths.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The attribution has no flow, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    if a.flow is None:
        raise BadArgument("A map of tokens and parts requires their flow", "none", "Use attribute(run, flow=True).")
    if path not in PATHS:
        raise BadArgument(f"The path must be {' or '.join(PATHS)}", repr(path), "Choose one of them.")
    rows = a.flow[(a.flow["path"] == path) & a.flow["head"].isna() & ~a.flow["position"].isin(a.left_out)]
    names = list(dict.fromkeys(rows["name"]))
    tokens = rows[rows["position"].notna()].drop_duplicates("position").sort_values("position")
    places = [*tokens["position"], None]
    cells = {
        (r.name, None if pd.isna(r.position) else r.position): r.contribution for r in rows.itertuples(index=False)
    }
    image = [[cells.get((name, place), 0.0) for place in places] for name in names]  # "outside" has constants only
    figure, (panel,) = panels(ax, 1, columns, 1.3 + style.ROW * len(names))
    end = max(abs(value) for row in image for value in row) or 1.0
    drawn = style.token_map(panel, image, names, tokens["token"].tolist(), CONSTANTS, end)
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
    bar.set_label(f"{_logit(a)},\n{PATHS[path]}", parse_math=False, fontsize=style.SMALL + 0.5)
    return figure
