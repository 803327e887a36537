"""Many prompts, the same questions of each, and every row with its certificate."""

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
from secant.errors import BadArgument, DamagedFile, checked, chosen, integer, seeded
from secant.foreign import explained
from secant.linearize.rules import CONVENTIONS
from secant.memory import announce, peak, size_of
from secant.model.lm import LM, versions
from secant.results.files import columns
from secant.results.paths import path_of, paths_of
from secant.results.result import Viewed
from secant.results.view import Grid, Shown, View
from secant.studies.analyses import ANALYSES, Settings
from secant.studies.folder import SHARDS, SPEC, TABLES, Folder, read, sound
from secant.studies.identity import MOST, Identity, shard_name
from secant.studies.local import inline, local
from secant.studies.prompts import Item, Prompts, digest, given
from secant.studies.work import PROMPTS, SCHEMA, Computed, Shard, Source, Work, Worker, identified

ENGINES = ("local", "ray")
CPU = torch.device("cpu")
LOOK = 5.0
"""Seconds of work by which what is left is told."""

Progress = Callable[[str, int, int], None]


SHOWN = 8
"""Reasons why prompts failed that are shown first."""


@dataclass(frozen=True)
class Study(Viewed):
    """A study's folder: what it is, and its rows, by table.

    Attributes:
        folder: Where it is.
        identity: All that its rows depend on.
        missing: How many shards are not there yet.

    """

    folder: Path
    identity: Identity
    missing: int
    _sound: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study that a folder holds.

        Raises:
            BadArgument: There is none.
            DamagedFile: What is there is not as it was written.

        """
        path, identity = path_of(folder).absolute(), read(folder)
        there = {shard.name for shard in (path / SHARDS).glob("*")}
        return cls(path, identity, len(set(identity.names) - there))

    @property
    def tables(self) -> list[str]:
        """The names of the tables that it has."""
        found = {file.stem for file in self._files("*")}
        return [name for name in SCHEMA if name in found]

    def to_pandas(self, table: str = PROMPTS.name) -> pd.DataFrame:
        """The rows of a table, by model, convention and prompt; of shards that are done, where some are not.

        Args:
            table: The name of one of its tables.

        Raises:
            BadArgument: It has no such table.
            DamagedFile: A file of the table is not as it was written.

        """
        if not isinstance(table, str) or table not in self.tables:
            raise BadArgument(
                f"The tables are {', '.join(self.tables) or 'none yet'}", repr(table), "Choose one of them."
            )
        self.sound(table)
        integers = {pyarrow.int64(): pd.Int64Dtype()}  # which numpy's can't be missing
        read, todo = pyarrow.parquet.read_table, "Run the study again."
        with explained(DamagedFile, "A study's tables are Parquet files", todo, f"{self.folder}"):
            some = [
                read(file).to_pandas(types_mapper=integers.get, ignore_metadata=True) for file in self._files(table)
            ]
        return pd.concat(some, ignore_index=True)

    def sound(self, table: str) -> None:
        """Check that the files of a table are as they were written; each is checked once.

        Raises:
            DamagedFile: One is not.

        """
        for file in self._files(table):
            if file not in self._sound:
                sound(file)
                self._sound.add(file)

    @property
    def failed(self) -> pd.DataFrame:
        """The prompts that failed, with the reasons."""
        prompts = self.to_pandas()
        return prompts[prompts["reason"].notna()]

    def columns(self) -> pd.DataFrame:
        """What the columns of its tables mean."""
        return columns(*(SCHEMA[name] for name in self.tables))

    def view(self) -> View:
        """How many prompts of each model and convention went well, how exact they are, and why the others failed."""
        own = self.identity
        facts = {
            "folder": str(self.folder),
            "analyses": ", ".join(own.analyses),
            "prompts": f"{own.prompts} in shards of {own.shard}",
        }
        notes = []
        if self.missing:
            facts["missing"] = f"{self.missing} of {own.count} shards: run the study again, or merge the other parts"
        else:
            notes.append(f"All rows are in {self.folder / TABLES}: {', '.join(self.tables)}.")
        grids, warnings = [], []
        if PROMPTS.name in self.tables:
            prompts = self.to_pandas()
            grids = [self._subjects(prompts)]
            notes.insert(0, "reconstruction, affinity: the largest errors of all prompts, as certified.")
            failed = prompts[prompts["reason"].notna()]
            for reason, rows in list(failed.groupby("reason", sort=False))[:SHOWN]:
                numbers = rows["prompt"].unique()
                more = " …" if len(numbers) > 5 else ""
                warnings.append(f"failed: {', '.join(map(str, numbers[:5]))}{more}: {reason}")
            if (more_reasons := failed["reason"].nunique() - SHOWN) > 0:
                warnings.append(f"and {more_reasons} more reasons: failed has all")
        return View(f"Study of {', '.join(own.labels)}", facts, grids, notes, warnings)

    @staticmethod
    def _subjects(prompts: pd.DataFrame) -> Grid:
        """A line for each model and convention."""
        lines = []
        for (model, convention), rows in prompts.groupby(["model", "convention"], sort=False):
            well = rows[rows["reason"].isna()]
            equal = "equal" if well["run_forward_equal"].astype(bool).all() else "not equal"
            errors = [well[name].max() for name in ("run_reconstruction", "run_affinity")]
            lines.append([model, convention, len(rows), len(rows) - len(well), equal if len(well) else None, *errors])
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
    convention: str | Sequence[str] = "gate",
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
    """Ask the same of many prompts, of one model or several, and keep every row, in `out`, a shard at a time.

    `prompts`: texts, chat messages, a table with a column prompt, or what `secant.studies.prompts.read` reads of a
    file. `lm`: models in memory, or names and folders, which are loaded with `loading` (dtype, device, attention, …).
    `analyses`: of reconstruction, spectra, stable_rank, layers, attribution, parts, words and conventions.
    `convention`: one or several. `shard`: so many prompts are kept, or lost, together. `workers`: processes, each with
    a model and `threads` of its own, by default one; of models in memory one. With several, the calling script must be
    importable (`if __name__ == "__main__":`). `engine="ray"`: workers of a Ray cluster, by default as many as have
    room, each with so many `gpus` (see docs/scale.md).
    `part=(2, 4)`: the second of four parts, which `merge` puts together. `tensors`: keep U, S and V too.

    A study that was ended, in whatever way, goes on where it was when the same is asked again; a prompt that fails is a
    row that says why. Raises BadArgument where the folder holds another study or is in use, DamagedFile, OutputFailed,
    and what `secant.load` raises.
    """
    items = given(prompts)
    several = list(lm) if isinstance(lm, Sequence) and not isinstance(lm, str) else [lm]
    models = [str(one) if isinstance(one, os.PathLike) else one for one in several]
    held, wanted = chosen(convention, CONVENTIONS, "Conventions"), chosen(analyses, ANALYSES, "Analyses")
    system: str | None = _plain("precision", precision)
    loading = {key: _plain(key, value) for key, value in loading.items()}
    _check(models, engine, workers, part, loading)
    if max_memory is not None:
        size_of(max_memory)
    if threads is not None:
        threads = integer(threads, 1, 4096, "A worker has some threads", "threads = ")
    settings = Settings(
        precision=system,
        analyses=tuple(name for name in ANALYSES if name in wanted),
        k=integer(k, 1, 10**6, "At least one singular triplet is kept", "k = "),
        top=integer(top, 1, 10**6, "A direction has some words", "top = "),
        seed=seeded(seed),
    )
    sources = [None if isinstance(one, LM) else Source(str(one), **loading) for one in models]
    labels = _labels([one.name if isinstance(one, LM) else Source(str(one)).place for one in models])
    identity = Identity(
        versions={"secant": __version__, **versions()},
        models=[_described(*each) for each in zip(models, sources, labels, strict=True)],
        conventions=held, precision=system, analyses=list(settings.analyses), k=settings.k, top=settings.top,
        seed=settings.seed, threads=threads or _recorded_threads(out) or (1 if part else _threads(engine, workers)),
        tensors=tensors, prompts=len(items), digest=digest(items),
        shard=integer(shard, 1, 10**6, "A shard has some prompts", "shard = "),
    )  # fmt: skip
    if identity.count > MOST:
        raise BadArgument(
            f"A study has up to {MOST:,} shards", f"{identity.count:,} of {identity.shard} prompts", "Take larger ones."
        )
    cells = list(_cells(identity, settings, sources, items, part, max_memory))
    if not any(cell.shards for cell in cells):
        raise BadArgument(
            "A part has some shards", f"part {part} of {-(-len(items) // identity.shard)} of them",
            "Take fewer parts, or smaller shards.",
        )  # fmt: skip
    with Folder.opened(out, identity) as folder:
        with _place(engine, workers, identity.threads):
            _compute(folder, cells, models, engine, _engine(engine, workers, gpus), progress)
        return _ended(folder)


def _ended(folder: Folder) -> Study:
    """The study as it is now; with its tables, where all shards are there."""
    missing = len(set(folder.identity.names) - folder.done())
    if not missing:
        folder.finish()
    return Study(folder.path, folder.identity, missing)


@checked
def merge(folders: str | Path | Sequence[str | Path], out: str | Path) -> Study:
    """Put the shards of parts of one study together, from several folders into one, which may be new.

    Raises BadArgument where they are not of the same study, or have different rows of the same prompts; DamagedFile
    and OutputFailed.
    """
    paths = paths_of(folders, "Parts are folders of a study")
    identity = replace(read(paths[0]), fingerprints={})
    with Folder.opened(out, identity) as folder:
        for one in paths:
            part = read(one)
            if differences := identity.differences(part):
                raise BadArgument(
                    f"Parts are of one study; {one} is of another", "; ".join(differences), "Leave it out."
                )
            folder.learn(part.fingerprints)
            for name in part.names:
                folder.adopt(one.absolute() / SHARDS / name)
        if not folder.done():
            raise BadArgument("Parts of a study have finished shards", "none", "Run secant study first.")
        return _ended(folder)


@dataclass(frozen=True)
class _Cell:
    """A model and a convention of a study: the work, its shards, and the names of these in the folder."""

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
    """All of a study, or of a part of it."""
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
    """What computes shards elsewhere than in this process, if anything does."""
    if engine == "ray":
        from secant.studies.cluster import on_ray

        return lambda work, shards: on_ray(work, shards, workers, gpus)
    if workers is not None and workers > 1:
        return lambda work, shards: local(work, shards, workers)
    return None


def _place(engine: str, workers: int | None, threads: int) -> AbstractContextManager[None]:
    """Where an engine works, for the whole of a study."""
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
    """Compute and write the shards that are not there yet."""
    done = folder.done()
    told = _Told(progress, sum(len(shard.items) for cell in cells for shard in cell.shards))
    kept: dict[int, LM] = {}
    for cell in cells:
        there = [shard for shard in cell.shards if cell.names[shard.number] in done]
        told.there(sum(len(shard.items) for shard in there))
        label, one = cell.work.label, models[cell.model]
        known = label in folder.identity.fingerprints
        if cell.model not in kept and (elsewhere is None or (known and engine == "local")):
            kept = {cell.model: one if isinstance(one, LM) else cell.work.source.load()}
            if known:  # also where nothing is left to compute
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
            told.more(len(wanted[computed.number].items))


class _Told:
    """Progress, in prompts, and once what the rest will take, by the pace since the first shard was done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._new = progress, total, 0, 0
        self._start: float | None = None
        self._said = False

    def there(self, count: int) -> None:
        """Prompts whose rows are there already."""
        self._advance(count)

    def more(self, count: int) -> None:
        """Prompts that were computed now."""
        self._advance(count)
        now = time.perf_counter()
        if self._start is None:  # loading a model, and starting processes, come once
            self._start = now
            return
        self._new += count
        if not self._said and now - self._start > LOOK:
            left, self._said = self._total - self._done, True
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
    """Raises BadArgument, before anything is loaded or written."""
    if not models:
        raise BadArgument("A study is of some models", "none", "Give one.")
    if wrong := [one for one in models if not isinstance(one, LM | str | Path)]:
        raise BadArgument("A study is of models, or their names", f"{wrong[0]!r:.60}", "Give sc.LM, or names.")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise BadArgument(f"An engine is one of {', '.join(ENGINES)}", repr(engine), "Choose one of them.")
    workers = 1 if workers is None else integer(workers, 1, 10**6, "A study has some workers", "workers = ")
    there = any(isinstance(one, LM) for one in models)
    if there and (workers > 1 or engine == "ray"):
        raise BadArgument(
            "Several workers each load a model of their own",
            "a model in memory",
            "Give its name or folder, or workers=1.",
        )
    loading = {name: value for name, value in loading.items() if value}
    if loading and all(isinstance(one, LM) for one in models):
        raise BadArgument("A model in memory is loaded", f"{', '.join(loading)}", "Give these to secant.load.")
    if unknown := set(loading) - {f.name for f in fields(Source)} | {"name"} & set(loading):
        raise BadArgument("A study takes what secant.load takes", f"{', '.join(sorted(unknown))}", "Leave it out.")
    whole = isinstance(part, tuple) and len(part) == 2 and all(isinstance(number, int) for number in part)
    if part is not None and not (whole and 1 <= part[0] <= part[1]):
        raise BadArgument("A part is such as 2 of 4", repr(part), "Give (2, 4), or 2/4 on the command line.")


