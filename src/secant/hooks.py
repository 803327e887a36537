"""Standing in for a module of a model for a while, without disturbing other threads that run it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Answer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def answering(modules: Iterable[nn.Module], answer: Answer, always: bool = False) -> Iterator[None]:
    """Let `answer(module, args, kwargs, output)` stand for the output of these modules; None keeps what it is.

    Only in this thread; nothing is left of it afterwards. `always`: it is called with None where a module raises, too.
    """
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return answer(module, args, kwargs, output) if threading.get_ident() == thread else None

    handles = [module.register_forward_hook(hook, with_kwargs=True, always_call=always) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def before(modules: Iterable[nn.Module], look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Let `look(args, kwargs)` see what these modules are called with, in this thread."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            look(args, kwargs)

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Whole:
    """A module's forward pass that function modes see as one call of `function(x, self)`."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor, Whole], Tensor]) -> None:
        self.module, self.function, self.users = module, function, 0
        self.own, self.before = module.forward, vars(module).get("forward")

    def __call__(self, x: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(x, self)


_lock = threading.Lock()


@contextmanager
def seen_whole(modules: dict[nn.Module, Callable[[Tensor, Whole], Tensor]]) -> Iterator[None]:
    """Let each of these modules be seen as one call of its function; the last thread to leave puts them back."""
    with _lock:
        for module, function in modules.items():
            if not isinstance(vars(module).get("forward"), Whole):
                vars(module)["forward"] = Whole(module, function)
            vars(module)["forward"].users += 1
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                seen = vars(module)["forward"]
                seen.users -= 1
                if not seen.users:
                    del vars(module)["forward"]
                    if seen.before is not None:
                        vars(module)["forward"] = seen.before
