"""Turning a function into a command. Its parameters are arguments, options and groups of shared options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from secant.cli.border import ending
from secant.cli.process import say
from secant.cli.progress import in_lines
from secant.signals import raised

C = TypeVar("C", bound=Callable[..., None])

VERBS: list[Callable[..., None]] = []
"""Every command, as `verb` registered it."""


class Help(dict[str, str]):
    """Help texts that a command gives options of a group: `Annotated[Output, Help(out="Where the tables go.")]`."""


class Default(dict[str, Any]):
    """Defaults that a command gives options of a group: `Annotated[Spectra, Default(k=2)]`."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Options that several commands share, with the methods that use them.

    Every field of a derived dataclass is an option. A command takes the whole group as one parameter.
    """

    def check(self) -> None:
        """Refuse wrong options before any work is done.

        Raises:
            SecantError: An option is wrong.
        """

    @classmethod
    def parameters(cls, changes: Sequence[Any] = ()) -> list[Parameter]:
        """The options as parameters, those of a derived class first.

        Args:
            changes: The command's own help texts and defaults, each a Help or a Default.
        """
        hints = get_type_hints(cls, include_extras=True)
        declared = {field.name: field.default for field in fields(cls)}
        defaults = {name: Parameter.empty if value is MISSING else value for name, value in declared.items()}
        for change in changes:
            if isinstance(change, Default):
                defaults |= change
            else:
                hints |= {name: _with_help(hints[name], text) for name, text in change.items()}
        order = dict.fromkeys(name for each in cls.__mro__ for name in inspect.get_annotations(each))
        return [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hints[name])
            for name in order
            if name in defaults
        ]


def _with_help(option: Any, text: str) -> Any:
    """An annotated option with another help text."""
    kind, info = get_args(option)
    info = copy(info)
    info.help = text
    return Annotated[kind, info]


def verb(command: C) -> C:
    """Register a function as a command, with its own options first and then those of its groups.

    An error ends the command with one line on stderr, and exit code 2, or 1 for a bug in secant. Every command has
    `--debug`, which shows the traceback.

    Args:
        command: The function. A parameter whose annotation is a Group stands for the options of that group.

    Returns:
        The function itself.
    """
    signature = inspect.signature(command, eval_str=True)
    own: list[Parameter] = []
    shared: list[Parameter] = []
    groups: dict[str, tuple[type[Group], list[str]]] = {}
    for name, parameter in signature.parameters.items():
        kind, changes = parameter.annotation, ()
        if get_origin(kind) is Annotated:
            kind, *changes = get_args(kind)  # type: ignore[assignment]
        if isinstance(kind, type) and issubclass(kind, Group):
            fields_ = kind.parameters(changes)
            groups[name] = kind, [field.name for field in fields_]
            shared += fields_
        else:
            own.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    option: Any = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    debugging = Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=option)
    options = [*own, *shared, debugging]

    def run(*, debug: bool, **given: Any) -> None:
        try:
            with raised(), in_lines():
                made = {name: kind(**{n: given.pop(n) for n in names}) for name, (kind, names) in groups.items()}
                for group in made.values():
                    group.check()
                command(**given, **made)
        except typer.Exit:
            raise
        except (KeyboardInterrupt, Exception) as error:
            if debug:
                raise
            code, line = ending(error)
            say(f"secant: {line}")
            raise typer.Exit(code) from None

    functools.update_wrapper(run, command, updated=())
    run.__annotations__ = {option.name: option.annotation for option in options}
    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    VERBS.append(run)
    return command
