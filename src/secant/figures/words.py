"""Tables of top tokens, layer x token: of each token's leading direction, and of the residual stream at each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from secant.analyses.explanation import Explanation
from secant.analyses.lens import Lens
from secant.errors import BadArgument, integer
from secant.figures import style
from secant.figures.maps import height, word_map, worded
from secant.figures.style import as_figure, clipped, panels, shown, word
from secant.stream.depths import Layers
from secant.stream.sweep import STREAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 33.0
"""The minimum width in points of a column of top tokens."""


@as_figure(of=Explanation, take=lambda e: e.layers)
def layer_words(
    layers: Layers, ax: Any = None, *, part: str = STREAM, span: str = "cumulative", most: int | None = None,
    columns: int = 2,
) -> Figure:  # fmt: skip
    """Draw a table of layers x tokens: the top token of U₀ of each token's block, on the colour of its σ₀.

    Layers differ in size, so each is drawn in units of its largest σ₀. The predicted token is bold.

    Args:
        layers: The layers.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        part: The part of the layers; by default the residual stream.
        span: "cumulative" (from the embeddings) or "layerwise" (from the residual stream before the layer).
        most: How many tokens, those of the largest σ₀ in the last layer; by default as many as there is room for.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The layers do not have the part and span, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    blocks = layers.to_pandas().dropna(subset="position")
    own = blocks[(blocks["part"] == part) & (blocks["span"] == span)]
    if own.empty:
        known = "; ".join(dict.fromkeys(f"{p}, {s}" for p, s in zip(blocks["part"], blocks["span"], strict=True)))
        raise BadArgument(f"Parts and spans of these layers are {known}", f"{part!r:.40}, {span!r:.40}", "Choose one.")
    sigma = own.pivot_table("sigma_0", "layer", "position", sort=True)
    words = layers.words(top=1, sides=["output"])
    words = words[words["position"].notna() & (words["part"] == part) & (words["span"] == span)]
    found = _cells(words, "word", sigma)
    image = sigma.div(sigma.max(axis=1).where(sigma.max(axis=1) > 0, 1.0), axis=0)
    strong = _cells(words, "id", sigma) == layers.predicted
    what = f"σ₀ by its layer's largest,\n{part}, {span}, under {layers.run.certificate.convention}"
    title = "top token of U₀"
    return _table(ax, columns, layers.run.tokens, most, sigma.iloc[-1], (found, image, strong), what, title)


@as_figure(of=Explanation, take=lambda e: e.lens)
def logit_lens(lens: Lens, ax: Any = None, *, most: int | None = None, columns: int = 2) -> Figure:
    """Draw a table of layers x tokens: the top token of the residual stream there, on the colour of its probability.

    The lens's target is bold. Each cell reads out the token's own position; `figures.lens` splits one position's cells
    into contributions.

    Args:
        lens: The lens.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        most: How many tokens, those that contribute most after the last layer; by default as many as there is room for.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    own = lens.table[(lens.table["part"] == STREAM) & ~lens.table["position"].isin(lens.left_out)]
    image = own.pivot_table("top_probability", "layer", "position", sort=True)
    found, ranks = _cells(own, "top", image), own.pivot_table("rank", "layer", "position", sort=True)
    sizes = lens.contributions().iloc[-1, :-1].abs().reindex(image.columns)
    what = "probability of the top token"
    return _table(ax, columns, lens.tokens, most, sizes, (found, image, ranks == 0), what, "top token")


def _cells(rows: pd.DataFrame, column: str, like: pd.DataFrame) -> pd.DataFrame:
    """A column of the rows, as layers x tokens like another frame; missing where there is no row."""
    own = rows.set_index(["layer", "position"])[column]
    return own.unstack("position").reindex(index=like.index, columns=like.columns)


def _table(
    ax: Any,
    columns: int,
    tokens: Sequence[str],
    most: int | None,
    sizes: pd.Series,
    cells: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    what: str,
    title: str,
) -> Figure:
    """Draw the words of the tokens with the largest sizes, with their colours and weights."""
    words, image, strong = cells
    figure, (panel,) = panels(ax, 1, columns, height(len(words)))
    room = int(0.95 * figure.get_figwidth() * 72 * panel.get_position().width // COLUMN)
    most = max(1, room) if most is None else integer(most, 1, 10**6, "A table requires at least one token", "most = ")
    kept = sorted(sizes.sort_values(ascending=False, kind="stable").index[:most])
    names = [clipped(shown(tokens[int(t)]), 12) for t in kept]
    drawn = word_map(panel, image[kept].to_numpy(float), [f"{layer}" for layer in image.index], names)
    panel.set_ylabel("layer")
    panel.set_title(title + (f", {len(kept)} of {len(sizes)} tokens" if len(kept) < len(sizes) else ""), loc="left")
    bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02, ticks=[0, 0.5, 1])
    bar.ax.set_ylim(0, 1)
    bar.set_label(what, fontsize=style.SMALL)
    worded(panel, [[word(w) if isinstance(w, str) else "" for w in own] for own in words[kept].to_numpy()],
           strong[kept].fillna(False).to_numpy(bool))  # fmt: skip
    return figure
