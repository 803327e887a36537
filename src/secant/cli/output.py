"""How a command hands over its result: as files, as JSON, or in the terminal. All commands end here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import path_option
from secant.cli.printing import print_json, print_line
from secant.cli.progress import Progress, progressing
from secant.cli.verb import Group

if TYPE_CHECKING:
    from secant.results.result import Result


@dataclass(frozen=True, kw_only=True)
class Printing(Group):
    """How a result is printed."""

    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False

    def finish(self, result: Any, *, said: Any = None) -> None:
        """Print a result: as one line of JSON, or in the terminal.

        Args:
            result: What the command found.
            said: What is printed as JSON, by default `result.to_dict()`.
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
        """Refuse a folder that could not be written. Raises BadArgument and OutputFailed."""
        from secant.results.paths import check

        if self.out is not None:
            check(self.out)

    def reserve(self, result: type[Result], *files: str) -> None:
        """Refuse a folder where something is in the way of a result. Raises OutputFailed.

        Args:
            result: The class of the result.
            files: The names of other files that the command writes there.
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
        """Write a result where it is to go, print it, and say where it is.

        Args:
            result: What the command found.
            said: What is printed as JSON, by default `result.to_dict()`.
            files: What `result.save` writes.
            more: Writes what else goes to the folder, and returns what the last line says of it.

        Raises:
            OutputFailed: a file could not be written.
        """
        where = ""
        if self.out is not None:
            result.save(self.out)
            if more is not None:
                with kept(self.out), progressing() as progress:
                    where = more(self.out, progress)
        super().finish(result, said=said)
        if self.out is not None and not self.as_json:
            print_line(f"{files} are in {self.out}{where}")


@dataclass(frozen=True, kw_only=True)
class Illustrated(Output):
    """How a result is printed, and where it is written, with a page and figures."""

    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw: PNG and PDF, in its folder figures.")
    ] = False

    def check(self) -> None:
        """Refuse figures that have no place, or nothing to draw them. Raises SecantError."""
        super().check()
        if self.figures:
            from secant.errors import SecantError
            from secant.figures.style import drawing

            if self.out is None:
                raise SecantError("Figures are written to a folder", "--figures without --out", "Add --out.")
            with drawing():
                pass

    def illustrate(self, result: Any, page: Path, report: Callable[[Path], object]) -> str:
        """Write a page of a result, and next to it its figures if they are asked for.

        Returns:
            Where the page is, for the command's last line; without plotly there is none, which stderr is told.
        """
        where = ""
        if find_spec("plotly") is None:
            print_line("There is no page: it needs plotly. pip install 'secant[report]'")
        else:
            report(page)
            where = f"; the page is {page}"
        if self.figures:
            from secant.figures import every, save

            for name, figure in every(result).items():
                for suffix in ("png", "pdf"):
                    save(figure, page.parent / "figures" / f"{name}.{suffix}")
        return where


@contextmanager
def kept(out: Path) -> Iterator[None]:
    """Say with an error of the block that what was written to a folder before it is there, and whole."""
    from secant.errors import SecantError

    try:
        yield
    except SecantError as error:
        todo = f"{error.todo} What {out} has of this run is whole."
        raise type(error)(error.rule, error.got, todo) from error
