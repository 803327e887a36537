"""Figures by layer: the lens, spectra, stable ranks, and the path of the leading directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from secant.analyses.explanation import Explanation
from secant.analyses.lens import Lens
from secant.errors import BadArgument, quoted
from secant.figures import style
from secant.figures.maps import NEXT_TO, height, next_to, token_map
from secant.figures.style import COLOURS, as_figure, clipped, named, panels, shown, word
from secant.stream.depths import Layers
from secant.stream.sweep import STREAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {STREAM: "blue", "attn": "orange", "mlp": "green", "mixer": "purple"}
"""The colour of each part of a layer."""

WORDS = 0.65
"""The share of the axes' width that the top tokens of U₀ take next to spectra."""

DASHES = {"cumulative": "-", "layerwise": "--"}


@as_figure(of=Explanation, take=lambda e: e.lens)
def lens(found: Lens, ax: Any = None, *, part: str = STREAM, columns: int = 2) -> Figure:
    """Draw what each token and the constants contribute to the target's logit, a row for each layer.

    Next to a layer stand the target's probability and the top tokens there. Early layers have larger logits, so each
    layer is drawn in units of its largest contribution.

    Args:
        found: The lens.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        part: The part of the layers; by default the residual stream.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The lens does not have the part, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    rows = found.at(part)
    if rows.empty:
        known = ", ".join(dict.fromkeys(found.table["part"]))
        raise BadArgument(f"The parts of this lens are {known}", quoted(part), "Use sc.lens(run, parts=True).")
    terms = found.contributions(part).drop(columns=list(found.left_out))
    tokens = [token for t, token in enumerate(found.tokens) if t not in found.left_out]
    largest = terms.abs().max(axis=1)
    image = terms.div(largest.where(largest > 0, 1.0), axis=0).to_numpy()
    figure, (panel,) = panels(ax, 1, columns, height(len(rows)))
    names = [f"{row.probability:.0%} · {row.layer}" for row in rows.itertuples(index=False)]
    drawn = token_map(panel, image, names, tokens, "constants", share=NEXT_TO)
    of = clipped(shown(found.target), 12)
    panel.set_ylabel(f"probability of\n{of} · layer", parse_math=False)
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
    what = f"contributions to the logit of {of},\nby their layer's largest, under {found.convention}"
    bar.set_label(what, parse_math=False, fontsize=style.SMALL)
    own = found.words[(found.words["part"] == part) & (found.words["at"] == found.positions[0])]
    likely = {layer: [word(w) for w in words["word"]] for layer, words in own.groupby("layer")}
    next_to(panel, {"top tokens": [likely.get(layer, []) for layer in rows["layer"]]})
    return figure


@as_figure(of=Explanation, take=lambda e: e.layers)
def layer_spectra(layers: Layers, axes: Any = None, *, columns: int = 2) -> Figure:
    """Draw the leading singular values of all tokens' blocks, σ_i / σ_0, with the top tokens of U₀ next to them.

    Each layer has a row, and each span a panel.

    Args:
        layers: The layers.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The layers lack the rows of all tokens together, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    table = _together(layers.spectra())
    words = _together(layers.words(sides=["output"]))
    spans, depths = list(dict.fromkeys(table["span"])), sorted(set(table["layer"]))
    figure, found = panels(axes, len(spans), columns, 0.85 + style.ROW * len(depths))
    for panel, span in zip(found, spans, strict=True):
        named(panel, "y", [f"{layer}" for layer in depths])
        panel.set(ylim=(len(depths) - 0.5, -0.5), xlim=(0, 1.03), ylabel="layer")
        for row, (_, rows) in enumerate(table[table["span"] == span].groupby("layer")):
            panel.plot(rows["normalized"], [row] * len(rows), "-|", color=COLOURS["blue"], markersize=5, linewidth=0.5)
        panel.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        panel.spines["bottom"].set_bounds(0, 1)
        panel.set_xlabel("σᵢ / σ₀", loc="left")
        panel.tick_params(axis="y", length=0)
    for panel, span in zip(found, spans, strict=True):
        own = words[words["span"] == span].groupby("layer")["word"]
        decoded = {layer: [word(w) for w in some] for layer, some in own}
        next_to(panel, {f"U₀, {span}": [decoded.get(layer, []) for layer in depths]}, WORDS)
    return figure


