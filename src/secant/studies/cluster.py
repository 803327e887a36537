"""Computing shards on a Ray cluster. Each worker keeps one model loaded and returns its rows to the calling process.

Ray Data gives each worker of a pool the next shard. It replaces a worker that dies, if necessary on another machine,
and has its shard computed again (https://docs.ray.io/en/latest/data). A row of its results also holds the error that
the worker raised, and how many workers died at the shard: see `secant.studies.cluster_worker`.
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

from secant.arguments import counted
from secant.errors import BadArgument, SecantError
from secant.foreign import required
from secant.studies.cluster_worker import ClusterWorker, Tally

if TYPE_CHECKING:
    from secant.studies.work import Computed, Shard, Work

TRIES = 3
"""The study ends after this many workers died at one shard, or while loading the model."""

PATIENCE = 60.0
"""Seconds without any worker at work until a warning is logged."""

_LOGGER = logging.getLogger("secant")


def on_ray(
    work: Work, shards: Sequence[Shard], workers: int | None = None, gpus: float | None = None
) -> Iterator[Computed]:
    """Compute shards with Ray's workers.

    Each worker loads the model once and computes one shard at a time. Rows that were not taken yet wait in Ray's object
    store, of which they may fill half. A worker that dies is replaced, and its shard is computed again. The cluster is
    the one that Ray is connected to, else the one at RAY_ADDRESS, else a new one on this machine that ends with the
    study.

    Args:
        work: The model, the settings, and how many CPUs (`threads`) each worker has.
        shards: The shards.
        workers: How many workers; by default as many as the cluster has room for.
        gpus: How many GPUs each worker has, or which fraction of one; by default one if the model goes to CUDA, or to
            "auto" on a cluster with GPUs.

    Yields:
        The rows of each shard once, in the order in which shards are finished.

    Raises:
        BadArgument: The cluster has no room for the workers.
        TooLarge: Three workers died at one shard.
        SecantError: Ray is not installed, the cluster can't be reached, or workers do not start; also any error that a
            worker raises.

    """
    if not shards:
        return
    ray = _library()
    if workers is not None:
        workers = counted("workers", workers)
    with joined(None if workers is None else workers * work.threads):
        each = {"num_cpus": work.threads, "num_gpus": _gpus(ray, work.source.device, gpus)}
        there = _places(ray, each)
        if there < (workers or 1):
            raise BadArgument(
                f"Each worker requires {each['num_cpus']} CPUs and {each['num_gpus']:g} GPUs of one machine",
                f"room for {there} of {workers or 1}", "Ask for fewer, or start more machines first.",
            )  # fmt: skip
        work = replace(
            work, source=replace(work.source, name=work.source.place)
        )  # workers start in folders of their own
        yield from _streamed(ray, work, shards, min(workers or there, len(shards)), each)


def _streamed(
    ray: Any, work: Work, shards: Sequence[Shard], workers: int, each: dict[str, float]
) -> Iterator[Computed]:
    """The rows that a pool of Ray Data computes. Its logs are silenced, since errors are raised here."""
    data: Any = import_module("ray.data")
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    given = data.from_items([{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
    given.context.enable_progress_bars = False
    made = given.map_batches(
        ClusterWorker, fn_constructor_args=(ray.cloudpickle.dumps(work), tally, TRIES), batch_size=1,
        batch_format="pandas",
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1), **each,
    )  # fmt: skip
    rows = iter(made.iter_batches(batch_size=None, batch_format="pandas", prefetch_batches=0))
    quiet = patch.object(logging.getLogger("ray.data"), "handlers", [logging.NullHandler()])
    first, agreed = {shard.number: shard.items[0].number for shard in shards}, dict[str, str]()
    patience = threading.Timer(PATIENCE, _warn_if_idle, (ray, tally))
    patience.daemon = True
    try:
        with quiet, closing(rows) as batches:
            patience.start()
            for ((result, lost, found),) in (batch.to_numpy() for batch in batches):
                if isinstance(result, Exception):
                    raise result
                _check_versions(agreed, found)
                if lost:
                    _LOGGER.warning(
                        "a worker died at prompts from number %d on, and was replaced", first[result.number]
                    )
                yield result
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise SecantError(
            "Ray must start the workers and keep them running", " ".join(said[-1].split())[:160],
            "Install this version of secant on each machine; if the cluster is gone, start it again.",
        ) from error  # fmt: skip
    finally:
        patience.cancel()
        with suppress(ray.exceptions.RayError):  # otherwise busy workers would finish their shards first
            for actor in [*ray.get(tally.at_work.remote(), timeout=PATIENCE), tally]:
                ray.kill(actor)


def _warn_if_idle(ray: Any, tally: Any) -> None:
    with suppress(ray.exceptions.RayError):
        if not ray.get(tally.at_work.remote()):
            _LOGGER.warning("no worker has begun yet: workers are starting, or waiting for room on the cluster")


def _check_versions(agreed: dict[str, str], found: dict[str, str]) -> None:
    """Record the first worker's versions. Raises BadArgument if those of another worker differ."""
    if not agreed:
        agreed.update(found)
    if found != agreed:
        others = ", ".join(f"{name} {agreed[name]} and {found[name]}" for name in agreed if agreed[name] != found[name])
        raise BadArgument(
            "All workers of a study must have the same versions", others, "Install the same versions everywhere."
        )


