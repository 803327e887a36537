"""A study on one machine: in this process, or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from secant.errors import TooLarge
from secant.memory import free
from secant.model.loading import weights_size
from secant.studies.work import Computed, Shard, Work, Worker

SMALL = 2**28
"""Bytes of weights below which one prompt does not keep several cores busy."""

LONG_ENOUGH = 64
"""Prompts for each worker, from which on a process with a model of its own pays for its start."""

PROCESS = 2**30
"""Bytes that a process takes beside its model."""

ATTEMPTS = 3
"""How often processes that were killed are started again without a shard being finished in between."""


def paying(name: str, prompts: int) -> int:
    """How many processes pay for so many prompts on this machine: one core each, where the model is small.

    One for a model that is not in a folder. Raises what `secant.load` raises where there is no such model.
    """
    size = weights_size(name)
    if size is None or size > SMALL:
        return 1
    room = free(torch.device("cpu")) / 2 / (PROCESS + 4 * size)
    return max(1, min(torch.get_num_threads(), int(room), prompts // LONG_ENOUGH))


def inline(worker: Worker, shards: Sequence[Shard]) -> Iterator[Computed]:
    """In this process, one shard after the other."""
    yield from map(worker, shards)


def local(work: Work, shards: Sequence[Shard], workers: int) -> Iterator[Computed]:
    """In so many processes, each with a model of its own; shards come as they are done.

    A process that is killed takes the others with it; all of them are started again, with what is not done yet.
    Raises TooLarge where that does not help, and what loading the model raises.
    """
    left, attempts = {shard.number: shard for shard in shards}, 0
    while left:
        try:
            for computed in _pooled(work, list(left.values()), workers):
                del left[computed.number]
                attempts = 0
                yield computed
        except BrokenProcessPool as error:
            attempts += 1
            if attempts == ATTEMPTS:
                first = min(shard.items[0].number for shard in left.values())
                raise TooLarge(
                    "The processes of a study must have room for a model and a prompt each",
                    f"one that was killed, {ATTEMPTS} times, at prompts from number {first}",
                    "Use fewer workers, a smaller dtype or max_memory; what was finished is kept.",
                ) from error


def _pooled(work: Work, shards: Sequence[Shard], workers: int) -> Iterator[Computed]:
    """Shards as they are done, few enough of them under way that their results never pile up."""
    spawned = multiprocessing.get_context("spawn")
    ahead = iter(shards)
    with ProcessPoolExecutor(min(workers, len(shards)), spawned, _started, (work,)) as pool:
        try:
            running: set[Future[Computed]] = set()
            while True:
                with _uninterrupted():
                    for shard in ahead:
                        running.add(pool.submit(_computed, shard))
                        if len(running) == 2 * workers:
                            break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt, after which nobody takes what they would finish
                for process in list(pool._processes.values()):
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes start that leave interrupts to this one, from their first line on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_WORKER: Worker | None = None
_FAILURE: Exception | None = None


def _started(work: Work) -> None:
    """Load the model, in a process of its own, which ends with the one that started it."""
    global _WORKER, _FAILURE
    threading.Thread(target=_follow, daemon=True).start()
    try:
        _WORKER = work.worker()
    except Exception as error:  # raised here, it would be told from a process that was killed by nothing
        _FAILURE = error


def _follow() -> None:
    """End where the process that started this one has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _computed(shard: Shard) -> Computed:
    if _FAILURE is not None:
        raise _FAILURE
    assert _WORKER is not None, "the pool starts each process with a worker"
    return _WORKER(shard)
