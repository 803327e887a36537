"""Ray's workers, on a cluster of this machine: the same bits, each shard once, also where workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import secant as sc
from secant.errors import BadArgument, ModelNotFound
from secant.studies import cluster
from secant.studies.cluster import on_ray

ray = pytest.importorskip("ray")


@dataclass(frozen=True)
class Shard:
    number: int
    items: tuple[str, ...]


@dataclass(frozen=True)
class Computed:
    number: int
    tables: dict[str, pd.DataFrame]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Work:
    folder: Path
    device: str | None = None
    threads: int = 1
    poison: int | None = None

    def worker(self) -> Any:
        torch.set_num_threads(self.threads)
        lm = sc.load(self.folder, dtype="float64")

        def compute(shard: Shard) -> Computed:
            if shard.number == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            explained = [sc.explain(lm, prompt) for prompt in shard.items]
            table = pd.concat([e.to_pandas() for e in explained], ignore_index=True)
            return Computed(
                shard.number, {"tokens": table}, {"y": torch.stack([e.run.operator().output for e in explained])}
            )

        return compute


SHARDS = [
    Shard(i, ("The bridge out of Marin is the", f"In {place} people cross the"))
    for i, place in enumerate(("London", "Sydney", "Venice", "Prague", "Lisbon", "Budapest"))
]


def test_bits(folder):
    work = Work(folder)
    plain = {s.number: work.worker()(s) for s in SHARDS}
    t = time.time()
    seen = []
    for done in on_ray(work, SHARDS, 2):
        print(time.time() - t, done.number)
        seen.append(done.number)
        if len(seen) == 1:
            (victim, *_) = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Hand")]
            victim.kill()
        pd.testing.assert_frame_equal(done.tables["tokens"], plain[done.number].tables["tokens"], check_exact=True)
        assert torch.equal(done.tensors["y"], plain[done.number].tensors["y"])
    print(time.time() - t)
    assert sorted(seen) == list(range(6))
    assert not ray.is_initialized()


def test_err(folder):
    t = time.time()
    with pytest.raises(ModelNotFound) as e:
        list(on_ray(Work(folder / "nowhere"), SHARDS, 1))
    print(time.time() - t, e.value)
    t = time.time()
    with pytest.raises(sc.SecantError) as e:
        list(on_ray(Work(folder, poison=1), SHARDS, 1))
    print(time.time() - t, e.value)
