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

NAMES = {
    "llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "qwen2_moe": "QWEN2MOE", "qwen3_moe": "QWEN3MOE",
    "gemma2": "GEMMA2", "gemma3_text": "GEMMA3", "phi3": "PHI3", "gpt2": "GPT2", "starcoder2": "STARCODER2",
    "stablelm": "STABLELM", "bloom": "BLOOM", "nemotron": "NEMOTRON", "mamba": "MAMBA", "lfm2": "LFM2",
}  # fmt: skip
"""gguf's names of architectures by transformers' types."""

LENGTHS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size", "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping", "ssm.conv_kernel": "conv_kernel",
    "ssm.inner_size": "intermediate_size", "ssm.state_size": "state_size", "ssm.time_step_rank": "time_step_rank",
    "shortconv.l_cache": "conv_L_cache", "use_parallel_residual": "use_parallel_residual",
}  # fmt: skip
"""Keys of metadata, and the settings that they come from."""

EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")


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
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        factors = frequencies(rope, config.head_dim).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors, raw_dtype=gguf.GGMLQuantizationType.F32)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for place, array in laid_out(name, weight.float().numpy(), config, table):
            quantised = gguf.GGMLQuantizationType[kind]
            if array.ndim < 2 or array.shape[-1] % gguf.GGML_QUANT_SIZES[quantised][0]:
                quantised = gguf.GGMLQuantizationType.F32
            writer.add_tensor(place, gguf.quantize(array, quantised), raw_dtype=quantised)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def laid_out(name: str, array: np.ndarray, config: Any, table: Any) -> Iterable[tuple[str, np.ndarray]]:
    """A weight under llama.cpp's name, in its layout."""
    family = config.model_type
    stem, dot, end = name.rpartition(".")
    if end in ("gate_up_proj", "down_proj") and array.ndim == 3:
        layer = f"blk.{name.split('.')[2]}.ffn"
        halves = np.split(array, 2, axis=1) if end == "gate_up_proj" else []
        named = {"gate": halves[0], "up": halves[1]} if halves else {"down": array}
        return [(f"{layer}_{part}_exps.weight", np.ascontiguousarray(half)) for part, half in named.items()]
    if end in ("A_log", "D"):
        return [(table.get_name(name), -np.exp(array) if end == "A_log" else array)]
    if family == "llama" and (".q_proj." in name or ".k_proj." in name):
        array = permuted(array, config.num_attention_heads if ".q_" in name else config.num_key_value_heads)
    is_norm = name.endswith("norm.weight") and (family in ("gemma2", "gemma3_text", "nemotron"))
    if is_norm or (family == "nemotron" and name.endswith("layernorm.weight")):
        array = array + 1
    if family == "gpt2" and array.ndim == 2 and ".h." in name:
        array = np.ascontiguousarray(array.T)
    if family == "bloom" and ".query_key_value." in name:
        heads, width = config.n_head, config.hidden_size // config.n_head
        array = array.reshape(heads, 3, width, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    if array.ndim == 3:
        array = array.squeeze(1)  # a convolution of each channel by itself
    place = table.get_name(stem) or table.get_name(stem.removeprefix("transformer."))
    return [(f"{place}{dot}{end}", np.ascontiguousarray(array))]


def described(writer: Any, config: Any) -> None:
    """Write the sizes of a model."""
    start, family = f"{writer.arch}.", config.model_type
    for key, name in LENGTHS.items():
        value = getattr(config, name, None)
        if value is not None and not (key.startswith("ssm") and family != "mamba"):
            add(writer, start + key, value)
    if family == "gpt2":
        add(writer, f"{start}feed_forward_length", config.n_inner)
    if family == "bloom":
        add(writer, f"{start}feed_forward_length", 4 * config.hidden_size)
    for name in EPSILONS:
        if getattr(config, name, None) is not None:
            kind = "layer_norm_rms" if family in ("mamba", "lfm2") else "layer_norm"
            add(writer, f"{start}attention.{kind}_epsilon", getattr(config, name))
    groups = getattr(config, "num_key_value_heads", None)
    if family == "lfm2":
        groups = [groups if kind == "full_attention" else 0 for kind in config.layer_types]
    if groups is not None:
        add(writer, f"{start}attention.head_count_kv", groups)
    if family in ("gemma2", "gemma3_text", "phi3") and config.sliding_window:
        add(writer, f"{start}attention.sliding_window", config.sliding_window)
    if getattr(config, "rope_parameters", None):
        rotary(writer, config, start)


def rotary(writer: Any, config: Any, start: str) -> None:
    """Write how positions are turned."""
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    add(writer, f"{start}rope.freq_base", float(rope["rope_theta"]))
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        add(writer, f"{start}rope.dimension_count", int(share * width))
    if rope["rope_type"] in ("linear", "yarn"):
        add(writer, f"{start}rope.scaling.type", rope["rope_type"])
        add(writer, f"{start}rope.scaling.factor", float(rope["factor"]))
    if rope["rope_type"] in ("yarn", "longrope"):
        add(writer, f"{start}rope.scaling.original_context_length", rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        add(writer, f"{start}rope.scaling.attn_factor", float(rope["attention_factor"]))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


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


def sentencepiece(tokenizer: dict[str, Any]) -> dict[str, list[Any]]:
    """The vocabulary of a tokenizer.json of sentencepiece's kind, as files have it: early merges have high scores."""
    ids, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    first = {"".join(merge if isinstance(merge, list) else merge.split(" ")): -i for i, merge in enumerate(merges)}
    words = sorted(ids, key=ids.get)
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    return {
        "tokens": words,
        "scores": [float(first.get(word, -len(merges) - i)) for i, word in enumerate(words)],
        "token_type": [special.get(word, 6 if word.startswith("<0x") else 1) for word in words],
    }


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
