"""Computing shards on this machine, in this process or in several."""

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
"""With fewer bytes of weights, one prompt can't keep several cores busy."""

LONG_ENOUGH = 64
"""The minimum number of prompts for which a worker's process is worth starting."""

PROCESS = 2**30
"""Bytes that a process requires in addition to its model."""

ATTEMPTS = 3
"""How often killed processes are restarted without finishing a shard in between."""


def default_workers(name: str, prompts: int) -> int:
    """How many worker processes are worth starting on this machine: one for each core if the model is small.

    Args:
        name: The model's folder or name.
        prompts: How many prompts the study has.

    Returns:
        The number of processes; 1 for a large model, and for one that is not in a folder.

    Raises:
        SecantError: As `secant.load` does if there is no such model.

    """
    size = weights_size(name)
    if size is None or size > SMALL:
        return 1
    room = free(torch.device("cpu")) / 2 / (PROCESS + 4 * size)
    return max(1, min(torch.get_num_threads(), int(room), prompts // LONG_ENOUGH))


def inline(worker: Worker, shards: Sequence[Shard]) -> Iterator[Computed]:
    """Compute shards in this process, one after the other.

    Args:
        worker: The worker.
        shards: The shards.

    Yields:
        The rows of each shard.

    """
    yield from map(worker, shards)


def local(work: Work, shards: Sequence[Shard], workers: int) -> Iterator[Computed]:
    """Compute shards in several processes, each with its own copy of the model.

    If a process is killed, all of them are restarted with the shards that are not finished.

    Args:
        work: The model and the settings.
        shards: The shards.
        workers: How many processes.

    Yields:
        The rows of each shard, in the order in which shards are finished.

    Raises:
        TooLarge: Processes were killed again after each restart.
        SecantError: As `secant.load` does.

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
                    "Use fewer workers, a smaller dtype or max_memory; finished shards are kept.",
                ) from error


def _pooled(work: Work, shards: Sequence[Shard], workers: int) -> Iterator[Computed]:
    """The rows of shards as they are finished. Only a few shards are submitted ahead, so that results never pile up."""
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
            if not isinstance(error, Exception):  # an interrupt: nobody would take what they finish
                for process in list(pool._processes.values()):
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Make processes that start in the block ignore interrupts, which this process handles."""
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
    """Load the model in a new process, which ends when its parent ends."""
    global _WORKER, _FAILURE
    threading.Thread(target=_follow, daemon=True).start()
    try:
        _WORKER = work.worker()
    except Exception as error:  # raised here, it would look like a killed process
        _FAILURE = error


def _follow() -> None:
    """End this process when its parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _computed(shard: Shard) -> Computed:
    if _FAILURE is not None:
        raise _FAILURE
    assert _WORKER is not None, "the pool starts each process with a worker"
    return _WORKER(shard)
