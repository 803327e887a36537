"""Figures of results, drawn by matplotlib, which is not needed otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secant.errors import SecantError
from secant.tradeoff import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def steering_sweep_figure(sweep: Sweep, ax: Any = None) -> Figure:
    """How often the concept's words came against what it cost: perplexity as a multiple of the unsteered one.

    A line for each form and layer, its points labelled by strength; the star is without steering. A panel for each
    form, or all of them in `ax`. Raises SecantError where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SecantError(
            "A figure is drawn by matplotlib", "an installation without it", "Install secant[plot]."
        ) from error
    steered, plain = sweep.table.iloc[1:], sweep.plain
    forms = list(dict.fromkeys(steered["form"]))
    if ax is None:
        figure = Figure(figsize=(1.5 + 4 * len(forms), 4), layout="constrained")
        axes = list(figure.subplots(1, len(forms), sharex=True, sharey=True, squeeze=False)[0])
    else:
        figure, axes = ax.figure, [ax] * len(forms)
    layers = sorted(set(steered["layer"]))
    colours = matplotlib.colormaps["viridis"]
    styles = dict(zip(forms, ("-", "--", ":"), strict=False)) if ax is not None else {}
    for form, panel in zip(forms, axes, strict=True):
        panel.set_xscale("log")
        panel.set(title=form if ax is None else "", xlabel="perplexity / unsteered")
        for i, layer in enumerate(layers):
            own = steered[(steered["form"] == form) & (steered["layer"] == layer)].sort_values("strength")
            x, y = own["perplexity"] / plain["perplexity"], own["rate"]
            colour = colours(0.9 * i / max(1, len(layers) - 1))
            label = f"layer {layer}" if ax is None else f"{form}, layer {layer}"
            panel.plot(x, y, styles.get(form, "-"), marker=".", color=colour, linewidth=1, label=label)
            for at in zip(x, y, own["strength"], strict=True):
                panel.annotate(
                    f"{at[2]:g}", at[:2], xytext=(2, 2), textcoords="offset points", fontsize=6, color=colour
                )
        panel.plot([1], [plain["rate"]], "*", color="black", markersize=10)
    axes[0].set(ylabel="continuations with the concept's words", ylim=(-0.03, 1.03))
    axes[-1].legend(fontsize=7, frameon=False)
    return figure
