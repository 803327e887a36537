"""Shards on many machines: Ray Data's workers each keep one model loaded, and send results back to the one who asked.

Ray Data gives each worker of a pool the next shard, starts one that died again, on another machine if need be, and has
its shard computed again (https://docs.ray.io/en/latest/data). What a worker raises, and how many died at a shard, comes
back in its rows: see `secant.studies.hands`.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from secant.errors import BadArgument, SecantError, integer
from secant.studies.hands import Hand, Tally

if TYPE_CHECKING:
    from secant.studies.work import Computed, Shard, Work

TRIES = 3
"""Workers that die at the same shard, or one after the other before any is ready, until the study ends."""

PATIENCE = 60.0
"""Seconds until it is said if nobody is at work."""

_LOGGER = logging.getLogger("secant")


def on_ray(
    work: Work, shards: Sequence[Shard], workers: int | None = None, gpus: float | None = None
) -> Iterator[Computed]:
    """What Ray's workers compute of these shards, each once, as they are done.
    A worker has one shard at a time. What nobody asked for yet is in Ray's object store, of which it may take half.

    Each worker loads the model once, and has `work.threads` CPUs and so many GPUs: a whole number, or a fraction where
    several share one; by default one where the model goes to CUDA, or to "auto" and the cluster has any. By default
    there are as many `workers` as have room. The cluster is Ray's if it is initialised, or that of RAY_ADDRESS; else
    one of this machine, which ends with the study. A worker that dies is started again, and its shard computed again.

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
        work = replace(
            work, source=replace(work.source, name=work.source.place)
        )  # workers start in folders of their own
        yield from _streamed(ray, work, shards, min(workers or there, len(shards)), each)


def _streamed(
    ray: Any, work: Work, shards: Sequence[Shard], workers: int, each: dict[str, float]
) -> Iterator[Computed]:
    """What a pool of Ray Data's makes of shards. What it logs is left out: what it does not get over is raised."""
    data: Any = import_module("ray.data")
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    given = data.from_items([{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
    given.context.enable_progress_bars = False
    made = given.map_batches(
        Hand, fn_constructor_args=(ray.cloudpickle.dumps(work), tally, TRIES), batch_size=1, batch_format="pandas",
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1), **each,
    )  # fmt: skip
    rows = iter(made.iter_batches(batch_size=None, batch_format="pandas", prefetch_batches=0))
    quiet = patch.object(logging.getLogger("ray.data"), "handlers", [logging.NullHandler()])
    first, agreed = {shard.number: shard.items[0].number for shard in shards}, dict[str, str]()
    patience = threading.Timer(PATIENCE, _say_if_idle, (ray, tally))
    patience.daemon = True
    try:
        with quiet, closing(rows) as batches:
            patience.start()
            for ((result, lost, found),) in (batch.to_numpy() for batch in batches):
                if isinstance(result, Exception):
                    raise result
                _alike(agreed, found)
                if lost:
                    _LOGGER.warning("a worker died at prompts from number %d: it was replaced", first[result.number])
                yield result
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise SecantError(
            "Ray starts workers and keeps them", " ".join(said[-1].split())[:160],
            "Each machine needs this secant; if the cluster is gone, start it again.",
        ) from error  # fmt: skip
    finally:
        patience.cancel()
        with suppress(ray.exceptions.RayError):  # who is at work would finish the shard first
            for actor in [*ray.get(tally.at_work.remote(), timeout=PATIENCE), tally]:
                ray.kill(actor)


def _say_if_idle(ray: Any, tally: Any) -> None:
    with suppress(ray.exceptions.RayError):
        if not ray.get(tally.at_work.remote()):
            _LOGGER.warning("no worker has begun yet: they start, or wait for room on the cluster")


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
            with _quietly(), _loopback(ray) if address == "local" else nullcontext():
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


def _quietly() -> AbstractContextManager[Any]:
    """Have Ray print nothing from below Python: it does on standard error, of every actor that may be started again."""
    return patch.dict(os.environ, {"RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal")})


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Have Ray start as it does on macOS, where it listens on the loopback interface alone, and without statistics."""
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with patch.dict(os.environ, alone), patch.object(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield
