"""Running a model and leaving it as it was: what it writes and assigns on its way is put back; neither backward hooks
nor compiled calls are in force meanwhile.

Some models keep state from pass to pass: rotary frequencies for the length of the prompt, masks that are made once. A
pass of ours must leave no trace of it, and must not undo what another thread does to the model at the same time. Passes
through one model go one after the other, since that state is shared.
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

from secant.linearize.rules import QUESTIONS, VIEWS, writes
from secant.model.hooks import as_plain_torch, assigned, put_back
from secant.numeric import address, mapped, tensors

_lock = threading.Lock()
_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def _turn(model: nn.Module) -> threading.RLock:
    """What the one thread holds that runs a model."""
    with _lock:
        return _turns.setdefault(model, threading.RLock())


Copies = dict[str, tuple[Tensor, Tensor]]
"""Tensors by name, each with a copy of what was in it before it was written."""


class State:
    """What a model keeps from pass to pass at some moment: buffers, and tensors among the attributes of its modules.

    `copies`: what was in those that the first pass from here wrote in place; later passes write no others.
    """

    def __init__(self, model: nn.Module) -> None:
        with _turn(model):  # or it might be in the middle of a pass of another thread
            self._tables = [(table, dict(table)) for m in model.modules() for table in (m._buffers, vars(m))]
        self._inference = any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
        self.copies: Copies | None = None

    @property
    def plain(self) -> bool:
        """Whether a pass from here needs no watching: it writes nothing, and no tensor is of inference mode."""
        return self.copies == {} and not self._inference

    def restore(self) -> Copies:
        """Let the model have it again; what was in its tensors until now."""
        for table, then in self._tables:
            put_back(table, then)
        copies = self.copies or {}
        until_now = {name: (tensor, tensor.detach().clone()) for name, (tensor, _) in copies.items()}
        _write(copies)
        return until_now


def _write(copies: Copies) -> None:
    """Let tensors have what was in them."""
    for tensor, copy in copies.values():
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(copy)


@contextmanager
def untouched(model: nn.Module, state: State | None = None) -> Iterator[Copies]:
    """Run a model in this thread, as plain torch, from a state that it had, and leave it as it is. What is yielded has
    in the end what was in the parameters and buffers that its passes wrote in place.

    Tensors that it assigns or writes are put back, but not what another thread assigns; backward hooks and compiled
    calls are out of force; tensors made in inference mode count as ordinary ones.
    """
    with _turn(model), assigned(list(model.modules())), as_plain_torch(model):
        before = {} if state is None else state.restore()
        mode = None if state is not None and state.plain else _Keeping(model, before)
        copies: Copies = {} if mode is None else mode.copies
        try:
            with mode or nullcontext():
                yield copies
        finally:
            _write(copies)
            _write(before)
            if state is not None and state.copies is None:
                state.copies = copies


class _Keeping(TorchFunctionMode):
    """Keep a copy of each tensor of a model before it is written in place.

    What graphs keep of a pass must not change after it: tensors that are written, or were by passes before, are read as
    copies; and those made in inference mode, which can't be on a graph, by another name.
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
        self.copies: Copies = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in QUESTIONS:
            return func(*args, **kwargs)
        targets = [*tensors(args[:1] if writes(func, kwargs) else ()), *tensors(kwargs.get("out"))]
        for target in targets:
            self._keep(target)
        if self._inference:
            args, kwargs = mapped((args, kwargs), _ordinary)
        if self._written and func not in VIEWS and not targets:
            args, kwargs = mapped((args, kwargs), lambda t: t.clone() if address(t) in self._written else t)
        return func(*args, **kwargs)

    def _keep(self, target: Tensor) -> None:
        for name, tensor in self._own.get(address(target), ()):
            if name not in self.copies and _overlap(tensor, target):
                self.copies[name] = tensor, tensor.detach().clone()
                self._written.add(address(target))


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one storage may share memory."""
    (lo, hi), (start, end) = _extent(one), _extent(two)
    return lo < end and start < hi


def _extent(tensor: Tensor) -> tuple[Any, Any]:
    """Its first byte in its storage, and the first after it."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * tensor.element_size()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor made in inference mode as an ordinary one with the same memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.is_inference():
        return torch.utils.dlpack.from_dlpack(tensor.detach())
    return tensor
