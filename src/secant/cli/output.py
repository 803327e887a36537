"""How commands deliver results: as files, as JSON or in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import path_option
from secant.cli.printing import print_json, print_line
from secant.cli.process import raise_if_interrupted
from secant.cli.progress import progressing, stage
from secant.cli.verb import Group

if TYPE_CHECKING:
    from secant.memory import Progress
    from secant.results.result import Result


@dataclass(frozen=True, kw_only=True)
class Printing(Group):
    """How a result is printed."""

    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False

    def finish(self, result: Any, *, said: Any = None) -> None:
        """Print a result: as one line of JSON, or in the terminal.

        Args:
            result: What the command found.
            said: What `--json` prints; by default `result.to_dict()`.
        """
        if self.as_json:
            print_json(result.to_dict() if said is None else said)
        else:
            result.show()


@dataclass(frozen=True, kw_only=True)
class Output(Printing):
    """How a result is printed, and where it is written."""

    out: Annotated[Path | None, path_option("Also write the tables to this folder.")] = None

    def check(self) -> None:
        """Refuse a folder that can't be written to.

        Raises:
            BadArgument: The path is not valid.
            OutputFailed: The folder can't be written to.
        """
        from secant.results.paths import check

        if self.out is not None:
            check(self.out)

    def reserve(self, result: type[Result], *files: str) -> None:
        """Refuse a folder in which a result can't be saved.

        Args:
            result: The class of the result.
            files: The names of other files that the command writes there.

        Raises:
            OutputFailed: Something in the folder is in the way of a file.
        """
        if self.out is not None:
            result.check_folder(self.out, *files)

    def finish(
        self,
        result: Any,
        *,
        said: Any = None,
        files: str = "Tables",
        more: Callable[[Path, Progress], str] | None = None,
    ) -> None:
        """Save a result in the output folder, print it, and print where it is.

        A terminal shows the result before other files are made, which may take long. A pipe gets the result last,
        because its reader may close it.

        Args:
            result: What the command found.
            said: What `--json` prints; by default `result.to_dict()`.
            files: What `result.save` writes, for the last line.
            more: Writes other files to the folder, and returns what the last line says about them.

        Raises:
            OutputFailed: A file can't be written.
        """
        raise_if_interrupted()
        where, watched = "", sys.stdout.isatty() and not self.as_json
        if self.out is not None:
            result.save(self.out)
        if watched:
            super().finish(result, said=said)
        if self.out is not None and more is not None:
            with kept(self.out), progressing() as progress:
                where = more(self.out, progress)
        if not watched:
            super().finish(result, said=said)
        if self.out is not None and not self.as_json:
            print_line(f"{files} are in {self.out}{where}")


@dataclass(frozen=True, kw_only=True)
class Illustrated(Output):
    """How a result is printed, and where it is written, with a page and figures."""

    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw figures, as PNG and PDF in its folder figures.")
    ] = False

    def check(self) -> None:
        """Refuse figures without an output folder or without matplotlib.

        Raises:
            SecantError: `--out` is missing, or matplotlib is not installed.
        """
        super().check()
        if self.figures:
            from secant.errors import SecantError
            from secant.figures.style import drawing

            if self.out is None:
                raise SecantError("Figures are written to a folder", "--figures without --out", "Add --out.")
            with drawing():
                pass

    def illustrate(self, result: Any, page: Path, report: Callable[[Path], object]) -> str:
        """Write the page of a result, and with `--figures` its figures next to the page.

        Args:
            result: The result.
            page: The file of the page.
            report: Writes the page.

        Returns:
            Where the page is, for the command's last line.
        """
        with stage("page"):
            report(page)
        if self.figures:
            from secant.figures import every, save

            with stage("figures"):
                for name, figure in every(result).items():
                    for suffix in ("png", "pdf"):
                        save(figure, page.parent / "figures" / f"{name}.{suffix}")
        return f"; the page is {page}"


@contextmanager
def kept(out: Path) -> Iterator[None]:
    """Add to an error of the block that the files written before it are complete.

    Args:
        out: The folder of these files.

    Raises:
        SecantError: The block's error, with that sentence.
    """
    from secant.errors import SecantError

    try:
        yield
    except SecantError as error:
        todo = f"{error.todo} The files of this run in {out} are complete."
        raise type(error)(error.rule, error.got, todo) from error
