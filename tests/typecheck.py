"""The type checker for jaxtyping's import hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

_LOCAL: dict[tuple[str, str, str], Callable[..., Any]] = {}


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype(function)`; of functions in functions, which are made anew in each call, that of the first.

    jaxtyping gives functions that have the signature of what it checks, and no more.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    which = (function.__module__, function.__qualname__, str(inspect.signature(function)))
    if which not in _LOCAL:
        _LOCAL[which] = beartype(function)
    return _LOCAL[which]
