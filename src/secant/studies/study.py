"""Studies: running the same analyses on many prompts, and saving the results as rows with certificates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch

from secant import __version__
from secant.arguments import counted, size_of
from secant.errors import BadArgument, DamagedFile, checked, chosen, quoted, seeded, shown
from secant.foreign import explained
from secant.linearize.conventions import Named, conventions_named
from secant.memory import Progress, announce, peak
from secant.model.lm import LM, versions
from secant.model.sources import expanded
from secant.results.files import columns
from secant.results.paths import path_of, paths_of
from secant.results.result import Viewed
from secant.results.view import Grid, Shown, View
from secant.studies.analyses import ANALYSES, Settings
from secant.studies.folder import SHARDS, SPEC, TABLES, Folder, check_intact, read
from secant.studies.identity import MOST, Identity, shard_name
from secant.studies.local import inline, local
from secant.studies.prompts import Item, Prompts, digest, given
from secant.studies.work import PROMPTS, SCHEMA, Computed, Shard, Source, Work, Worker, identified
from secant.text import count

ENGINES = ("local", "ray")
CPU = torch.device("cpu")
ESTIMATE_AFTER = 5.0
"""Seconds of work after which the time left is estimated."""

SHOWN = 8
"""The number of reasons for failed prompts that views show."""


@dataclass(frozen=True, repr=False)
class Study(Viewed):
    """A study, finished or not, with its rows by table.

    Attributes:
        folder: Its folder.
        identity: Everything that its rows depend on.
        missing: How many shards are not finished.

    """

    folder: Path
    identity: Identity
    missing: int
    _intact: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        own = self.identity
        return [
            str(self.folder), ", ".join(each["label"] for each in own.models), ", ".join(own.conventions),
            count(own.prompts, "prompt"), f"{self.missing} of {count(own.count, 'shard')} missing",
        ]  # fmt: skip

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study in a folder.

        Args:
            folder: The folder.

        Raises:
            BadArgument: The folder holds no study.
            DamagedFile: Its study.json is damaged.

        """
        path, identity = path_of(folder).absolute(), read(folder)
        there = {shard.name for shard in (path / SHARDS).glob("*")}
        return cls(path, identity, len(set(identity.names) - there))

    @property
    def tables(self) -> list[str]:
        """The names of the tables that have rows."""
        found = {file.stem for file in self._files("*")}
        return [name for name in SCHEMA if name in found]

    def to_pandas(self, table: str = PROMPTS.name) -> pd.DataFrame:
        """The rows of a table, in the order of models, conventions and prompts.

        Args:
            table: The name of one of its tables.

        Returns:
            All rows, or those of the finished shards.

        Raises:
            BadArgument: The study has no such table.
            DamagedFile: A file of the table was changed.

        """
        if not isinstance(table, str) or table not in self.tables:
            raise BadArgument(
                f"The tables are {', '.join(self.tables) or 'none yet'}", quoted(table), "Choose one of them."
            )
        self.check_intact(table)
        integers = {pyarrow.int64(): pd.Int64Dtype()}  # numpy's integers can't be missing
        read, todo = pyarrow.parquet.read_table, "Run the study again."
        with explained(DamagedFile, "A study's tables must be Parquet files", todo, f"{self.folder}"):
            some = [
                read(file).to_pandas(types_mapper=integers.get, ignore_metadata=True) for file in self._files(table)
            ]
        return pd.concat(some, ignore_index=True)

    def check_intact(self, table: str) -> None:
        """Check that the files of a table are as they were written. Each file is checked once.

        Args:
            table: The table's name.

        Raises:
            DamagedFile: A file was changed.

        """
        for file in self._files(table):
            if file not in self._intact:
                check_intact(file)
                self._intact.add(file)

    @property
    def failed(self) -> pd.DataFrame:
        """The rows of the prompts that failed, with the reasons.

        Raises:
            DamagedFile: A file of the table was changed.

        """
        prompts = self.to_pandas()
        return prompts[prompts["reason"].notna()]

    def columns(self) -> pd.DataFrame:
        """A row for each column of its tables, with its type, unit and meaning."""
        return columns(*(SCHEMA[name] for name in self.tables))

    def view(self) -> View:
        """The view: how many prompts succeeded, how exact they are, and why others failed."""
        own = self.identity
        facts = {
            "folder": str(self.folder),
            "analyses": ", ".join(own.analyses),
            "prompts": f"{own.prompts} in shards of {own.shard}",
        }
        notes = []
        if self.missing:
            facts["missing"] = f"{self.missing} of {own.count} shards: run the study again, or merge its other parts"
        else:
            notes.append(f"All rows are in {self.folder / TABLES}: {', '.join(self.tables)}.")
        grids, warnings = [], []
        if PROMPTS.name in self.tables:
            prompts = self.to_pandas()
            grids = [self._subjects(prompts)]
            notes.insert(0, "reconstruction, affinity: the largest certified errors of all prompts.")
            failed = prompts[prompts["reason"].notna()]
            for reason, rows in list(failed.groupby("reason", sort=False))[:SHOWN]:
                numbers = rows["prompt"].unique()
                more = " …" if len(numbers) > 5 else ""
                warnings.append(f"failed: {', '.join(map(str, numbers[:5]))}{more}: {reason}")
            if (more_reasons := failed["reason"].nunique() - SHOWN) > 0:
                warnings.append(f"and {more_reasons} more reasons, which failed lists")
        return View(f"Study of {', '.join(own.labels)}", facts, grids, notes, warnings)

    @staticmethod
    def _subjects(prompts: pd.DataFrame) -> Grid:
        """A line for each model and convention."""
        lines = []
        for (model, convention), rows in prompts.groupby(["model", "convention"], sort=False):
            succeeded = rows[rows["reason"].isna()]
            equal = "equal" if succeeded["run_forward_equal"].astype(bool).all() else "not equal"
            errors = [succeeded[name].max() for name in ("run_reconstruction", "run_affinity")]
            failed = len(rows) - len(succeeded)
            lines.append([model, convention, len(rows), failed, equal if len(succeeded) else None, *errors])
        return Grid(
            [Shown("model"), Shown("convention"), Shown("prompts", "integer"), Shown("failed", "integer"),
             Shown("forward", spare=2), Shown("reconstruction", "error"), Shown("affinity", "error", spare=1)], lines,
        )  # fmt: skip

    def _files(self, table: str) -> list[Path]:
        if self.missing == 0 and (self.folder / TABLES).exists():
            return sorted((self.folder / TABLES).glob(f"{table}.parquet"))
        shards = (self.folder / SHARDS / name for name in self.identity.names)
        return [file for shard in shards for file in sorted(shard.glob(f"{table}.parquet"))]


