"""A module's weights: loaded from where accelerate offloads them, unpacked from low-bit formats, and checked.

To add a packed weight format, write a row in PACKED: how a layer unpacks, whether it rounds activations, and how to
prepare it. Nothing else names it.
"""

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
from secant.numeric import address, is_finite

UNRELATED = {"_name_or_path", "_commit_hash", "transformers_version"}
"""Entries of a configuration that say where it comes from, not what the model computes."""


def kind_of(module: nn.Module) -> str:
    """A module's class with its package, such as hqq.HQQLinear."""
    return f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"


# ------------------------------------------------------------------------------------------------ where they are


@dataclass(frozen=True, eq=False)
class WeightsState:
    """A snapshot of the state of a model's weights, to notice changes.

    For each parameter and buffer by name: the tensor, the address of its memory, and how often torch has seen it
    written. Only tensors in memory whose writes torch counts are included.
    """

    parameters: dict[str, tuple[Tensor, int, int]]
    buffers: dict[str, tuple[Tensor, int, int]]

    @classmethod
    def of(cls, model: nn.Module, without: Iterable[Tensor] = ()) -> WeightsState:
        """The current state.

        Args:
            model: The model.
            without: Tensors whose memory is left out; tensors that share memory share the count of writes.

        """
        places = {address(tensor) for tensor in without}
        return cls(_states(model.named_parameters(), places), _states(model.named_buffers(), places))

    def changed(self, model: nn.Module) -> list[str]:
        """The names of parameters that were replaced, and of tensors that were written since.

        Args:
            model: The model. A replaced buffer does not count: models keep state of their passes in buffers.

        """
        now = dict(model.named_parameters())
        found = [name for name, (one, *_) in self.parameters.items() if now.get(name) is not one]
        every = {**self.parameters, **self.buffers}
        return found + [
            name for name, (one, place, count) in every.items() if (_place(one), one._version) != (place, count)
        ]


def _states(named: Iterable[tuple[str, Tensor]], without: set[int]) -> dict[str, tuple[Tensor, int, int]]:
    return {
        name: (t, _place(t), t._version)
        for name, t in named
        if not t.is_meta and not t.is_inference() and address(t) not in without
    }


def _place(tensor: Tensor) -> int:
    """The address of its memory; 0 for a packed tensor, which has no memory of its own."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's configuration and weights, the same wherever the model is loaded.

    It covers the name, dtype, shape and elements of each parameter and buffer, also of those that accelerate offloads.

    Args:
        model: The model.

    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    said = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in UNRELATED}
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        with fetched(module):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for key, tensor in own:
                digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                if not tensor.is_meta:
                    elements = plain(tensor.detach()).reshape(-1).contiguous().cpu()
                    digest.update(elements.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Load a module's own parameters, which accelerate may offload to memory or disk, to its device in the block."""
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
    """The weight of an embedding or a head, one row for each token, with any adapters applied.

    Args:
        module: The embedding or the head.

    """
    if hasattr(module, "base_layer"):
        return _as_it_acts(module)
    if kind_of(module) in unpacking():
        return unpacked(module)[0]
    with fetched(module):
        return plain(module.weight.detach())  # type: ignore[operator]


def _as_it_acts(module: Any) -> Tensor:
    """The output of an embedding with adapters for each token, or of a head for each unit vector."""
    base, device = module.base_layer, device_of(module)
    with torch.no_grad():
        if isinstance(base, nn.Embedding):
            return module(torch.arange(base.num_embeddings, device=device))
        kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
        units = torch.eye(base.in_features, dtype=next(kinds), device=device)
        return (module(units) - module(torch.zeros_like(units[:1]))).T


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on."""
    base = getattr(module, "base_layer", module)
    hook = getattr(module, "_hf_hook", getattr(base, "_hf_hook", None))
    for one in getattr(hook, "hooks", [hook]):
        if getattr(one, "execution_device", None) is not None:
            return torch.device(one.execution_device)
    return base.weight.device  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------ packed weights


def _of_bitsandbytes(module: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


def _repacks(module: Any) -> bool:
    """Whether bitsandbytes repacks a 4-bit layer's weight in place at its first pass, or has already done so.

    It does on CPUs with AVX512-BF16. The layer then computes in bfloat16, whatever its dtype.
    """
    weight = getattr(module, "weight", None)
    done = getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False)
    return done or (getattr(module, "support_avx512bf16_for_cpu", False) and device_of(module).type == "cpu")


def _unrepacked_(module: Any, dtype: torch.dtype) -> None:
    """Make bitsandbytes' 4-bit layer compute in a dtype, also on a CPU, if the model has not run yet."""
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.compute_dtype, module.support_avx512bf16_for_cpu = dtype, False


