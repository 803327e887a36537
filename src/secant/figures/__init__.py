"""Figures of results, for papers: each is a function of a result that returns matplotlib's figure.

Axes can be given, one or as many as the figure has panels; `columns` is how wide a new figure is, in columns of a
paper. Matplotlib is needed by nothing else, and is imported when something is drawn. Style and sizes are one table, in
`secant.figures.style`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secant.analyses.explain import Explanation
from secant.figures.contributions import attribution, flow
from secant.figures.depth import layer_spectra, path, stable_ranks
from secant.figures.measures import faithfulness, reach, steering
from secant.figures.prompts import emergence, mean_spectra, ranks_by_depth, ranks_by_position, summarized
from secant.figures.style import save
from secant.figures.system import jacobian, largest, reconstruction, spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "attribution",
    "emergence",
    "explained",
    "faithfulness",
    "flow",
    "jacobian",
    "largest",
    "layer_spectra",
    "mean_spectra",
    "path",
    "ranks_by_depth",
    "ranks_by_position",
    "reach",
    "reconstruction",
    "save",
    "spectra",
    "stable_ranks",
    "steering",
    "summarized",
]


def explained(e: Explanation) -> dict[str, Figure]:
    """Every figure of an explanation, by name; those of layers where it has them."""
    found = {
        "reconstruction": reconstruction(e.run),
        "attribution": attribution(e.attribution),
        "spectra": spectra(e),
        "jacobian": jacobian(e.run.operator()),
    }
    if e.layers is not None:
        found |= {"layer_spectra": layer_spectra(e.layers), "stable_ranks": stable_ranks(e.layers)}
        if len(e.svds[0].S) > 1:
            found["path"] = path(e.layers)
    return found
