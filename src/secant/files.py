"""Reading lists, and writing results so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secant.errors import BadArgument, DamagedFile, OutputFailed


def check(folder: str | Path) -> None:
    """Raise OutputFailed where a folder could plainly not be written, before there is anything to write."""
    path = Path(folder).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir():
        raise _failed(path, NotADirectoryError(20, "Not a directory"))
    if not os.access(there, os.W_OK):
        raise _failed(path, PermissionError(13, "Permission denied"))


def text(path: str | Path, rule: str) -> str:
    """A file's text in UTF-8, or that of standard input for "-".

    `rule` says what it should be, for errors. Raises BadArgument where there is no such file, DamagedFile where it is
    no such text.
    """
    where = named(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write a file to, or make a folder at, beside `path`; it takes that name when the block ends well.

    An existing file is replaced. An existing folder is only replaced by a folder, file by file: others in it stay.
    Raises OutputFailed where the system refuses; whatever was written by then is removed.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _failed(path, error) from error
    try:
        try:
            new = place / path.name
            yield new
            for file in new.iterdir() if new.is_dir() else [new]:
                file.chmod(0o666 & ~_umask())
            _move(new, path)
        except OSError as error:
            raise _failed(path, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _umask() -> int:
    """What this process takes from the rights of a new file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "new").touch()
        return 0o666 & ~(Path(folder) / "new").stat().st_mode


def _move(new: Path, path: Path) -> None:
    if new.is_dir() and path.is_dir():
        for file in sorted(new.iterdir()):
            os.replace(file, path / file.name)
    else:
        os.replace(new, path)


def _failed(path: Path, error: OSError) -> OutputFailed:
    reason = error.strerror or str(error)
    return OutputFailed(
        f"Results are written to {path}", reason, "Choose another place, or make room and rights there."
    )