def _gpus(ray: Any, device: str | None, gpus: float | None) -> float:
    """How many GPUs a worker requires."""
    place, _, number = (device or "cpu").partition(":")
    if number:
        raise BadArgument("On a cluster, Ray assigns the GPUs", f"device {device!r}", f"Give {place!r}.")
    if gpus is not None:
        if not gpus >= 0 or (gpus > 1 and gpus % 1):
            raise BadArgument(
                "A worker has a whole number of GPUs, or a fraction of one", f"{gpus}", "Give 1, 2 or 0.5."
            )
        if (gpus > 0) != (place in ("cuda", "auto")) and place != "auto":
            raise BadArgument(
                "A worker has GPUs if its model is loaded on them", f"{gpus:g} of them with device {device!r}",
                "Load it with device 'cuda', or 'auto' to spread it over several.",
            )  # fmt: skip
        return gpus
    return 1.0 if place == "cuda" or (place == "auto" and ray.cluster_resources().get("GPU")) else 0.0


def _places(ray: Any, each: dict[str, float]) -> int:
    """How many workers the cluster's machines have room for."""
    named = {"CPU": each["num_cpus"], "GPU": each["num_gpus"]}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(own.get(kind, 0) // need) for kind, need in named.items() if need) for own in machines)


def _library() -> Any:
    return required("A cluster", "ray", "ray")


@contextmanager
def joined(cpus: int | None) -> Iterator[None]:
    """Connect to a cluster for the length of the block.

    The cluster is the one that Ray is connected to, else the one at RAY_ADDRESS, else a new one on this machine. A new
    cluster listens on the loopback interface only, has no dashboard, and sends no usage statistics.

    Args:
        cpus: How many CPUs a new cluster has; by default all.

    Raises:
        SecantError: Ray is not installed, or the cluster can't be reached.

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
                "A Ray cluster must be reachable", f"none at {address} ({' '.join(str(error).split())[:160]})",
                "Start one with `ray start --head`, set RAY_AUTH_MODE=token if it has a token, or unset RAY_ADDRESS.",
            ) from error  # fmt: skip
        yield


def _answers(address: str) -> None:
    """Raise OSError if nothing answers; Ray takes minutes to notice that."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _noted(data: dict[str, Any], *_: Any, **__: Any) -> None:
    """Log what Ray would print on standard output, which is for results only."""
    for line in data["lines"]:
        _LOGGER.info("ray: %s", line)


def _quietly() -> AbstractContextManager[Any]:
    """Silence Ray's C++ code, which prints on standard error for every actor that may be restarted."""
    return patch.dict(os.environ, {"RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal")})


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Make Ray start as on macOS, where it listens on the loopback interface only, and without usage statistics."""
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with patch.dict(os.environ, alone), patch.object(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield
