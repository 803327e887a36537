"""A study on one machine: in this process, or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from secant.errors import TooLarge
from secant.studies.work import Computed, Shard, Work, Worker

ATTEMPTS = 3
"""How often processes that were killed are started again without a shard being finished in between."""


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
                raise TooLarge(
                    "The processes of a study must have room for a model and a prompt each",
                    f"one that was killed, {ATTEMPTS} times, at prompts from number {min(left.values(), key=_first)}",
                    "Use fewer workers, a smaller dtype or max_memory; what was finished is kept.",
                ) from error


def _first(shard: Shard) -> int:
    return shard.items[0].number


def _pooled(work: Work, shards: Sequence[Shard], workers: int) -> Iterator[Computed]:
    """Shards as they are done, few enough of them under way that their results never pile up."""
    spawned = multiprocessing.get_context("spawn")
    ahead = iter(shards)
    with ProcessPoolExecutor(min(workers, len(shards)), spawned, _started, (work,)) as pool:
        try:
            running: set[Future[Computed]] = set()
            while True:
                for shard in ahead:
                    running.add(pool.submit(_computed, shard))
                    if len(running) == 2 * workers:
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_WORKER: Worker | None = None


def _started(work: Work) -> None:
    """Load the model, in a process of its own, which leaves interrupts to the one that started it."""
    global _WORKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _WORKER = work.worker()


def _computed(shard: Shard) -> Computed:
    assert _WORKER is not None, "the pool starts each process with a worker"
    return _WORKER(shard)
