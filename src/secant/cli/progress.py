"""Progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from secant.cli.process import raise_if_interrupted, say

if TYPE_CHECKING:
    from secant.memory import Progress


@contextmanager
def progressing() -> Iterator[Progress]:
    """Show progress on stderr, with the rate and the time left.

    A terminal shows bars, which disappear at the end. Elsewhere a line is printed every minute.

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
        lines = _Lines()
        raise_if_interrupted()

        def report(what: str, done: int, of: int) -> None:
            raise_if_interrupted()
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)
            if bars.disable:
                lines(what, done, of)

        yield report


class _Lines:
    """Progress without a terminal: a line every minute."""

    def __init__(self) -> None:
        self._what, self._start, self._first, self._said = "", 0.0, 0, 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        from secant.memory import LONG, time_in_words

        now = monotonic()
        if what != self._what:
            self._what, self._start, self._first, self._said = what, now, done, now
        if now - self._said < LONG or done == self._first:
            return
        rate = (done - self._first) / (now - self._start)
        left = time_in_words((of - done) / rate)
        say(f"{what}: {done:,} of {of:,}, {rate:.3g}/s, about {left} left")
        self._said = now
