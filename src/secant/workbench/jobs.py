"""Jobs: what is computed for a browser, one at a time, with its progress, its estimate, and a way to cancel it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secant.errors import Stopped

WAITING, OFFERED, RUNNING, DONE, FAILED, CANCELLED = "waiting", "offered", "running", "done", "failed", "cancelled"

FIRST, ASKED, LATER = 0, 1, 2
"""Priorities: answers; what somebody asked for and waits for; what is computed meanwhile."""

_numbers = itertools.count(1)


class Cancelled(Stopped):
    """Somebody cancelled a job."""


class Yielded(Stopped):
    """A job that nobody waits for makes way for one that somebody does; it begins again later."""


@dataclass(eq=False)
class Job:
    """A job of the worker.

    Attributes:
        run: The id of the run that it belongs to.
        kind: What is done: a row of `KINDS`.
        name: Which of that kind, such as the stage's name.
        work: Does it, and returns what the browser gets, ready for JSON.
        priority: The priority; lower goes first.
        id: Its number.
        state: waiting, offered (it takes long, and waits to be asked for), running, done, failed or cancelled.
        says: What it is doing, or why it failed.
        done: How many of it are done, as the analysis counts them.
        of: Of how many.
        estimate: The seconds that it is estimated to take.
        memory: The bytes that it is estimated to need.
        seconds: The seconds that it took, or has taken.
        result: What it returned.
        stopped: Whether it is to end.
        told: Tells browsers of it.
        moved: Called after each progress.
        passed: Called at each stopping point.

    """

    run: str
    kind: str
    name: str
    work: Callable[[Job], Any] = field(repr=False)
    priority: int = ASKED
    id: int = field(default_factory=lambda: next(_numbers))
    state: str = WAITING
    says: str = ""
    done: int = 0
    of: int = 0
    estimate: float | None = None
    memory: float | None = None
    seconds: float | None = None
    result: Any = field(default=None, repr=False)
    stopped: bool = False
    told: Callable[[], None] = field(default=lambda: None, repr=False)
    moved: Callable[[], None] = field(default=lambda: None, repr=False)
    passed: Callable[[], None] = field(default=lambda: None, repr=False)
    _start: float = field(default=0.0, repr=False)

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in (DONE, FAILED, CANCELLED)

    def begin(self) -> None:
        """Notes that it begins."""
        self.state, self._start = RUNNING, time.perf_counter()

    def end(self, state: str, says: str = "") -> None:
        """Notes that it has ended.

        Args:
            state: done, failed or cancelled.
            says: Why it failed.

        """
        self.seconds = time.perf_counter() - self._start if self._start else None
        self.state, self.says = state, says

    def progress(self, what: str, done: int, of: int) -> None:
        """Notes its progress.

        Args:
            what: What is counted.
            done: How many are done.
            of: Of how many.

        Raises:
            Cancelled: It is to end.

        """
        self.check()
        self.says, self.done, self.of = what, done, of
        self.moved()

    @property
    def early(self) -> bool:
        """Whether it has not come far: by its progress, or by its estimate where it reports none."""
        if self.of:
            return 2 * self.done < self.of
        return 2 * (time.perf_counter() - self._start) < (self.estimate or 0.0)

    def stop(self) -> None:
        """Passes a stopping point of its work.

        Raises:
            Stopped: It is to end, or makes way.

        """
        self.check()
        self.passed()

    def check(self) -> None:
        """Raises Cancelled if it is to end."""
        if self.stopped:
            raise Cancelled

    def public(self) -> dict[str, Any]:
        """Returns what browsers learn of it, ready for JSON."""
        names = ("id", "run", "kind", "name", "state", "says", "done", "of", "estimate", "memory", "seconds")
        told = {name: getattr(self, name) for name in names}
        if self.state == RUNNING:
            told["seconds"] = time.perf_counter() - self._start
        return told
