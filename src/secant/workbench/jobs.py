"""Jobs: the computations for browsers, one at a time, each with progress, an estimate, and a way to cancel it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secant.errors import Stopped

WAITING, OFFERED, RUNNING, DONE, FAILED, CANCELLED = "waiting", "offered", "running", "done", "failed", "cancelled"

FIRST, ASKED, LATER = 0, 1, 2
"""Priorities: answers; other requests for which somebody waits; work in the background."""

_numbers = itertools.count(1)


class Cancelled(Stopped):
    """Somebody cancelled a job."""


class Yielded(Stopped):
    """A job in the background stops because somebody waits for another job. It begins again later."""


@dataclass(eq=False)
class Job:
    """A job of the worker.

    Attributes:
        run: The id of the run that it belongs to.
        kind: The kind of job: a row of `KINDS`.
        name: Its name within the kind, such as the stage's name.
        work: Computes the result for the browser, ready for JSON.
        priority: The priority; lower numbers go first.
        id: Its number.
        state: waiting, offered (it takes long, so it starts on request only), running, done, failed or cancelled.
        says: What it is doing, or why it failed.
        done: How many of its items are done, in the units of the analysis.
        of: The total number of items.
        estimate: The seconds that it is estimated to take.
        memory: The bytes that it is estimated to need.
        seconds: The seconds that it took, or has taken so far.
        result: The result of `work`.
        stopped: Whether it must end.
        told: Tells browsers about the job.
        moved: Called whenever its progress changes.
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
        """Whether it has ended: done, failed or cancelled."""
        return self.state in (DONE, FAILED, CANCELLED)

    def begin(self) -> None:
        """Records that it begins."""
        self.state, self._start = RUNNING, time.perf_counter()

    def end(self, state: str, says: str = "") -> None:
        """Records that it has ended.

        Args:
            state: done, failed or cancelled.
            says: Why it failed.

        """
        self.seconds = time.perf_counter() - self._start if self._start else None
        self.state, self.says = state, says

    def progress(self, what: str, done: int, of: int) -> None:
        """Records its progress.

        Args:
            what: What is counted.
            done: How many are done.
            of: The total number.

        Raises:
            Cancelled: The job was cancelled.

        """
        self.check()
        self.says, self.done, self.of = what, done, of
        self.moved()

    @property
    def early(self) -> bool:
        """Whether most of the job is still to do, according to its progress, or to its estimate if it reports none."""
        if self.of:
            return 2 * self.done < self.of
        return 2 * (time.perf_counter() - self._start) < (self.estimate or 0.0)

    def stop(self) -> None:
        """Called at each stopping point of its work.

        Raises:
            Stopped: The job was cancelled, or yields to another one.

        """
        self.check()
        self.passed()

    def check(self) -> None:
        """Raises Cancelled if the job was cancelled."""
        if self.stopped:
            raise Cancelled

    def public(self) -> dict[str, Any]:
        """Returns what browsers see of it, ready for JSON."""
        names = ("id", "run", "kind", "name", "state", "says", "done", "of", "estimate", "memory", "seconds")
        told = {name: getattr(self, name) for name in names}
        if self.state == RUNNING:
            told["seconds"] = time.perf_counter() - self._start
        return told
