"""Run a stock model in one floating-point type throughout.

Modelling code casts norms and softmax to float32 whatever the model is in, which leaves an error near 1e-7 in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secant.linearize.forms import by_groups
from secant.linearize.rules import GROUPED, QUESTIONS, VIEWS, writes
from secant.numeric import mapped

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Precision(TorchFunctionMode):
    """Whatever is in a lower floating-point type, or is cast to one, is cast up to this one instead."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.lower = frozenset(FLOATS[FLOATS.index(dtype) + 1 :])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in QUESTIONS or func in VIEWS:
            return func(*args, **(kwargs or {}))  # what is computed from a view is cast up then
        written = args[0] if args and writes(func, kwargs or {}) else None
        args, kwargs = self._up(args), self._up(kwargs or {})
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func, args = Tensor.to, (args[0], self.dtype)
        if (
            func is torch.full
            and kwargs.get("dtype") is None
            and isinstance(kwargs.get("fill_value", args[-1] if args else None), float)
        ):
            kwargs["dtype"] = self.dtype  # or a number that float32 does not reach would overflow
        if func in GROUPED and args[0].dtype == torch.float64:  # torch has no kernel for it
            return by_groups(args[0], args[1], kwargs["offs"].tolist())
        if written is not None and args[0] is not written:  # a lower-precision tensor stays what it is
            return written.copy_(func(*args, **kwargs))
        out = func(*args, **kwargs)
        return mapped(out, self._raise) if written is None else out

    def _raise(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype in self.lower else tensor

    def _up(self, tree: Any) -> Any:
        if isinstance(tree, torch.dtype):
            return self.dtype if tree in self.lower else tree
        if isinstance(tree, Tensor):
            return self._raise(tree)
        if type(tree) in (list, tuple):
            return type(tree)(self._up(leaf) for leaf in tree)
        if type(tree) is dict:
            return {k: self._up(leaf) for k, leaf in tree.items()}
        return tree