@checked
def study(
    prompts: Prompts,
    lm: LM | str | Path | Sequence[LM | str | Path] = "atlas",
    *,
    out: str | Path,
    analyses: Sequence[str] = Settings.analyses,
    convention: Named | Sequence[Named] = "gate",
    precision: str | torch.dtype | None = None,
    k: int = 4,
    top: int = 8,
    seed: int = 0,
    shard: int = 16,
    workers: int | None = None,
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
    gpus: float | None = None,
    part: tuple[int, int] | None = None,
    tensors: bool = False,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
    **loading: Any,
) -> Study:
    """Run the same analyses on many prompts, with one model or several, and save all rows to a folder.

    If a study ends early, for whatever reason, the same call resumes it. If a prompt fails, its row has the reason.
    With several workers, the calling script must be importable (`if __name__ == "__main__":`).

    Args:
        prompts: Texts, chat messages, a table with a column prompt, or the result of `secant.studies.prompts.read`.
        lm: Models in memory, or names and folders of models. A pattern such as "run/checkpoint-*" stands for all
            checkpoints that match, in order; "someone/something@step100" is a revision on the hub.
        out: The study's folder.
        analyses: The names of the analyses: functions under `@analysis` in `secant.studies.analyses`.
        convention: One convention or several, as in `freeze`.
        precision: The type in which the linear systems are evaluated; by default each model's own.
        k: How many singular triplets of each block are kept.
        top: How many top tokens of each singular vector are kept.
        seed: The seed of the random number generators.
        shard: How many prompts are computed and saved together.
        workers: The number of worker processes, each with its own copy of the model; by default one. A model in memory
            allows only one. On a Ray cluster, by default as many as it has room for.
        threads: How many CPU threads each worker has.
        engine: What runs the workers: "local", this machine, or "ray", a Ray cluster (see docs/how-to/clusters.md).
        gpus: How many GPUs each worker has on a cluster.
        part: Compute only a part of the study: (2, 4) is the second of four. `merge` merges the parts.
        tensors: Whether to save U, S and V of every block too.
        max_memory: The memory that each worker may use, in bytes or as a text such as "4GiB".
        progress: Called as `progress(what, done, of)` while the study runs.
        loading: Other arguments of `secant.load`, for models that are given by name: dtype, device, ...

    Returns:
        The study. If `part` was given, its other shards are missing.

    Raises:
        BadArgument: An argument is not valid, or the folder is in use or holds a different study.
        BadPrompt: A prompt is neither a text nor a chat.
        DamagedFile: A file in the folder was changed.
        OutputFailed: The folder can't be written to.
        SecantError: As `secant.load` does.

    """
    items = given(prompts)
    several = list(lm) if isinstance(lm, Sequence) and not isinstance(lm, str) else [lm]
    named = [str(one) if isinstance(one, os.PathLike) else one for one in several]
    models = [each for one in named for each in (expanded(one) if isinstance(one, str) else [one])]
    conventions = [each.label for each in conventions_named(convention)]
    wanted = chosen(analyses, ANALYSES, "Analyses")
    system: str | None = _plain("precision", precision)
    loading = {key: _plain(key, value) for key, value in loading.items()}
    _check(models, engine, workers, part, loading)
    if max_memory is not None:
        size_of(max_memory)
    if threads is not None:
        threads = counted("threads", threads)
    settings = Settings(
        precision=system,
        analyses=tuple(name for name in ANALYSES if name in wanted),
        k=counted("k", k),
        top=counted("top", top),
        seed=seeded(seed),
    )
    sources = [None if isinstance(one, LM) else Source(str(one), **loading) for one in models]
    labels = _labels([one.name if isinstance(one, LM) else Source(str(one)).place for one in models])
    identity = Identity(
        versions={"secant": __version__, **versions()},
        models=[_described(*each) for each in zip(models, sources, labels, strict=True)],
        conventions=conventions, precision=system, analyses=list(settings.analyses), k=settings.k, top=settings.top,
        seed=settings.seed, threads=threads or _recorded_threads(out) or (1 if part else _threads(engine, workers)),
        tensors=tensors, prompts=len(items), digest=digest(items),
        shard=counted("shard", shard),
    )  # fmt: skip
    if identity.count > MOST:
        raise BadArgument(
            f"A study has at most {MOST:,} shards",
            f"{identity.count:,} of {identity.shard} prompts",
            "Use larger shards.",
        )
    cells = list(_cells(identity, settings, sources, items, part, max_memory))
    if not any(cell.shards for cell in cells):
        raise BadArgument(
            "A part requires at least one shard", f"part {part} of {-(-len(items) // identity.shard)} shards",
            "Use fewer parts, or smaller shards.",
        )  # fmt: skip
    with Folder.opened(out, identity) as folder:
        with _place(engine, workers, identity.threads):
            _compute(folder, cells, models, engine, _engine(engine, workers, gpus), progress)
        return _ended(folder)


