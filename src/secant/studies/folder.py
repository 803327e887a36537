"""A study's folder: the identity of the study, its finished shards, and the tables that are made from them.

    study.json          the identity of the study; the folder refuses a different study
    shards/M-C-NNNNNN/  the rows of a shard (Parquet), and manifest.json with a digest of each file
    tables/             all rows, written when all shards are finished

A shard is written under a temporary name and renamed when it is complete, so every shard in the folder is complete. If
a run writes no shard, the folder is left as it was found. The folder is not trusted: its files are checked, and links
in shards are refused.
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
from secant.studies.identity import Identity, described as identity_of
from secant.studies.work import SCHEMA, Computed

SPEC, MANIFEST, SHARDS, TABLES, LOCK = "study.json", "manifest.json", "shards", "tables", ".lock"

LARGEST = 2**24
"""The largest JSON file that is read, in bytes."""


class Folder:
    """A study's folder, opened by one run: `with Folder.opened(path, identity) as folder`."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    @classmethod
    @contextmanager
    def opened(cls, path: str | Path, identity: Identity) -> Iterator[Folder]:
        """Open a folder for one run, and create it if necessary. No other run can open it until the block ends.

        Args:
            path: The folder.
            identity: The study that it must hold, or that an empty folder is to hold.

        Yields:
            The folder.

        Raises:
            BadArgument: Another run is using the folder, or it holds a different study.
            DamagedFile: A file in the folder is not as it was written.
            OutputFailed: The folder can't be written to.

        """
        path = path_of(path, "A study is written to a folder").absolute()
        check(path, SPEC, LOCK)
        with ExitStack() as stack:
            with failing(path):
                stack.enter_context(making(path))
                stack.enter_context(_locked(path))
                stack.callback(_clean_up, path)
                for place in (path, path / SHARDS, path / TABLES):
                    clear(place)
                there = _there(path)
                (path / SHARDS).mkdir(exist_ok=True)
            if there is not None and (differences := there.differences(identity)):
                raise BadArgument(
                    f"A folder holds one study; {path} holds a different one", "; ".join(differences),
                    "Choose another folder, or run the study that it holds.",
                )  # fmt: skip
            yield cls(path, there or identity)

    def done(self) -> set[str]:
        """Check all finished shards.

        Returns:
            Their names.

        Raises:
            DamagedFile: A shard is not as it was written.

        """
        there = {shard.name for shard in (self.path / SHARDS).iterdir() if not shard.name.startswith(".")}
        if strangers := sorted(there - set(self.identity.names)):
            raise DamagedFile(
                f"{self.path / SHARDS} must hold the study's shards only", f"{strangers[0]}", "Move it elsewhere."
            )
        for name in there:
            verify(self.path / SHARDS / name, self.identity)
        return there

    def add(self, name: str, label: str, computed: Computed) -> None:
        """Write a shard.

        Args:
            name: Its name.
            label: The model's label.
            computed: Its rows.

        Raises:
            BadArgument: Earlier shards of the model were computed with different weights.
            OutputFailed: The shard can't be written.

        """
        self.learn({label: computed.fingerprint})
        if not (self.path / SPEC).exists():
            self._describe()
        with replacing(self.path / SHARDS / name) as new:
            new.mkdir()
            for table, rows in computed.tables.items():
                pyarrow.parquet.write_table(arrow(SCHEMA[table], rows), new / f"{table}.parquet")
            if computed.tensors is not None:
                (new / "tensors.safetensors").write_bytes(computed.tensors)
            write_manifest(new, shard=name, study=self.identity.key, fingerprint=computed.fingerprint)

    def learn(self, fingerprints: Mapping[str, str]) -> None:
        """Record which weights the next shards are computed with.

        Args:
            fingerprints: The fingerprint of each model's weights, by label.

        Raises:
            BadArgument: Earlier shards of a model were computed with different weights.

        """
        before = len(self.identity.fingerprints)
        for label, fingerprint in fingerprints.items():
            if self.identity.fingerprints.setdefault(label, fingerprint) != fingerprint:
                raise BadArgument(
                    f"All shards of {label} are computed with the same weights", "different weights than before",
                    "Choose another folder, or load the model that was used before.",
                )  # fmt: skip
        if len(self.identity.fingerprints) > before:
            self._describe()

    def adopt(self, shard: Path) -> None:
        """Copy a shard from another folder, if it exists.

        Args:
            shard: The shard's folder.

        Raises:
            BadArgument: This folder has a different shard of that name.
            DamagedFile: The shard is not as it was written.
            OutputFailed: The shard can't be written.

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
                verify(new, self.identity)  # the copy: the original may have changed since
        elif (mine / MANIFEST).read_text() != (shard / MANIFEST).read_text():
            raise BadArgument(
                "A prompt must have the same rows in every part", f"{mine} and {shard}, which differ",
                "Remove the wrong one. On machines of one kind, parts of one study have identical rows.",
            )  # fmt: skip

    def finish(self) -> None:
        """Write the tables of all rows, in the order of models, conventions and prompts. Shards are read one at a time.

        Raises:
            DamagedFile: A shard's table can't be read.
            OutputFailed: A table can't be written.

        """
        shards = [self.path / SHARDS / name for name in self.identity.names]
        with replacing(self.path / TABLES) as new:
            new.mkdir()
            written = [SCHEMA[name] for name in SCHEMA if _joined(shards, name, new / f"{name}.parquet")]
            write_columns(new, columns(*written))
            write_manifest(new, study=self.identity.key)

    def _describe(self) -> None:
        with replacing(self.path / SPEC) as new:
            write_json(new, asdict(self.identity))


def read(path: str | Path) -> Identity:
    """The identity of the study in a folder.

    Args:
        path: The folder.

    Raises:
        BadArgument: The folder holds no study.
        DamagedFile: Its study.json is damaged.

    """
    rule = f"A study's folder must contain {SPEC}"
    path = path_of(path, rule).absolute()
    if not os.path.lexists(path / SPEC):
        raise BadArgument(rule, f"{path} without it", "Give the folder that secant study wrote.")
    with explained(
        DamagedFile,
        f"{SPEC} must describe a study",
        "Restore the file, or start the study again in a new folder.",
        str(path / SPEC),
    ):
        return identity_of(_loaded(path / SPEC))


def refuse_study(folder: str | Path) -> None:
    """Check that a folder for other output does not hold a study.

    Args:
        folder: The folder.

    Raises:
        BadArgument: It holds a study.

    """
    if os.path.lexists(path_of(folder) / SPEC):
        raise BadArgument(
            "A study's folder holds nothing but the study", f"{folder}", "Choose another folder to write to."
        )


ANEW = "Remove this folder and start the study again: only the prompts in it are computed again."


def verify(shard: Path, identity: Identity) -> None:
    """Check a shard against its manifest.

    Args:
        shard: The shard's folder.
        identity: The study.

    Raises:
        DamagedFile: A file of the shard was changed, or the shard belongs to a different place, study or model.

    """
    names = _plain(shard)
    manifest = _manifest(shard, ANEW)
    if set(names) != {MANIFEST, *manifest["files"]}:
        raise DamagedFile("A shard must be as it was written", f"{shard} with different files", ANEW)
    for name in manifest["files"]:
        check_intact(shard / name, ANEW)
    label = identity.labels[int(shard.name.split("-")[0])]
    own = (shard.name, identity.key, identity.fingerprints.get(label))
    if tuple(manifest.get(key) for key in ("shard", "study", "fingerprint")) != own:
        raise DamagedFile("A shard must be where it was written", f"{shard}, from another place, study or model", ANEW)


def _plain(shard: Path) -> list[str]:
    """The names of a shard's files. Raises DamagedFile unless all are plain files: a link may lead anywhere."""
    rule = "A shard must be a folder of plain files without links"
    with explained(DamagedFile, rule, ANEW, str(shard)):
        modes = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(shard)}
    strange = [shard / name for name, mode in sorted(modes.items()) if not stat.S_ISREG(mode)]
    if strange or shard.is_symlink():
        raise DamagedFile(rule, f"{[*strange, shard][0]}", ANEW)
    return sorted(modes)


