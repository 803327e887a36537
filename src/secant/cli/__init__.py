"""The command line. Nothing heavy is imported before a command runs, so that help answers at once.

Errors that secant raises on purpose are one line on stderr and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from secant.cli.commands import app

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run the command line as a process of its own, which ends with the exit codes of `secant.cli.border`."""
    from secant.cli.process import ENDED, note_interrupts, open_streams, say
    from secant.errors import OutputFailed

    try:
        note_interrupts()
        open_streams()
        try:
            from secant.cli.commands import app

            app()
        finally:
            sys.stdout.flush()
    except OutputFailed as error:
        say(f"secant: {error}")
    except KeyboardInterrupt:
        say(f"secant: {ENDED.format('an interrupt')}")
    sys.exit(2)


def __getattr__(name: str) -> Any:
    """`app`, when it is first asked for: `main` has to be there before typer is."""
    if name != "app":
        raise AttributeError(f"module 'secant.cli' has no attribute {name!r}")
    from secant.cli.commands import app

    return app
