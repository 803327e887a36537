"""Answering for a module of a model, in one thread and for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Answer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def answering(modules: Iterable[nn.Module], answer: Answer) -> Iterator[None]:
    """Let `answer(module, args, kwargs, output)` stand for the output of these modules; None keeps what it is.

    Only in this thread; nothing is left of it afterwards.
    """
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return answer(module, args, kwargs, output) if threading.get_ident() == thread else None

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
