"""Figures over many prompts: stable ranks by position and by depth, spectra, and where the prediction emerges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from secant.errors import BadArgument, quoted
from secant.figures import style
from secant.figures.style import COLOURS, ORDER, as_figure, panels
from secant.studies.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")


@as_figure(of=Summary, take=lambda s: s if len(s.ranks) else None)
def ranks_by_position(summary: Summary, category: str | None = None, ax: Any = None, *, columns: int = 2) -> Figure:
    """Draw the stable rank of each position's block over prompts, a box for each model and convention.

    Boxes are quartiles with the median, whiskers the 5th and 95th percentile, and diamonds means (J. Golden, arXiv
    2505.24293, figure 3). Positions with few prompts are left out (`Summary.common_positions`).

    Args:
        summary: The summary.
        category: The category of the prompts; by default all.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The study has no stable ranks or no such category, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    rows = _chosen(summary.ranks, category, "stable_rank")
    rows = rows[rows["position"].isin(summary.common_positions(category))]
    figure, (panel,) = panels(ax, 1, columns, 2.4)
    groups = list(rows.groupby(["model", "convention"], sort=False))
    width = 0.8 / len(groups)
    for i, ((model, convention), own) in enumerate(groups):
        colour = COLOURS[ORDER[_place(summary, model, convention) % len(ORDER)]]
        lines = {"color": colour, "linewidth": 0.8}
        boxes = [
            {"whislo": r.q05, "q1": r.q25, "med": r.median, "q3": r.q75, "whishi": r.q95, "mean": r.mean}
            for r in own.itertuples(index=False)
        ]
        where = own["position"].to_numpy(float) + (i - (len(groups) - 1) / 2) * width
        panel.bxp(
            boxes, positions=where, widths=0.8 * width, showfliers=False, showmeans=True, manage_ticks=False,
            boxprops=lines, whiskerprops=lines, capprops=lines, medianprops={"color": colour, "linewidth": 1.4},
            meanprops={"marker": "D", "markersize": 3, "markerfacecolor": colour, "markeredgecolor": "none"},
        )  # fmt: skip
        panel.plot([], [], color=colour, label=_name(model, convention))
    panel.set(xlabel=f"position of the token ({_each(rows)})", ylabel="stable rank", yscale="log")
    panel.xaxis.get_major_locator().set_params(integer=True)
    style.plain(panel.yaxis)
    _key(figure, panel, ax)
    return figure


@as_figure(of=Summary, take=lambda s: s if len(s.depths) else None)
def ranks_by_depth(
    summary: Summary, category: str | None = None, axes: Any = None, *, part: str = "residual", columns: int = 2
) -> Figure:
    """Draw the mean stable rank of all tokens' blocks by share of depth, with its interval: a panel for each span.

    Args:
        summary: The summary.
        category: The category of the prompts; by default all.
        axes: Matplotlib axes to draw in; by default those of a new figure.
        part: The part of the layers: residual, attn, mlp or mixer.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The study has no layers, no such part or no such category, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    rows = _chosen(summary.depths, category, "layers")
    rows = rows[rows["part"] == part]
    if rows.empty:
        parts = ", ".join(dict.fromkeys(summary.depths["part"]))
        raise BadArgument(f"A part must be one of {parts}", quoted(part), "Choose one of them.")
    spans = list(dict.fromkeys(rows["span"]))
    figure, found = panels(axes, len(spans), columns, 2.3, sharey=True)
    for panel, span in zip(found, spans, strict=True):
        _curves(summary, panel, rows[rows["span"] == span])
        panel.set(title=f"{part}, {span}", xlabel="share of depth", yscale="log", xlim=(0, 1.03))
        style.plain(panel.yaxis)
    found[0].set_ylabel("stable rank")
    _key(figure, found[-1], axes)
    return figure


@as_figure(of=Summary, take=lambda s: s if len(s.emergence) else None)
def emergence(summary: Summary, category: str | None = None, ax: Any = None, *, columns: int = 1) -> Figure:
    """Draw the share of prompts whose prediction was the top token of U₀ of all tokens by each share of depth.

    Args:
        summary: The summary.
        category: The category of the prompts; by default all.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The study has no layers or no such category, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    rows = _chosen(summary.emergence, category, "layers")
    figure, (panel,) = panels(ax, 1, columns, 2.4)
    _curves(summary, panel, rows[(rows["part"] == "residual") & (rows["span"] == "cumulative")])
    panel.set(xlabel="share of depth", ylabel=f"prediction seen ({_each(rows)})", ylim=(-0.03, 1.03), xlim=(0, 1.03))
    _key(figure, panel, ax)
    return figure