def _ended(folder: Folder) -> Study:
    """The study as it is now. If all shards are finished, its tables are written."""
    missing = len(set(folder.identity.names) - folder.done())
    if not missing:
        folder.finish()
    return Study(folder.path, folder.identity, missing)


@checked
def merge(folders: str | Path | Sequence[str | Path], out: str | Path) -> Study:
    """Merge the parts of one study into one folder.

    Args:
        folders: The folders of the parts.
        out: The folder of the whole study, new or one of the parts.

    Returns:
        The study. If parts are missing, so are their shards.

    Raises:
        BadArgument: The parts belong to different studies, or have different rows for the same prompts.
        DamagedFile: A file of a part was changed.
        OutputFailed: The folder can't be written to.

    """
    paths = paths_of(folders, "Parts must be folders of a study")
    identity = replace(read(paths[0]), fingerprints={})
    with Folder.opened(out, identity) as folder:
        for one in paths:
            part = read(one)
            if differences := identity.differences(part):
                raise BadArgument(
                    f"Parts must belong to one study; {one} belongs to a different one",
                    "; ".join(differences),
                    "Leave it out.",
                )
            folder.learn(part.fingerprints)
            for name in part.names:
                folder.adopt(one.absolute() / SHARDS / name)
        if not folder.done():
            raise BadArgument("A part must have finished shards", "none", "Run secant study first.")
        return _ended(folder)


