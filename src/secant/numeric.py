"""Numbers in tensors, and nested containers of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

asking_no_mode = torch._C.DisableTorchFunction
"""A context that bypasses torch's function modes, which take longer than a query of a tensor's attributes."""


class without_graph:
    """A context without a graph, like torch.no_grad, that switches without calling torch's function modes."""

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        self._switch(False)

    def __exit__(self, *raised: object) -> None:
        self._switch(self._before)

    def _switch(self, on: bool) -> None:
        with asking_no_mode():
            torch._C._set_grad_enabled(on)


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64 on the CPU."""
    return tensor.detach().cpu().double()


def lengths(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean norms along a dimension, in the vectors' dtype. Each vector is scaled by its largest element first, so
    that no square overflows or vanishes.
    """
    if not vectors.numel():
        return torch.linalg.vector_norm(vectors, dim=dim)
    wider = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    largest = wider.abs().amax(dim, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    return (torch.linalg.vector_norm(wider / scale, dim=dim) * scale.squeeze(dim)).to(vectors.dtype)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. The extremes tell, because NaN carries over to them, in a tenth of the time."""
    if not tensor.numel() or tensor.element_size() == 1:  # aminmax does not take 8 bits
        return bool(torch.isfinite(tensor).all())
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def relative(value: Tensor, true: Tensor) -> float:
    """The relative error ‖value - true‖ / ‖true‖; 0 if both agree."""
    error, norm = torch.linalg.vector_norm(wide(value) - wide(true)), torch.linalg.vector_norm(wide(true))
    return (error / norm).item() if error != 0 else 0.0


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Tensor]) -> None:
    """Append every tensor of a tree to `found`. It must be fast: it runs several times for each operation of a pass."""
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for leaf in tree:
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif isinstance(leaf, (list, tuple, dict)):
                _gather(leaf, found)
    elif isinstance(tree, dict):
        for leaf in tree.values():
            _gather(leaf, found)


def address(tensor: Tensor) -> int:
    """The address of a tensor's memory; a negative number for a packed weight, which has no memory of its own."""
    try:
        with asking_no_mode():
            return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return -id(tensor)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested containers with every tensor replaced by `change(tensor)`."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, list | tuple):
        leaves = [mapped(leaf, change) for leaf in tree]
        return type(tree)(*leaves) if hasattr(tree, "_fields") else type(tree)(leaves)
    if isinstance(tree, dict):
        return {k: mapped(leaf, change) for k, leaf in tree.items()}
    return tree
