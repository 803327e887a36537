"""The commands. Each calls one function of the package and prints its result.

A command is a function with the decorator `secant.cli.verb.verb`, in a module of this folder. Every module here is
imported, so nothing else names a command.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from secant.cli.border import Border, Verb
from secant.cli.verb import VERBS

app = typer.Typer(
    cls=Border,
    help="Analyse a language model's forward pass at a prompt as an exact linear system.",
    epilog='Begin with: secant explain "The bridge out of Marin is the"',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def secant(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Analyse a language model's forward pass at a prompt as an exact linear system."""
    from secant import __version__

    if version:
        print(f"secant {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
for command in sorted(VERBS, key=lambda command: command.__name__):
    app.command(cls=Verb)(command)
