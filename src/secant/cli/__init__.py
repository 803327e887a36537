"""The command line: each command is one verb of the package, in a file of its own, and prints what it returns.

Nothing heavy is imported before a command runs, so that help answers at once. Errors that secant raises on purpose
are one line on stderr and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

from typing import Annotated

import typer

from secant.cli.architectures import architectures
from secant.cli.attribute import attribute
from secant.cli.compare import compare
from secant.cli.explain import explain
from secant.cli.screen import screen
from secant.cli.steer import steer
from secant.cli.study import merge, study
from secant.cli.summarize import summarize
from secant.cli.verify import verify

app = typer.Typer(
    help="A language model's forward pass at a prompt, as the exact linear system that it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def secant(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """A language model's forward pass at a prompt, as the exact linear system that it is."""
    if version:
        from secant import __version__

        typer.echo(f"secant {__version__}")
        raise typer.Exit


for verb in (explain, attribute, screen, verify, architectures, steer, compare, study, merge, summarize):
    app.command()(verb)


def main() -> None:
    """Run the command line."""
    app()
