"""Signals that end a run: they raise an error, so that the run can clean up, and never while files are written.

A scheduler or `kill` sends SIGTERM; a closing terminal sends SIGHUP. By default both end Python immediately, and
temporary folders would stay behind.
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
    """A signal ended the run.

    Attributes:
        name: The signal's name.
        code: The exit code that a shell gives it, 128 plus its number.

    """

    def __init__(self, number: int) -> None:
        self.name, self.code = signal.Signals(number).name, 128 + number
        super().__init__(self.name)


@contextmanager
def raised() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Ended once in the block, so that it can clean up.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored. Handlers belong to the main thread; in other
    threads nothing changes.

    Raises:
        Ended: A signal arrives.

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
    """Delay an interrupt, SIGTERM or SIGHUP until the block has ended.

    The block is for a few system calls that belong together, and not for long work.
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
