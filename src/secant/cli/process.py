"""The standard streams of the process, and interrupts. Imports nothing slow, because interrupts may come early."""

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
ENDED = "A command must run to its end; got {}. No partial files are left: start it again."

READER_GONE = 141
"""The exit code after the reader of the output closed it: that of a process killed by SIGPIPE."""


class Output(io.TextIOWrapper):
    """Standard output that reports a failed write once. Characters that it can't encode become escapes."""

    def write(self, text: str) -> int:
        """Write a text.

        Args:
            text: The text.

        Raises:
            OutputFailed: The text can't be written.
            SystemExit: The reader closed the output.
        """
        with self._refusals():
            return super().write(text)

    def flush(self) -> None:
        """Write out what is buffered.

        Raises:
            OutputFailed: It can't be written.
            SystemExit: The reader closed the output.
        """
        with self._refusals():
            super().flush()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # Python flushes again as it exits
            if isinstance(error, BrokenPipeError):
                raise SystemExit(READER_GONE) from None
            raise OutputFailed(RULE, error.strerror or str(error), TODO) from error


def open_streams() -> None:
    """Make the standard streams safe to use.

    If one of them is closed, the next file that is opened takes its number, and receives what libraries write there.

    Raises:
        OutputFailed: Standard output is closed.
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
"""The interrupts so far. Code that is interrupted during an import may raise a different error, then or later."""


def note_interrupts() -> None:
    """Record interrupts in INTERRUPTS, in addition to raising KeyboardInterrupt.

    If Python ignores the exception, as in a callback, the interrupt is sent again a moment later.
    """

    def interrupted(number: int, frame: object) -> None:
        INTERRUPTS.append(number)
        raise KeyboardInterrupt

    def unraised(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        else:
            sys.__unraisablehook__(what)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell makes background processes ignore it
        signal.signal(signal.SIGINT, interrupted)
        sys.unraisablehook = unraised


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if an interrupt was recorded and the command still runs.

    Code in other packages may catch every exception, for example around an import, and with it an interrupt.

    Raises:
        KeyboardInterrupt: There was an interrupt.
    """
    if INTERRUPTS:
        raise KeyboardInterrupt


def say(line: str) -> None:
    """Print a line on stderr; nothing happens if that fails.

    Args:
        line: The line.
    """
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