def _of_hqq(module: Any) -> Tensor:
    return module.dequantize()


def _of_gptq(module: Any) -> Tensor:
    return type(module).dequantize_weight(module).T


def _uncompiled_(module: Any, dtype: torch.dtype) -> None:
    """Undo the compilation of a layer's unpacking, which requires a C++ compiler and takes minutes."""
    vars(module).pop("dequantize_weight", None)


def _of_awq(module: Any) -> Tensor:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).T


def _of_aqlm(module: Any) -> Tensor:
    """The codes of the vectors in its codebooks. Its kernel for CPUs swaps their axes in its first pass."""
    from aqlm.utils import _dequantize_weight, unpack_int_data

    swapped = module.gemv_op is not None and not module.codes.is_cuda and module.codebook_size == 256
    codes = module.codes.transpose(0, 1) if swapped else module.codes
    return _dequantize_weight(unpack_int_data(codes, module.nbits_per_codebook), module.codebooks, module.scales)


def nothing_to_prepare(module: Any, dtype: torch.dtype) -> None:
    """Leave a layer as it is."""


def never_repacks(module: Any) -> bool:
    """Returns False: a layer's weight does not change while it runs."""
    return False


@dataclass(frozen=True)
class Packing:
    """How a class of linear layers stores its weight. A layer has `bias`; a head also `weight` and `out_features`.

    Attributes:
        unpack: Returns the weight of a layer, `[out, in]`; None for layers that round their activations.
        prepare: Makes a layer that was just loaded compute in a dtype.
        repacks: Whether a layer's weight changes while it runs.

    """

    unpack: Callable[[Any], Tensor] | None
    prepare: Callable[[Any, torch.dtype], None] = nothing_to_prepare
    repacks: Callable[[Any], bool] = never_repacks


BITSANDBYTES = Packing(_of_bitsandbytes, _unrepacked_, _repacks)

PACKED: dict[str, Packing] = {
    "bitsandbytes.Linear4bit": BITSANDBYTES,
    "bitsandbytes.LinearNF4": BITSANDBYTES,
    "bitsandbytes.LinearFP4": BITSANDBYTES,
    "hqq.HQQLinear": Packing(_of_hqq),
    "gptqmodel.TorchLinear": Packing(_of_gptq, _uncompiled_),
    "gptqmodel.AwqTorchLinear": Packing(_of_awq),
    "aqlm.QuantizedLinear": Packing(_of_aqlm),
    "bitsandbytes.Linear8bitLt": Packing(None),
    "transformers.FP8Linear": Packing(None),
    "transformers.BitLinear": Packing(None),
    "transformers.AutoBitLinear": Packing(None),
    "transformers.FbgemmFp8Linear": Packing(None),
}
"""Linear layers with packed weights and kernels of their own, by class."""


def unpacking() -> list[str]:
    """The classes in PACKED whose layers are linear maps."""
    return [kind for kind, row in PACKED.items() if row.unpack is not None]


REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that are multiplied with as they are."""


def unpacked(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer with packed weights, in the kernel's own dtypes.

    Args:
        module: A module whose class is in PACKED, and unpacks.

    """
    unpack = PACKED[kind_of(module)].unpack
    assert unpack is not None
    with torch._C.DisableTorchFunction(), fetched(module):
        return unpack(module), None if module.bias is None else module.bias.detach()


def plain(weight: Tensor) -> Tensor:
    """The plain tensor that a packed one represents; other tensors as they are."""
    return weight.dequantize() if type(weight) is not Tensor and hasattr(weight, "dequantize") else weight


def rounds(module: nn.Module) -> bool:
    """Whether a layer rounds its activations to few bits: by its row in PACKED, or by torchao's kind of weight."""
    row = PACKED.get(kind_of(module))
    weight: Any = getattr(module, "weight", None)
    kept = (getattr(weight, "act_quant_kwargs", None), getattr(weight, "activation_quantization", None))
    return (row is not None and row.unpack is None) or any(kind is not None for kind in kept)


