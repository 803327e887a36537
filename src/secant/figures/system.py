"""Figures of one prompt's linear system: reconstruction, J as an image, spectra and top tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secant.analyses.explanation import Explanation
from secant.errors import BadArgument, integer, quoted
from secant.figures import style
from secant.figures.maps import next_to
from secant.figures.style import COLOURS, as_figure, clipped, named, panels, shown, word
from secant.linearize.run import Run
from secant.numeric import wide
from secant.operators.operator import Operator
from secant.stream.largest import Largest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 0.3
"""The share of the axes' width that bars take; top tokens are in the rest."""

PIXELS = 1500
"""The largest side of J that is drawn entry by entry. Longer sides are drawn as means of neighbours."""


@as_figure(of=Explanation, take=lambda e: e.run)
def reconstruction(run: Run, axes: Any = None, *, columns: int = 2) -> Figure:
    """Draw J x + b against the model's y, and a histogram of the errors, next to the ordinary Jacobian's J' x.

    Errors are relative to the root mean square of y. The legend counts the errors that are exactly 0.

    Args:
        run: The run.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    figure, (scatter, errors) = panels(axes, 2, columns, 2.4 if columns == 2 else 1.8)
    op = run.operator()
    y, frozen = wide(op.output).numpy(), op.rebuilt.numpy()
    ordinary = wide(run.ordinary).numpy()
    both = {"J x + b": (frozen, "blue", "o"), "ordinary J′ x": (ordinary, "orange", "x")}
    size = float(np.sqrt(np.mean(y**2)))
    relative = {name: np.abs(found - y) / size for name, (found, *_) in both.items()}
    low, high = min(y.min(), ordinary.min()), max(y.max(), ordinary.max())
    ends = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    scatter.axline((0, 0), slope=1, color=COLOURS["grey"], linewidth=0.6, zorder=0)
    positive = np.concatenate([error[error > 0] for error in relative.values()])
    bins = np.logspace(math.floor(np.log10(positive.min())), math.ceil(np.log10(positive.max())), 60)
    for name, (found, colour, marker) in both.items():
        scatter.plot(y, found, marker, color=COLOURS[colour], markersize=2.5, markeredgewidth=0.6, label=name)
        zeros = int((relative[name] == 0).sum())
        label = f"{name} ({zeros} exact)" if zeros else name
        errors.hist(relative[name][relative[name] > 0], bins, color=COLOURS[colour], alpha=0.8, label=label)
    scatter.set(xlabel="y, the model's", ylabel="from the linear system", xlim=ends, ylim=ends)
    scatter.legend(loc="upper left", handletextpad=0.2)
    errors.set(xscale="log", xlabel="error / root mean square of y", ylabel=f"how many of {len(y)}")
    style.plain(errors.xaxis)
    errors.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, columnspacing=1.0)
    return figure


@as_figure(of=Explanation, take=lambda e: e.run.operator())
def jacobian(op: Operator, ax: Any = None, *, quantile: float = 0.99, columns: int = 2) -> Figure:
    """Draw J as an image, with the tokens' blocks side by side.

    A side of J with more than PIXELS entries is drawn as means of neighbours, whose number is at the colour bar.

    Args:
        op: The operator.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        quantile: The quantile of |J| at which the colour scale ends. Larger entries have the last colour.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The quantile is not above 0 and at most 1, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    if not 0 < quantile <= 1:
        raise BadArgument("The quantile must be above 0 and at most 1", quoted(quantile), "Use 0.99.")
    figure, (panel,) = panels(ax, 1, columns, 2.6)
    d_out, T, d_in = op.shape[0], *op.input.shape
    rows, across = math.ceil(d_out / PIXELS), math.ceil(d_in * T / PIXELS)
    image = _means(op, rows, across)
    end = float(np.quantile(np.abs(image), quantile)) or float(np.abs(image).max()) or 1.0
    extent = (-0.5, T * d_in - 0.5, d_out - 0.5, -0.5)
    drawn = panel.imshow(
        image, cmap=style.DIVERGING, vmin=-end, vmax=end, aspect="auto", extent=extent, interpolation="nearest"
    )
    for t in range(1, T):
        panel.axvline(t * d_in - 0.5, color=COLOURS["black"], linewidth=0.4)
    tokens = op.about.get("tokens", [""] * T)
    if "token" in op.about:
        tokens = [tokens[op.about["token"]]]
    labels = [clipped(shown(token), 12) if len(tokens) == T else str(t) for t, token in enumerate(tokens)]
    every = math.ceil(T / 40)
    panel.set_xticks(
        [(t + 0.5) * d_in - 0.5 for t in range(0, T, every)], labels[::every], parse_math=False,
        rotation=style.upright(panel, labels), fontsize=style.SMALL if T > 12 else None,
    )  # fmt: skip
    panel.tick_params(axis="x", length=0)
    panel.set(xlabel=f"input: {T} tokens of {d_in} elements", ylabel=f"output: {d_out} elements")
    bar = figure.colorbar(drawn, ax=panel, extend="both" if quantile < 1 else "neither", fraction=0.05, pad=0.02)
    means = f"means of {rows} x {across} entries of J; " if rows * across > 1 else "entries of J; "
    bar.set_label(f"{means}colours end at\nthe {quantile:.4g} quantile of their size", fontsize=style.SMALL + 0.5)
    bar.ax.tick_params(labelsize=style.SMALL)
    return figure


