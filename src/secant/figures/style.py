"""How figures look: the widths of a paper's columns, colours, fonts; text drawn as it is; files that repeat.

Everything here holds while a figure is drawn (matplotlib's rc_context) and not afterwards. Figures are made without
pyplot, so that none stays open and no backend is chosen.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from secant.errors import BadArgument, SecantError, integer
from secant.results.paths import path_of, replacing
from secant.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = {1: 3.4, 2: 7.0}
"""Inches of a figure that is one or two columns of a paper wide."""

ROW = 0.155
"""Inches of a line of a figure that has one for each token or part."""

MARGIN = 0.06
"""Inches around what is drawn."""

SMALL = 6.0
"""Points of the smallest text."""

COLOURS = {
    "blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "purple": "#CC79A7", "yellow": "#E69F00",
    "sky": "#56B4E9", "black": "#000000", "grey": "#767676",
}  # fmt: skip
"""M. Okabe and K. Ito's, which people who see fewer colours can tell apart (Color Universal Design, 2008); and grey."""

ORDER = ("blue", "orange", "green", "purple", "yellow", "sky", "black")
"""In which order lines take them."""

RAMP = "viridis"
DIVERGING = "RdBu_r"
"""Colour maps of what is ordered, and of what has a sign."""

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
    "pdf.fonttype": 42,  # many venues refuse type 3
    "svg.hashsalt": "secant",
}
"""The style, as matplotlib's settings."""

FONTS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAexGothic", "AR PL UMing CN", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Noto Sans Symbols", "Noto Sans Symbols2", "Noto Emoji", "Symbola", "Segoe UI Symbol",
    "Unifont",
)  # fmt: skip
"""Where glyphs are looked for, in this order, among the fonts that are installed. Colour emoji can't be drawn."""

LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"
"""Prints nothing, and ends a run of text from right to left."""

NEW = "new"
"""The label of a figure that is not laid out yet."""

FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}
"""Suffixes of files, and what is left out of each so that a figure gives the same bytes whenever it is saved."""


@contextmanager
def drawing() -> Iterator[None]:
    """The style, for as long as something is drawn. Raises SecantError where matplotlib is not installed."""
    try:
        import matplotlib
        from cycler import cycler
    except ImportError as error:
        raise SecantError(
            "A figure is drawn by matplotlib", "an installation without it", "Install secant[plot]."
        ) from error
    colours = cycler(color=[COLOURS[name] for name in ORDER])
    settings: Any = {**RC, "font.family": list(fonts()), "axes.prop_cycle": colours}
    with matplotlib.rc_context(settings):
        yield


FIGURES: dict[str, Callable[..., Figure]] = {}
"""Every figure by its name, in the order of their modules."""

_OF: dict[str, tuple[type, Callable[[Any], Any]]] = {}


@overload
def drawn(function: Callable[P, Figure], /) -> Callable[P, Figure]: ...
@overload
def drawn(*, of: type[R], take: Callable[[R], Any] = ...) -> Callable[[Callable[P, Figure]], Callable[P, Figure]]: ...
def drawn(function: Any = None, /, *, of: Any = None, take: Callable[[Any], Any] = lambda result: result) -> Any:
    """A figure of the package: it draws in the style, and is laid out once and for all, so that its files repeat.

    Args:
        function: The function, where there are no arguments.
        of: The class of results that the figure is drawn for with --figures.
        take: What the figure is drawn from, given such a result; None where there is nothing to draw.
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
    """Every figure of a result that it has something to draw in, by name."""
    taken = {name: take(result) for name, (of, take) in _OF.items() if isinstance(result, of)}
    return {name: FIGURES[name](own) for name, own in taken.items() if own is not None}


def save(figure: Figure, path: str | Path, dpi: int = 300) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix of the path; the same figure gives the same bytes.

    Raises BadArgument for another suffix, and OutputFailed.
    """
    suffix = path_of(path).suffix.lower()
    if suffix not in FORMATS:
        raise BadArgument(f"A figure is written as {', '.join(FORMATS)}", repr(suffix), "Choose one of them.")
    dpi = integer(dpi, 20, 4800, "A figure has a resolution", "dpi = ")
    with drawing(), replacing(path) as new:
        figure.savefig(new, format=suffix[1:], dpi=dpi, metadata=FORMATS[suffix])


