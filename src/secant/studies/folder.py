"""A study's folder: what the study is, its finished shards, and the tables that are made of them.

    study.json          what the study is; another one is refused
    shards/M-C-NNNNNN/  the rows of a shard (Parquet), and manifest.json with a digest of each file
    tables/             all rows, once all shards are there

A shard is written beside its place and takes its name when it is whole, so that it is there or it is not. A folder in
which no shard was written is left as it was found. What a folder says may come from others: it is checked, and links
are followed nowhere in shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from secant.errors import BadArgument, DamagedFile
from secant.foreign import explained
from secant.results.files import arrow, columns, write_columns
from secant.results.paths import check, clear, failing, making, path_of, replacing, write_json
from secant.studies.identity import Identity
from secant.studies.identity import described as identity_of
from secant.studies.work import SCHEMA, Computed

SPEC, MANIFEST, SHARDS, TABLES, LOCK = "study.json", "manifest.json", "shards", "tables", ".lock"

LARGEST = 2**24
"""Bytes of JSON that is read."""


class Folder:
    """A study's folder, open for one run: `with Folder.opened(path, identity) as folder`."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    @classmethod
    @contextmanager
    def opened(cls, path: str | Path, identity: Identity) -> Iterator[Folder]:
        """The folder, made where there is none, and no other run's until the block ends.

        Raises OutputFailed, BadArgument where another run or another study has it, and DamagedFile.
        """
        path = path_of(path, "A study is written to a folder").absolute()
        check(path, SPEC, LOCK)
        with ExitStack() as stack:
            with failing(path):
                stack.enter_context(making(path))
                stack.enter_context(_locked(path))
                stack.callback(_left, path)
                for place in (path, path / SHARDS, path / TABLES):
                    clear(place)
                there = _there(path)
                (path / SHARDS).mkdir(exist_ok=True)
            if there is not None and (differences := there.differences(identity)):
                raise BadArgument(
                    f"A folder holds one study; {path} has another", "; ".join(differences),
                    "Choose another folder, or run the study that it holds.",
                )  # fmt: skip
            yield cls(path, there or identity)

    def done(self) -> set[str]:
        """The shards that are there, each looked at. Raises DamagedFile."""
        there = {shard.name for shard in (self.path / SHARDS).iterdir() if not shard.name.startswith(".")}
        if strangers := sorted(there - set(self.identity.names)):
            raise DamagedFile(
                f"{self.path / SHARDS} holds shards of the study", f"{strangers[0]}", "Remove what is not of the study."
            )
        for name in there:
            verify(self.path / SHARDS / name, self.identity)
        return there

    def add(self, name: str, label: str, computed: Computed) -> None:
        """Write a shard. Raises OutputFailed, and BadArgument where it is of other weights than those before."""
        self.learn({label: computed.fingerprint})
        if not (self.path / SPEC).exists():
            self._describe()
        with replacing(self.path / SHARDS / name) as new:
            new.mkdir()
            for table, rows in computed.tables.items():
                pyarrow.parquet.write_table(arrow(SCHEMA[table], rows), new / f"{table}.parquet")
            if computed.tensors is not None:
                (new / "tensors.safetensors").write_bytes(computed.tensors)
            sign(new, shard=name, study=self.identity.key, fingerprint=computed.fingerprint)

    def learn(self, fingerprints: Mapping[str, str]) -> None:
        """Note of which weights the shards are that come. Raises BadArgument where others are there."""
        before = len(self.identity.fingerprints)
        for label, fingerprint in fingerprints.items():
            if self.identity.fingerprints.setdefault(label, fingerprint) != fingerprint:
                raise BadArgument(
                    f"A study is of one model {label}", "other weights than its finished shards are of",
                    "Choose another folder, or the model that it holds.",
                )  # fmt: skip
        if len(self.identity.fingerprints) > before:
            self._describe()

    def adopt(self, shard: Path) -> None:
        """Copy a shard of another folder, if there is one. Raises DamagedFile, BadArgument where another is there by
        its name, and OutputFailed.
        """
        if not os.path.lexists(shard):
            return
        verify(shard, self.identity)
        mine = self.path / SHARDS / shard.name
        if not mine.exists():
            with replacing(mine) as new:
                new.mkdir()
                for name in _plain(shard):
                    shutil.copyfile(shard / name, new / name, follow_symlinks=False)
                verify(new, self.identity)  # what was copied, whatever is there now
        elif (mine / MANIFEST).read_text() != (shard / MANIFEST).read_text():
            raise BadArgument(
                "A prompt has the same rows in every part", f"{mine} and {shard}, which differ",
                "Remove the one that is wrong: parts of one study repeat to the bit on machines of one kind.",
            )  # fmt: skip

    def finish(self) -> None:
        """Write all rows, in the order of models, conventions and prompts, a shard at a time. Raises OutputFailed."""
        shards = [self.path / SHARDS / name for name in self.identity.names]
        with replacing(self.path / TABLES) as new:
            new.mkdir()
            written = [SCHEMA[name] for name in SCHEMA if _joined(shards, name, new / f"{name}.parquet")]
            write_columns(new, columns(*written))
            sign(new, study=self.identity.key)

    def _describe(self) -> None:
        with replacing(self.path / SPEC) as new:
            write_json(new, asdict(self.identity))


def read(path: str | Path) -> Identity:
    """What the study in a folder is. Raises BadArgument where there is none, and DamagedFile."""
    rule = f"A study's folder has a {SPEC}"
    path = path_of(path, rule).absolute()
    if not os.path.lexists(path / SPEC):
        raise BadArgument(rule, f"{path} without", "Give the folder that secant study wrote.")
    with explained(DamagedFile, f"{SPEC} says what a study is", "Restore it, or start anew.", str(path / SPEC)):
        return identity_of(_loaded(path / SPEC))


