"""Printing for terminals and programs, with control characters escaped."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from secant.cli.process import say
from secant.errors import printable


def print_line(text: str) -> None:
    """Print a line on stderr, with control characters escaped.

    Args:
        text: The line.
    """
    say(printable(text))


def print_json(value: Any) -> None:
    """Print a value as JSON on one line.

    Control characters are escaped, and so are letters that stdout can't encode. NaN and infinity, which JSON lacks,
    become null.

    Args:
        value: What `json.dumps` takes.
    """
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(finite(value), ensure_ascii=not unicode, allow_nan=False)
    print("".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text))


def finite(value: Any) -> Any:
    """Returns a value with None for NaN and infinity, which JSON lacks.

    Args:
        value: What `json.dumps` takes.
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
