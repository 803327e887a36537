"""Run a stock model in one floating-point type throughout.

Modelling code casts norms and softmax to float32 in every dtype, which leaves an error near 1e-7 in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secant.linearize.forms import grouped_product
from secant.linearize.rules import GROUPED, METADATA, VIEWS, writes
from secant.numeric import mapped

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Precision(TorchFunctionMode):
    """A mode in which tensors of lower floating-point types, and casts to these types, are cast to `dtype` instead."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.lower = frozenset(FLOATS[FLOATS.index(dtype) + 1 :])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METADATA or func in VIEWS:
            return func(*args, **(kwargs or {}))  # a view keeps its dtype; what is computed from it is cast up
        kwargs = kwargs or {}
        written = args[0] if args and writes(func, kwargs) else None
        if self._has_lower(args) or self._has_lower(kwargs):
            args, kwargs = self._cast_tree_up(args), self._cast_tree_up(kwargs)
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func, args = Tensor.to, (args[0], self.dtype)
        if (
            func is torch.full
            and kwargs.get("dtype") is None
            and isinstance(kwargs.get("fill_value", args[-1] if args else None), float)
        ):
            kwargs = {**kwargs, "dtype": self.dtype}  # a value beyond the range of float32 would overflow
        if func in GROUPED and args[0].dtype == torch.float64:  # torch has no float64 kernel
            return grouped_product(args[0], args[1], kwargs["offs"].tolist())
        if written is not None and args[0] is not written:  # the tensor that is written keeps its dtype
            return written.copy_(func(*args, **kwargs))
        out = func(*args, **kwargs)
        return mapped(out, self._cast_up) if written is None and self._has_lower(out) else out

    def _has_lower(self, tree: Any) -> bool:
        """Whether anything in nested containers would be cast. Most calls contain nothing of the kind."""
        if isinstance(tree, Tensor):
            return tree.dtype in self.lower
        if isinstance(tree, torch.dtype):
            return tree in self.lower
        for leaf in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ():
            if self._has_lower(leaf):
                return True
        return False

    def _cast_up(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype in self.lower else tensor

    def _cast_tree_up(self, tree: Any) -> Any:
        if isinstance(tree, torch.dtype):
            return self.dtype if tree in self.lower else tree
        if isinstance(tree, Tensor):
            return self._cast_up(tree)
        if type(tree) in (list, tuple):
            return type(tree)(self._cast_tree_up(leaf) for leaf in tree)
        if type(tree) is dict:
            return {k: self._cast_tree_up(leaf) for k, leaf in tree.items()}
        return tree
