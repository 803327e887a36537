"""Errors in code and files from elsewhere: each becomes one line that says where the fault is.

A model's forward pass, its tokenizer and chat template, its configuration and the files of a study come from elsewhere,
and an error in one of them says something about it. Any other error that is not a SecantError is a bug in secant. Log
messages of libraries are hidden meanwhile, because they address other users.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType

from secant.errors import ModelRefused, SecantError, Stopped, is_out_of_memory

COMPILED = (
    "A model is run as plain torch",
    "a compiled region",
    "Give the model without torch.compile: model._orig_mod.",
)


def nothing_special(error: BaseException) -> SecantError | None:
    """Returns None: no error gets a message of its own."""


@contextmanager
def explained(
    kind: type[SecantError],
    rule: str,
    todo: str,
    got: str = "an error in its own code",
    special: Callable[[BaseException], SecantError | None] = nothing_special,
) -> Iterator[None]:
    """Raise `kind` for whatever the block raises, with the class and text of the error.

    Errors of secant, interrupts, full memory and work that was stopped pass through.

    Args:
        kind: The class to raise.
        rule: The rule that was broken.
        todo: What the user can do.
        got: What broke it; the error's own text is added.
        special: Returns the error to raise for one that the block raised, or None to raise `kind`.

    Raises:
        SecantError: Of class `kind`, or what `special` returns.
        ModelRefused: The model is compiled.

    """
    try:
        yield
    except BaseException as error:  # a Rust panic and SystemExit do not derive from Exception
        if isinstance(error, SecantError | Stopped | KeyboardInterrupt | GeneratorExit) or is_out_of_memory(error):
            raise
        if type(error).__module__.startswith("torch._dynamo"):
            raise ModelRefused(*COMPILED) from error
        raise special(error) or kind(rule, f"{got}, {said_by(error)}", todo) from error


def said_by(error: BaseException, most: int = 200) -> str:
    """An error's class and text in one line, cut to a length.

    >>> said_by(ValueError("not  so."))
    'ValueError: not so'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:most].rstrip(". :")


def required(what: str, extra: str, *packages: str, error: type[SecantError] = SecantError) -> ModuleType:
    """Import the packages that an extra installs; returns the first one.

    Args:
        what: What requires them.
        extra: The extra of secant.
        packages: The packages, as they are imported.
        error: The class to raise.

    Raises:
        SecantError: A package is not installed or cannot be imported; of class `error`.

    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as cause:
            absent = isinstance(cause, ModuleNotFoundError) and cause.name == package
            raise error(
                f"{what} requires {' and '.join(packages)}",
                f"an installation without {package}" if absent else f"a {package} that fails, {said_by(cause)}",
                f"Install {'it' if len(packages) == 1 else 'them'}: pip install 'secant[{extra}]'.",
            ) from cause
    return import_module(packages[0])


_HUSHED = ContextVar("whether log messages are hidden", default=False)


class _Hush(logging.Filter):
    """Drops records that are logged inside `quiet`, in the same thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _HUSHED.get()


_HUSH = _Hush()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the log messages of libraries in this thread; secant checks what matters, and raises it.

    Handlers get a filter, which stays and does nothing outside the block. A switch for all threads would be restored by
    one thread to the state that another had set.
    """
    if _HUSHED.get():
        yield
        return
    loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
    for handler in [h for logger in loggers for h in getattr(logger, "handlers", ())] + [logging.lastResort]:
        if handler is not None and _HUSH not in handler.filters:
            handler.addFilter(_HUSH)
    _HUSHED.set(True)
    try:
        yield
    finally:
        _HUSHED.set(False)
