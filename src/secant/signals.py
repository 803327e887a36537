"""Signals that end a run: as errors that are cleaned up after, and never in the middle of a change to files.

SIGTERM is what a scheduler or `kill` sends, SIGHUP comes when a terminal is closed. By default both end Python where it
is, without running what comes after the work: temporary folders would stay.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a command as an interrupt does; Windows has no SIGHUP."""


class Ended(KeyboardInterrupt):
    """A signal that ends the run. `code` is the exit code that a shell gives to it: 128 and its number."""

    def __init__(self, number: int) -> None:
        self.name, self.code = signal.Signals(number).name, 128 + number
        super().__init__(self.name)


@contextmanager
def raised() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise Ended, once: what comes after that lets the block clean up.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Handlers belong to the main thread; in another
    one nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for one in mine:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    numbers = [getattr(signal, name) for name in NAMES]
    before = {number: signal.getsignal(number) for number in numbers} if _is_main() else {}
    mine = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[None]:
    """An interrupt, SIGTERM or SIGHUP that comes in the block is raised when the block has ended.

    It is for a few system calls that belong together, not for work.
    """
    came: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", *NAMES)] if _is_main() else []
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
