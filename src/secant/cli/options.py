"""What the commands share: their options, how a model is loaded for them, progress, and how an error ends one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.border import ending
from secant.cli.process import say
from secant.errors import seeded
from secant.results.paths import path_of
from secant.signals import raised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from secant.model.lm import LM


class Dtype(StrEnum):
    """Floating-point types by name."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Convention(StrEnum):
    """What a gated product holds."""

    gate = "gate"
    up = "up"
    half = "half"


class SteeringForm(StrEnum):
    """How a concept's operator is put into the stream."""

    mixture = "mixture"
    additive = "additive"
    activation = "activation"


ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a name on the Hugging Face hub, or atlas, which ships with secant."),
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Load the model in this type; its own by default.")]
PrecisionOption = Annotated[
    Dtype | None, typer.Option(help="Evaluate the linear system in this type, above the model's own.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto")]
AttentionOption = Annotated[str | None, typer.Option(help="The attention implementation: eager or sdpa.")]
RemoteOption = Annotated[bool, typer.Option("--allow-remote-code", help="Run code that comes with the model.")]
PickleOption = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ConventionOption = Annotated[Convention, typer.Option(help="What a gated product holds.")]
ChatOption = Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's chat message.")]
SeedOption = Annotated[int, typer.Option(callback=seeded, help="Seed of all random numbers.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def path_option(help: str) -> Any:
    """An option that is a path."""
    return typer.Option(parser=path_of, metavar="PATH", help=help)


def path_argument(help: str) -> Any:
    """Arguments that are paths."""
    return typer.Argument(parser=path_of, metavar="PATH...", help=help)


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """End a command that fails with one line on stderr: exit code 2, or 1 for an error in secant itself."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            with raised():
                command(*args, debug=debug, **kwargs)
        except typer.Exit:
            raise
        except (KeyboardInterrupt, Exception) as error:
            if debug:
                raise
            code, line = ending(error)
            say(f"secant: {line}")
            raise typer.Exit(code) from None

    return run


@contextmanager
def kept(out: Path) -> Iterator[None]:
    """Say with an error of the block that what was written to a folder before it is there, and whole."""
    from secant.errors import SecantError

    try:
        yield
    except SecantError as error:
        todo = f"{error.todo} What {out} has of this run is whole."
        raise type(error)(error.rule, error.got, todo) from error


def loaded(
    model: str,
    dtype: Dtype | None,
    device: str | None,
    attention: str | None,
    allow_remote_code: bool,
    allow_pickle: bool,
) -> LM:
    """The model that a command's options name."""
    import secant as sc

    return sc.load(
        model, dtype=dtype and dtype.value, device=device, attention=attention,
        allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip


@contextmanager
def progressing() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr, with rate and time left: bars that are gone when they are done; where stderr is no terminal,
    a line after every minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}
        lines = _Lines()

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)
            if bars.disable:
                lines(what, done, of)

        yield report


class _Lines:
    """Progress where there is no terminal: a line for each minute."""

    def __init__(self) -> None:
        self._what, self._start, self._first, self._said = "", 0.0, 0, 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        from secant.memory import LONG, time_in_words

        now = monotonic()
        if what != self._what:
            self._what, self._start, self._first, self._said = what, now, done, now
        if now - self._said < LONG or done == self._first:
            return
        rate = (done - self._first) / (now - self._start)
        left = time_in_words((of - done) / rate)
        say(f"{what}: {done:,} of {of:,}, {rate:.3g}/s, about {left} left")
        self._said = now


def check_figures(out: Path | None) -> None:
    """Raises SecantError where figures have no place, or nothing to draw them."""
    from secant.errors import SecantError
    from secant.figures.style import drawing

    if out is None:
        raise SecantError("Figures are written to a folder", "--figures without --out", "Add --out.")
    with drawing():
        pass


def drawn(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write figures by name, as PNG and as PDF."""
    from secant.figures import save

    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            save(figure, folder / f"{name}.{suffix}")