def write_manifest(folder: Path, **about: str) -> None:
    """Write the manifest of a complete folder.

    Args:
        folder: The folder.
        about: Other entries of the manifest, in addition to the digests of the files.

    """
    files = {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    write_json(folder / MANIFEST, {**about, "files": files})


def check_intact(file: Path, todo: str = "Run the study again: finished shards are not computed again.") -> None:
    """Check a file against its folder's manifest.

    Args:
        file: The file.
        todo: What an error tells the reader to do.

    Raises:
        DamagedFile: The file is not as it was written.

    """
    digest = _manifest(file.parent, todo)["files"].get(file.name)
    with explained(DamagedFile, "A study's files must be readable", todo, str(file)):
        same = _digest(file) == digest
    if not same:
        raise DamagedFile("A study's files must be as they were written", f"{file}, which has changed", todo)


def _manifest(folder: Path, todo: str) -> dict[str, Any]:
    """The manifest of a folder. Raises DamagedFile if it is not one, or names files elsewhere."""
    with explained(DamagedFile, f"A folder of a study must contain its {MANIFEST}", todo, str(folder)):
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
    """Raises OSError for a pipe, a device or anything else that is not a plain file."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(22, "not a plain file")


def _digest(file: Path) -> str:
    _regular(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _joined(shards: Sequence[Path], name: str, to: Path) -> bool:
    """Write a table's rows of all shards to one file. Returns whether there are any."""
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for shard in shards:
            if (file := shard / f"{name}.parquet").exists():
                with explained(
                    DamagedFile, "A shard's tables must be Parquet files with the same columns", ANEW, str(file)
                ):
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
    """The study whose rows are in a folder, if any. Raises BadArgument if the folder holds something else."""
    full = [(path / SHARDS).is_dir() and any((path / SHARDS).iterdir()), (path / TABLES).exists()]
    if not (path / SPEC).exists():
        for name in (name for name, own in zip((SHARDS, TABLES), full, strict=True) if own):
            raise BadArgument(
                "A study requires its own folder", f"{path}, which contains {name} of something else",
                "Choose another folder.",
            )  # fmt: skip
        return None
    there = read(path)
    if any(full):
        return there
    (path / SPEC).unlink()  # left by a run that was killed before it computed anything
    return None


def _clean_up(path: Path) -> None:
    """Remove study.json and the lock if nothing was computed, so that another study can use the folder."""
    with suppress(OSError):
        (path / SHARDS).rmdir()
        if not (path / TABLES).exists():
            (path / SPEC).unlink(missing_ok=True)
            (path / LOCK).unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a folder until the block or the process ends. Raises BadArgument if another run has locked it."""
    with (path / LOCK).open("a+") as file:
        try:
            _lock(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), (path / LOCK).stat()):
                raise FileNotFoundError(2, "removed by the run that held it")
        except OSError as error:
            raise BadArgument(
                "A study's folder can be written by one run at a time", f"another run in {path}",
                "Wait until it is done, or choose another folder.",
            ) from error  # fmt: skip
        yield


def _lock(descriptor: int) -> None:
    """Lock a file until the process ends. Raises OSError if another process has locked it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
