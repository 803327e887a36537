"""Memory that may be used, and announcements of work that takes long.

Products use the largest batch size that fits into the allowance: half of the free memory, or what `limited` sets. Work
that will take more than a minute, or more than half of the free memory, is announced on the logger `secant`, which
Python prints on stderr by default. A kind of work is announced once in a process, and again if it costs much more.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from secant.arguments import size_of
from secant.errors import TooLarge, is_out_of_memory

Progress = Callable[[str, int, int], None]
"""A callback of work that takes long: what is counted, how many are done, and of how many."""

LONG = 60.0
"""Work that takes more seconds is announced."""

MORE = 2.0
"""Work of a kind that was announced is announced again if it costs more than this many times as much."""

LAST_ANNOUNCED: dict[tuple[str, bool], tuple[float, float]] = {}
"""The seconds and bytes last announced for each kind of work, and whether it required half of the memory."""

_LIMIT: ContextVar[float | None] = ContextVar("memory that may be used", default=None)
_ANNOUNCED: ContextVar[bool] = ContextVar("whether large work is announced", default=True)
_WATCH: ContextVar[Callable[[str, float, float], None] | None] = ContextVar("who watches work", default=None)
_STOP: ContextVar[Callable[[], None] | None] = ContextVar("who can stop work", default=None)
_LOGGER = logging.getLogger("secant")


def free(device: torch.device) -> float:
    """Free bytes on a device; infinite if that is unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available) if device.type == "cpu" else math.inf


def allowance(device: torch.device) -> float:
    """Bytes that may be used: what `limited` sets, or half of the free memory."""
    limit = _LIMIT.get()
    return free(device) / 2 if limit is None else limit


@contextmanager
def limited(memory: float | str | None) -> Iterator[None]:
    """Limit the memory that work in the block may use.

    Args:
        memory: Bytes, or a size such as "4GiB"; None keeps the present limit.

    Raises:
        BadArgument: `memory` is not a size.

    """
    token = _LIMIT.set(_LIMIT.get() if memory is None else size_of(memory))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def bytes_in_words(size: float) -> str:
    """A number of bytes, for people.

    >>> bytes_in_words(3 * 2**30), bytes_in_words(5e6)
    ('3.0 GiB', '4.8 MiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 100 * unit else f"{size / unit:,.0f} {name}"
    return f"{size:.0f} bytes"


def time_in_words(seconds: float) -> str:
    """A number of seconds, for people.

    >>> time_in_words(4.2), time_in_words(200), time_in_words(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_large(seconds: float, memory: float, device: torch.device) -> bool:
    """Whether work takes more than a minute, or more than half of the free memory."""
    return seconds > LONG or memory > free(device) / 2


def announce(what: str, seconds: float, memory: float, device: torch.device) -> None:
    """Log what work will take, if that is large, and call `watched`'s function in any case.

    Work of a kind that was announced before, such as the next prompt of a loop, is logged only if it takes over MORE
    times the seconds or bytes.

    Args:
        what: A description of the work. Descriptions that differ in numbers only are of one kind.
        seconds: What it is estimated to take.
        memory: Bytes that it needs.
        device: Where it runs.

    """
    if watch := _WATCH.get():
        watch(what, seconds, memory)
    if _ANNOUNCED.get() and is_large(seconds, memory, device) and _is_news(what, seconds, memory, device):
        _LOGGER.warning(
            "%s: about %s, %s of memory (%s free)",
            what, time_in_words(seconds), bytes_in_words(memory), bytes_in_words(free(device)),
        )  # fmt: skip


def _is_news(what: str, seconds: float, memory: float, device: torch.device) -> bool:
    """Whether work of this kind was not announced before, or costs much more than what was announced."""
    kind = (re.sub(r"\d[\d,.]*", "#", what), memory > free(device) / 2)
    told = LAST_ANNOUNCED.get(kind)
    if told is not None and seconds <= MORE * told[0] and memory <= MORE * told[1]:
        return False
    LAST_ANNOUNCED[kind] = (seconds, memory)
    return True


@contextmanager
def unannounced() -> Iterator[None]:
    """Announce nothing in the block: its work is part of larger work, which is announced as a whole."""
    token = _ANNOUNCED.set(False)
    try:
        yield
    finally:
        _ANNOUNCED.reset(token)


@contextmanager
def watched(watch: Callable[[str, float, float], None], stop: Callable[[], None] | None = None) -> Iterator[None]:
    """Call `watch(what, seconds, memory)` wherever the block calls `announce`, whether the work is large or not.

    Args:
        watch: Called with a description of the work, the seconds that it is estimated to take, and the bytes that it
            needs. It can raise an error, so that the work does not begin.
        stop: Called at each stopping point of the work. It can raise `Stopped`, so that the work ends there.

    """
    watching, stopping = _WATCH.set(watch), _STOP.set(stop)
    try:
        yield
    finally:
        _WATCH.reset(watching)
        _STOP.reset(stopping)


def stopping_point() -> None:
    """Call the function that `watched` was given, which can stop the work here.

    Stopping points are at each operation of a recorded or replayed pass, before each pass of the model itself, and
    before each batch of products and of decoded directions.
    """
    if stop := _STOP.get():
        stop()


@contextmanager
def timed(what: str, seconds: dict[str, float], progress: Progress | None = None) -> Iterator[None]:
    """Record the seconds that the block takes in `seconds`, under the name `what`, and report that it began and ended.

    Args:
        what: What the block does.
        seconds: Where its seconds are recorded.
        progress: Called as `progress(what, done, 1)`; None if the block reports its own progress.

    """
    start = time.perf_counter()
    if progress is not None:
        progress(what, 0, 1)
    yield
    if progress is not None:
        progress(what, 1, 1)
    seconds[what] = time.perf_counter() - start


def peak(device: torch.device) -> int | None:
    """Bytes of memory at the peak so far, of this process, or of torch on a GPU; None if that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or sys.platform == "win32":
        return None
    with suppress(OSError):  # ru_maxrss begins, on Linux, at the memory of the process that started this one
        status = Path("/proc/self/status").read_text(errors="replace")
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def room(what: str, todo: str) -> Iterator[None]:
    """Turn an out-of-memory error of the block, from any library, into TooLarge.

    Args:
        what: What must fit in memory.
        todo: What the user can do.

    Raises:
        TooLarge: Memory is full.

    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLarge(f"{what} must fit in memory", " ".join(str(error).split())[:160] or "none left", todo) from error


def in_batches(product: Callable[[Tensor], Tensor], columns: Tensor, most: int) -> Tensor:
    """A linear function of columns, applied to batches of them; the batch size is halved each time memory is full.

    Args:
        product: The function, from columns to columns.
        columns: What it is applied to.
        most: The first batch size.

    Raises:
        TooLarge: A single column does not fit.

    """
    count, start, out = columns.shape[1], 0, None
    while start < count:
        width = min(most, count - start)
        stopping_point()
        try:
            part = product(columns[:, start : start + width])
            if width == count:
                return part
            if out is None:
                out = part.new_empty(count, len(part)).T  # columns are contiguous
            out[:, start : start + width] = part
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if width == 1:
                raise TooLarge(
                    "A pass through the network must fit in memory", " ".join(str(error).split())[:160],
                    "Shorten the prompt, load a smaller dtype, or give it a device with more memory.",
                ) from error  # fmt: skip
            most = width // 2
            continue
        start += width
    return product(columns) if out is None else out


@cache
def multiplications(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product, measured once on this device."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best
