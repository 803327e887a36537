"""Text for a terminal or a program, without characters that would command one."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from secant.cli.process import say
from secant.errors import printable


def print_line(text: str) -> None:
    """Print a line on stderr."""
    say(printable(text))


def print_json(value: Any) -> None:
    """Print JSON on one line: letters of all scripts as they are, where stdout has them, and what commands a terminal
    as JSON's escapes; null for NaN and infinity, which JSON does not have.
    """
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(_finite(value), ensure_ascii=not unicode, allow_nan=False)
    print("".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
