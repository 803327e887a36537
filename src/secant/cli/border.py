"""How a command ends.

Exit code 0 means that the command succeeded. With 2 it failed, in whole or in part, and one line on stderr says why.
1 is a bug in secant. 128 plus a number means that the signal with this number ended the command. 141 means that the
reader of the output closed it early, as `| head` does; nothing is printed then.
"""

from __future__ import annotations

import re
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
Refusal: type[Exception] = typer.BadParameter.__mro__[2]  # click's classes, or typer's own copies of them


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code and the line on stderr for an error that ends a command.

    Args:
        error: What was raised.

    Returns:
        The exit code, and the line without its prefix `secant: `.
    """
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
    return 1, f"An unexpected error; got {type(error).__name__}: {said[:300]}. Run again with --debug."


def _usage(error: Any) -> BadArgument:
    """A usage error of click as one line, cut after 400 characters."""
    said = " ".join(error.format_message().split()).removeprefix("Got ")
    path = getattr(getattr(error, "ctx", None), "command_path", "secant")
    said = re.sub(r"\. Did you mean (.+)\?$", r" (did you mean \1?)", said)
    got = (said[0].lower() + said[1:] if said else "others").rstrip(".")
    return BadArgument(
        "A command accepts the options and arguments that its help lists",
        got if len(got) <= 400 else f"{got[:400]} ...",
        f"See {path} --help.",
    )


COMPLETION = ("--install-completion", "--show-completion")


def check_shell() -> None:
    """Check that completion exists for the shell that called the command.

    Raises:
        BadArgument: The shell can't be detected, or completion does not support it.
    """
    import shellingham

    try:
        shell = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        shell = "one that could not be detected"
    if shell not in SHELLS:
        raise BadArgument(f"Completion supports {', '.join(SHELLS)}", shell, "Run it in one of these shells.")


class Verb(TyperCommand):
    """A command that refuses an option given twice, unless the option takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after checking for repeated options.

        Args:
            ctx: Click's context.
            args: The arguments.

        Returns:
            The arguments that are left.

        Raises:
            UsageError: An argument is not accepted, or an option with one value is repeated.
        """
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
    """The group of all commands. An error becomes one line on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run a command.

        Args:
            args: The arguments, by default those of the process.

        Raises:
            SystemExit: Always, with the exit code.
        """
        given = sys.argv[1:] if args is None else list(args)
        code = 0
        try:
            self._main_shell_completion({}, "secant")  # ends the process if a shell requests completions
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
