"""Shards on many machines: Ray's actors each keep one model loaded, and send results back to the one who asked.

Ray places the actors and carries what goes between them (https://docs.ray.io). Which shard goes to whom is said here,
in `_in_turn`, for two reasons. A shard that kills whoever computes it must end the study in place of being tried for
ever, as in Ray Data. And a worker without a place, because others use the cluster or its machine is gone, must not be
given a shard that it can't begin, as in `ray.util.ActorPool`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from secant.errors import BadArgument, SecantError, TooLarge, integer
from secant.loading import ATLAS
from secant.model import versions

if TYPE_CHECKING:
    from secant.studies.work import Computed, Shard, Work

TRIES = 3
"""Workers that die at the same shard, or one after the other before any is ready, until the study ends."""

PATIENCE = 60.0
"""Seconds without anybody at work, after which this is said."""

_LOGGER = logging.getLogger("secant")


def on_ray(
    work: Work, shards: Sequence[Shard], workers: int | None = None, gpus: float | None = None
) -> Iterator[Computed]:
    """What Ray's workers compute of these shards, each once, as they are done.
    A worker has one shard at a time, and keeps what it made of it until that is asked for.

    Each worker loads the model once, and has `work.threads` CPUs and so many GPUs: a whole number, or a fraction where
    several share one; by default one where the model goes to CUDA, or to "auto" and the cluster has any. By default
    there are as many `workers` as have room. The cluster is Ray's if it is initialised, or that of RAY_ADDRESS; else
    one of this machine, which ends with the study. A worker that dies is replaced, and its shard computed again.

    Raises SecantError where Ray is not installed, a cluster can't be reached, or a worker does not start; BadArgument
    where workers have no room, TooLarge where a shard's worker dies three times; and what a worker raises.
    """
    if not shards:
        return
    ray = _library()
    if workers is not None:
        workers = integer(workers, 1, 10**6, "A cluster has whole workers", "workers = ")
    with joined(None if workers is None else workers * work.threads):
        each = {"num_cpus": work.threads, "num_gpus": _gpus(ray, work.source.device, gpus)}
        there = _places(ray, each)
        if there < (workers or 1):
            raise BadArgument(
                f"Each worker has {each['num_cpus']} CPUs and {each['num_gpus']:g} GPUs of one machine",
                f"room for {there} of {workers or 1}", "Ask for less, or start more machines first.",
            )  # fmt: skip
        made, own = ray.remote(**each)(Hand), _everywhere(work)
        hands: list[Any] = []

        def begin() -> Any:
            hands.append(made.remote(own))
            return hands[-1]

        try:
            yield from _in_turn(ray, begin, min(workers or there, len(shards)), deque(shards))
        finally:
            for hand in hands:
                ray.kill(hand)


def _everywhere(work: Work) -> Work:
    """The same with the folder's whole path: workers start in folders of their own."""
    folder = Path(work.source.name).expanduser()
    if work.source.name == ATLAS or not folder.is_dir():
        return work
    return replace(work, source=replace(work.source, name=str(folder.absolute())))


