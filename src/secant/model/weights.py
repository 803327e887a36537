"""A module's weights: fetched from where they are kept, unpacked from few bits, and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import BadWeights, NotExact
from secant.model.hooks import assigned
from secant.numeric import address

UNSAID = {"_name_or_path", "_commit_hash", "transformers_version"}
"""Entries of a configuration that say where it is from, and nothing of what the model does."""


def kind_of(module: nn.Module) -> str:
    """Its class with the package that it is from."""
    return f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"


# ------------------------------------------------------------------------------------------------ where they are


@dataclass(frozen=True, eq=False)
class Stamp:
    """How a model's weights were at some moment: which tensor was its parameter or buffer by a name, where its numbers
    were, and how often it had been written, of those that are in memory and that torch counts it of.
    """

    parameters: dict[str, tuple[Tensor, int, int]]
    buffers: dict[str, tuple[Tensor, int, int]]

    @classmethod
    def of(cls, model: nn.Module, without: Iterable[Tensor] = ()) -> Stamp:
        """The stamp of now, `without` what shares memory, and so a count, with these."""
        places = {address(tensor) for tensor in without}
        return cls(_stamped(model.named_parameters(), places), _stamped(model.named_buffers(), places))

    def changed(self, model: nn.Module) -> list[str]:
        """The parameters that are others now, and what was written since. Another buffer in the place of one is what
        the model keeps from its passes.
        """
        now = dict(model.named_parameters())
        found = [name for name, (one, *_) in self.parameters.items() if now.get(name) is not one]
        every = {**self.parameters, **self.buffers}
        return found + [
            name for name, (one, place, count) in every.items() if (_place(one), one._version) != (place, count)
        ]


def _stamped(named: Iterable[tuple[str, Tensor]], without: set[int]) -> dict[str, tuple[Tensor, int, int]]:
    return {
        name: (t, _place(t), t._version)
        for name, t in named
        if not t.is_meta and not t.is_inference() and address(t) not in without
    }


def _place(tensor: Tensor) -> int:
    """Where its numbers begin; of a packed tensor, which has no memory of its own, 0."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's configuration and weights, the same wherever it is loaded: of each parameter and buffer its
    name, type, shape and numbers, fetched from where accelerate keeps them.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    said = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in UNSAID}
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        with fetched(module):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for key, tensor in own:
                digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                if not tensor.is_meta:
                    numbers = plain(tensor.detach()).reshape(-1).contiguous().cpu()
                    digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Let a module's own parameters be where it computes, which accelerate may have offloaded to memory or disk."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not any(p.is_meta for p in module.parameters(recurse=False)):
        yield
        return
    with assigned([module]):
        hook.pre_forward(module)
        try:
            yield
        finally:
            hook.post_forward(module, None)


def of(module: nn.Module) -> Tensor:
    """The weight of an embedding or a head, a row each token, wherever it is kept and with the adapters on it."""
    if hasattr(module, "base_layer"):
        return _as_it_acts(module)
    if kind_of(module) in PACKED:
        return unpacked(module)[0]
    with fetched(module):
        return plain(module.weight.detach())  # type: ignore[operator]


def _as_it_acts(module: Any) -> Tensor:
    """What an embedding with adapters gives for each token, or a head for each unit vector."""
    base, device = module.base_layer, device_of(module)
    with torch.no_grad():
        if isinstance(base, nn.Embedding):
            return module(torch.arange(base.num_embeddings, device=device))
        kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
        units = torch.eye(base.in_features, dtype=next(kinds), device=device)
        return (module(units) - module(torch.zeros_like(units[:1]))).T


def device_of(module: nn.Module) -> torch.device:
    """Where it computes."""
    base = getattr(module, "base_layer", module)
    hook = getattr(module, "_hf_hook", getattr(base, "_hf_hook", None))
    for one in getattr(hook, "hooks", [hook]):
        if getattr(one, "execution_device", None) is not None:
            return torch.device(one.execution_device)
    return base.weight.device  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------ few bits


