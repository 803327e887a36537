"""Temporary changes to a model's modules that do not disturb other threads running the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from operator import is_
from typing import Any

from torch import Tensor, nn

Answer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]

COMPILED_FROM = "_torchdynamo_orig_callable"
"""The attribute in which a function made by torch.compile keeps the function that was compiled."""


@contextmanager
def replacing_outputs(modules: Iterable[nn.Module], answer: Answer, always: bool = False) -> Iterator[None]:
    """Replace the outputs of modules in this thread, while the block runs.

    Args:
        modules: The modules.
        answer: Called as `answer(module, args, kwargs, output)`; returns the new output, or None to keep it.
        always: Whether to call `answer` also if a module raises, with None for the output.

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
def observing_inputs(
    modules: Iterable[nn.Module], look: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Call `look(args, kwargs)` before each call of these modules in this thread, while the block runs."""
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
        """Calls the function."""
        return self.function(x, self)


_lock = threading.Lock()


@contextmanager
def seen_whole(modules: dict[nn.Module, Callable[[Tensor, Whole], Tensor]]) -> Iterator[None]:
    """Make function modes see each module as one call of its function; the last thread to leave restores them."""
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


@contextmanager
def assigned(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the tensors that these modules had as parameters, buffers and attributes.

    Tensors that another thread assigned in the meantime stay.
    """
    modules, thread = list(modules), threading.get_ident()
    before = {m: [dict(table) for table in _tables(m)] for m in modules}

    def foreign(place: int) -> Callable[[nn.Module, str, Any], None]:
        def note(module: nn.Module, name: str, value: Any) -> None:
            if threading.get_ident() != thread and module in before:
                before[module][place][name] = value

        return note

    with ExitStack() as handles:
        handles.enter_context(nn.modules.module.register_module_parameter_registration_hook(foreign(0)))
        handles.enter_context(nn.modules.module.register_module_buffer_registration_hook(foreign(1)))
        try:
            yield
        finally:
            for module, kept in before.items():
                for table, then in zip(_tables(module), kept, strict=True):
                    put_back(table, then)


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, vars(module)


def put_back(table: dict[str, Any], before: dict[str, Any]) -> None:
    """Restore the entries of a table that are or were tensors.

    Args:
        table: The table, which is changed.
        before: Its former entries.

    """
    if len(table) == len(before) and all(map(is_, table.values(), before.values())) and [*table] == [*before]:
        return  # nothing was assigned, as in most modules in most passes
    for name in {*table, *before}:
        now, then = table.get(name), before.get(name)
        if now is then or not (isinstance(now, Tensor) or isinstance(then, Tensor)):
            continue
        if name in before:
            table[name] = then
        else:
            del table[name]


@contextmanager
def as_plain_torch(model: nn.Module) -> Iterator[None]:
    """Hide secant's products from backward hooks, and run modules uncompiled, in this thread, while the block runs."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    thread = threading.get_ident()

    def replace(table: dict[str, Any], name: str, value: Any) -> None:
        before.append((table, name, table[name]))
        table[name] = value

    try:
        for name in ("_global_backward_hooks", "_global_backward_pre_hooks"):
            if vars(nn.modules.module)[name]:
                replace(vars(nn.modules.module), name, _Unseen(vars(nn.modules.module)[name], thread))
        for module in model.modules():
            table = vars(module)
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                if table.get(name):
                    replace(table, name, _Unseen(table[name], thread))
            if table.get("_compiled_call_impl") is not None:
                replace(table, "_compiled_call_impl", None)
            if (plain := getattr(table.get("forward"), COMPILED_FROM, None)) is not None:
                replace(table, "forward", plain)
        yield
    finally:
        for table, name, value in reversed(before):
            table[name] = value


class _Unseen(MutableMapping[int, Any]):
    """Hooks that are hidden from one thread."""

    def __init__(self, own: MutableMapping[int, Any], thread: int) -> None:
        self._own, self._thread = own, thread

    def __len__(self) -> int:
        return 0 if threading.get_ident() == self._thread else len(self._own)

    def __iter__(self) -> Iterator[int]:
        return iter(()) if threading.get_ident() == self._thread else iter(self._own)

    def __getitem__(self, key: int) -> Any:
        return self._own[key]

    def __setitem__(self, key: int, value: Any) -> None:
        self._own[key] = value

    def __delitem__(self, key: int) -> None:
        del self._own[key]