def apart(folder: str | Path) -> None:
    """Raises BadArgument where a folder is a study's own, in which nothing else is written."""
    if os.path.lexists(path_of(folder) / SPEC):
        raise BadArgument("A study's folder holds the study alone", f"{folder}", "Name another folder to write to.")


ANEW = "Remove this folder, and start the study again: only its prompts are computed anew."


def verify(shard: Path, identity: Identity) -> None:
    """Raises DamagedFile where a shard is not as it was written, or not in its place."""
    names = _plain(shard)
    manifest = _manifest(shard, ANEW)
    if set(names) != {MANIFEST, *manifest["files"]}:
        raise DamagedFile("A shard is as it was written", f"{shard} with other files", ANEW)
    for name in manifest["files"]:
        sound(shard / name, ANEW)
    label = identity.labels[int(shard.name.split("-")[0])]
    own = (shard.name, identity.key, identity.fingerprints.get(label))
    if tuple(manifest.get(key) for key in ("shard", "study", "fingerprint")) != own:
        raise DamagedFile("A shard is where it was written", f"{shard}, of another place, study or model", ANEW)


def _plain(shard: Path) -> list[str]:
    """The names in a shard. Raises DamagedFile where it is no folder of plain files: a link may lead anywhere."""
    rule = "A shard is a folder of plain files, without links"
    with explained(DamagedFile, rule, ANEW, str(shard)):
        modes = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(shard)}
    strange = [shard / name for name, mode in sorted(modes.items()) if not stat.S_ISREG(mode)]
    if strange or shard.is_symlink():
        raise DamagedFile(rule, f"{[*strange, shard][0]}", ANEW)
    return sorted(modes)


def sign(folder: Path, **about: str) -> None:
    """Write the manifest of a folder that is whole: a digest of each of its files, and what it is of."""
    files = {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    write_json(folder / MANIFEST, {**about, "files": files})


def sound(file: Path, todo: str = "Run the study again: what is finished is not computed anew.") -> None:
    """Raises DamagedFile where a file is not as its folder's manifest says that it was written."""
    digest = _manifest(file.parent, todo)["files"].get(file.name)
    with explained(DamagedFile, "A study's files can be read", todo, str(file)):
        same = _digest(file) == digest
    if not same:
        raise DamagedFile("A study's files are as they were written", f"{file}, which is not", todo)


def _manifest(folder: Path, todo: str) -> dict[str, Any]:
    """What the manifest of a folder says. Raises DamagedFile where it is none, or of files elsewhere."""
    with explained(DamagedFile, f"A study's folders have their {MANIFEST}", todo, str(folder)):
        found = _loaded(folder / MANIFEST)
        files = dict(found["files"])
        plain = re.compile(r"[A-Za-z0-9_]+(\.[a-z]+)?")
        if strange := [name for name, own in files.items() if not plain.fullmatch(name) or not isinstance(own, str)]:
            raise ValueError(f"files has {strange[0]!r:.60}")
        return {**found, "files": files}


def _loaded(file: Path) -> Any:
    """A file's JSON. Raises OSError, ValueError or RecursionError."""
    _regular(file)
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file.stat().st_size:,} bytes, of {LARGEST:,} at most")
    return json.loads(file.read_text("utf-8"))


def _regular(file: Path) -> None:
    """Raises OSError where a file is none that ends, such as a pipe or a device."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(22, "no plain file")


def _digest(file: Path) -> str:
    _regular(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _joined(shards: Sequence[Path], name: str, to: Path) -> bool:
    """Write the rows of all shards that have a table to one file; whether any has."""
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for shard in shards:
            if (file := shard / f"{name}.parquet").exists():
                with explained(DamagedFile, "A shard's tables are Parquet files of like columns", ANEW, str(file)):
                    table = pyarrow.parquet.read_table(file)
                    table = table if writer is None else table.cast(writer.schema)
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(to, table.schema)
                writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    return writer is not None


def _there(path: Path) -> Identity | None:
    """The study that a folder has rows of, if any. Raises BadArgument where it has those of something else."""
    full = [(path / SHARDS).is_dir() and any((path / SHARDS).iterdir()), (path / TABLES).exists()]
    if not (path / SPEC).exists():
        for name in (name for name, own in zip((SHARDS, TABLES), full, strict=True) if own):
            raise BadArgument(
                "A study has a folder of its own", f"{path}, which has {name} of something else",
                "Choose another folder.",
            )  # fmt: skip
        return None
    there = read(path)
    if any(full):
        return there
    (path / SPEC).unlink()  # of a run that was killed before it had computed anything
    return None


def _left(path: Path) -> None:
    """Where nothing was computed, remove what was made on the way, so that another study can have the folder."""
    with suppress(OSError):
        (path / SHARDS).rmdir()
        if not (path / TABLES).exists():
            (path / SPEC).unlink(missing_ok=True)
            (path / LOCK).unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other run's folder, until the block ends or the process does. Raises BadArgument."""
    with (path / LOCK).open("a+") as file:
        try:
            _lock(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), (path / LOCK).stat()):
                raise FileNotFoundError(2, "removed by the run that had it")
        except OSError as error:
            raise BadArgument(
                "A study's folder is written by one run at a time", f"another run in {path}",
                "Wait until it is done, or choose another folder.",
            ) from error  # fmt: skip
        yield


def _lock(descriptor: int) -> None:
    """Take a file's lock, which the system gives back when the process ends. Raises OSError where another has it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
