"""Reading lists, and writing results so that nothing half-written is ever left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secant.errors import BadArgument, DamagedFile, OutputFailed
from secant.signals import deferred

if TYPE_CHECKING:
    from torch import Tensor

HALF = ".secant-half-written-"
"""How the names of temporary folders begin. What is in one was not finished, and nobody else's begins so."""

PATH = "A path is a str or a pathlib.Path"


def path_of(value: Any, rule: str = PATH) -> Path:
    """A path that was given from outside; one that begins with ~ is in the home folder. Raises BadArgument."""
    todo = "Give the path of a file or folder, such as 'results'."
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise BadArgument(rule, f"{value!r:.60}, a {type(value).__name__}", todo)
    if not text or "\0" in text:
        raise BadArgument(rule, f"{text!r:.60}", todo)
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except (RuntimeError, UnicodeEncodeError) as error:  # ~ of nobody, or half a character
        raise BadArgument(rule, f"{text!r:.60} ({error})", todo) from error


def paths_of(values: Any, rule: str) -> list[Path]:
    """One path that was given from outside, or several. Raises BadArgument where there are none, or other things."""
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        values = [values]
    if found := [path_of(value, rule) for value in values]:
        return found
    raise BadArgument(rule, "none", "Name one.")


def check(folder: str | Path, *files: str) -> None:
    """Raise what writing such files to a folder would raise, before there is anything to write.

    Raises BadArgument where it is no path, OutputFailed where the folder, or a file of it, could not be written.
    """
    path = _real(folder)
    with failing(path):
        there = next(p for p in (path, *path.parents) if _is_there(p))
        if not there.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        if any(len(os.fsencode(part)) > _longest(there) for part in path.parts):
            raise OSError(36, "File name too long")
        Path(tempfile.mkdtemp(prefix=HALF, dir=there)).rmdir()
        for name in files if there == path else ():
            if (path / name).is_dir() and not (path / name).is_symlink():
                raise IsADirectoryError(21, f"a folder {name}, which is in the way of a file")


def check_file(path: str | Path) -> None:
    """Raise what writing a file would raise, before there is anything to write: BadArgument and OutputFailed."""
    place = _real(path)
    with failing(place):
        _is_file_or_none(place)
    check(place.parent)


def text(path: str | Path, rule: str) -> str:
    """A file's text in UTF-8, or that of standard input for "-".

    `rule` says what it should be, for errors. Raises BadArgument where there is no such file, DamagedFile where it is
    no such text.
    """
    where = named(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path_of(path, rule).read_bytes()
    except OSError as error:
        raise BadArgument(rule, f"{where}: {error.strerror or error}", "Give a file that can be read.") from error
    try:
        found = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFile(rule, f"{where}, which is not in UTF-8", "Save it as UTF-8.") from error
    if "\0" in found:
        raise DamagedFile(rule, f"{where}, which is no text", "Give a text file.")
    return found


def named(path: str | Path) -> str:
    """A file's name for errors."""
    return "standard input" if str(path) == "-" else str(path)


def lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file in UTF-8, or of standard input for "-", without those that are blank.

    `what` they are, for errors. Raises BadArgument where there is no such file, DamagedFile where it is no such text.
    """
    rule = f"{what} are the lines of a text file"
    found = [line for line in text(path, rule).replace("\r\n", "\n").split("\n") if line.strip()]
    if not found:
        raise DamagedFile(rule, f"{named(path)}, which is empty", "Write one to a line.")
    return found


def write_text(path: Path, said: str) -> None:
    r"""Write a text in UTF-8. Half a character, as in a file's name that is no text, is written as \udc80."""
    path.write_bytes(said.encode("utf-8", "backslashreplace"))


def write_json(path: Path, tree: Any) -> None:
    """Write a tree as JSON in UTF-8, which takes half a character as its escape too."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors, from whatever device, as safetensors. Raises OutputFailed: the library's errors are its own."""
    from safetensors.torch import save_file

    from secant.foreign import explained

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with explained(OutputFailed, f"Results are written to {path.name}", MEND, "an error of safetensors"):
        save_file(held, path, dict(about))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write a file to, or make a folder at; it takes the place of `path` when the block ends well.

    An existing file is replaced. An existing folder is only replaced by a folder, file by file: others in it stay. What
    is being written lies in the folder itself where there is one, else beside it: on the same device. Links are
    followed. Raises OutputFailed where the system refuses, and BadArgument where it is no path; whatever was written by
    then is removed, with the folders that were made for it.
    """
    path = _real(path)
    folder = path if os.path.isdir(path) else path.parent
    with failing(path), making(folder):
        place: Path | None = None
        try:
            with deferred():
                place = Path(tempfile.mkdtemp(prefix=HALF, dir=folder))
            new = place / (path.name or "new")
            yield new
            _open(new, place)
            with deferred():
                _move(new, path)
        finally:
            with deferred():
                if place is not None:
                    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """A folder that is there in the block. It is made with those that it is in, and those that were made and are empty
    when the block ends are removed. Raises OSError.
    """
    made: list[Path] = []
    try:
        for each in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            with deferred():
                each.mkdir(exist_ok=True)
                made.append(each)
        yield
    finally:
        with suppress(OSError):  # one is not empty
            for each in reversed(made):
                each.rmdir()


def clear(folder: Path) -> None:
    """Remove what a run of secant that was killed left half-written in a folder, and nothing else."""
    for left in folder.glob(f"{HALF}*"):
        if re.fullmatch(r"[a-z0-9_]{8}", left.name.removeprefix(HALF)) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


MEND = "Choose another place, or make room and rights there."


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """Raise OutputFailed for an OSError of the block, which writes to a path."""
    try:
        yield
    except OSError as error:
        raise OutputFailed(f"Results are written to {path}", error.strerror or str(error), MEND) from error


def _real(path: Any) -> Path:
    """Where a path leads, through links. Raises BadArgument where it is none, or one that libraries can't write to."""
    place = os.path.realpath(path_of(path, "Results are written to a path"))
    if place.encode("utf-8", "ignore").decode() != place:
        raise BadArgument("Results are written to a path in UTF-8", f"{place!r}", "Give it another name.")
    return Path(place)


def _longest(folder: Path) -> int:
    """How many bytes a name in a folder may have."""
    return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255


def _is_there(path: Path) -> bool:
    """Whether there is anything. Raises OSError where that can't be said, as of a name that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_file_or_none(path: Path) -> None:
    """Raises OSError where what is there is no plain file, such as a folder or a device, which stays what it is."""
    if _is_there(path) and not stat.S_ISREG(path.lstat().st_mode):
        folder = path.is_dir()
        raise IsADirectoryError(21, "Is a directory") if folder else OSError(22, "a device, or no plain file")


def _open(new: Path, place: Path) -> None:
    """Give files the rights that new files have here; some libraries write them for their owner alone."""
    probe = place / ".rights"
    probe.touch(0o666)
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in new.iterdir() if new.is_dir() else [new]:
        file.chmod(rights)


def _move(new: Path, path: Path) -> None:
    """Put a file, or a folder's files, in their places: all of them, or none where one of them can't be."""
    if not new.is_dir():
        _is_file_or_none(path)
        os.replace(new, path)
    elif not path.is_dir():
        os.replace(new, path)
    else:
        files = sorted(new.iterdir())
        for file in files:
            if (path / file.name).is_dir() and not (path / file.name).is_symlink():
                raise IsADirectoryError(21, f"a folder {file.name}, which is in the way of a file")
        for file in files:
            os.replace(file, path / file.name)
