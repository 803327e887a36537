"""Running a model and leaving it as it was: what it writes and assigns on its way is put back; neither backward hooks
nor compiled calls are in force meanwhile.

Some models keep state from pass to pass: rotary frequencies for the length of the prompt, masks that are made once. A
pass of ours must leave no trace of it, and must not undo what another thread does to the model at the same time. Passes
through one model go one after the other, since that state is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secant.forms import address, mapped, tensors
from secant.hooks import as_plain_torch, assigned
from secant.rules import QUESTIONS, writes

_lock = threading.Lock()
_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@contextmanager
def untouched(model: nn.Module) -> Iterator[set[str]]:
    """Run a model in this thread, as plain torch, and leave it as it was. The set has in the end the names of the
    parameters and buffers that its passes wrote in place.

    Tensors that it assigns or writes are put back, but not what another thread assigns; backward hooks and compiled
    calls are out of force; tensors made in inference mode count as ordinary ones.
    """
    with _lock:
        turn = _turns.setdefault(model, threading.RLock())
    with turn, assigned(list(model.modules())), as_plain_torch(model):
        mode, written = _Keeping(model), set[str]()
        try:
            with mode:
                yield written
        finally:
            written.update(mode.copies)
            mode.put_back()


class _Keeping(TorchFunctionMode):
    """Keep a copy of each tensor of a model before it is written in place, and use those that were made in inference
    mode, which can't be on a graph, by another name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        loose = [(f"{n}.{k}", t) for n, m in model.named_modules() for k, t in vars(m).items() if isinstance(t, Tensor)]
        self._own: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in (*loose, *model.named_parameters(), *model.named_buffers()):
            if (place := address(tensor)) > 0:
                self._own.setdefault(place, []).append((name, tensor))
        self._inference = any(t.is_inference() for own in self._own.values() for _, t in own)
        self.copies: dict[str, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in QUESTIONS:
            return func(*args, **kwargs)
        for target in (*(args[:1] if writes(func, kwargs) else ()), *tensors(kwargs.get("out"))):
            if isinstance(target, Tensor):
                self._keep(target)
        if self._inference:
            args, kwargs = mapped((args, kwargs), _ordinary)
        return func(*args, **kwargs)

    def _keep(self, target: Tensor) -> None:
        for name, tensor in self._own.get(address(target), ()):
            if name not in self.copies and _overlap(tensor, target):
                self.copies[name] = tensor, tensor.detach().clone()

    def put_back(self) -> None:
        """Write the copies back."""
        for tensor, copy in self.copies.values():
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                tensor.copy_(copy)


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
