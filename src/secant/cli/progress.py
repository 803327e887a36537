"""Progress on stderr: bars in a terminal; elsewhere few plain lines, more rarely the longer a command takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from secant.cli.process import raise_if_interrupted, say

if TYPE_CHECKING:
    from secant.memory import Progress

FIRST, MOST = 10.0, 60.0
"""Seconds before the first line, and the most between two lines. Each time it is twice as long."""


class Lines:
    """Progress without a terminal.

    A line is printed FIRST seconds after the first stage began, the next one after twice as long, and so on.
    """

    def __init__(self) -> None:
        self._what, self._done, self._of = "", 0, 1
        self._start, self._first, self._wait = 0.0, 0, FIRST
        self._said: float | None = None

    def __call__(self, what: str, done: int, of: int) -> None:
        """Note how far a stage is, and print a line if it is time.

        Args:
            what: The stage; "" if nothing is worth a line.
            done: How much of it is done.
            of: How much there is.
        """
        now = monotonic()
        if what != self._what:
            self._said = now if self._said is None else self._said
            self._what, self._start, self._first = what, now, done
        self._done, self._of = done, of
        self.tick(now)
        if done >= of:  # what comes next is another stage
            self._what = ""

    def tick(self, now: float) -> None:
        """Print a line if it is time.

        Args:
            now: The time in seconds.
        """
        if not self._what or self._said is None or now - self._said < self._wait:
            return
        self._said, self._wait = now, min(2 * self._wait, MOST)
        say(f"{self._what}: {self._how_far(now - self._start)}")

    def _how_far(self, seconds: float) -> str:
        from secant.memory import time_in_words

        if self._of <= 1:
            return f"{time_in_words(seconds)} so far"
        counted = f"{self._done:,} of {self._of:,}"
        if not self._first < self._done < self._of or not seconds:
            return counted
        rate = (self._done - self._first) / seconds
        return f"{counted}, {rate:.3g}/s, about {time_in_words((self._of - self._done) / rate)} left"


_LINES: list[Lines] = []
"""The lines of the running command, unless it has a terminal."""


@contextmanager
def in_lines() -> Iterator[None]:
    """Print the progress of the block in lines if stderr is not a terminal, also while a stage does not report any."""
    if _LINES or sys.stderr.isatty():
        yield
        return
    lines, ended = Lines(), Event()

    def watch() -> None:
        while not ended.wait(1.0):
            lines.tick(monotonic())

    _LINES.append(lines)
    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _LINES.clear()


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Name what the block does, for the lines.

    Args:
        what: The stage.
    """
    for lines in _LINES:
        lines(what, 0, 1)
    yield
    for lines in _LINES:
        lines("", 0, 1)


@contextmanager
def progressing() -> Iterator[Progress]:
    """Show progress on stderr, with the rate and the time left.

    A terminal shows bars, which disappear at the end. Elsewhere lines are printed, as `in_lines` does.

    Yields:
        The callback to report progress to.

    Raises:
        KeyboardInterrupt: An interrupt was recorded, even if other code caught it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}
        raise_if_interrupted()

        def report(what: str, done: int, of: int) -> None:
            raise_if_interrupted()
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)
            for lines in _LINES:
                lines(what, done, of)

        yield report
