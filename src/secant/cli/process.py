"""A process: its standard streams, and interrupts. Only what is light is imported here: interrupts come early too."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

from secant.errors import OutputFailed

RULE, TODO = "Output must have somewhere to go", "Make room, or write elsewhere."
ENDED = "A run ends when it is done; got {}. Nothing half-written is left; start it again."

READER_GONE = 141
"""The exit code where what reads the output went away: what a shell says of a process that SIGPIPE ended."""


class Output(io.TextIOWrapper):
    """Standard output: what it can't encode is written as escapes, and that it can't be written is said once."""

    def write(self, text: str) -> int:
        """Raises OutputFailed, or SystemExit in silence where nobody reads any longer."""
        with self._refusals():
            return super().write(text)

    def flush(self) -> None:
        """Raises as `write` does."""
        with self._refusals():
            super().flush()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what Python has still to flush
            if isinstance(error, BrokenPipeError):
                raise SystemExit(READER_GONE) from None
            raise OutputFailed(RULE, error.strerror or str(error), TODO) from error


def open_streams() -> None:
    """Make the standard streams safe to use. Raises OutputFailed where there is no output.

    A file that is opened while one of them is closed would take its number, and with it what libraries write there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if sys.stdout is None:
        raise OutputFailed(RULE, "a closed stdout", "Give it a file, or /dev/null.")
    old = sys.stdout
    sys.stdout = Output(old.buffer, old.encoding, "backslashreplace", line_buffering=bool(old.line_buffering))


INTERRUPTS: list[int] = []
"""Those that came: code that is interrupted while it is imported may raise something else, then or later."""


def note_interrupts() -> None:
    """Let an interrupt raise KeyboardInterrupt, as it does, and be known to have come; where Python is in something
    that nothing can be raised out of, such as a callback, a moment later.
    """

    def interrupted(number: int, frame: object) -> None:
        INTERRUPTS.append(number)
        raise KeyboardInterrupt

    def unraised(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        else:
            sys.__unraisablehook__(what)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets what runs behind ignore it
        signal.signal(signal.SIGINT, interrupted)
        sys.unraisablehook = unraised


def say(line: str) -> None:
    """A line on stderr, if it can be written there."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
