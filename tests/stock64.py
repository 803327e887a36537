"""A family's own modelling code with its casts to float32 made casts to float64: the independent float64 path.

The source of the installed module is compiled a second time with the dtype names changed. The original is not changed.
"""

from __future__ import annotations

import importlib
import inspect
import types

import torch
from torch import nn


def in_float64(model: nn.Module) -> nn.Module:
    """The same float64 weights in classes that never cast below float64."""
    original = inspect.getmodule(type(model))
    assert original is not None
    source = inspect.getsource(original)
    for old, new in (("torch.float32", "torch.float64"), ("torch.float)", "torch.float64)"), (".float()", ".double()")):
        source = source.replace(old, new)
    name = original.__name__ + "_float64"
    module = types.ModuleType(name)
    module.__package__ = original.__package__
    module.__file__ = original.__file__
    importlib.sys.modules[name] = module  # decorators look their module up
    try:
        exec(compile(source, name, "exec"), module.__dict__)
        twin = getattr(module, type(model).__name__)._from_config(model.config).double()
    finally:
        del importlib.sys.modules[name]
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for (mine, into), (theirs, value) in zip(twin.named_buffers(), model.named_buffers(), strict=True):
            assert mine == theirs
            into.copy_(value)
    return twin.eval()