def panels(
    given: Any, count: int, columns: int, height: float | Sequence[float], **how: Any
) -> tuple[Figure, list[Any]]:
    """A figure and its axes: those that are given, or new ones, side by side in two columns of a paper, or else below
    each other, each so high (one height, or one of each). `how`: of `Figure.subplots`.

    Raises BadArgument where it is not so many axes, or where a paper has no such columns.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if columns not in WIDTH:
        raise BadArgument("A figure is one or two columns wide", repr(columns), "Use columns=1 or columns=2.")
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
            raise BadArgument(f"This is drawn in {what}", f"{len(axes)}", "Give as many, or none.")
        figure = axes[0].figure
    for ax in axes:
        ax.tick_params(labelsize=RC["xtick.labelsize"], labelfontfamily=list(fonts()))
    return figure, axes


# ------------------------------------------------------------------------------------------- text


@functools.cache
def fonts() -> tuple[str, ...]:
    """Those of FONTS that are installed; the first one comes with matplotlib.

    Matplotlib keeps a list of fonts that it made when it first ran: those that were installed since are added to it.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    for file in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        with suppress(OSError, RuntimeError):  # a file that FreeType can't read, of which matplotlib's list has none
            fontManager.addfont(file)
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@functools.cache
def glyphs() -> frozenset[int]:
    """The characters that these fonts have, by code point."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(
        point for name in fonts() for point in FT2Font(findfont(FontProperties(family=[name]))).get_charmap()
    )


def shown(token: str) -> str:
    """A token as it is drawn: every character visible, and in place of one that no font has, its code point."""
    drawn = "".join(c if ord(c) in glyphs() else f"\0U+{ord(c):04X}\0" for c in visible(token))  # has no zero itself
    return _apart(drawn.replace("\0\0", " ").replace("\0", ""))


def _apart(text: str) -> str:
    """The text so that, if it is read from right to left, what is around it stays where it is."""
    own = text.replace(LEFT_TO_RIGHT, "")
    reads = {unicodedata.bidirectional(c) for c in own}
    return f"{LEFT_TO_RIGHT}{own}{LEFT_TO_RIGHT}" if reads & {"R", "AL"} else own


def word(token: str) -> str:
    """A decoded token, without spaces around it."""
    return shown(token.strip() or token)


def clipped(text: str, length: int = 16) -> str:
    """A label of at most so many characters."""
    own = text.replace(LEFT_TO_RIGHT, "")
    return text if len(own) <= length else _apart(own[: length - 1] + "…")


def fitting(words: Sequence[str], points: float, size: float) -> str:
    """As many words as fit whole into a width, at least a part of the first."""
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
    return _apart(first + "…")


def width_of(text: str, size: float) -> float:
    """The width of a text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(
        text_to_path.get_text_width_height_descent(text, FontProperties(family=list(fonts()), size=size), False)[0]
    )


def keyed(figure: Figure, ax: Any, given: Any) -> None:
    """The legend of axes: above a new figure, where it covers nothing; inside of axes that were given."""
    if given is not None:
        ax.legend()
        return
    handles, labels = ax.get_legend_handles_labels()
    each = (
        max(width_of(label, RC["legend.fontsize"]) for label in labels) + 5.5 * RC["legend.fontsize"]
    )  # with its line
    across = max(1, int(figure.get_figwidth() * 72 / each))
    down = -(-len(labels) // across)
    figure.legend(handles, labels, loc="outside upper center", ncols=-(-len(labels) // down), handlelength=2.2)


def upright(ax: Any, labels: Sequence[str], size: float = RC["xtick.labelsize"]) -> int:
    """The angle of labels below axes: upright where they would run into each other."""
    room = 0.9 * ax.figure.get_figwidth() * 72 * ax.get_position().width / max(1, len(labels))
    return 90 if max((width_of(label, size) for label in labels), default=0) > room - 3 else 0


def named(ax: Any, which: str, labels: Sequence[str], **how: Any) -> None:
    """Ticks at 0, 1, 2, … with these labels, drawn as they are: a `$` begins no formula."""
    setter = ax.set_yticks if which == "y" else ax.set_xticks
    setter(range(len(labels)), labels, parse_math=False, **how)


def plain(axis: Any) -> None:
    """Numbers of a logarithmic axis as people write them; between powers of ten too, where there are few of these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 500 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """A number in three places: 0.01, −3, 10⁻⁸.

    >>> number(0.01), number(-1234), number(1e-8), number(2e6)
    ('0.01', '−1234', '10⁻⁸', '2·10⁶')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return (f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}").replace("-", "−")
    factor, power = f"{value:.2e}".split("e")
    factor = factor.rstrip("0").rstrip(".").replace("-", "−")
    raised = f"{int(power)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"
