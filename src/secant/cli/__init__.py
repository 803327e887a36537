"""The command line. Torch and other slow imports wait until a command runs, so that `--help` answers at once.

An error that secant raises on purpose is one line on stderr and exit code 2. `--debug` shows the traceback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from secant.cli.commands import app

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run the command line and end the process.

    Raises:
        SystemExit: Always, with one of the exit codes of `secant.cli.border`.
    """
    try:
        _run()
    except KeyboardInterrupt:  # including one during the first import
        from secant.cli.process import ENDED, say

        say(f"secant: {ENDED.format('an interrupt')}")
    sys.exit(2)


def _run() -> None:
    """Run the command. If the output can't be written, say so in one line."""
    from secant.cli.process import note_interrupts, open_streams, say
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


def __getattr__(name: str) -> Any:
    """`app`, built when it is first used: `main` must handle interrupts before typer is imported."""
    if name != "app":
        raise AttributeError(f"module 'secant.cli' has no attribute {name!r}")
    from secant.cli.commands import app

    return app
