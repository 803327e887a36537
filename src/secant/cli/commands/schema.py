"""`secant schema`"""

from __future__ import annotations

from typing import Annotated

import typer

from secant.cli.printing import print_json
from secant.cli.schemas import OUTPUTS
from secant.cli.verb import verb


@verb
def schema(
    command: Annotated[
        str, typer.Argument(help="The command, such as explain.", autocompletion=lambda: sorted(OUTPUTS))
    ],
) -> None:
    """Print the JSON Schema of what a command prints with --json."""
    from secant.errors import one_of

    print_json(OUTPUTS[one_of(command, sorted(OUTPUTS), "A command with --json")]())
