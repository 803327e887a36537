"""Figures by layer: the lens, spectra, stable ranks, and the path of the leading directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from secant.analyses.explain import Explanation
from secant.analyses.lens import Lens
from secant.errors import BadArgument
from secant.figures import style
from secant.figures.style import COLOURS, clipped, drawn, panels, shown
from secant.stream.layers import Layers
from secant.stream.sweep import STREAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {STREAM: "blue", "attn": "orange", "mlp": "green", "mixer": "purple"}
"""The colour of each part of a layer."""

DASHES = {"cumulative": "-", "layerwise": "--"}


@drawn(of=Explanation, take=lambda e: e.lens)
def lens(found: Lens, ax: Any = None, *, part: str = STREAM, columns: int = 2) -> Figure:
    """Draw what each token and the constants contribute to the target's logit, a row for each layer.

    Next to a layer stand its top token and the target's probability there. Early layers have larger logits, so each
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
        raise BadArgument(f"The parts of this lens are {known}", f"{part!r:.60}", "Use sc.lens(run, parts=True).")
    terms = found.contributions(part).drop(columns=list(found.left_out))
    tokens = [token for t, token in enumerate(found.tokens) if t not in found.left_out]
    largest = terms.abs().max(axis=1)
    image = terms.div(largest.where(largest > 0, 1.0), axis=0).to_numpy()
    figure, (panel,) = panels(ax, 1, columns, 1.3 + style.ROW * len(rows))
    names = [
        f"{clipped(shown(row.top), 12)}  {row.probability:.0%}  {row.layer}" for row in rows.itertuples(index=False)
    ]
    drawn = style.token_map(panel, image, names, tokens, "constants", 1.0)
    panel.set_title(f"top token, probability of {clipped(shown(found.target))}, layer", parse_math=False, loc="left")
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
    of = clipped(shown(found.target), 12)
    what = f"logit of {of}, contributions\nby their layer's largest, under {found.convention}"
    bar.set_label(what, parse_math=False, fontsize=style.SMALL)
    return figure


@drawn(of=Explanation, take=lambda e: e.layers)
def layer_spectra(layers: Layers, axes: Any = None, *, columns: int = 2) -> Figure:
    """Draw the leading singular values of all tokens' blocks, σ_i / σ_0: a line for each layer, a panel for each span.

    Args:
        layers: The layers.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The layers lack the rows of all tokens together, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    table = _together(layers.spectra())
    spans = list(dict.fromkeys(table["span"]))
    figure, found = panels(axes, len(spans), columns, 2.2, sharey=True)
    count = int(table["layer"].max()) + 1
    colours = _ramp(count)
    for panel, span in zip(found, spans, strict=True):
        for layer, rows in table[table["span"] == span].groupby("layer"):
            panel.plot(rows["vector"], rows["normalized"], marker=".", color=colours(layer))
        panel.set(title=span, xlabel="i", ylim=(0, 1.05))
        panel.set_xticks(sorted(set(table["vector"])))
    found[0].set_ylabel("σᵢ / σ₀")
    _key(figure, found, count)
    return figure


@drawn(of=Explanation, take=lambda e: e.layers if len(e.svds[0].S) > 1 else None)
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
    placed: list[tuple[float, float]] = []
    for vector, colour, marker in ((0, "blue", "o"), (1, "orange", "s")):
        own = table[table["vector"] == vector].sort_values("layer")
        panel.plot(
            own["x"], own["y"], "-", marker=marker, markersize=3, color=COLOURS[colour], label=f"U{'₀₁'[vector]}"
        )
        _numbered(panel, own[["x", "y", "layer"]].to_numpy(), COLOURS[colour], last, placed)
    panel.set(xlabel="along the last layer's U₀", ylabel="along the last layer's U₁", aspect="equal")
    panel.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    panel.legend(loc="lower left")
    return figure


def _numbered(
    panel: Any, points: np.ndarray[Any, Any], colour: str, last: int, placed: list[tuple[float, float]]
) -> None:
    """Write the layer at each point, from the last one on, unless a number is already close."""
    for x, y, layer in points[::-1]:
        if all(np.hypot(x - a, y - b) > 0.16 for a, b in placed):
            placed.append((x, y))
            where = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": style.SMALL}
            panel.annotate(f"{layer:.0f}", (x, y), color=colour, fontweight="bold" if layer == last else None, **where)


@drawn(of=Explanation, take=lambda e: e.layers)
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


def _ramp(count: int) -> Any:
    """A function from a layer to its colour, for so many layers."""
    import matplotlib

    colours = matplotlib.colormaps[style.RAMP]
    return lambda layer: colours(0.92 * layer / max(1, count - 1))


def _key(figure: Figure, axes: list[Any], count: int) -> None:
    """A colour bar of layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = _ramp(count)
    shades = ListedColormap([colours(i) for i in range(count)])
    scale = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), shades)
    step = -(-count // 8)
    figure.colorbar(scale, ax=axes, label="layer", ticks=range(0, count, step), fraction=0.05, pad=0.02)