def _of_bitsandbytes(module: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


PACKED: dict[str, Callable[[Any], Tensor]] = {
    "bitsandbytes.Linear4bit": _of_bitsandbytes,
    "bitsandbytes.LinearNF4": _of_bitsandbytes,
    "bitsandbytes.LinearFP4": _of_bitsandbytes,
    "hqq.HQQLinear": lambda module: module.dequantize(),
}
"""Linear layers with packed weights and kernels of their own, and the weights that they stand for."""

REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that are multiplied with as they are."""

ROUNDING = {"bitsandbytes.Linear8bitLt"}
"""Layers that round activations to 8 bits."""


def unpacked(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer with packed weights, as they are multiplied with, in the kernel's own types."""
    with torch._C.DisableTorchFunction(), fetched(module):
        return PACKED[kind_of(module)](module), None if module.bias is None else module.bias.detach()


def plain(weight: Tensor) -> Tensor:
    """What a tensor that packs its numbers stands for."""
    return weight.dequantize() if type(weight) is not Tensor and hasattr(weight, "dequantize") else weight


def rounds(module: nn.Module) -> bool:
    """Whether a layer rounds its activations to few bits: bitsandbytes' int8, or torchao's dynamic quantisation."""
    weight: Any = getattr(module, "weight", None)
    kept = (getattr(weight, "act_quant_kwargs", None), getattr(weight, "activation_quantization", None))
    return kind_of(module) in ROUNDING or any(kind is not None for kind in kept)


def packs_anew(module: Any) -> bool:
    """Whether bitsandbytes packs a 4-bit layer's weight anew, in place, at its first pass, as it does on CPUs with
    AVX512-BF16, or has done so. It then computes in bfloat16, whatever type it is told.
    """
    weight = getattr(module, "weight", None)
    done = getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False)
    return done or (getattr(module, "support_avx512bf16_for_cpu", False) and device_of(module).type == "cpu")


def in_own_type_(model: nn.Module, dtype: torch.dtype) -> None:
    """Let bitsandbytes' 4-bit layers of a model that has not run yet compute in this type, on a CPU too."""
    for module in model.modules():
        if kind_of(module) in PACKED and hasattr(module, "support_avx512bf16_for_cpu"):
            module.compute_dtype, module.support_avx512bf16_for_cpu = dtype, False  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------------ checks


def check(model: nn.Module) -> None:
    """Raises BadWeights at NaN, infinity, numbers that no linear map is made of, or a weight that was never loaded.
    What accelerate's hook on a module above loads for those below can't be looked at by itself; the certificate sees
    it.
    """
    above = [name for name, module in model.named_modules() if hasattr(module, "_hf_hook")]
    for name, module in model.named_modules():
        with fetched(module):
            for key, weight in module.named_parameters(recurse=False):
                where = f"{name}.{key}".removeprefix(".")
                if weight.is_meta and any(not top or where.startswith(f"{top}.") for top in above):
                    continue
                if weight.is_meta:
                    raise BadWeights("Weights must be loaded", f"{where} without numbers", "Load the checkpoint.")
                numbers = plain(weight.detach())
                if numbers.is_complex() or (_is_plain(module) and numbers.dtype not in REAL):
                    raise BadWeights(
                        f"Weights are of one of the types {', '.join(str(d).removeprefix('torch.') for d in REAL)}",
                        f"{where} in {str(numbers.dtype).removeprefix('torch.')}", "Convert the model: model.float().",
                    )  # fmt: skip
                if numbers.is_floating_point() and not torch.isfinite(numbers).all():
                    raise BadWeights(
                        "Weights must be finite", f"NaN or infinity in {where}",
                        "Load a sound checkpoint, or a wider dtype.",
                    )  # fmt: skip


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is one of torch's or of a model of transformers, which multiply with their weights as they are;
    others may pack them.
    """
    return type(module).__module__.startswith(("torch.nn.", "transformers.models."))


def check_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    """Raises NotExact where layers round what goes into them, which no linear map does, or compute in another type."""
    for name, module in model.named_modules():
        if rounds(module):
            raise NotExact(
                "Activations are not rounded to few bits, which has no linear map",
                f"{name}, a {type(module).__name__} that rounds them",
                "Quantise weights only, for instance in 4 bits, or call model.dequantize().eval().",
            )
        if kind_of(module) not in PACKED:
            continue
        if packs_anew(module):
            raise NotExact(
                "Weights stay as they are while a model runs",
                f"{name}, which bitsandbytes packs anew on this CPU, to compute in bfloat16",
                "Load the checkpoint with secant.load; or load it anew, and before it first runs: for m in"
                f" model.modules(): m.support_avx512bf16_for_cpu, m.compute_dtype = False, {dtype}.",
            )
        computes_in = getattr(module, "compute_dtype", None) or dtype
        if torch.promote_types(dtype, computes_in) != computes_in:
            raise NotExact(
                f"A layer computes in the model's type, here {dtype}", f"{name}, which computes in {computes_in}",
                f"Set compute_dtype = {dtype} on such layers.",
            )  # fmt: skip
