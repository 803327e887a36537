"""Paths and text files from users, and output that leaves no partial files."""

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

from secant.errors import BadArgument, DamagedFile, OutputFailed, quoted, shown
from secant.signals import deferred

if TYPE_CHECKING:
    from torch import Tensor

HALF_WRITTEN = ".secant-half-written-"
"""The prefix of temporary folders, whose contents are unfinished. No other program uses it."""

PATH = "A path is a str or a pathlib.Path"


def path_of(value: Any, rule: str = PATH) -> Path:
    """Returns the path that a user gave; ~ is the home folder.

    Args:
        value: A str or a path.
        rule: What it must be, for the error's message.

    Raises:
        BadArgument: It is not a path.

    """
    todo = "Give the path of a file or folder, such as 'results'."
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise BadArgument(rule, shown(value), todo)
    if not text or "\0" in text:
        raise BadArgument(rule, quoted(text), todo)
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except (RuntimeError, UnicodeEncodeError) as error:  # ~ of an unknown user, or half a character
        raise BadArgument(rule, f"{text!r:.60} ({error})", todo) from error


def paths_of(values: Any, rule: str) -> list[Path]:
    """Returns the paths that a user gave, one or several.

    Args:
        values: A path, or several.
        rule: What they must be, for the error's message.

    Raises:
        BadArgument: One is not a path, or there are none.

    """
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        values = [values]
    if found := [path_of(value, rule) for value in values]:
        return found
    raise BadArgument(rule, "none", "Name one.")


def check(folder: str | Path, *files: str) -> None:
    """Raises the errors that writing files to a folder would raise, before there is anything to write.

    Args:
        folder: The folder.
        files: The names of the files.

    Raises:
        BadArgument: The folder is not a path.
        OutputFailed: The folder, or a file in it, can't be written.

    """
    path = _real(folder)
    with failing(path):
        there = next(p for p in (path, *path.parents) if _is_there(p))
        if not there.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        if any(len(os.fsencode(part)) > _longest(there) for part in path.parts):
            raise OSError(36, "File name too long")
        Path(tempfile.mkdtemp(prefix=HALF_WRITTEN, dir=there)).rmdir()
        for name in files if there == path else ():
            if (path / name).is_dir() and not (path / name).is_symlink():
                raise IsADirectoryError(21, f"a folder {name}, which is in the way of a file")


def check_file(path: str | Path) -> None:
    """Raises the errors that writing a file would raise, before there is anything to write.

    Args:
        path: The file.

    Raises:
        BadArgument: It is not a path.
        OutputFailed: The file can't be written.

    """
    place = _real(path)
    with failing(place):
        _is_file_or_none(place)
    check(place.parent)


