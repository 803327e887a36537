"""Writing results so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secant.errors import OutputFailed


def check(folder: str | Path) -> None:
    """Raise OutputFailed where a folder could plainly not be written, before there is anything to write."""
    path = Path(folder).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir():
        raise _failed(path, NotADirectoryError(20, "Not a directory"))
    if not os.access(there, os.W_OK):
        raise _failed(path, PermissionError(13, "Permission denied"))


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
