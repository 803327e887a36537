"""The style of figures: widths, colours and fonts; text drawn verbatim; files with reproducible bytes.

The style applies only while a figure is drawn (matplotlib's rc_context). Figures are made without pyplot, so none stays
open and no backend is chosen.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from secant.errors import BadArgument, integer, quoted
from secant.foreign import required
from secant.results.paths import path_of, replacing
from secant.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = {1: 3.4, 2: 7.0}
"""The width of a figure in inches, by columns of a paper."""

ROW = 0.155
"""The height in inches of a row, in figures with a row for each token or part."""

MARGIN = 0.06
"""The margin of a figure in inches."""

SMALL = 6.0
"""The size of the smallest text in points."""

COLOURS = {
    "blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "purple": "#CC79A7", "yellow": "#E69F00",
    "sky": "#56B4E9", "black": "#000000", "grey": "#767676",
}  # fmt: skip
"""Colours by M. Okabe and K. Ito that colour-blind people can tell apart (Color Universal Design, 2008), and grey."""

ORDER = ("blue", "orange", "green", "purple", "yellow", "sky", "black")
"""The order in which lines take the colours."""

RAMP = "viridis"
SHADES = "Blues"
DIVERGING = "RdBu_r"
"""Colour maps: for ordered values, for values behind text, and for signed values."""

RC: dict[str, Any] = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.usetex": False,
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,  # many venues refuse type 3 fonts
    "svg.hashsalt": "secant",
}
"""The settings of matplotlib."""

FONTS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAexGothic", "AR PL UMing CN", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Noto Sans Symbols", "Noto Sans Symbols2", "Noto Emoji", "Symbola", "Segoe UI Symbol",
    "Unifont",
)  # fmt: skip
"""The fonts in which glyphs are looked up, in this order, if they are installed. Colour emoji can't be drawn."""

LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"
"""An invisible character that ends a run of text from right to left."""

NEW = "new"
"""The label of a figure whose layout is not final."""

FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}
"""The file suffixes, and the metadata that each omits so that saving a figure again gives the same bytes."""


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the style for the length of the block.

    Raises:
        SecantError: Matplotlib is not installed.

    """
    matplotlib = required("Drawing figures", "plot", "matplotlib")
    from cycler import cycler

    colours = cycler(color=[COLOURS[name] for name in ORDER])
    settings: Any = {**RC, "font.family": list(fonts()), "axes.prop_cycle": colours}
    with matplotlib.rc_context(settings):
        yield


FIGURES: dict[str, Callable[..., Figure]] = {}
"""Every figure by its name, in the order of modules."""

_OF: dict[str, tuple[type, Callable[[Any], Any]]] = {}
"""The figures that `every` draws: the class of result, and what is drawn from it."""


@overload
def as_figure(function: Callable[P, Figure], /) -> Callable[P, Figure]: ...
@overload
def as_figure(
    *, of: type[R], take: Callable[[R], Any] = ...
) -> Callable[[Callable[P, Figure]], Callable[P, Figure]]: ...
def as_figure(function: Any = None, /, *, of: Any = None, take: Callable[[Any], Any] = lambda result: result) -> Any:
    """Register a function as a figure, which then draws in this style. Its layout is fixed when it returns.

    Args:
        function: The function, if the decorator is used without arguments.
        of: The class of results for which `--figures` draws the figure.
        take: A function from such a result to what the figure draws, or to None if there is nothing to draw.
    """
    if function is None:
        return functools.partial(_registered, of=of, take=take)
    return _registered(function)


def _registered(function: Callable[P, Figure], of: Any = None, take: Any = None) -> Callable[P, Figure]:
    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with drawing():
            figure = function(*args, **kwargs)
            if figure.get_label() == NEW:
                figure.set_label("")
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            return figure

    FIGURES[function.__name__] = draw
    if of is not None:
        _OF[function.__name__] = (of, take)
    return draw


def every(result: Any) -> dict[str, Figure]:
    """Draw every figure that a result has data for.

    Args:
        result: The result.

    Returns:
        The figures by name.

    Raises:
        SecantError: Matplotlib is not installed.

    """
    taken = {name: take(result) for name, (of, take) in _OF.items() if isinstance(result, of)}
    return {name: FIGURES[name](own) for name, own in taken.items() if own is not None}


def save(figure: Figure, path: str | Path, dpi: int = 300) -> None:
    """Write a figure as PNG, PDF or SVG. The same figure gives the same bytes each time.

    Args:
        figure: The figure.
        path: The file, whose suffix says the format.
        dpi: The resolution of a PNG, in dots per inch.

    Raises:
        BadArgument: The suffix or the resolution is not valid.
        OutputFailed: The file can't be written.

    """
    suffix = path_of(path).suffix.lower()
    if suffix not in FORMATS:
        raise BadArgument(f"A figure's file must end in {', '.join(FORMATS)}", quoted(suffix), "Choose one of them.")
    dpi = integer(dpi, 20, 4800, "The resolution is a number of dots per inch", "dpi = ")
    with drawing(), replacing(path) as new:
        figure.savefig(new, format=suffix[1:], dpi=dpi, metadata=FORMATS[suffix])


def panels(
    given: Any, count: int, columns: int, height: float | Sequence[float], **how: Any
) -> tuple[Figure, list[Any]]:
    """A figure and its axes: those that are given, or new ones.

    Args:
        given: The axes that the caller gave, if any.
        count: How many panels the figure has.
        columns: The width of a new figure, in columns of a paper. Panels are side by side in two columns, else stacked.
        height: The height of a new panel in inches, one for all or one for each.
        how: Further arguments of `Figure.subplots`.

    Raises:
        BadArgument: There are too few or too many axes, or `columns` is not 1 or 2.

    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if columns not in WIDTH:
        raise BadArgument("A figure must be one or two columns wide", quoted(columns), "Use columns=1 or columns=2.")
    if given is None:
        down, across = (1, count) if columns == 2 else (count, 1)
        high = [height] * count if isinstance(height, float) else list(height)
        high = [max(high)] if down == 1 else high
        engine = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
        figure = Figure(figsize=(WIDTH[columns], sum(high)), layout=engine, label=NEW)
        axes = list(figure.subplots(down, across, squeeze=False, height_ratios=high, **how).flat)
    else:
        axes = list(given) if isinstance(given, Iterable) else [given]
        if len(axes) != count or not all(isinstance(ax, Axes) for ax in axes):
            what = "one of matplotlib's axes" if count == 1 else f"{count} of matplotlib's axes"
            raise BadArgument(f"This figure requires {what}", f"{len(axes)}", "Give that many, or none.")
        figure = axes[0].figure
    for ax in axes:
        ax.tick_params(labelsize=RC["xtick.labelsize"], labelfontfamily=list(fonts()))
    return figure, axes


# ------------------------------------------------------------------------------------------- text


@functools.cache
def fonts() -> tuple[str, ...]:
    """The fonts in FONTS that are installed. The first one comes with matplotlib.

    Matplotlib made its list of fonts when it first ran. Fonts that were installed later are added to it.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    for file in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        with suppress(OSError, RuntimeError):  # FreeType can't read the file; matplotlib's list leaves it out too
            fontManager.addfont(file)
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@functools.cache
def glyphs() -> frozenset[int]:
    """The code points that these fonts have glyphs for."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(
        point for name in fonts() for point in FT2Font(findfont(FontProperties(family=[name]))).get_charmap()
    )


def shown(token: str) -> str:
    """A token as it is drawn: every character visible, and a code point instead of a character that no font has.

    Args:
        token: The token.

    """
    drawn = "".join(
        c if ord(c) in glyphs() else f"\0U+{ord(c):04X}\0" for c in visible(token)
    )  # visible text contains no \0
    return _isolated(drawn.replace("\0\0", " ").replace("\0", ""))


