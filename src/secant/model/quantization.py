"""Every method of quantisation that transformers registers, and what secant does with a checkpoint packed by it.

A method's row decides whether a checkpoint is loaded, and the certificate of each run shows whether it is exact. A
method that was not tried is loaded if transformers can load it: the run then refuses a kernel that has no rule or that
hides a nonlinearity.
`python tools/quantization.py` tries what runs on a CPU and writes docs/reference/quantization.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from secant.errors import BadArgument, ModelRefused

Result = Literal["exact", "exact after dequantize=True", "exact in memory", "refused", "not tried"]


@dataclass(frozen=True)
class Method:
    """A method of quantisation.

    Attributes:
        result: What secant does with its checkpoints.
        why: The reason, or anything else that users should know.
        dequantize: How packed weights are replaced with plain ones: by transformers while it loads (config) or
            afterwards (model), by secant (layers), or not at all.
        from_the_hub: Whether transformers downloads its kernels if the package kernels is installed, unless the weights
            are dequantised while they are loaded.
        backend: The kernel to request from its library, which consists of torch functions.

    """

    result: Result
    why: str = ""
    dequantize: Literal["config", "model", "layers", ""] = ""
    from_the_hub: bool = False
    backend: str = ""


ROUNDS = "its layers round activations, which no linear map does"
GPU = "it requires a GPU"

METHODS: dict[str, Method] = {
    "aqlm": Method(
        "exact after dequantize=True", "its kernel for CPUs adds in no fixed order; it requires the package aqlm[cpu]",
        "layers",
    ),
    "auto-round": Method("exact", "in bfloat16, since its layers compute in half precision; it requires auto-round"),
    "awq": Method(
        "exact after dequantize=True", "its kernel computes in half precision; it requires the package gptqmodel",
        "layers", backend="torch_awq",
    ),
    "bitnet": Method("refused", ROUNDS),
    "bitsandbytes_4bit": Method("exact", "nf4, fp4, and scales that are packed too", "model"),
    "bitsandbytes_8bit": Method("exact after dequantize=True", ROUNDS, "model"),
    "compressed-tensors": Method(
        "exact after dequantize=True", "its layers keep integers, and round activations where the scheme says so",
        "config",
    ),
    "eetq": Method("not tried", GPU, from_the_hub=True),
    "fbgemm_fp8": Method("refused", f"{ROUNDS}; {GPU}", from_the_hub=True),
    "fouroversix": Method("refused", ROUNDS),
    "fp8": Method("exact after dequantize=True", ROUNDS, "config", from_the_hub=True),
    "fp_quant": Method("refused", f"{ROUNDS}; {GPU}"),
    "gemma": Method("refused", ROUNDS),
    "gguf": Method("exact", "always dequantised", "config"),
    "gptq": Method("exact", "it requires the packages optimum and gptqmodel", "layers", backend="torch"),
    "higgs": Method("not tried", GPU, "model"),
    "hqq": Method("exact in memory", "transformers does not load it at present"),
    "metal": Method("exact after dequantize=True", "its kernels run on Apple's GPUs", "config", from_the_hub=True),
    "mxfp4": Method(
        "exact after dequantize=True", "its kernels, of experts, are not torch functions", "config", from_the_hub=True
    ),
    "mxfp8": Method("exact after dequantize=True", ROUNDS, "config", from_the_hub=True),
    "nvfp4": Method("refused", f"{ROUNDS}; {GPU}", from_the_hub=True),
    "quanto": Method("exact", "transformers packs the weights only"),
    "quark": Method("exact", "tried with 8-bit weights and plain activations; it requires the package amd-quark"),
    "sinq": Method("exact in memory", "its package changes how transformers loads every model"),
    "spqr": Method("not tried", GPU),
    "torchao": Method("exact", "weights only; with dynamic activations, the pass is refused"),
    "vptq": Method("not tried", GPU),
}  # fmt: skip
"""Every method, by its name in `quantization_config`; bitsandbytes with its bits."""


def method_of(packing: Any) -> str | None:
    """The name of the method of a `quantization_config`; None if it has none.

    Args:
        packing: The entry of a configuration.

    """
    said = packing if isinstance(packing, Mapping) else vars(packing) if hasattr(packing, "__dict__") else {}
    name = said.get("quant_method")
    name = getattr(name, "value", name)
    if name is None and not (said.get("load_in_8bit") or said.get("load_in_4bit")):
        return None
    if name in (None, "bitsandbytes"):
        return "bitsandbytes_8bit" if said.get("load_in_8bit") or said.get("_load_in_8bit") else "bitsandbytes_4bit"
    return str(name)


def by_layers(name: str | None) -> bool:
    """Whether secant itself replaces the packed layers of a method with plain ones.

    Args:
        name: The method, as `method_of` returns it.

    """
    return name in METHODS and METHODS[name].dequantize == "layers"


def check(packing: Any, name: str, dequantize: bool, has_kernels: bool) -> None:
    """Check that secant loads weights packed by a checkpoint's method, and set its dequantisation if requested.

    Args:
        packing: The `quantization_config` of a configuration, to which `dequantize` is added.
        name: The model's name, for messages.
        dequantize: Whether to replace packed weights with plain ones.
        has_kernels: Whether the package kernels is installed.

    Raises:
        BadArgument: The method's weights cannot be dequantised.
        ModelRefused: The method rounds activations, or its kernels come over the network.

    """
    way = method_of(packing)
    if way is None or (row := METHODS.get(way)) is None:
        return  # transformers raises an error for an unknown method
    if dequantize and not row.dequantize:
        raise BadArgument(
            "dequantize requires packed weights that transformers or secant unpacks", f"{name}, packed as {way}",
            "Leave dequantize out, or use a checkpoint that is not packed.",
        )  # fmt: skip
    if row.backend and isinstance(packing, dict):
        packing["backend"] = row.backend
    if dequantize and row.dequantize == "config" and isinstance(packing, dict):
        packing["dequantize"] = True
        return
    if row.result == "refused":
        raise ModelRefused(
            "Activations must not be rounded to few bits", f"{name}, packed as {way}: {row.why}",
            "Use a checkpoint of which only the weights are packed.",
        )  # fmt: skip
    if row.result == "exact in memory":
        raise ModelRefused(
            f"A checkpoint packed as {way} cannot be loaded here", f"{name}: {row.why}",
            f"Load it with the package {way}, and give secant.LM the model and its tokenizer.",
        )  # fmt: skip
    if row.result == "exact after dequantize=True" and not dequantize:
        raise ModelRefused(
            f"A checkpoint packed as {way} must be dequantised", f"{name}: {row.why}",
            "Pass dequantize=True (--dequantize) to use the plain weights that they represent.",
        )  # fmt: skip
    if row.from_the_hub and has_kernels:
        raise ModelRefused(
            "secant does not run code from the network",
            f"{name}, packed as {way}, whose kernels transformers downloads if the package kernels is installed",
            "Uninstall kernels, or use a different checkpoint.",
        )