@as_figure(of=Summary, take=lambda s: s if len(s.spectra) else None)
def mean_spectra(summary: Summary, category: str | None = None, ax: Any = None, *, columns: int = 1) -> Figure:
    """Draw the means of the leading singular values of all tokens together, σ_i / σ_0, with their intervals.

    Args:
        summary: The summary.
        category: The category of the prompts; by default all.
        ax: Matplotlib axes to draw in; by default those of a new figure.
        columns: The width of a new figure, in columns of a paper.

    Raises:
        BadArgument: The study has no spectra or no such category, or an argument is not valid.
        SecantError: Matplotlib is not installed.

    """
    rows = _chosen(summary.spectra, category, "spectra")
    rows = rows[rows["position"].isna()]
    figure, (panel,) = panels(ax, 1, columns, 2.4)
    _curves(summary, panel, rows, "vector")
    panel.set(xlabel="i", ylabel=f"σᵢ / σ₀, mean ({_each(rows)})", ylim=(0, 1.05))
    panel.set_xticks(sorted(set(rows["vector"])))
    _key(figure, panel, ax)
    return figure


def _chosen(table: pd.DataFrame, category: str | None, analysis: str) -> pd.DataFrame:
    """The rows of a category, by default of all prompts. Raises BadArgument if there are none."""
    if table.empty:
        raise BadArgument(
            f"This figure requires a study with the analysis {analysis}", "one without it", "Run the study with it."
        )
    rows = table[table["category"].isna() if category is None else table["category"] == category]
    if rows.empty:
        known = ", ".join(sorted(set(table["category"].dropna()))) or "none"
        raise BadArgument(f"The category must be one of the study's: {known}", quoted(category), "Choose one of them.")
    return rows


def _curves(summary: Summary, panel: Any, rows: pd.DataFrame, by: str = "depth") -> None:
    """Draw a line for each model and convention, with its interval as a band."""
    for (model, convention), own in rows.groupby(["model", "convention"], sort=False):
        i, own = _place(summary, model, convention), own.sort_values(by)
        colour, label = COLOURS[ORDER[i % len(ORDER)]], _name(model, convention)
        x = own[by].to_numpy(float)
        panel.plot(x, own["mean"], DASHES[i % len(DASHES)], marker=".", color=colour, label=label)
        low, high = (own[end].fillna(own["mean"]).to_numpy(float) for end in ("low", "high"))
        panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _place(summary: Summary, model: str, convention: str) -> int:
    """The number of a model and convention in the study, which gives it the same colour in all figures."""
    every = list(dict.fromkeys(zip(summary.coverage["model"], summary.coverage["convention"], strict=True)))
    return every.index((model, convention))


def _name(model: str, convention: str) -> str:
    return " ".join(map(style.shown, f"{model}, {convention}".split(" ")))


def _each(rows: pd.DataFrame) -> str:
    """How many prompts the rows are about."""
    least, most = rows["n"].min(), rows["n"].max()
    return f"{least} prompts" if least == most else f"{least} to {most} prompts"


def _key(figure: Figure, panel: Any, given: Any) -> None:
    """Add the legend: above a new figure, or inside axes that were given."""
    handles, labels = panel.get_legend_handles_labels()
    if given is None:
        across = 1 if figure.get_figwidth() < style.WIDTH[2] else 3
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=across)
    else:
        legend = panel.legend(handles, labels)
    for text in legend.get_texts():
        text.set_parse_math(False)
