"""What there is to work in, and what work will cost: memory that may be used, and what to say before a long wait.

Batched products take as many vectors at once as fit into the allowance: half of the free memory, or what `limited`
says. What is known beforehand to take more than a minute, or more than half of the free memory, is announced on the
logger `secant`, which Python shows on stderr unless it is told otherwise.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import psutil
import torch
from torch import Tensor

from secant.errors import BadArgument, TooLarge, is_out_of_memory

LONG = 60.0
"""Seconds from which on work is announced."""

_LIMIT: ContextVar[float | None] = ContextVar("memory that may be used", default=None)
_ANNOUNCED: ContextVar[bool] = ContextVar("whether large work is announced", default=True)
_LOGGER = logging.getLogger("secant")


def free(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available) if device.type == "cpu" else math.inf


def allowance(device: torch.device) -> float:
    """Bytes that may be used: what `limited` says, or half of what is free."""
    limit = _LIMIT.get()
    return free(device) / 2 if limit is None else limit


@contextmanager
def limited(memory: float | str | None) -> Iterator[None]:
    """Let work inside use so much memory: bytes, or such as "4GiB"; None leaves it as it is. Raises BadArgument."""
    token = _LIMIT.set(_LIMIT.get() if memory is None else size_of(memory))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def size_of(memory: float | str) -> float:
    """Bytes, from a number or from a size such as "512MiB", "4GB" or "4g". Raises BadArgument.

    >>> size_of("1.5KiB"), size_of("2 GB"), size_of(100)
    (1536.0, 2000000000.0, 100.0)
    """
    if isinstance(memory, int | float) and not isinstance(memory, bool) and 0 < memory < math.inf:
        return float(memory)
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?b)?", str(memory).strip().lower())
    if not found or float(found[1]) <= 0:
        raise BadArgument("Memory is a number of bytes, or a size", repr(memory), "Write it like 4GiB or 500MB.")
    return float(found[1]) * (1000 if found[3] == "b" else 1024) ** (1 + "kmgt".find(found[2]) if found[2] else 0)


def bytes_in_words(size: float) -> str:
    """A size for people.

    >>> bytes_in_words(3 * 2**30), bytes_in_words(5e6)
    ('3.0 GiB', '4.8 MiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 100 * unit else f"{size / unit:,.0f} {name}"
    return f"{size:.0f} bytes"


def time_in_words(seconds: float) -> str:
    """A time for people.

    >>> time_in_words(4.2), time_in_words(200), time_in_words(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_large(seconds: float, memory: float, device: torch.device) -> bool:
    """Whether work takes more than a minute, or more than half of the memory that is free."""
    return seconds > LONG or memory > free(device) / 2


def announce(what: str, seconds: float, memory: float, device: torch.device) -> None:
    """Say what work will take, where that is large."""
    if _ANNOUNCED.get() and is_large(seconds, memory, device):
        _LOGGER.warning(
            "%s: about %s, %s of memory (%s free)",
            what, time_in_words(seconds), bytes_in_words(memory), bytes_in_words(free(device)),
        )  # fmt: skip


@contextmanager
def unannounced() -> Iterator[None]:
    """Let work inside be silent about what it takes: it is a small part of work that says so as a whole."""
    token = _ANNOUNCED.set(False)
    try:
        yield
    finally:
        _ANNOUNCED.reset(token)


@contextmanager
def timed(what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note the seconds that a block takes, under a name."""
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start


def peak(device: torch.device) -> int | None:
    """Bytes of this process, or of what torch keeps on a GPU, at their peak until now; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def room(what: str, todo: str) -> Iterator[None]:
    """Say of an error for want of memory, from whatever library, what had no room. Raises TooLarge."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLarge(f"{what} must fit in memory", " ".join(str(error).split())[:160] or "none left", todo) from error


def in_parts(product: Callable[[Tensor], Tensor], columns: Tensor, most: int) -> Tensor:
    """A linear function of columns, `most` of them at once; half as many, again and again, where memory is full.

    Raises TooLarge where there is no room for one.
    """
    count, start, out = columns.shape[1], 0, None
    while start < count:
        width = min(most, count - start)
        try:
            part = product(columns[:, start : start + width])
            if width == count:
                return part
            if out is None:
                out = part.new_empty(count, len(part)).T  # a column after the other
            out[:, start : start + width] = part
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if width == 1:
                raise TooLarge(
                    "One vector must have room in a pass through the network", " ".join(str(error).split())[:160],
                    "Shorten the prompt, load a smaller dtype, or give it a device with more memory.",
                ) from error  # fmt: skip
            most = width // 2
            continue
        start += width
    return product(columns) if out is None else out


@cache
def multiplications(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations in a second of a matrix product, as measured here, once."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best
