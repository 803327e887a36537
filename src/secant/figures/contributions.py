"""Figures of attributions: bars for tokens and parts, and maps of tokens x parts and of layers x parts and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from secant.analyses.attribution import Attribution
from secant.analyses.explanation import Explanation
from secant.errors import BadArgument, integer, quoted
from secant.figures import style
from secant.figures.maps import NEXT_TO, apart, height, next_to, signed_map, token_map
from secant.figures.style import COLOURS, as_figure, clipped, named, panels, shown, word
from secant.stream.sweep import part_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONSTANTS = "constants"
PATHS = {"direct": "straight to the logit", "all": "along all paths"}
COLUMNS = {"direct": "contribution", "all": "all_paths"}
"""Paths, and the column of an attribution's table that has each."""


@as_figure(of=Explanation, take=lambda e: e.attribution)
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
    sums = [("sources of the logit", ["token", "constant"])]
    if a.direct is not None:
        sums.append((f"parts that write it, {PATHS['direct']}", ["embed", "layer", "outside"]))
    table = a.table[~((a.table["kind"] == "token") & a.table["position"].isin(a.left_out))]
    rest = {"token": "reference" if a.origin == "reference" else CONSTANTS}
    bars = [(t, _bars(table[table["kind"].isin(kinds)], most, rest.get(kinds[0], CONSTANTS))) for t, kinds in sums]
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


def _bars(table: pd.DataFrame, most: int, rest: str) -> list[tuple[str, float]]:
    """Names and contributions: tokens or parts in order, then all constants as `rest`, then all others."""
    constants = table["kind"].isin(["constant", "outside"])
    rows = table[~constants]
    kept = rows["contribution"].abs().sort_values(ascending=False, kind="stable").index[:most]
    found = [
        (clipped(shown(row.name) if row.kind == "token" else row.name), row.contribution)
        for row in rows[rows.index.isin(kept)].itertuples(index=False)
    ]
    if constants.any():
        found.append((rest, float(table[constants]["contribution"].sum())))
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


@as_figure
def flow(a: Attribution, ax: Any = None, *, path: str = "direct", columns: int = 2) -> Figure:
    """Draw what each token and the constants contribute to each part, as a map.

    Args:
        a: The attribution, computed with `flow=True`.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        path: "direct", straight to the logit, in which case the map sums to the logit; or "all", along all paths.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The attribution has no flow, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    if a.flow is None:
        raise BadArgument("A map of tokens and parts requires their flow", "none", "Use attribute(run, flow=True).")
    _by(path)
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
    drawn = token_map(panel, image, names, tokens["token"].tolist(), CONSTANTS, end)
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
    bar.set_label(f"{_logit(a)},\n{PATHS[path]}", parse_math=False, fontsize=style.SMALL + 0.5)
    return figure


def _by(path: str) -> str:
    """The column of a path. Raises BadArgument if there is no such path."""
    if path not in PATHS:
        raise BadArgument(f"The path must be {' or '.join(PATHS)}", quoted(path), "Choose one of them.")
    return COLUMNS[path]


@as_figure(of=Explanation, take=lambda e: e if e.run.inside.layers else None)
def components(found: Explanation | Attribution, ax: Any = None, *, path: str = "direct", columns: int = 2) -> Figure:
    """Draw what each attention, MLP and head contributes to the logit, a row for each layer.

    Next to each layer stand its largest head and the top tokens of what that head writes. Heads are smaller than the
    parts of layers, so each of the two kinds is drawn in units of its own largest contribution.

    Args:
        found: The explanation; or an attribution with parts, which has no top tokens next to it.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        path: "direct", straight to the logit, in which case parts sum to the logit and heads to their attention; or
            "all", along all paths, which overlap.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The attribution has no parts, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    case = found.case if isinstance(found, Explanation) else None
    a = found if isinstance(found, Attribution) else found.case.attribution(parts=True, flow=True)
    parts, heads = _by_layer(a, _by(path))
    ends = [frame.abs().max().max() or 1.0 for frame in (parts, heads) if frame.size]
    image = pd.concat([frame / end for frame, end in zip((parts, heads), ends, strict=False)], axis=1)
    names = [*parts.columns, *(f"head {h:.0f}" if not i else f"{h:.0f}" for i, h in enumerate(heads))]
    share = NEXT_TO if case is not None and heads.size else 0.0
    figure, (panel,) = panels(ax, 1, columns, height(len(parts)))
    drawn = signed_map(panel, image.to_numpy(float), [f"{layer:.0f}" for layer in parts.index], names, share=share)
    panel.set_ylabel("layer")
    apart(panel, parts.shape[1])
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
    sizes = ", ".join(f"{what} by {style.number(end)}" for what, end in zip(("parts", "heads"), ends, strict=False))
    bar.set_label(f"{_logit(a)},\n{PATHS[path]};\n{sizes}", parse_math=False, fontsize=style.SMALL)
    if case is not None and heads.size:
        next_to(panel, {"largest head": _heads_words(case.head_words, heads.abs().idxmax(axis=1))}, share)
    return figure


def _by_layer(a: Attribution, column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A column of the table, as layers x parts and as layers x heads. Raises BadArgument if there are no parts."""
    rows = a.table.assign(value=a.table[column], part=a.table["name"].map(part_of))
    parts = rows[rows["kind"] == "layer"]
    if parts.empty:
        raise BadArgument("A map of components requires the parts of layers", "none", "Use attribute(run, parts=True).")
    parts = parts.pivot_table("value", "layer", "part", aggfunc="sum", sort=False)
    heads = rows[(rows["kind"] == "head") & rows["head"].notna()]
    return parts, heads.pivot_table("value", "layer", "head", sort=True).reindex(parts.index)


def _heads_words(table: pd.DataFrame, largest: pd.Series) -> list[list[str]]:
    """For each layer its largest head, and the top tokens of what it writes."""
    own = table[table["sign"] == "promoted"]
    written = {key: rows["word"].tolist() for key, rows in own.groupby(["layer", "head"])}
    found = [(head, [word(w) for w in written.get((layer, head), [])]) for layer, head in largest.items()]
    return [[f"{head:.0f}: {words[0]}", *words[1:]] if words else [f"{head:.0f}"] for head, words in found]
