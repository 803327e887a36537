"""Run a model and leave it as it was: tensors that it writes or assigns are restored, and its backward hooks and
compiled calls are disabled meanwhile.

Some models keep state from pass to pass, such as rotary frequencies for the length of the prompt, or masks that are
made once. A pass that secant runs must not change that state, nor undo what another thread does to the model at the
same time. Because all threads share the state, only one at a time runs a model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secant.linearize.rules import METADATA, VIEWS, writes
from secant.model.hooks import as_plain_torch, assigned, put_back
from secant.numeric import address, mapped, tensors

_lock = threading.Lock()
_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def _turn(model: nn.Module) -> threading.RLock:
    """The lock of a model, which the thread that runs it acquires."""
    with _lock:
        return _turns.setdefault(model, threading.RLock())


Copies = dict[str, tuple[Tensor, Tensor]]
"""Tensors by name, each with a copy of its contents before it was written."""


class State:
    """A snapshot of what a model keeps from pass to pass: buffers and attributes of its modules.

    `copies` has the tensors that the first pass from this state wrote in place. Later passes write no others.
    """

    def __init__(self, model: nn.Module) -> None:
        with _turn(model):  # not in the middle of another thread's pass
            self._tables = [(table, dict(table)) for m in model.modules() for table in (m._buffers, vars(m))]
        self._inference = any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
        self.copies: Copies | None = None

    @property
    def plain(self) -> bool:
        """Whether passes need no watching: they write nothing, and no tensor was made in inference mode."""
        return self.copies == {} and not self._inference

    def restore(self) -> Copies:
        """Restore the model to this state, and return what its tensors contained until now."""
        for table, then in self._tables:
            put_back(table, then)
        copies = self.copies or {}
        until_now = {name: (tensor, tensor.detach().clone()) for name, (tensor, _) in copies.items()}
        _write(copies)
        return until_now


def _write(copies: Copies) -> None:
    for tensor, copy in copies.values():
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(copy)


@contextmanager
def untouched(model: nn.Module, state: State | None = None) -> Iterator[Copies]:
    """Run a model in this thread as plain torch, and leave it as it is now.

    Tensors that the model assigns or writes are restored, but not what another thread assigns. Backward hooks and
    compiled calls are disabled. Tensors that were made in inference mode are treated as ordinary ones.

    Args:
        model: The model.
        state: The state that it starts from; by default its current one.

    Yields:
        The parameters and buffers that were written in place, complete when the block ends.
    """
    with _turn(model), assigned(list(model.modules())), as_plain_torch(model):
        before = {} if state is None else state.restore()
        mode = None if state is not None and state.plain else _Keeping(model, before)
        copies: Copies = {} if mode is None else mode.copies
        try:
            with mode or nullcontext():
                yield copies
        finally:
            if mode is not None:
                mode.forget_read()
            _write(copies)
            _write(before)
            if state is not None and state.copies is None:
                state.copies = copies


SHARING = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""Functions that return an array with the tensor's own memory, through which the model may write it unseen."""


class _Keeping(TorchFunctionMode):
    """A mode that copies each tensor of a model before it is written in place, or shared with numpy.

    Tensors that autograd graphs keep must not change after the pass. Functions therefore read copies of the tensors
    that this or an earlier pass wrote. Tensors of inference mode, which can't be on a graph, are read through aliases.
    """

    def __init__(self, model: nn.Module, before: Copies) -> None:
        super().__init__()
        self._written = {address(tensor) for tensor, _ in before.values()}
        loose = [(f"{n}.{k}", t) for n, m in model.named_modules() for k, t in vars(m).items() if isinstance(t, Tensor)]
        self._own: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in (*loose, *model.named_parameters(), *model.named_buffers()):
            if (place := address(tensor)) > 0:
                self._own.setdefault(place, []).append((name, tensor))
        self._inference = any(t.is_inference() for own in self._own.values() for _, t in own)
        self._shared = set[str]()  # names of copies that were made only for numpy
        self.copies: Copies = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            return func(*args, **kwargs)
        targets = tensors((args[:1] if writes(func, kwargs) or func in SHARING else (), kwargs.get("out")))
        for target in targets:
            self._keep(target, func in SHARING)
        if self._inference:
            args, kwargs = mapped((args, kwargs), _ordinary)
        if self._written and func not in VIEWS and not targets:
            args, kwargs = mapped((args, kwargs), lambda t: t.clone() if address(t) in self._written else t)
        return func(*args, **kwargs)

    def _keep(self, target: Tensor, shared: bool) -> None:
        for name, tensor in self._own.get(address(target), ()):
            if not _overlap(tensor, target):
                continue
            if not shared:
                self._shared.discard(name)
            elif name not in self.copies:
                self._shared.add(name)
            if name not in self.copies:
                self.copies[name] = tensor, tensor.detach().clone()
                self._written.add(address(target))

    def forget_read(self) -> None:
        """Drop the copies of tensors that numpy only read."""
        for name in self._shared:
            if torch.equal(*self.copies[name]):
                del self.copies[name]


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of the same storage may share memory."""
    (lo, hi), (start, end) = _extent(one), _extent(two)
    return lo < end and start < hi


def _extent(tensor: Tensor) -> tuple[Any, Any]:
    """The first byte of a tensor in its storage, and the first byte after it."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * tensor.element_size()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor made in inference mode, as an ordinary tensor with the same memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.is_inference():
        return torch.utils.dlpack.from_dlpack(tensor.detach())
    return tensor
