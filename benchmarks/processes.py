"""Work in a separate process, and the memory that it takes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import psutil

Given = ParamSpec("Given")
Found = TypeVar("Found")


def separately(work: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
    """What a function of a module returns in a new process, so that nothing has taken memory there before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


@contextmanager
def increase() -> Iterator[Callable[[], int]]:
    """Yields a function that returns, after the block, by how many bytes this process grew at its peak."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most - before
    finally:
        done.set()
        watcher.join()