def _means(op: Operator, rows: int, across: int) -> np.ndarray[Any, Any]:
    """The means of blocks of rows x columns of J, which is computed in chunks of rows."""
    whole = rows * max(1, op.chunk // rows)  # a multiple, so that no group is in two chunks
    found = [_grouped(_grouped(wide(some), rows).T, across).T for _, some in op.rows(whole)]
    return torch.cat(found).numpy()


def _grouped(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """The means of groups of rows; the last group may be smaller."""
    return matrix if size == 1 else torch.stack([some.mean(0) for some in matrix.split(size)])


@as_figure(of=Explanation)
def spectra(e: Explanation, ax: Any = None, *, vectors: int | None = None, most: int = 30, columns: int = 2) -> Figure:
    """Draw each token's leading singular values, with the top tokens that their vectors write (U) and read (V).

    A singular value that is nearly equal to the next one has a grey bar: its vector alone means nothing.

    Args:
        e: The explanation.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        vectors: How many singular vectors of each token; by default two, if there are two.
        most: How many tokens; of more, those with the largest ‖J_t x_t‖ are drawn.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    kept = min(len(f.S) for f in e.svds)
    vectors = min(2, kept) if vectors is None else vectors
    vectors = integer(vectors, 1, kept, f"The explanation has {kept} singular vectors for each token", "vectors = ")
    most, T = integer(most, 1, 10**6, "A figure requires at least one token", "most = "), len(e.svds)
    tokens = sorted(sorted(range(T), key=lambda t: -e.norms[t])[:most])
    rows = [(t, i) for t in tokens for i in range(vectors)]
    figure, (panel,) = panels(ax, 1, columns, 0.75 + style.ROW * len(rows))
    sigma = [e.svds[t].S[i].item() for t, i in rows]
    grey = [any(i in block and len(block) > 1 for block in e.svds[t].blocks) for t, i in rows]
    labels = [clipped(shown(e.run.tokens[t])) if i == 0 else "" for t, i in rows]
    sides = {"writes (U)": e.outputs, "reads (V)": e.inputs}
    words = {name: [[word(w.token) for w in side[t][i]] for t, i in rows] for name, side in sides.items()}
    shades = [
        COLOURS["grey"] if is_grey else COLOURS["blue"] if i == 0 else COLOURS["sky"]
        for (_, i), is_grey in zip(rows, grey, strict=True)
    ]
    _bars(panel, labels, sigma, shades, words, "singular value σ" + (f", {most} of {T} tokens" if most < T else ""))
    for n, (_, i) in enumerate(rows):
        if i == 0 and n:
            panel.axhline(n - 0.5, color=COLOURS["grey"], linewidth=0.3, alpha=0.5)
    return figure


@as_figure
def largest(found: Largest, ax: Any = None, *, columns: int = 2) -> Figure:
    """Draw the norms of the largest columns (or rows) of J, with the top tokens that they decode to.

    Args:
        found: The result of `secant.largest`.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    groups = [rows for _, rows in found.table.groupby("rank", sort=True)]
    figure, (panel,) = panels(ax, 1, columns, 0.75 + style.ROW * len(groups))
    first = [rows.iloc[0] for rows in groups]
    labels = [
        f"{row['position'] if row['token'] is None else clipped(shown(row['token']))}, {row['unit']}" for row in first
    ]
    words = {"decodes to": [[word(w) for w in rows["word"]] for rows in groups]}
    _bars(panel, labels, [row["norm"] for row in first], COLOURS["blue"], words, "norm")
    panel.set_ylabel("position, unit" if first[0]["token"] is None else "token, unit")
    return figure


def _bars(
    panel: Any, labels: Sequence[str], values: Sequence[float], colour: Any, words: Mapping[str, list[list[str]]],
    name: str,
) -> None:  # fmt: skip
    """Draw a bar for each row, and to its right as many top tokens as fit."""
    from matplotlib.ticker import MaxNLocator

    top = max(values) or 1.0
    panel.barh(range(len(values)), values, color=colour, height=0.75)
    named(panel, "y", labels)
    panel.set(ylim=(len(values) - 0.5, -0.5), xlim=(0, top))
    panel.set_xticks([tick for tick in MaxNLocator(4).tick_values(0, top) if tick <= top])
    panel.set_xlabel(name, loc="left")
    panel.spines["bottom"].set_bounds(0, top)
    panel.tick_params(axis="y", length=0)
    next_to(panel, words, 1 - BARS)