def prepare_(model: nn.Module, dtype: torch.dtype) -> None:
    """Make packed layers compute in this dtype, if the model has not run yet.

    Args:
        model: The model, whose layers are changed.
        dtype: The dtype.

    """
    for module in model.modules():
        if (row := PACKED.get(kind_of(module))) is not None:
            row.prepare(module, dtype)


def dequantize_(model: nn.Module) -> None:
    """Replace packed layers with plain ones that have the weights they represent.

    Args:
        model: The model, whose layers are replaced.

    """
    for name, module in list(model.named_modules()):
        if kind_of(module) not in unpacking():
            continue
        weight, bias = unpacked(module)
        with torch.device("meta"):
            plain_layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        plain_layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if bias is not None:
            plain_layer.bias = nn.Parameter(bias, requires_grad=False)
        model.set_submodule(name, plain_layer.train(module.training))
    model.is_quantized = False  # type: ignore[assignment]


def convert_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model's weights one dtype. Those that were dequantised have the dtype of their scales.

    Args:
        model: The model, whose weights are changed; its buffers keep their dtypes.
        dtype: The dtype.

    """
    for weight in model.parameters():
        if weight.is_floating_point() and not weight.is_meta:
            weight.data = weight.data.to(dtype)


# ------------------------------------------------------------------------------------------------ checks


def check(model: nn.Module) -> None:
    """Check that every weight is loaded, finite, and of a type that linear maps multiply with.

    Weights that accelerate's hook on a parent module loads cannot be checked by themselves; the certificate covers
    them.

    Args:
        model: The model.

    Raises:
        BadWeights: A weight is not.

    """
    above = [name for name, module in model.named_modules() if hasattr(module, "_hf_hook")]
    for name, module in model.named_modules():
        with fetched(module):
            for key, weight in module.named_parameters(recurse=False):
                where = f"{name}.{key}".removeprefix(".")
                if weight.is_meta and any(not top or where.startswith(f"{top}.") for top in above):
                    continue
                if weight.is_meta:
                    raise BadWeights("Weights must be loaded", f"{where} without elements", "Load the checkpoint.")
                elements = plain(weight.detach())
                if elements.is_complex() or (_is_plain(module) and elements.dtype not in REAL):
                    raise BadWeights(
                        f"The dtype of weights is one of {', '.join(str(d).removeprefix('torch.') for d in REAL)}",
                        f"{where} in {str(elements.dtype).removeprefix('torch.')}", "Convert the model: model.float().",
                    )  # fmt: skip
                if elements.is_floating_point() and not is_finite(elements):
                    raise BadWeights(
                        "Weights must be finite", f"NaN or infinity in {where}",
                        "Load an intact checkpoint, or a wider dtype.",
                    )  # fmt: skip


def _is_plain(module: nn.Module) -> bool:
    """Whether a module belongs to torch or to a transformers model, which multiply with weights as they are."""
    return type(module).__module__.startswith(("torch.nn.", "transformers.models."))


def check_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    """Check that layers compute linear maps in the model's dtype.

    Args:
        model: The model.
        dtype: Its dtype.

    Raises:
        NotExact: A layer rounds its input, repacks its weight, or computes in a narrower dtype.

    """
    for name, module in model.named_modules():
        if rounds(module):
            raise NotExact(
                "Activations must not be rounded to few bits, which is not linear",
                f"{name}, a {type(module).__name__} that rounds them",
                "Load it with dequantize (--dequantize), call model.dequantize().eval(), or quantise weights only.",
            )
        if (row := PACKED.get(kind_of(module))) is None:
            continue
        if row.repacks(module):
            raise NotExact(
                "Weights must not change while a model runs",
                f"{name}, which bitsandbytes repacks on this CPU to compute in bfloat16",
                "Load the checkpoint with secant.load; or load it anew, and before it first runs: for m in"
                f" model.modules(): m.support_avx512bf16_for_cpu, m.compute_dtype = False, {dtype}.",
            )
        computes_in = getattr(module, "compute_dtype", None) or dtype
        if torch.promote_types(dtype, computes_in) != computes_in:
            raise NotExact(
                f"A layer must compute in the model's dtype, here {dtype}", f"{name}, which computes in {computes_in}",
                f"Set compute_dtype = {dtype} on such layers.",
            )  # fmt: skip