def _plain(key: str, value: Any) -> Any:
    """A setting as study.json has it: torch's types and devices by name. Raises BadArgument."""
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if not isinstance(value, str | bool | None):
        raise BadArgument(f"{key} is given by name", f"{value!r:.60}, a {type(value).__name__}", "Give a text.")
    return value


def _threads(engine: str, workers: int | None) -> int:
    """Of each worker, where nothing is said: on a cluster one, on this machine all of them shared out."""
    return 1 if engine == "ray" else max(1, torch.get_num_threads() // (workers or 1))


def _recorded_threads(out: str | Path) -> int | None:
    """How many threads the study in a folder has, if there is one."""
    return read(out).threads if os.path.lexists(path_of(out) / SPEC) else None


def _labels(names: Sequence[str]) -> list[str]:
    """Short names of models: the last part of each, or all of it. Raises BadArgument where two are the same."""
    short = [Path(name).name or name for name in names]
    labels = [last if short.count(last) == 1 else name for last, name in zip(short, names, strict=True)]
    if len(set(labels)) < len(labels):
        raise BadArgument("The models of a study have different names", ", ".join(labels), "Give each once.")
    return labels


def _described(one: LM | str, source: Source | None, label: str) -> dict[str, Any]:
    """A model, for study.json."""
    if isinstance(one, LM):
        how = {"dtype": str(one.dtype).removeprefix("torch."), "attention": one.attention}
        return {"label": label, "name": one.name, "device": str(one.device), **how}
    assert source is not None
    return {"label": label, **{f.name: getattr(source, f.name) for f in fields(source)}}