def _isolated(text: str) -> str:
    """A text, isolated so that text from right to left does not move its surroundings."""
    own = text.replace(LEFT_TO_RIGHT, "")
    reads = {unicodedata.bidirectional(c) for c in own}
    return f"{LEFT_TO_RIGHT}{own}{LEFT_TO_RIGHT}" if reads & {"R", "AL"} else own


def word(token: str) -> str:
    """A decoded token as it is drawn, without surrounding spaces.

    Args:
        token: The token.

    """
    return shown(token.strip() or token)


def clipped(text: str, length: int = 16) -> str:
    """A label, cut to a maximum length.

    Args:
        text: The label.
        length: The maximum number of characters.

    """
    own = text.replace(LEFT_TO_RIGHT, "")
    return text if len(own) <= length else _isolated(own[: length - 1] + "…")


def fitting(words: Sequence[str], points: float, size: float) -> str:
    """As many top tokens as fit into a width, and at least a part of the first.

    Args:
        words: The top tokens.
        points: The width in points.
        size: The font size in points.

    """
    line = ""
    for one in words:
        longer = f"{line}  {one}".strip()
        if width_of(longer, size) > points:
            break
        line = longer
    if line or not words:
        return line
    first = words[0]
    while len(first) > 1 and width_of(first + "…", size) > points:
        first = first[:-1]
    return _isolated(first + "…")


def width_of(text: str, size: float) -> float:
    """The width of a text in points.

    Args:
        text: The text.
        size: The font size in points.

    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(
        text_to_path.get_text_width_height_descent(text, FontProperties(family=list(fonts()), size=size), False)[0]
    )


def keyed(figure: Figure, ax: Any, given: Any) -> None:
    """Add a legend: above a new figure, where it covers nothing, or inside axes that were given.

    Args:
        figure: The figure.
        ax: The axes with the lines.
        given: The axes that the caller gave, if any.

    """
    if given is not None:
        ax.legend()
        return
    handles, labels = ax.get_legend_handles_labels()
    each = (
        max(width_of(label, RC["legend.fontsize"]) for label in labels) + 5.5 * RC["legend.fontsize"]
    )  # text and line
    across = max(1, int(figure.get_figwidth() * 72 / each))
    down = -(-len(labels) // across)
    figure.legend(handles, labels, loc="outside upper center", ncols=-(-len(labels) // down), handlelength=2.2)


def upright(ax: Any, labels: Sequence[str], size: float = RC["xtick.labelsize"], share: float = 0.0) -> int:
    """The angle of labels below axes: 90 degrees if they would overlap, else 0.

    Args:
        ax: The axes.
        labels: The labels.
        size: The font size in points.
        share: The share of the axes' width that has no labels, at its right.

    """
    room = 0.9 * (1 - share) * ax.figure.get_figwidth() * 72 * ax.get_position().width / max(1, len(labels))
    return 90 if max((width_of(label, size) for label in labels), default=0) > room - 3 else 0


def named(ax: Any, which: str, labels: Sequence[str], **how: Any) -> None:
    """Set ticks at 0, 1, 2, ... with labels that are drawn verbatim: a `$` does not begin a formula.

    Args:
        ax: The axes.
        which: "x" or "y".
        labels: The labels.
        how: Further arguments of `Axes.set_xticks`.

    """
    setter = ax.set_yticks if which == "y" else ax.set_xticks
    setter(range(len(labels)), labels, parse_math=False, **how)


def plain(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, also between powers of ten if there are few.

    Args:
        axis: The axis.

    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 500 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """A number with three digits, as a figure shows it.

    Args:
        value: The number.

    >>> number(0.01), number(-1234), number(1e-8), number(2e6)
    ('0.01', '−1234', '10⁻⁸', '2·10⁶')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return (f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}").replace("-", "−")
    factor, power = f"{value:.2e}".split("e")
    factor = factor.rstrip("0").rstrip(".").replace("-", "−")
    raised = f"{int(power)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"