def text(path: str | Path, rule: str) -> str:
    """Returns the text of a UTF-8 file, or of standard input for "-".

    Args:
        path: The file.
        rule: What it must be, for the error's message.

    Raises:
        BadArgument: The file cannot be read.
        DamagedFile: It is not text in UTF-8.

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
        raise DamagedFile(rule, f"{where}, which is not text", "Give a text file.")
    return found


def named(path: str | Path) -> str:
    """Returns a file's name for messages.

    Args:
        path: The file, or "-" for standard input.

    """
    return "standard input" if str(path) == "-" else str(path)


def lines(path: str | Path, what: str) -> list[str]:
    """Returns the lines of a UTF-8 file, or of standard input for "-", without blank ones.

    Args:
        path: The file.
        what: What the lines are, in the plural, for the error's message.

    Raises:
        BadArgument: The file cannot be read.
        DamagedFile: It is not text in UTF-8, or empty.

    """
    rule = f"{what} are the lines of a text file"
    found = [line for line in text(path, rule).replace("\r\n", "\n").split("\n") if line.strip()]
    if not found:
        raise DamagedFile(rule, f"{named(path)}, which is empty", "Write one on each line.")
    return found


def write_text(path: Path, said: str) -> None:
    r"""Writes a text in UTF-8. A lone surrogate, as in a file name that is not text, is written as \udc80.

    Args:
        path: The file.
        said: The text.

    """
    path.write_bytes(said.encode("utf-8", "backslashreplace"))


def write_json(path: Path, tree: Any) -> None:
    """Writes a tree as JSON in UTF-8. A lone surrogate is written as its escape.

    Args:
        path: The file.
        tree: Dicts, lists and values.

    """
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes tensors, on any device, as safetensors.

    Args:
        path: The file.
        tensors: The tensors by name.
        about: The metadata of the file.

    Raises:
        OutputFailed: safetensors can't write the file.

    """
    from safetensors.torch import save_file

    from secant.foreign import explained

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with explained(OutputFailed, f"Results are written to {path.name}", TRY_ELSEWHERE, "an error of safetensors"):
        save_file(copies, path, dict(about))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path for a file or a folder, which replaces `path` when the block succeeds.

    A file replaces a file. A folder replaces only a folder, file by file, and other files in it stay. The temporary
    path is in the folder itself if that exists, and next to it otherwise, so that both are on one device. Links are
    followed. If the block fails, the files that it has written are removed, and so are the folders that were made for
    them.

    Args:
        path: The file or folder to write.

    Raises:
        BadArgument: It is not a path.
        OutputFailed: `path` can't be written.

    """
    path = _real(path)
    folder = path if os.path.isdir(path) else path.parent
    with failing(path), making(folder):
        place: Path | None = None
        try:
            with deferred():
                place = Path(tempfile.mkdtemp(prefix=HALF_WRITTEN, dir=folder))
            new = place / (path.name or "new")
            yield new
            _allow_reading(new, place)
            with deferred():
                _move(new, path)
        finally:
            with deferred():
                if place is not None:
                    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents, and removes those that are empty when the block ends.

    Args:
        folder: The folder.

    Raises:
        OSError: One can't be made.

    """
    made: list[Path] = []
    try:
        for each in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            with deferred():
                each.mkdir(exist_ok=True)
                made.append(each)
        yield
    finally:
        with suppress(OSError):  # a folder that is not empty
            for each in reversed(made):
                each.rmdir()


def clear(folder: Path) -> None:
    """Removes the unfinished files that a killed run of secant left in a folder, and nothing else.

    Args:
        folder: The folder.

    """
    for left in folder.glob(f"{HALF_WRITTEN}*"):
        if (
            re.fullmatch(r"[a-z0-9_]{8}", left.name.removeprefix(HALF_WRITTEN))
            and left.is_dir()
            and not left.is_symlink()
        ):
            shutil.rmtree(left, ignore_errors=True)


TRY_ELSEWHERE = "Choose another place, or make room and rights there."


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """Raises OutputFailed for an OSError of the block, which writes to a path.

    Args:
        path: The path.

    Raises:
        OutputFailed: The block raised an OSError.

    """
    try:
        yield
    except OSError as error:
        raise OutputFailed(f"Results are written to {path}", error.strerror or str(error), TRY_ELSEWHERE) from error


def _real(path: Any) -> Path:
    """The path with all links resolved. Raises BadArgument if it is not a path, or is not valid UTF-8."""
    place = os.path.realpath(path_of(path, "Results are written to a path"))
    if place.encode("utf-8", "ignore").decode() != place:
        raise BadArgument("Results are written to a path in UTF-8", quoted(place), "Give it another name.")
    return Path(place)


def _longest(folder: Path) -> int:
    """The largest number of bytes in the name of a file in this folder."""
    return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255


def _is_there(path: Path) -> bool:
    """Whether anything exists at a path. Raises OSError if that is unknown, as for a name that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_file_or_none(path: Path) -> None:
    """Raises OSError if a path is a folder, a device or another special file, which must not be replaced."""
    if _is_there(path) and not stat.S_ISREG(path.lstat().st_mode):
        folder = path.is_dir()
        raise IsADirectoryError(21, "Is a directory") if folder else OSError(22, "a device, or not a plain file")


def _allow_reading(new: Path, place: Path) -> None:
    """Gives files the permissions of new files; some libraries make them readable by their owner only."""
    probe = place / ".rights"
    probe.touch(0o666)
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in new.iterdir() if new.is_dir() else [new]:
        file.chmod(rights)


def _move(new: Path, path: Path) -> None:
    """Moves a file, or a folder's files, into place: all of them, or none if one is blocked."""
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
