"""Text for a terminal or a program, without characters that would command one."""

from __future__ import annotations

import json
from typing import Any

import typer

from secant.errors import printable


def print_line(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(printable(text), err=True)


def print_json(value: Any) -> None:
    """Print JSON on one line: letters of all scripts as they are, what commands a terminal as JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False)
    typer.echo("".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text))
