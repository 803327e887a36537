"""Figures of measurements: faithfulness of attributions, error of interpolation, rate and perplexity of steering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from secant.analyses.faithfulness import Faithfulness
from secant.analyses.interpolation import Reach
from secant.errors import BadArgument, quoted
from secant.figures import style
from secant.figures.style import COLOURS, ORDER, as_figure, panels
from secant.steering.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDERS = {"remove": "tokens removed, most important first", "keep": "tokens kept, most important first"}
GUESSES = {
    "frozen_error": ("frozen network", "blue", "-"),
    "ordinary_error": ("ordinary Jacobian", "orange", "--"),
    "still_error": ("no change", "grey", ":"),
}


@as_figure
def faithfulness(*results: Faithfulness, value: str = "logit", axes: Any = None, columns: int = 2) -> Figure:
    """Draw the target's logit as tokens are removed, or kept, in the order of each method: a panel for each.

    Args:
        results: One result, drawn by the number of tokens; or several, drawn as the mean change by the share of tokens,
            with its standard error.
        value: "logit", or another value of the results such as the log-probability.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: There is no result, no such value, or no common method; or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    if not results or not all(isinstance(one, Faithfulness) for one in results):
        raise BadArgument("This figure requires results of secant.faithfulness", "none", "Give one or more.")
    values = sorted({name for one in results for name in one.curves["value"]})
    if value not in values:
        raise BadArgument(f"The value must be one of {', '.join(values)}", quoted(value), "Choose one of them.")
    methods = [
        m for m in dict.fromkeys(results[0].curves["method"]) if all(m in set(r.curves["method"]) for r in results)
    ]
    if not methods:
        raise BadArgument("Results that are drawn together must share a method", "none", "Draw them separately.")
    figure, found = panels(axes, 2, columns, 2.3, sharey=True)
    for panel, (order, label) in zip(found, ORDERS.items(), strict=True):
        for i, method in enumerate(methods):
            lines = [_line(one, method, value, order) for one in results]
            colour = COLOURS[ORDER[i % len(ORDER)]]
            if len(lines) == 1:
                panel.plot(*lines[0], marker=".", color=colour, label=method)
                continue
            at, changes = _changes(lines, results, value)
            mean, error = changes.mean(0), changes.std(0, ddof=1) / np.sqrt(len(changes))
            panel.plot(at, mean, color=colour, label=method)
            panel.fill_between(at, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        several = len(results) > 1
        panel.set_xlabel(f"share of {label}" if several else f"{label}")
        if not several:
            panel.xaxis.get_major_locator().set_params(integer=True)
    from_all = f"change of {value}, {len(results)} prompts" if len(results) > 1 else f"{value} of the target"
    found[0].set_ylabel(from_all)
    style.keyed(figure, found[1], axes)
    return figure


def _line(one: Faithfulness, method: str, value: str, order: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The numbers of tokens, and the value at each."""
    curves = one.curves
    own = curves[(curves["method"] == method) & (curves["value"] == value) & (curves["order"] == order)]
    own = own.sort_values("tokens")
    return own["tokens"].to_numpy(float), own["result"].to_numpy(float)


def _changes(
    lines: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], results: tuple[Faithfulness, ...], value: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The changes from the whole prompt, interpolated at shares of tokens that all prompts reach."""
    shares, changes = [], []
    for (tokens, left), one in zip(lines, results, strict=True):
        whole = one.curves[
            (one.curves["order"] == "remove") & (one.curves["tokens"] == 0) & (one.curves["value"] == value)
        ]
        count = one.curves["tokens"].max() + 1
        shares.append(tokens / count)
        changes.append(left - whole["result"].iloc[0])
    at = np.linspace(max(s[0] for s in shares), min(s[-1] for s in shares), 41)
    return at, np.stack([np.interp(at, s, c) for s, c in zip(shares, changes, strict=True)])


@as_figure
def reach(*results: Reach, ax: Any = None, columns: int = 1) -> Figure:
    """Draw the errors of the frozen network, the tangent and no change between one prompt and another.

    Args:
        results: One result or several. Several get a thin line each, and a line for the median at the α that all have.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: There is no result, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    if not results or not all(isinstance(one, Reach) for one in results):
        raise BadArgument("This figure requires results of secant.reach", "none", "Give one or more.")
    figure, (panel,) = panels(ax, 1, columns, 2.4)
    for name, (label, colour, dashes) in GUESSES.items():
        lines = [one.table.set_index("alpha")[name].sort_index() for one in results]
        if len(lines) > 1:
            for line in lines:
                panel.plot(line.index, line, dashes, color=COLOURS[colour], linewidth=0.4, alpha=0.4)
            median = pd.concat(lines, axis=1, join="inner").median(axis=1)
            panel.plot(median.index, median, dashes, color=COLOURS[colour], label=f"{label}, median of {len(lines)}")
        else:
            panel.plot(lines[0].index, lines[0], dashes, marker=".", color=COLOURS[colour], label=label)
    panel.set(xlabel="α, from the prompt (0) to the other (1)", ylabel="‖ŷ − y(α)‖ / ‖y(α)‖")
    panel.set_ylim(bottom=0)
    style.keyed(figure, panel, ax)
    return figure


@as_figure
def steering(sweep: Sweep, ax: Any = None, *, columns: int = 2) -> Figure:
    """Draw how often the concept's words appear against the perplexity, as a multiple of the unsteered one.

    Each form and layer has a line, whose points are labelled by strength. The star is the unsteered model.

    Args:
        sweep: The sweep.
        ax: Matplotlib axes in which to draw all forms; by default a new figure has a panel for each form.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: An argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    import matplotlib

    steered, plain = sweep.table.iloc[1:], sweep.plain
    forms = list(dict.fromkeys(steered["form"]))
    figure, axes = panels(ax, 1 if ax is not None else len(forms), columns, 2.6, sharex=True, sharey=True)
    axes = axes * len(forms) if ax is not None else axes
    layers = sorted(set(steered["layer"]))
    colours = matplotlib.colormaps[style.RAMP]
    styles = dict(zip(forms, ("-", "--", ":"), strict=False)) if ax is not None else {}
    for form, panel in zip(forms, axes, strict=True):
        panel.set_xscale("log")
        panel.set(title=form if ax is None else "", xlabel="perplexity / unsteered")
        said: list[tuple[float, float, str]] = []
        for i, layer in enumerate(layers):
            own = steered[(steered["form"] == form) & (steered["layer"] == layer)].sort_values("strength")
            x, y = own["perplexity"] / plain["perplexity"], own["rate"]
            colour = colours(0.92 * i / max(1, len(layers) - 1))
            label = f"layer {layer}" if ax is None else f"{form}, layer {layer}"
            panel.plot(x, y, styles.get(form, "-"), marker=".", color=colour, linewidth=1, label=label)
            for at, strengths in _near(x.to_numpy(), y.to_numpy(), own["strength"].to_numpy()):
                if any(_close(at, (a, b)) and strengths == other for a, b, other in said):
                    continue  # another layer has the same label there
                said.append((*at, strengths))
                where = {"xytext": (2, 2), "textcoords": "offset points", "fontsize": style.SMALL}
                panel.annotate(strengths, at, color=colour, **where)
        panel.plot([1], [plain["rate"]], "*", color=COLOURS["black"], markersize=8)
        style.plain(panel.xaxis)
    axes[0].set(ylabel="prompts with the concept's words", ylim=(-0.03, 1.03))
    style.keyed(figure, axes[-1], ax)
    return figure


def _near(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], strengths: np.ndarray[Any, Any]
) -> list[tuple[tuple[float, float], str]]:
    """The labels of points. Labels that would overlap become one, at the first of their points."""
    found: list[tuple[tuple[float, float], list[str]]] = []
    for a, b, strength in zip(x, y, strengths, strict=True):
        for (c, d), others in found:
            if _close((a, b), (c, d)):
                others.append(f"{strength:g}")
                break
        else:
            found.append(((float(a), float(b)), [f"{strength:g}"]))
    return [(at, ", ".join(several)) for at, several in found]


def _close(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether labels at two points would overlap."""
    return bool(abs(np.log(one[0] / other[0])) < 0.05 and abs(one[1] - other[1]) < 0.02)