@dataclass(frozen=True)
class _Cell:
    """One model and convention of a study: the work, its shards, and the names of their folders by number."""

    model: int
    work: Work
    names: dict[int, str]
    shards: list[Shard]


def _cells(
    identity: Identity,
    settings: Settings,
    sources: Sequence[Source | None],
    items: Sequence[Item],
    part: tuple[int, int] | None,
    max_memory: float | str | None,
) -> Iterator[_Cell]:
    """The cells of a study, with all shards or those of a part."""
    count = identity.shard
    shards = [Shard(i // count, tuple(items[i : i + count])) for i in range(0, len(items), count)]
    mine = [shard for shard in shards if part is None or shard.number % part[1] == part[0] - 1]
    for m, source in enumerate(sources):
        label = identity.models[m]["label"]
        for c, convention in enumerate(identity.conventions):
            work = Work(
                source or Source(label), label, replace(settings, convention=convention), identity.threads,
                identity.tensors, max_memory,
            )  # fmt: skip
            yield _Cell(m, work, {shard.number: shard_name(m, c, shard.number) for shard in mine}, mine)


Elsewhere = Callable[[Work, Sequence[Shard]], Iterator[Computed]]


def _engine(engine: str, workers: int | None, gpus: float | None) -> Elsewhere | None:
    """What computes shards in other processes; None: this process computes them."""
    if engine == "ray":
        from secant.studies.cluster import on_ray

        return lambda work, shards: on_ray(work, shards, workers, gpus)
    if workers is not None and workers > 1:
        return lambda work, shards: local(work, shards, workers)
    return None


def _place(engine: str, workers: int | None, threads: int) -> AbstractContextManager[None]:
    """A context that connects to the engine's cluster for the length of a study."""
    if engine == "local":
        return nullcontext()
    from secant.studies.cluster import joined

    return joined(None if workers is None else workers * threads)


def _compute(
    folder: Folder,
    cells: Sequence[_Cell],
    models: Sequence[LM | str],
    engine: str,
    elsewhere: Elsewhere | None,
    progress: Progress | None,
) -> None:
    """Compute and write the shards that are not finished."""
    done = folder.done()
    reported = _Progress(progress, sum(len(shard.items) for cell in cells for shard in cell.shards))
    kept: dict[int, LM] = {}
    for cell in cells:
        there = [shard for shard in cell.shards if cell.names[shard.number] in done]
        reported.found(sum(len(shard.items) for shard in there))
        label, one = cell.work.label, models[cell.model]
        known = label in folder.identity.fingerprints
        if cell.model not in kept and (elsewhere is None or (known and engine == "local")):
            kept = {cell.model: one if isinstance(one, LM) else cell.work.source.load()}
            if known:  # even if no shard is left to compute
                folder.learn({label: identified(kept[cell.model])})
        if len(there) == len(cell.shards):
            continue
        wanted = {shard.number: shard for shard in cell.shards if cell.names[shard.number] not in done}
        if elsewhere is not None:
            found = elsewhere(cell.work, list(wanted.values()))
        else:
            found = inline(Worker(cell.work, kept[cell.model]), list(wanted.values()))
        for computed in found:
            folder.add(cell.names[computed.number], cell.work.label, computed)
            reported.computed(len(wanted[computed.number].items))


class _Progress:
    """Progress in prompts. The time left is announced once, estimated from the pace after the first shard."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._new = progress, total, 0, 0
        self._start: float | None = None
        self._announced = False

    def found(self, count: int) -> None:
        """Count prompts whose rows were there already."""
        self._advance(count)

    def computed(self, count: int) -> None:
        """Count prompts that were computed now."""
        self._advance(count)
        now = time.perf_counter()
        if self._start is None:  # the first shard includes loading the model and starting processes
            self._start = now
            return
        self._new += count
        if not self._announced and now - self._start > ESTIMATE_AFTER:
            left, self._announced = self._total - self._done, True
            announce(f"{left:,} more prompts", (now - self._start) / self._new * left, peak(CPU) or 0, CPU)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress and count:
            self._progress("prompts", self._done, self._total)


def _check(
    models: Sequence[LM | str],
    engine: str,
    workers: int | None,
    part: tuple[int, int] | None,
    loading: dict[str, Any],
) -> None:
    """Check arguments before anything is loaded or written. Raises BadArgument."""
    if not models:
        raise BadArgument("A study requires a model", "none", "Give one.")
    if wrong := [one for one in models if not isinstance(one, LM | str | Path)]:
        raise BadArgument("A study takes models or their names", quoted(wrong[0]), "Give sc.LM or names.")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise BadArgument(f"An engine is one of {', '.join(ENGINES)}", quoted(engine), "Choose one of them.")
    workers = 1 if workers is None else counted("workers", workers)
    in_memory = any(isinstance(one, LM) for one in models)
    if in_memory and (workers > 1 or engine == "ray"):
        raise BadArgument(
            "Several workers each load their own copy of a model",
            "a model in memory",
            "Give its name or folder, or workers=1.",
        )
    loading = {name: value for name, value in loading.items() if value}
    if loading and all(isinstance(one, LM) for one in models):
        raise BadArgument(
            "A model in memory is already loaded", f"{', '.join(loading)}", "Give these arguments to secant.load."
        )
    if loading.get("token"):
        raise BadArgument(
            "A token is not written into a study", "token", "Set HF_TOKEN, or run `hf auth login` on each machine."
        )
    if unknown := set(loading) - {f.name for f in fields(Source)} | {"name"} & set(loading):
        raise BadArgument(
            "A study takes the arguments of secant.load", f"{', '.join(sorted(unknown))}", "Leave it out."
        )
    whole = isinstance(part, tuple) and len(part) == 2 and all(isinstance(number, int) for number in part)
    if part is not None and not (whole and 1 <= part[0] <= part[1]):
        raise BadArgument(
            "A part is its number and the number of parts", quoted(part), "Give (2, 4), or 2/4 on the command line."
        )


def _plain(key: str, value: Any) -> Any:
    """A setting as study.json stores it, with torch's types and devices by name. Raises BadArgument."""
    if isinstance(value, torch.dtype | torch.device | os.PathLike):
        return str(value).removeprefix("torch.")
    if not isinstance(value, str | bool | None):
        raise BadArgument(f"{key} must be given by name", shown(value), "Give a text.")
    return value


def _threads(engine: str, workers: int | None) -> int:
    """The default number of threads of a worker: one on a cluster, an equal share of all on this machine."""
    return 1 if engine == "ray" else max(1, torch.get_num_threads() // (workers or 1))


def _recorded_threads(out: str | Path) -> int | None:
    """How many threads the workers of the study in a folder have, if it holds one."""
    return read(out).threads if os.path.lexists(path_of(out) / SPEC) else None


def _labels(names: Sequence[str]) -> list[str]:
    """Short names of models: the last part of each path if that is unique. Raises BadArgument for equal names."""
    short = [Path(name).name or name for name in names]
    labels = [last if short.count(last) == 1 else name for last, name in zip(short, names, strict=True)]
    if len(set(labels)) < len(labels):
        raise BadArgument("The models of a study must have different names", ", ".join(labels), "Give each once.")
    return labels


def _described(one: LM | str, source: Source | None, label: str) -> dict[str, Any]:
    """How study.json describes a model."""
    if isinstance(one, LM):
        how = {"dtype": str(one.dtype).removeprefix("torch."), "attention": one.attention}
        return {"label": label, "name": one.name, "device": str(one.device), **how}
    assert source is not None
    return {"label": label, **{f.name: getattr(source, f.name) for f in fields(source)}}