NUMBER = np.array([0.11, 0.085])
"""The width and the height of a number in the figure `path`, in units of its axes."""


@as_figure(of=Explanation, take=lambda e: e.layers if len(e.svds[0].S) > 1 else None)
def path(layers: Layers, ax: Any = None, *, columns: int = 1) -> Figure:
    """Draw the top two left singular vectors of each depth in the plane of the last depth's. Numbers are layers.

    Args:
        layers: The layers.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    table = layers.path()
    figure, (panel,) = panels(ax, 1, columns, 3.2)
    turn = np.linspace(0, 2 * np.pi, 200)
    panel.plot(np.cos(turn), np.sin(turn), ":", color=COLOURS["grey"], linewidth=0.6)
    last = int(table["layer"].max())
    lines = [table[table["vector"] == vector].sort_values("layer") for vector in (0, 1)]
    drawn_at = np.concatenate([_along(own[["x", "y"]].to_numpy()) for own in lines])
    placed: list[np.ndarray[Any, Any]] = []
    for vector, colour, marker in ((0, "blue", "o"), (1, "orange", "s")):
        own = lines[vector]
        panel.plot(
            own["x"], own["y"], "-", marker=marker, markersize=3, color=COLOURS[colour], label=f"U{'₀₁'[vector]}"
        )
        _numbered(panel, own[["x", "y", "layer"]].to_numpy(), COLOURS[colour], last, drawn_at, placed)
    panel.set(xlabel="along the last layer's U₀", ylabel="along the last layer's U₁", aspect="equal")
    panel.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    panel.legend(loc="lower left")
    return figure


def _along(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Points on a line, close together."""
    t = np.arange(len(points))
    dense = np.linspace(0, len(points) - 1, 60 * len(points))
    return np.stack([np.interp(dense, t, points[:, i]) for i in (0, 1)], axis=1)


def _numbered(
    panel: Any,
    points: np.ndarray[Any, Any],
    colour: str,
    last: int,
    drawn_at: np.ndarray[Any, Any],
    placed: list[np.ndarray[Any, Any]],
) -> None:
    """Write the layer next to each point, from the last one on, on the side with most room; not where there is none."""
    angles = np.arange(12) * np.pi / 6
    for x, y, layer in points[::-1]:
        sides = np.array([x, y]) + NUMBER[0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        taken = np.concatenate([drawn_at, *(own[None] + NUMBER * np.array([[a, b]]) / 2 for own in placed
                                            for a in (-1, 0, 1) for b in (-1, 0, 1))])  # fmt: skip
        room = (np.abs(sides[:, None] - taken) / NUMBER).max(axis=2).min(axis=1)
        room[np.abs(sides).max(axis=1) > 1.1] = 0
        if room.max() > 0.6:
            placed.append(sides[room.argmax()])
            bold = "bold" if layer == last else None
            where = {"ha": "center", "va": "center", "fontsize": style.SMALL, "color": colour, "fontweight": bold}
            panel.text(*placed[-1], f"{layer:.0f}", **where)


@as_figure(of=Explanation, take=lambda e: e.layers)
def stable_ranks(layers: Layers, ax: Any = None, *, columns: int = 1) -> Figure:
    """Draw the stable rank of all tokens' blocks by layer: the residual stream and its parts, cumulative and layerwise.

    Args:
        layers: The layers.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The layers lack the rows of all tokens together, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    table = _together(layers.to_pandas())
    figure, (panel,) = panels(ax, 1, columns, 2.4)
    for (part, span), rows in table.groupby(["part", "span"], sort=False):
        own = rows.sort_values("layer")
        panel.plot(
            own["layer"],
            own["stable_rank"],
            DASHES[span],
            marker=".",
            color=COLOURS[PARTS[part]],
            label=f"{part}, {span}",
        )
    panel.set(xlabel="layer", ylabel="stable rank", yscale="log")
    style.plain(panel.yaxis)
    panel.xaxis.get_major_locator().set_params(integer=True)
    style.keyed(figure, panel, ax)
    return figure


def _together(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all tokens together. Raises BadArgument if there are none."""
    rows = table[table["position"].isna()]
    if "vector" in table:
        rows = rows[rows["part"] == STREAM]
    if rows.empty:
        raise BadArgument(
            "This figure requires the rows of all tokens together",
            "layers without them",
            "Use layers(run, all_tokens=True).",
        )
    return rows
