"""The commands: each is one verb of the package, in a file of its own, and prints what it returns."""

from __future__ import annotations

from typing import Annotated

import typer

from secant.cli.architectures import architectures
from secant.cli.attribute import attribute
from secant.cli.border import Border, Verb
from secant.cli.compare import compare
from secant.cli.explain import explain
from secant.cli.screen import screen
from secant.cli.steer import steer
from secant.cli.study import merge, study
from secant.cli.summarize import summarize
from secant.cli.verify import verify

app = typer.Typer(
    cls=Border,
    help="A language model's forward pass at a prompt, as the exact linear system that it is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def secant(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """A language model's forward pass at a prompt, as the exact linear system that it is."""
    from secant import __version__

    if version:
        print(f"secant {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


for verb in (explain, attribute, screen, verify, architectures, steer, compare, study, merge, summarize):
    app.command(cls=Verb)(verb)
