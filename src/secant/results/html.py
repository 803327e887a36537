"""Views in notebooks: small static HTML without scripts, with every text escaped.

Colours are those of the notebook, except for bars, which are visible on light and dark backgrounds.
"""

from __future__ import annotations

from html import escape
from typing import Any

from secant.results.formats import NUMBERS, fact, heading, shown
from secant.results.view import Cell, Grid, Shown, Style, View, largest, missing, value_of
from secant.text import readable

POSITIVE, NEGATIVE = "#3d8fd1", "#d9702b"
"""Colours of bars."""

MOST = 40
"""The most rows and columns of a table; a line below it says how many more there are."""

PLAIN = "tex2jax_ignore mathjax_ignore"
"""Classes in which notebooks do not treat text between dollar signs as formulas."""

CELL = "padding:0.1em 0.6em;border:none;text-align:{};white-space:nowrap{}"

STYLES: dict[Style, str] = {"": "", "strong": ";font-weight:bold", "dim": ";opacity:0.6", "bad": f";color:{NEGATIVE}"}


def html(view: View) -> str:
    """Returns a view as one HTML element.

    Args:
        view: The view.

    """
    parts = [f'<div class="{PLAIN}"><strong>{escape(readable(view.title))}</strong>']
    for name, value in view.facts.items():
        lines = value if isinstance(value, list) else [value]
        said = " · ".join(fact(line) for line in lines)
        parts.append(f"<div><small>{escape(name)}</small> {escape(said)}</div>")
    parts += [f"<div>{escape(readable(warning))}</div>" for warning in view.warnings]
    parts += [_grid(grid) for grid in view.grids if grid.rows or grid.title]
    if view.notes:
        parts.append(f"<div><small>{escape(' '.join(map(readable, view.notes)))}</small></div>")
    return "".join([*parts, "</div>"])


def _grid(grid: Grid) -> str:
    """A grid as a table, with at most MOST rows and columns."""
    columns, rows = grid.columns[:MOST], grid.rows[: min(MOST, grid.most or MOST)]
    tops = [largest([row[i] for row in rows]) if c.show == "bar" else 0.0 for i, c in enumerate(columns)]
    heads = "".join(f"<th{_style(c)}>{escape(heading(c))}</th>" for c in columns)
    lines = [f"<tr>{heads}</tr>"]
    for row in rows:
        own = zip(row, columns, tops, strict=False)
        lines.append(
            "<tr>" + "".join(f"<td{_style(c, value)}>{_cell(value, c, t)}</td>" for value, c, t in own) + "</tr>"
        )
    title = f"<div><small>{escape(readable(grid.title))}</small></div>" if grid.title else ""
    if not rows:
        return title
    table = f'<table style="border-collapse:collapse;border:none;color:inherit;font:inherit">{"".join(lines)}</table>'
    more = [
        f"{len(every) - len(some)} more {what}"
        for every, some, what in ((grid.rows, rows, "rows"), (grid.columns, columns, "columns"))
        if len(every) > len(some)
    ]
    left = f"<small>and {' and '.join(more)}: tables() has all</small>" if more else ""
    note = f"<div><small>{escape(readable(grid.note))}</small></div>" if grid.note else ""
    return title + table + left + note


def _style(column: Shown, value: Any = None) -> str:
    style = STYLES[value.style] if isinstance(value, Cell) else ""
    style += ";white-space:normal" if column.wrap else ""
    return f' style="{CELL.format("right" if column.show in NUMBERS else "left", style)}"'


def _cell(value: Any, column: Shown, top: float) -> str:
    if column.show != "bar":
        return escape(shown(value, column.show))
    own = value_of(value)
    if missing(own) or not top:
        return ""
    length, colour = 8 * min(1.0, abs(own) / top), POSITIVE if own >= 0 else NEGATIVE
    return f'<span style="display:inline-block;height:0.7em;width:{length:.2f}em;background:{colour}"></span>'
