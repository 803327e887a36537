"""A study's folder: what the study is, its finished shards, and the tables that are made of them.

    study.json          what the study is; another one is refused
    shards/M-C-NNNNNN/  the rows of a shard (Parquet), and manifest.json with a digest of each file
    tables/             all rows, once all shards are there

A shard is written beside its place and takes its name when it is whole, so that it is there or it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from secant.dictionary import STUDY
from secant.errors import BadArgument, DamagedFile, OutputFailed
from secant.files import check, replacing
from secant.studies.work import Computed
from secant.tables import DESCRIBED, columns, described

SPEC, MANIFEST, SHARDS, TABLES, LOCK = "study.json", "manifest.json", "shards", "tables", ".lock"


@dataclass(frozen=True)
class Identity:
    """All that the rows of a study depend on, so that rows of one identity belong together.

    `models`: label, name and how it was loaded, of each; `fingerprints`: of their weights, as far as they were loaded
    by now. `prompts`: how many, and `digest` of all of them. `shard`: how many of them are kept together.
    """

    versions: dict[str, str]
    models: list[dict[str, Any]]
    conventions: list[str]
    precision: str | None
    analyses: list[str]
    k: int
    top: int
    seed: int
    threads: int
    tensors: bool
    prompts: int
    digest: str
    shard: int
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The models' names in the rows."""
        return [model["label"] for model in self.models]

    @property
    def key(self) -> str:
        """The same for the same study, on whatever machine."""
        return hashlib.sha256(json.dumps(_comparable(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Identity) -> list[str]:
        """What is not the same, as "key: there, here"."""
        mine, theirs = _comparable(self), _comparable(other)
        found = [key for key in mine if key in theirs and mine[key] != theirs[key]]
        return [f"{key}: {mine[key]} there, {theirs[key]} here" for key in found] + [
            f"weights or tokenizer of {label}: others than there"
            for label in self.fingerprints.keys() & other.fingerprints.keys()
            if self.fingerprints[label] != other.fingerprints[label]
        ]

    def asked(self, label: str) -> Identity:
        """What was asked of one of its models, whatever the prompts."""
        models = [model for model in self.models if model["label"] == label]
        prints = {name: print_ for name, print_ in self.fingerprints.items() if name == label}
        nothing: dict[str, Any] = {"conventions": [], "analyses": [], "threads": 0, "tensors": False}
        return replace(self, models=models, fingerprints=prints, prompts=0, digest="", shard=1, **nothing)

    @property
    def names(self) -> list[str]:
        """Of all shards, by model and convention."""
        count = -(-self.prompts // self.shard)
        cells = [(m, c) for m in range(len(self.models)) for c in range(len(self.conventions))]
        return [shard_name(m, c, number) for m, c in cells for number in range(count)]


def shard_name(model: int, convention: int, number: int) -> str:
    """The folder of a shard."""
    return f"{model}-{convention}-{number:06d}"


def _comparable(identity: Identity) -> dict[str, Any]:
    """What rows depend on, key by key: not where a model lies, nor which weights were looked at yet."""
    flat = asdict(identity)
    del flat["fingerprints"]
    versions, digest, models = flat.pop("versions"), flat.pop("digest"), flat.pop("models")
    flat["models"] = [model["label"] for model in models]
    for model in models:
        flat |= {f"{model['label']} {key}": model.get(key) for key in ("dtype", "attention")}
        flat[f"{model['label']} device"] = (model.get("device") or "cpu").partition(":")[0]
    flat |= {f"version of {name}": version for name, version in versions.items()}
    return {**flat, "digest of the prompts": digest[:12]}


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
        path = Path(path).absolute()
        check(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputFailed(
                f"A study is written to {path}", error.strerror or str(error), "Choose another place."
            ) from error
        with _locked(path):
            new = not (path / SPEC).exists()
            for other in (path / SHARDS, path / TABLES):
                if new and other.exists():
                    raise BadArgument(
                        "A study has a folder of its own", f"{path}, which has {other.name} of something else",
                        "Choose another folder.",
                    )  # fmt: skip
            if not new:
                there = read(path)
                if differences := there.differences(identity):
                    raise BadArgument(
                        f"A folder holds one study; {path} has another", "; ".join(differences),
                        "Choose another folder, or run the study that it holds.",
                    )  # fmt: skip
                identity = there
            for left in (*path.glob(f"{SHARDS}/.*-*-*.*"), *path.glob(f".{SPEC}.*"), *path.glob(f".{TABLES}.*")):
                shutil.rmtree(left, ignore_errors=True)  # half-written, by a run that was killed
            folder = cls(path, identity)
            if new:
                folder._describe()
            (path / SHARDS).mkdir(exist_ok=True)
            yield folder

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
        with replacing(self.path / SHARDS / name) as new:
            new.mkdir()
            for table, rows in computed.tables.items():
                pyarrow.parquet.write_table(described(STUDY[table], rows), new / f"{table}.parquet")
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
        if not shard.exists():
            return
        verify(shard, self.identity)
        mine = self.path / SHARDS / shard.name
        if not mine.exists():
            with replacing(mine) as new:
                shutil.copytree(shard, new)
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
            written = [name for name in STUDY if _joined(shards, name, new / f"{name}.parquet")]
            columns(*written, of=STUDY).to_csv(new / f"{DESCRIBED}.csv", index=False)
            sign(new, study=self.identity.key)

    def _describe(self) -> None:
        with replacing(self.path / SPEC) as new:
            new.write_text(json.dumps(asdict(self.identity), indent=1, ensure_ascii=False))


def read(path: str | Path) -> Identity:
    """What the study in a folder is. Raises BadArgument where there is none, and DamagedFile."""
    path = Path(path).absolute()
    try:
        return Identity(**json.loads((path / SPEC).read_text()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadArgument(
            f"A study's folder has a {SPEC}", f"{path} without", "Give the folder that secant study wrote."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DamagedFile(
            f"{SPEC} says what a study is",
            f"{path / SPEC}, which can't be read ({error})",
            "Restore it, or start anew.",
        ) from error


def apart(folder: str | Path) -> None:
    """Raises BadArgument where a folder is a study's own, in which nothing else is written."""
    if (Path(folder) / SPEC).exists():
        raise BadArgument("A study's folder holds the study alone", f"{folder}", "Name another folder to write to.")


def verify(shard: Path, identity: Identity) -> None:
    """Raises DamagedFile where a shard is not as it was written, or not in its place."""
    todo = "Remove this folder, and start the study again: only its prompts are computed anew."
    manifest = _manifest(shard, todo)
    for name in manifest["files"]:
        sound(shard / name, todo)
    if {file.name for file in shard.iterdir()} != {MANIFEST, *manifest["files"]}:
        raise DamagedFile("A shard is as it was written", f"{shard} with more files", todo)
    label = identity.labels[int(shard.name.split("-")[0])]
    own = (shard.name, identity.key, identity.fingerprints.get(label))
    if tuple(manifest.get(key) for key in ("shard", "study", "fingerprint")) != own:
        raise DamagedFile("A shard is where it was written", f"{shard}, of another place, study or model", todo)


def sign(folder: Path, **about: str) -> None:
    """Write the manifest of a folder that is whole: a digest of each of its files, and what it is of."""
    files = {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=1))


def sound(file: Path, todo: str = "Run the study again: what is finished is not computed anew.") -> None:
    """Raises DamagedFile where a file is not as its folder's manifest says that it was written."""
    digest = _manifest(file.parent, todo)["files"].get(file.name)
    try:
        if _digest(file) == digest:
            return
    except OSError as error:
        raise DamagedFile("A study's files can be read", f"{file} ({error.strerror or error})", todo) from error
    raise DamagedFile("A study's files are as they were written", f"{file}, which is not", todo)


def _manifest(folder: Path, todo: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text())
        files: Mapping[str, str] = found["files"]
        return {**found, "files": dict(files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"A study's folders have their {MANIFEST}", f"{folder} ({error})", todo) from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _joined(shards: Sequence[Path], name: str, to: Path) -> bool:
    """Write the rows of all shards that have a table to one file; whether any has."""
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for shard in shards:
            if (file := shard / f"{name}.parquet").exists():
                table = pyarrow.parquet.read_table(file)
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(to, table.schema)
                writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    return writer is not None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other run's folder, until the block ends or the process does. Raises BadArgument."""
    with (path / LOCK).open("a+") as file:
        try:
            _lock(file.fileno())
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
