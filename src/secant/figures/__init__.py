"""Figures of results, for papers: each is a function of a result that returns matplotlib's figure.

Axes can be given, one or as many as the figure has panels; `columns` is how wide a new figure is, in columns of a
paper. Matplotlib is needed by nothing else, and is imported when something is drawn. Style and sizes are one table, in
`secant.figures.style`. A figure is a function with the decorator `secant.figures.style.drawn`, in a module of this
folder: nothing else names it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from secant.figures.style import FIGURES, every, save

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["every", "save", *FIGURES]


def __getattr__(name: str) -> Callable[..., Figure]:
    if name in FIGURES:
        return FIGURES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[Any]:
    return __all__