class Hand:
    """One of Ray's actors: a worker, where it works."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def load(self) -> dict[str, str]:
        """Load the model; the versions that results depend on. Not when it is made: there, Ray hides what is raised."""
        self._worker = self._work.worker()
        return versions()

    def compute(self, shard: Shard) -> Computed:
        """What the worker makes of a shard."""
        return self._worker(shard)


def _in_turn(ray: Any, begin: Callable[[], Any], workers: int, todo: deque[Shard]) -> Iterator[Computed]:
    """Give each worker that is ready the next shard, and yield what is done: one shard at most on each worker.

    One that died is let go, and another begun: while Ray restarts one itself, it may refuse to be spoken to.
    """
    at: dict[Any, tuple[Any, Shard | None]] = {}
    lost: Counter[int | None] = Counter()  # by shard; None: before any
    agreed: dict[str, str] = {}

    def load() -> None:
        hand = begin()
        at[hand.load.remote()] = hand, None

    for _ in range(workers):
        load()
    while todo or any(shard for _, shard in at.values()):
        done, _ = ray.wait(list(at), timeout=PATIENCE)
        if not done and not any(shard for _, shard in at.values()):
            _LOGGER.warning("no worker is ready yet: they load their models, or wait for room on the cluster")
        for ref in done:
            hand, shard = at.pop(ref)
            try:
                result = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except ray.exceptions.RayError as error:
                ray.kill(hand)
                at_work = None if shard is None else shard.number
                lost[at_work] += 1
                _bear(lost[at_work], shard, error)
                if shard is not None:
                    todo.appendleft(shard)
                load()
                continue
            if shard is None:
                _alike(agreed, result)
                lost[None] = 0
            if todo:
                following = todo.popleft()
                at[hand.compute.remote(following)] = hand, following
            else:
                ray.kill(hand)  # which leaves its place to others
            if shard is not None:
                yield result


def _bear(times: int, shard: Shard | None, error: BaseException) -> None:
    """Say that a worker died, at a shard or before any. Raises TooLarge or SecantError where it was once too often."""
    where = "its start" if shard is None else f"prompts from number {shard.items[0].number}"
    if times < TRIES:
        _LOGGER.warning("a worker died at %s: another takes its place", where)
        return
    said = str(error).strip().splitlines() or [type(error).__name__]
    got = f"{times} that died at {where} ({' '.join(said[-1].split())[:160]})"
    if shard is None:
        todo = "Each machine needs this secant, the model, and memory for it."
        raise SecantError("A worker starts and loads the model", got, todo) from error
    raise TooLarge(
        "Workers must have room for a model and a prompt each", got,
        "Use fewer workers to a machine, a smaller dtype or max_memory; what was finished is kept.",
    ) from error  # fmt: skip


def _own(error: Any) -> BaseException:
    """An error as it was raised in a worker; with Ray's account of where, if it is none of secant's."""
    cause: BaseException | None = getattr(error, "cause", None)
    if cause is None:
        return error
    if not isinstance(cause, SecantError):
        cause.add_note(str(error))
    return cause


def _alike(agreed: dict[str, str], found: dict[str, str]) -> None:
    """Note the first worker's versions. Raises BadArgument where another's are others."""
    if not agreed:
        agreed.update(found)
    if found != agreed:
        others = ", ".join(f"{name} {agreed[name]} and {found[name]}" for name in agreed if agreed[name] != found[name])
        raise BadArgument("All workers of a study have the same versions", others, "Install the same everywhere.")


def _gpus(ray: Any, device: str | None, gpus: float | None) -> float:
    """How many GPUs a worker takes."""
    place, _, number = (device or "cpu").partition(":")
    if number:
        raise BadArgument("On a cluster, Ray says which GPU is whose", f"device {device!r}", f"Say {place!r}.")
    if gpus is not None:
        if not gpus >= 0 or (gpus > 1 and gpus % 1):
            raise BadArgument("A worker's GPUs are a whole number or a part of one", f"{gpus}", "Say 1, 2 or 0.5.")
        if (gpus > 0) != (place in ("cuda", "auto")) and place != "auto":
            raise BadArgument(
                "A worker has GPUs where its model goes there", f"{gpus:g} of them with device {device!r}",
                "Load it with device 'cuda', or 'auto' to spread it over several.",
            )  # fmt: skip
        return gpus
    return 1.0 if place == "cuda" or (place == "auto" and ray.cluster_resources().get("GPU")) else 0.0


def _places(ray: Any, each: dict[str, float]) -> int:
    """How many workers have room on the machines that are there."""
    named = {"CPU": each["num_cpus"], "GPU": each["num_gpus"]}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(own.get(kind, 0) // need) for kind, need in named.items() if need) for own in machines)


def _library() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SecantError(
            "Workers on a cluster are Ray's", "no ray", "Install it: pip install 'secant[ray]'."
        ) from error
    return ray


@contextmanager
def joined(cpus: int | None) -> Iterator[None]:
    """Be in a cluster: the one that Ray is in, or that of RAY_ADDRESS, or one of this machine, of so many CPUs, for so
    long.

    A cluster that is started here listens on the loopback interface alone, has no dashboard, and reports to nobody.
    Raises SecantError where Ray is not installed, or a cluster can't be joined.
    """
    ray = _library()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    with ExitStack() as stack:
        stack.enter_context(patch.object(ray._private.worker, "print_to_stdstream", _noted))
        stack.callback(ray.shutdown)
        try:
            _answers(address)
            with _loopback(ray) if address == "local" else nullcontext():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, RuntimeError, ValueError) as error:
            raise SecantError(
                "Workers are on a cluster of Ray", f"none at {address} ({' '.join(str(error).split())[:160]})",
                "Start one with `ray start --head`, set RAY_AUTH_MODE=token if it has a token, or unset RAY_ADDRESS.",
            ) from error  # fmt: skip
        yield


def _answers(address: str) -> None:
    """Raise OSError where nothing answers; Ray takes minutes to see that."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _noted(data: dict[str, Any], *_: Any, **__: Any) -> None:
    """What Ray would print on standard output, which belongs to results."""
    for line in data["lines"]:
        _LOGGER.info("ray: %s", line)


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Have Ray start as it does on macOS, where it listens on the loopback interface alone, and without statistics."""
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with patch.dict(os.environ, alone), patch.object(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield
