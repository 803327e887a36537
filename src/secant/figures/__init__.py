"""Figures for papers. Each is a function that takes a result and returns a matplotlib figure.

A figure is drawn in the axes that you give, one for each panel, or in a new figure that is one or two `columns` of a
paper wide. Matplotlib is imported only when something is drawn. Colours, fonts and sizes are in `secant.figures.style`.
To add a figure, write a function with the decorator `secant.figures.style.drawn` in a module of this folder.
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

__all__ = ["every", "save"]
__all__.extend(FIGURES)


def __getattr__(name: str) -> Callable[..., Figure]:
    if name in FIGURES:
        return FIGURES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[Any]:
    return __all__
