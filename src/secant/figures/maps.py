"""Maps with a row for each layer or part, and next to each row as many top tokens as fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secant.figures import style
from secant.figures.style import COLOURS, clipped, fitting, named, shown

NEXT_TO = 0.38
"""The share of the axes' width that the words next to a map take."""

GAP = 8.0
"""Points between words and anything to their left."""

FEWEST = 9
"""A map with fewer rows is as high as a map with this number."""

HINTED = 0.95
"""The share of a text's room that its outlines may take: at a low resolution, glyphs are drawn wider than outlines."""

UPRIGHT = 9.0
"""The width in points of an upright label."""

LIGHT = 0.55
"""The share of a colour map that is used behind text, which the dark end would hide."""


def height(rows: int) -> float:
    """The height in inches of a figure with a map and the labels around it.

    Args:
        rows: The number of rows of the map. A map of few rows still has room for the label of its colours.

    """
    return 1.3 + style.ROW * max(FEWEST, rows)


def width(panel: Any) -> float:
    """The width of axes in points after a new figure is laid out.

    Args:
        panel: The axes.

    """
    if panel.figure.get_label() == style.NEW:
        panel.figure.draw_without_rendering()
    return float(panel.figure.get_figwidth() * 72 * panel.get_position().width)


def next_to(panel: Any, words: Mapping[str, Sequence[Sequence[str]]], share: float = NEXT_TO) -> None:
    """Make room in the right part of axes, and write there as many words for each row as fit, below their headings.

    Args:
        panel: The axes, which have their final labels.
        words: The words of each row, by heading.
        share: The share of the axes' width that they take.

    """
    low, high = panel.get_xlim()
    panel.set_xlim(low, low + (high - low) / (1 - share))
    size, each = style.SMALL + 0.5, share / len(words)
    points = width(panel)
    room = HINTED * (points * each - GAP)
    at = panel.get_yaxis_transform()  # across in shares of the axes, down in rows
    for place, (heading, rows) in enumerate(words.items()):
        left = 1 - share + place * each + GAP / points
        head = fitting([heading], room, size)
        panel.text(left, -0.75, head, transform=at, color=COLOURS["grey"], va="bottom", fontsize=size)
        for n, own in enumerate(rows):
            line = fitting(own, room, size)
            panel.text(left, n, line, transform=at, va="center_baseline", fontsize=size, parse_math=False)


def signed_map(panel: Any, image: Any, rows: Sequence[str], columns: Sequence[str], end: float = 1.0,
               share: float = 0.0) -> Any:  # fmt: skip
    """Returns the image that it draws: signed values, with a name for each row and column.

    Args:
        panel: The axes.
        image: The values, as rows x columns. Where a value is missing, the map is blank.
        rows: The names of the rows.
        columns: The names of the columns. If there are too many, some are left out.
        end: The largest absolute value of the colours.
        share: The share of the axes' width that words next to the map will take.

    """
    drawn = panel.imshow(image, cmap=style.DIVERGING, vmin=-end, vmax=end, aspect="auto", interpolation="nearest")
    _headed(panel, rows, columns, share)
    return drawn


def token_map(panel: Any, image: Any, rows: Sequence[str], tokens: Sequence[str], last: str, end: float = 1.0,
              share: float = 0.0) -> Any:  # fmt: skip
    """Returns the image that it draws: signed values, a row for each name and a column for each token, and a last one.

    Args:
        panel: The axes.
        image: The values, as rows x (tokens and the last column).
        rows: The names of the rows.
        tokens: The tokens' texts.
        last: The name of the last column, which a line sets apart.
        end: The largest absolute value of the colours.
        share: The share of the axes' width that words next to the map will take.

    """
    columns = [*(clipped(shown(token), 12) for token in tokens), last]
    drawn = signed_map(panel, image, rows, columns, end, share)
    apart(panel, len(tokens))
    return drawn


def word_map(panel: Any, image: Any, rows: Sequence[str], columns: Sequence[str]) -> Any:
    """Returns the image that it draws: values from 0 to 1 in colours that are light enough to be behind words.

    Args:
        panel: The axes.
        image: The values, as rows x columns.
        rows: The names of the rows.
        columns: The names of the columns.

    """
    drawn = panel.imshow(image, cmap=style.SHADES, vmin=0, vmax=1 / LIGHT, aspect="auto", interpolation="nearest")
    _headed(panel, rows, columns, 0.0)
    return drawn


def worded(panel: Any, words: Sequence[Sequence[str]], strong: Any) -> None:
    """Write a word in each cell of a map, cut to the width of its column.

    Args:
        panel: The axes, which have their final labels.
        words: The words, as rows x columns.
        strong: Which of them are bold, as rows x columns.

    """
    room = HINTED * width(panel) / max(1, len(words[0])) - 2
    for r, own in enumerate(words):
        for c, one in enumerate(own):
            bold = "bold" if strong[r][c] else None
            line = fitting([one], room / (1.1 if bold else 1), style.SMALL)
            panel.text(c, r, line, ha="center", va="center_baseline", fontsize=style.SMALL, fontweight=bold,
                       parse_math=False)  # fmt: skip


def apart(panel: Any, column: int) -> None:
    """Draw a line before a column of a map.

    Args:
        panel: The axes.
        column: The column.

    """
    panel.axvline(column - 0.5, color=COLOURS["black"], linewidth=0.6)


def _headed(panel: Any, rows: Sequence[str], columns: Sequence[str], share: float) -> None:
    """Name the rows and columns of a map. If names are upright, only as many as fit are drawn."""
    named(panel, "y", rows)
    angle = style.upright(panel, columns, share=share)
    room = (1 - share) * panel.figure.get_figwidth() * 72 * panel.get_position().width * 0.85
    every = max(1, math.ceil(UPRIGHT * len(columns) / room)) if angle else 1
    panel.set_xticks(range(0, len(columns), every), columns[::every], parse_math=False, rotation=angle)
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
