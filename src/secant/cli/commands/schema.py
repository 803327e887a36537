"""`secant schema`"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from secant.cli.printing import print_json
from secant.cli.schemas import OUTPUTS
from secant.cli.verb import verb

if TYPE_CHECKING:
    Described = str
else:
    Described = StrEnum("Described", {name: name for name in OUTPUTS})


@verb
def schema(
    command: Annotated[Described, typer.Argument(help="The command.", show_default=False)],
) -> None:
    """Print the JSON Schema of what a command prints with --json."""
    name = str(command)
    print_json(OUTPUTS[name](name))
