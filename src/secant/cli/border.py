"""How a command ends.

Exit codes: 0, there is an answer; 2, there is none, or not all of it, and one line on stderr says why; 1, a fault of
secant itself; 128 and a number, that signal ended it; 141, in silence, where what reads the output went away before
its end (as `| head` does).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from secant.cli.process import ENDED, INTERRUPTS, RULE, TODO, say
from secant.errors import BadArgument, SecantError, is_out_of_memory
from secant.signals import Ended

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
Refusal: type[Exception] = typer.BadParameter.__mro__[2]  # click's, or those that typer brings with it


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code and the line of an error that ends a command."""
    said = " ".join(str(error).split())
    if isinstance(error, SecantError):
        return 2, said
    if isinstance(error, Ended):
        return error.code, ENDED.format(error.name)
    if isinstance(error, KeyboardInterrupt) or INTERRUPTS:
        return 2, ENDED.format("an interrupt")
    if isinstance(error, Refusal):
        return 2, str(_usage(error))
    if isinstance(error, OSError):
        return 2, f"{RULE}; got {error.strerror or said}. {TODO}"
    if is_out_of_memory(error):
        return 2, f"A run must fit in memory; got {said[:200]}. Shorten the prompt or load a smaller dtype."
    return 1, f"An error that secant does not expect; got {type(error).__name__}: {said[:300]}. Run again with --debug."


def _usage(error: Any) -> BadArgument:
    """What click says of arguments, in one line, whole where it is short."""
    said = " ".join(error.format_message().split()).removeprefix("Got ")
    path = getattr(getattr(error, "ctx", None), "command_path", "secant")
    got = (said[0].lower() + said[1:] if said else "others").rstrip(".")
    return BadArgument(
        "A command is called as its help says", got if len(got) <= 400 else f"{got[:400]} ...", f"See {path} --help."
    )


COMPLETION = ("--install-completion", "--show-completion")


def check_shell() -> None:
    """Raises BadArgument where it can't be told for which shell completion is wanted."""
    import shellingham

    try:
        shell = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        shell = "none that could be told"
    if shell not in SHELLS:
        raise BadArgument(f"Completion is for {', '.join(SHELLS)}", shell, "Call it in one of them.")


class Verb(TyperCommand):
    """A command of which an option that has one value is given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What click makes of the arguments. Raises its usage errors."""
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        except UsageError as error:
            cast(Any, error).ctx = ctx
            raise
        for param, count in Counter(order).items():
            if count > 1 and not getattr(param, "multiple", False) and getattr(param, "nargs", 1) != -1:
                raise cast(Any, UsageError)(f"{max(param.opts, key=len)} {count} times; it is given once", ctx=ctx)
        return super().parse_args(ctx, args)


class Border(TyperGroup):
    """All commands; whatever ends one of them early is one line on stderr, and an exit code."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run a command; raises SystemExit with the code."""
        given = sys.argv[1:] if args is None else list(args)
        code = 0
        try:
            self._main_shell_completion({}, "secant")  # ends the process where a shell asks
            if given and given[0] in COMPLETION:
                check_shell()
            with self.make_context("secant", list(given)) as ctx:
                self.invoke(ctx)
        except typer.Exit as end:
            code = end.exit_code
        except (KeyboardInterrupt, Exception) as error:
            if "--debug" in given and not isinstance(error, Refusal):
                raise
            code, line = ending(error)
            say(f"secant: {line}")
        sys.exit(code)
