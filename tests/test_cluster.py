"""Ray Data's workers on a cluster of one machine: the same bits, and each shard once, even if a worker dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

import secant as sc
from secant.errors import BadArgument, ModelNotFound, SecantError, TooLarge
from secant.model.lm import versions
from secant.studies import cluster
from secant.studies.analyses import Settings
from secant.studies.cluster import on_ray
from secant.studies.cluster_worker import Tally, check_deaths
from secant.studies.prompts import given
from secant.studies.work import Computed, Shard, Source, Work

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")

PLACES = ("Marin", "London", "Sydney", "Venice", "Prague", "Lisbon")


@pytest.fixture(scope="module")
def work(folder: Path) -> Work:
    return Work(Source(str(folder), dtype="float64"), "tiny", Settings(analyses=("spectra", "words")), tensors=True)


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    items = given([f"{start} {place} people cross the" for place in PLACES for start in ("In", "From")])
    return [Shard(i, tuple(items[2 * i : 2 * i + 2])) for i in range(len(PLACES))]


@pytest.fixture
def joined() -> Iterator[None]:
    """Ray as a user would have started it."""
    with cluster.joined(2):
        yield


@dataclass(frozen=True)
class Deadly(Work):
    """Work whose workers are killed at a shard, or as they load the model, as where memory is full."""

    at: int | None = 1

    def worker(self) -> Callable[[Shard], Computed]:
        if self.at is None:
            os.kill(os.getpid(), signal.SIGKILL)
        own = super().worker()

        def compute(shard: Shard) -> Computed:
            if shard.number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return own(shard)

        return compute


@dataclass(frozen=True)
class DeadlyOnce(Work):
    """Work of which one worker is killed, in the middle of a shard that another then computes."""

    killed: Path = Path()

    def worker(self) -> Callable[[Shard], Computed]:
        own = super().worker()

        def compute(shard: Shard) -> Computed:
            computed = own(shard)
            if shard.number == 2 and not self.killed.exists():
                self.killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return computed

        return compute


def fields(work: Work) -> dict[str, object]:
    """What other work of the same kind is made from."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return {field: getattr(work, field) for field in Work.__dataclass_fields__}


def assert_the_same_rows(folder: Path, shards: list[Shard], out: Path) -> None:
    """Those of a study on Ray, and of one without."""
    items = [item for shard in shards[:3] for item in shard.items]
    how = {
        "convention": ["gate", "half"],
        "shard": 2,
        "threads": 1,
        "dtype": "float64",
        "analyses": ["spectra", "words"],
    }
    here = sc.study(items, str(folder), out=out / "here", **how)
    there = sc.study(items, str(folder), out=out / "there", engine="ray", workers=1, **how)
    assert here.tables == there.tables == ["prompts", "singular_values", "words"]
    for name in here.tables:
        pd.testing.assert_frame_equal(here.to_pandas(name), there.to_pandas(name), check_exact=True)


def test_the_tally_knows_who_died_where() -> None:
    """Three workers: one goes from shard to shard, one dies at shard 1 and one as it loads, twice each."""
    tally = Tally()
    assert [tally.begins(hand, None) for hand in "abc"] == [0, 0, 0]
    assert tally.begins("c", None) == 1
    for hand, number in (("a", 0), ("b", 1)):
        tally.ends(hand)
        assert tally.begins(hand, number) == 0
    assert tally.begins("c", None) == 1  # others were ready in between
    assert (tally.begins("b", None), tally.ends("b"), tally.begins("b", 1)) == (1, None, 1)
    assert (tally.begins("b", None), tally.ends("b"), tally.begins("b", 1)) == (0, None, 2)
    assert tally.ends("a") is None
    assert sorted(tally.at_work()) == ["b", "c"]
    check_deaths(2, 3, None)
    with pytest.raises(SecantError, match="got 3 that died while doing so"):
        check_deaths(3, 3, None)


def test_a_worker_that_is_killed_changes_no_bit(
    work: Work, shards: list[Shard], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    worker, seen, killed = work.worker(), [], tmp_path / "killed"
    for computed in on_ray(DeadlyOnce(**fields(work), killed=killed), shards, 2):
        if not seen:
            listening = [c for p in psutil.Process().children(recursive=True) for c in p.net_connections()]
            assert {c.laddr.ip.removeprefix("::ffff:") for c in listening if c.status == "LISTEN"} == {"127.0.0.1"}
        seen.append(computed.number)
        here = worker(shards[computed.number])
        assert computed.tables.keys() == here.tables.keys()
        for name, table in here.tables.items():
            pd.testing.assert_frame_equal(computed.tables[name], table, check_exact=True)
        assert (computed.tensors, computed.fingerprint) == (here.tensors, here.fingerprint)
    assert sorted(seen) == list(range(len(shards)))
    assert killed.exists()
    assert [r.getMessage() for r in caplog.records if "a worker died" in r.getMessage()] == [
        "a worker died at prompts from number 4 on, and was replaced"
    ]
    assert not ray.is_initialized()
    assert not [p for p in psutil.Process().children(recursive=True) if p.name().startswith(("ray", "gcs"))]
    assert capfd.readouterr().out == ""


def test_in_a_cluster_that_is_there(
    joined: None, folder: Path, work: Work, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study has the same rows. The cluster stays; workers go, also of a study that is left; what is wrong arrives as
    one line.
    """
    assert_the_same_rows(folder, shards, tmp_path)
    some = on_ray(work, shards, 1)
    assert next(some).tables["prompts"]["reason"].isna().all()
    some.close()
    with pytest.raises(ModelNotFound, match=r"^A model is a folder, .*nowhere.*\.$") as failed:
        list(on_ray(replace(work, source=Source("./nowhere")), shards, 1))
    assert not isinstance(failed.value, ray.exceptions.RayError)
    for wrong, said in (
        ({"workers": 3}, "1 CPUs and 0 GPUs of one machine; got room for 2 of 3"),
        ({"workers": 0}, "at least one worker; got workers = 0"),
        ({"gpus": 1}, "1 of them with device None"),
    ):
        with pytest.raises(BadArgument, match=said):
            next(on_ray(work, shards, **wrong))
    for device, said in (("cuda", "0 CPUs|room for 0 of 1"), ("cuda:1", "device 'cuda:1'")):
        with pytest.raises(BadArgument, match=said):
            next(on_ray(replace(work, source=replace(work.source, device=device)), shards))
    deadly = Deadly(**fields(work))
    monkeypatch.setattr(cluster, "TRIES", 1)
    with pytest.raises(SecantError, match=r"load the model; got 1 that died while doing so\."):
        list(on_ray(replace(deadly, at=None), shards, 1))
    with pytest.raises(TooLarge, match=r"got 1 that died at prompts from number 2\."):
        list(on_ray(deadly, shards, 1))
    assert ray.is_initialized()


def test_what_is_not_there(work: Work, shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(on_ray(work, [])) == []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SecantError, match=r"none at 127\.0\.0\.1:1 .*unset RAY_ADDRESS"):
        next(on_ray(work, shards))
    assert not ray.is_initialized()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecantError, match=r"pip install 'secant\[ray\]'"):
        next(on_ray(work, shards))


def test_workers_have_the_same_versions() -> None:
    agreed: dict[str, str] = {}
    cluster._check_versions(agreed, versions())
    cluster._check_versions(agreed, versions())
    with pytest.raises(BadArgument, match=r"torch .* and 1\.0\. Install"):
        cluster._check_versions(agreed, {**agreed, "torch": "1.0"})


def test_room_on_machines_with_gpus() -> None:
    """Counted on a stand-in for Ray: two machines of 8 CPUs, with four GPUs and with one, and one that is gone."""
    machines = [({"CPU": 8.0, "GPU": 4.0}, True), ({"CPU": 8.0, "GPU": 1.0}, True), ({"CPU": 64.0, "GPU": 8.0}, False)]
    nodes = [{"Resources": own, "Alive": alive} for own, alive in machines]
    there = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: {"CPU": 16.0, "GPU": 5.0})
    none = SimpleNamespace(cluster_resources=lambda: {"CPU": 16.0})
    assert [cluster._gpus(there, *asked) for asked in (("cuda", None), ("auto", None), (None, None), ("cpu", 0))] == [
        1, 1, 0, 0,
    ]  # fmt: skip
    assert (cluster._gpus(none, "auto", None), cluster._gpus(there, "auto", 4), cluster._gpus(there, "cuda", 0.5)) == (
        0, 4, 0.5,
    )  # fmt: skip
    rooms = {(1, 0): 16, (3, 0): 4, (1, 1): 5, (1, 4): 1, (1, 0.5): 10, (4, 1): 3, (16, 0): 0, (1, 5): 0}
    for (cpus, gpus), room in rooms.items():
        assert cluster._places(there, {"num_cpus": cpus, "num_gpus": gpus}) == room
    for device, gpus in (
        ("cuda", 1.5),
        ("cuda", -1),
        ("cuda", float("nan")),
        ("cuda", 0),
        ("cpu", 1),
        ("cuda:1", None),
    ):
        with pytest.raises(BadArgument):
            cluster._gpus(there, device, gpus)
