"""GGUF files as llama.cpp's converter writes them, from small models, with the package gguf.

Llama's queries and keys are permuted to llama.cpp's pairs of rotary dimensions, and Gemma's norms are stored plus one,
both as convert_hf_to_gguf.py does. Names come from gguf's own tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secant.model.gguf import File, _Reader

NAMES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma3_text": "GEMMA3", "gemma2": "GEMMA2"}
"""gguf's names of architectures by transformers' types."""


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, with each pair of rotary dimensions next to each other."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def frequencies(rope: dict[str, Any], width: int) -> np.ndarray:
    """The factors of Llama 3's rotary frequencies, which files have as a tensor."""
    low, high, original = (rope[key] for key in ("low_freq_factor", "high_freq_factor",
                                                 "original_max_position_embeddings"))  # fmt: skip
    wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    smooth = (original / wave - low) / (high - low)
    return 1 / ((1 - smooth.clip(0, 1)) / rope["factor"] + smooth.clip(0, 1))


def write(path: Path, model: Any, kind: str = "F32", tokens: Iterable[str] | None = None, **metadata: Any) -> Path:
    """Write a model to a file.

    Args:
        path: The file.
        model: The model.
        kind: The type of matrices whose rows it fits; other tensors are F32.
        tokens: The vocabulary; by default made-up tokens.
        metadata: Further values, with __ for a dot; None leaves one out.

    """
    import gguf

    config = model.config
    arch = gguf.MODEL_ARCH[NAMES[config.model_type]]
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    described(writer, config)
    vocabulary(writer, config, tokens)
    for key, value in metadata.items():
        add(writer, key.replace("__", "."), value)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        factors = frequencies(rope, config.head_dim).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors, raw_dtype=gguf.GGMLQuantizationType.F32)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        if arch == gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            array = permuted(array, config.num_attention_heads if ".q_" in name else config.num_key_value_heads)
        if arch in (gguf.MODEL_ARCH.GEMMA2, gguf.MODEL_ARCH.GEMMA3) and name.endswith("norm.weight"):
            array = array + 1
        stem, _, end = name.rpartition(".")
        quantised = gguf.GGMLQuantizationType[kind]
        block = gguf.GGML_QUANT_SIZES[quantised][0]
        if array.ndim < 2 or array.shape[-1] % block:
            quantised = gguf.GGMLQuantizationType.F32
        data = gguf.quantize(array, quantised)
        writer.add_tensor(f"{table.get_name(stem)}.{end}", data, raw_dtype=quantised)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def described(writer: Any, config: Any) -> None:
    """Write the sizes of a model."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    whole = rope.get("full_attention", rope)
    if whole["rope_type"] in ("linear", "yarn"):
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType(whole["rope_type"]))
        writer.add_rope_scaling_factor(whole["factor"])
    if whole["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(whole["original_max_position_embeddings"])
    if "gemma" in config.model_type:
        writer.add_sliding_window(config.sliding_window)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            getattr(writer, f"add_{name}")(getattr(config, name))


def vocabulary(writer: Any, config: Any, tokens: Iterable[str] | None) -> None:
    """Write a byte-level vocabulary without merges."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    words = ["<unk>", "<s>", "</s>", *(tokens or ("a", "b", "ab", "Ġ"))]
    words += [f"<{i}>" for i in range(len(words), config.vocab_size)]
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add(writer: Any, key: str, value: Any) -> None:
    """Write one more value, or replace one."""
    for part in writer.kv_data:
        part.pop(key, None)
    if value is None:
        return
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def header(pairs: list[tuple[str, int, bytes]], tensors: bytes = b"", count: int = 0, version: int = 3) -> bytes:
    """The bytes of a header, whatever is wrong with it."""
    body = b"GGUF" + version.to_bytes(4, "little") + count.to_bytes(8, "little") + len(pairs).to_bytes(8, "little")
    for key, kind, value in pairs:
        body += len(key).to_bytes(8, "little") + key.encode() + kind.to_bytes(4, "little") + value
    return body + tensors


def text(value: str) -> bytes:
    """A text as a header has it."""
    return len(value.encode()).to_bytes(8, "little") + value.encode()


def plain(path: Path, out: Path) -> Path:
    """A copy of a file with all tensors in F32: what its packed weights stand for."""
    file, start = File.read(path, path.name), metadata_of(path)
    table, at = b"", 0
    for name, tensor in file.tensors.items():
        shape = b"".join(n.to_bytes(8, "little") for n in reversed(tensor.shape))
        table += text(name) + len(tensor.shape).to_bytes(4, "little") + shape + bytes(4) + at.to_bytes(8, "little")
        at += 4 * int(np.prod(tensor.shape))
        at += -at % 32
    with open(out, "wb") as written:
        written.write(start + table)
        for _, values in file.weights():
            written.write(bytes(-written.tell() % 32))
            written.write(np.ascontiguousarray(values, np.float32).data)
    return out


def metadata_of(path: Path) -> bytes:
    """A file up to the table of its tensors."""
    data = np.memmap(path, mode="r", dtype=np.uint8)
    reader = _Reader(data, 16)
    for _ in range(reader.number("Q")):
        reader.text()
        reader.value(reader.number("I"))
    return bytes(data[: reader.at])


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, element by element."""
    return one.shape == other.shape and torch.equal(one, other)
