"""Values as text. Every renderer uses these formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secant.results.view import Cell, Shown, Tokens, missing
from secant.text import readable, visible


def number(value: float) -> str:
    """Returns a number with three digits, in at most six characters.

    Args:
        value: The number.

    >>> number(0.123456), number(123456.0), number(float("inf"))
    ('0.123', '1e+05', 'inf')
    """
    line = f"{value:.3g}"
    return line if len(line) <= 6 else f"{value:.0e}"


def share(value: float) -> str:
    """Returns a share of a logit in percent; from 1000 % on it has no decimals.

    Args:
        value: The share; 1 is the logit.

    """
    return f"{value:z.1%}" if abs(value) < 9.995 else f"{value:.0%}"


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": lambda value: readable(str(value)),
    "token": visible,
    "tokens": lambda value: " ".join(visible(token.strip() or token) for token in value),
    "integer": lambda value: f"{value:d}",
    "number": number,
    "rank": lambda value: f"{value:.1f}",
    "logit": lambda value: f"{value:z.3f}",
    "share": share,
    "percent": lambda value: f"{value:.1%}",
    "error": lambda value: f"{value:.1e}",
    "truth": lambda value: "yes" if value else "no",
}
"""How each format of `secant.results.schema.Format` writes a value."""

NUMBERS = {"integer", "number", "rank", "logit", "share", "percent", "error"}
"""Formats that are aligned to the right."""


def shown(value: Any, format: str) -> str:
    """Returns a value as text; an empty text if it is missing.

    Args:
        value: The value, or a `Cell` with a value.
        format: The format of its column.

    """
    if isinstance(value, Cell):
        text = shown(value.value, value.show or format)
        return value.mark + text if text else ""
    if missing(value):
        return ""
    if isinstance(value, str) and format in NUMBERS:
        return readable(value)
    return FORMATS[format](value)


def heading(column: Shown) -> str:
    """Returns the heading of a column as text.

    Args:
        column: The column.

    """
    return visible(column.heading) if column.token else readable(column.heading)


def fact(value: Any) -> str:
    """Returns a fact of a view as text.

    Args:
        value: A text, `Tokens`, or several of these.

    """
    if isinstance(value, Tokens):
        return " ".join(map(visible, value))
    return " ".join(map(fact, value)) if isinstance(value, list | tuple) else readable(str(value))
