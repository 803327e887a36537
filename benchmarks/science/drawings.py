"""The figures of docs/explanation/science.md: ranks by depth, singular defects, the part of J that exactness decides,
and steering.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from chosen import by_setting
from claims import FEW, MODELS, curve
from rates import STRENGTHS, UNSTEERED

from secant.figures.style import COLOURS, drawing, panels

LINES = {"smollm2": "blue", "gemma3": "orange", "atlas": "green", "craftgpt": "purple"}
PAPER = {0: 122.8, 4: 35.9, 8: 6.5, 27: 1.3}
"""The paper's cumulative stable ranks of Llama-3.2-3B by layer, of 28."""

WIDTHS = {"smollm2": 576, "gemma3": 640, "atlas": 192, "craftgpt": 240}
"""The width of each model's residual stream."""


def each(rows: pd.DataFrame) -> Any:
    """The name, colour and rows of each model."""
    return ((name, COLOURS[LINES[name]], own) for name in LINES if len(own := rows[rows["model"] == name]))


def depth(rows: pd.DataFrame) -> Any:
    """Stable ranks of the residual stream by depth, the mean over prompts: cumulative and layerwise.

    Bands are two standard errors, or the range of fewer than FEW prompts.
    """
    with drawing():
        figure, found = panels(None, 2, 2, 2.4, sharex=True)
        for axes, span in zip(found, ("cumulative", "layerwise"), strict=True):
            for name, colour, own in each(rows):
                ranks = curve(own, span)
                if not len(ranks):
                    continue
                at = [(layer + 1) / ranks.shape[1] for layer in range(ranks.shape[1])]
                mean, error = ranks.mean(), ranks.std() / math.sqrt(len(ranks))
                low, high = (ranks.min(), ranks.max()) if len(ranks) < FEW else (mean - 2 * error, mean + 2 * error)
                axes.plot(at, mean, color=colour, label=f"{MODELS[name]}, n = {len(ranks)}")
                axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(xlabel="depth (1: the last layer)", ylabel=f"stable rank, {span}", yscale="log")
        found[0].plot([(i + 1) / 28 for i in PAPER], [*PAPER.values()], "x", color=COLOURS["grey"],
                      label="Llama-3.2-3B, n = 1 (the paper)")  # fmt: skip
        found[1].set_ylim(bottom=2)  # room for the legend
        found[1].legend(*found[0].get_legend_handles_labels(), loc="lower right")
        return figure


def defects(rows: pd.DataFrame) -> Any:
    """By depth: norms of the first and the last token, and |cos| of leading left vectors with the sink's direction."""
    with drawing():
        figure, (norms, cosines) = panels(None, 2, 2, 2.6, sharex=True)
        for name, colour, own in each(rows):
            values = own.groupby(["measure", "at", "layer"])["value"].mean()
            for at, style in (("first", "-"), ("last", ":")):
                depths = [(layer + 1) / len(values["norm"][at]) for layer in values["norm"][at].index]
                norms.plot(depths, values["norm"][at], style, color=colour, label=f"{MODELS[name]}, {at} token")
                cosines.plot(depths, values["on_sink"][at], style, color=colour)
            cosines.axhline(math.sqrt(2 / math.pi / WIDTHS[name]), color=COLOURS["grey"], linewidth=0.6)
        norms.set(
            xlabel="depth (1: the last layer)", ylabel="norm of the residual stream", yscale="log", ylim=(None, 1e8)
        )
        cosines.set(xlabel="depth (1: the last layer)", ylabel="|cos(u, s)|; grey: random", ylim=(0, 1.02))
        norms.legend(loc="upper left")
        return figure


def mechanism(rows: pd.DataFrame) -> Any:
    """The share of J that exactness decides, and the cosine of the rest with that of gate, by model."""
    with drawing():
        figure, (decided, alike) = panels(None, 2, 2, 2.2)
        for place, (_, colour, own) in enumerate(each(rows)):
            values = own.groupby(["measure", "convention"])["value"].mean()
            for shift, convention in enumerate(("gate", "up", "half")):
                decided.bar(place + (shift - 1) * 0.27, values["forced"][convention], 0.25, color=colour,
                            alpha=(1.0, 0.65, 0.35)[shift], label=convention if not place else None)  # fmt: skip
            for shift, convention in enumerate(("up", "half")):
                alike.bar(place + (shift - 0.5) * 0.4, values["cosine"][convention], 0.36, color=colour,
                          alpha=(0.65, 0.35)[shift], label=f"{convention}" if not place else None)  # fmt: skip
        names = [MODELS[name] for name, _, _ in each(rows)]
        for axes in (decided, alike):
            axes.set_xticks(range(len(names)), names)
            axes.legend()
        decided.set(ylabel="share of ‖J‖² that exactness decides", yscale="log", ylim=(None, 0.03))
        alike.set(ylabel="the rest: cosine with gate's", ylim=(0, 1.2))
        return figure


def steering(rows: pd.DataFrame) -> Any:
    """The rate of the concepts' words against the perplexity, of every layer and strength, the mean over concepts."""
    models = list(each(rows))
    with drawing():
        figure, found = panels(None, len(models), 2, 2.4, sharey=True)
        for axes, (name, _, own) in zip(found, models, strict=True):
            table = by_setting(own[own["form"] != "cosine"])
            plain = table[table["form"] == UNSTEERED]
            for colour, form in zip(("orange", "purple", "blue"), STRENGTHS, strict=True):
                mean = table[table["form"] == form].groupby(["layer", "strength"])[["rate", "perplexity"]].mean()
                times = mean["perplexity"] / plain["perplexity"].mean()
                axes.plot(times, mean["rate"], "o", color=COLOURS[colour], label=form, alpha=0.7)
            axes.axhline(plain["rate"].mean(), color=COLOURS["grey"], linestyle=":", label=UNSTEERED)
            axes.set(title=MODELS[name], xlabel="perplexity, times the unsteered", xscale="log")
        found[0].set_ylabel("continuations with the concept's word")
        found[0].legend()
        return figure


DRAWINGS = {
    "depth": ("claims", depth), "defects": ("defects", defects), "mechanism": ("mechanism", mechanism),
    "steering": ("rates", steering),
}  # fmt: skip
"""Each figure, with the file of rows that it is drawn from."""
