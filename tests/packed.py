"""Folders of small models whose weights are packed by methods that run on a CPU, and the weights that they represent.

Each function writes a checkpoint in its method's layout. It returns the weights of a float32 model after loading.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from families import model_of
from safetensors.torch import save_file
from torch import Tensor

WIDE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "attention_bias": False, "mlp_bias": False,
    "vocab_size": 64,
}  # fmt: skip
Packer = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def written(
    out: Path, tokenizer: Path, packing: dict[str, Any], pack: Packer, family: str = "llama"
) -> dict[str, Tensor]:
    """Write a small model, each projection packed, and the tokenizer of a folder; returns the weights it stands for."""
    model = model_of(family, dtype=torch.float32, **WIDE).model
    shutil.copytree(tokenizer, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True)
    model.config.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": packing}))
    tensors: dict[str, Tensor] = {}
    stands = dict(model.state_dict())
    for key, weight in model.state_dict().items():
        if not key.endswith("_proj.weight"):
            tensors[key] = weight
            continue
        parts, stands[key] = pack(weight)
        stem = key.removesuffix("weight")
        tensors |= {stem + name: part.contiguous() for name, part in parts.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return stands


def by_blocks(rows: int, columns: int) -> Packer:
    """8-bit floats with a scale for each block."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        high = min(rows, len(weight))
        blocks = weight.reshape(len(weight) // high, high, weight.shape[1] // columns, columns)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stands = (packed.float() * scale[:, None, :, None]).reshape(weight.shape)
        return {"weight": packed.reshape(weight.shape), "weight_scale_inv": scale}, stands

    return pack


def by_powers(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """8-bit floats with a power of two for each 32 of a row."""
    blocks = weight.reshape(len(weight), -1, 32)
    power = blocks.abs().amax(-1).log2().floor() - 8
    packed = (blocks / 2.0 ** power[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    stands = (packed.float() * 2.0 ** power[..., None]).reshape(weight.shape)
    return {"weight": packed.reshape(weight.shape), "weight_scale_inv": (power + 127).to(torch.uint8)}, stands


def by_rows(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """8-bit integers with a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    packed = (weight / scale).round().to(torch.int8)
    return {"weight": packed, "weight_scale": scale}, packed.float() * scale


def by_groups(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """4-bit integers, eight in a word, with a scale and a bias for each 64 of a row."""
    groups = weight.reshape(len(weight), -1, 64)
    low = groups.amin(-1)
    scale = (groups.amax(-1) - low) / 15
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).long()
    stands = (codes.float() * scale[..., None] + low[..., None]).reshape(weight.shape)
    words = codes.reshape(len(weight), -1, 8)
    packed = (words << (4 * torch.arange(8))).sum(-1)
    return {"weight": packed.to(torch.uint32), "scales": scale, "qbiases": low}, stands


def _in_words(codes: Tensor, axis: int, order: Sequence[int] = range(8)) -> Tensor:
    """4-bit codes, eight of an axis in each 32-bit word."""
    codes = codes.movedim(axis, -1).unflatten(-1, (-1, 8))[..., list(order)]
    return (codes << (4 * torch.arange(8))).sum(-1).to(torch.uint32).view(torch.int32).movedim(-1, axis)


def _with_zeros(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """4-bit codes with a half-precision scale and a zero for each 64 of a row, and what they stand for."""
    groups = weight.reshape(len(weight), -1, 64)
    low = groups.amin(-1)
    scale = ((groups.amax(-1) - low) / 15).half()
    zero = (-low / scale).round().clamp(1, 15).long()
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, 15).long()
    stands = ((codes - zero[..., None]).half() * scale[..., None]).float()
    return codes.reshape(weight.shape), zero, scale, stands.reshape(weight.shape)


def by_gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Eight inputs in a word; zeros are stored less one."""
    codes, zero, scale, stands = _with_zeros(weight)
    places = (torch.arange(weight.shape[1]) // 64).int()
    parts = {"qweight": _in_words(codes.T, 0), "qzeros": _in_words(zero.T - 1, 1), "scales": scale.T, "g_idx": places}
    return parts, stands


def by_gptq_in_order(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same, without the places of inputs."""
    parts, stands = by_gptq(weight)
    del parts["g_idx"]
    return parts, stands


def by_tensors(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """8-bit integers with one scale."""
    scale = weight.abs().amax() / 127
    packed = (weight / scale).round().to(torch.int8)
    zero = torch.zeros((), dtype=torch.int8)
    return {"weight": packed, "weight_scale": scale, "weight_zero_point": zero}, packed.float() * scale


def by_awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Eight outputs in a word, in an order of their own."""
    codes, zero, scale, stands = _with_zeros(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {"qweight": _in_words(codes.T, 1, order), "qzeros": _in_words(zero.T, 1, order), "scales": scale.T}
    return parts, stands


def by_vectors(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A code for each eight of a row: the vector of a codebook, and a scale for each row."""
    scale = weight.norm(dim=1) / weight.shape[1] ** 0.5
    vectors = (weight / scale[:, None]).reshape(-1, 8)
    book = vectors[torch.linspace(0, len(vectors) - 1, 256).long()]
    codes = torch.cdist(vectors, book).argmin(1).reshape(len(weight), -1)
    stands = (book[codes] * scale[:, None, None]).reshape(weight.shape)
    packed = torch.where(codes > 127, codes - 256, codes).to(torch.int8)[..., None]
    return {"codes": packed, "codebooks": book[None, :, None], "scales": scale[:, None, None, None]}, stands


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP8 = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
AQLM = {
    "quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 8,
    "linear_weights_not_to_quantize": ["lm_head"],
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
METAL = {"quant_method": "metal", "bits": 4, "group_size": 64}
INTEGERS = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
    "quantization_status": "compressed",
    "config_groups": {"group_0": {
        "targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    }},
}  # fmt: skip

DEQUANTISED: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "fp8": (FP8, by_blocks(128, 128), ""),
    "mxfp8": (MXFP8, by_powers, ""),
    "metal": (METAL, by_groups, ""),
    "aqlm": (AQLM, by_vectors, "aqlm"),
    "awq": (AWQ, by_awq, "gptqmodel"),
    "compressed-tensors": (INTEGERS, by_rows, "compressed_tensors"),
}
"""Methods whose checkpoints are exact when dequantised: the configuration, what packs a weight, and a package."""

AUTO_ROUND = {
    "quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": True, "data_type": "int",
    "packing_format": "auto_round:auto_gptq", "backend": "torch_zp",
}  # fmt: skip
QUARK: dict[str, Any] = {
    "quant_method": "quark", "quant_mode": "eager_mode", "exclude": ["lm_head"], "algo_config": None,
    "export": {"kv_cache_group": [], "min_kv_scale": 0.0, "pack_method": "reorder", "weight_format": "real_quantized",
               "weight_merge_groups": None},
    "global_quant_config": {
        "weight": {
            "dtype": "int8", "is_dynamic": False, "qscheme": "per_tensor", "ch_axis": None, "group_size": None,
            "symmetric": True, "round_method": "half_even", "scale_type": "float", "scale_format": None,
            "scale_calculation_mode": None, "observer_cls": "PerTensorMinMaxObserver",
        },
        "input_tensors": None, "output_tensors": None, "bias": None, "target_device": None,
    },
    "layer_quant_config": {}, "layer_type_quant_config": {}, "softmax_quant_spec": None, "kv_cache_post_rope": False,
    "kv_cache_quant_config": {},
}  # fmt: skip

PACKED: dict[str, tuple[dict[str, Any], Packer, str, str]] = {
    "auto-round": (AUTO_ROUND, by_gptq_in_order, "auto_round", "bfloat16"),
    "gptq": (GPTQ, by_gptq, "gptqmodel", "float32"),
    "quark": (QUARK, by_tensors, "quark", "float32"),
}
"""Methods whose checkpoints are exact as they are: the configuration, what packs a weight, a package, and a dtype."""


FLOATS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The sizes of 4-bit floats (E2M1)."""


def experts(out: Path, tokenizer: Path) -> dict[str, Tensor]:
    """Write a small gpt-oss whose experts are 4-bit floats with a power of two for each 32; returns its weights."""
    model = model_of("gpt_oss", dtype=torch.float32, hidden_size=64, intermediate_size=64, vocab_size=64).model
    shutil.copytree(tokenizer, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True)
    model.config.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    stands = dict(model.state_dict())
    for key, weight in model.state_dict().items():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[key] = weight
            continue
        count, columns, rows = weight.shape
        blocks = torch.randint(256, (count, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, (count, rows, columns // 32), generator=generator, dtype=torch.uint8)
        codes = torch.stack([blocks & 15, blocks >> 4], -1).long()
        values = torch.where(codes > 7, -1.0, 1.0) * FLOATS[codes & 7]
        values = values.flatten(-2) * 2.0 ** (scales.float() - 127)[..., None]
        stands[key] = values.reshape(count, rows, columns).mT.contiguous()
        tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    save_file({key: part.contiguous() for key, part in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return stands
