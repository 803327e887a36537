"""A small random model of every causal language model type that transformers registers.

`SMALL` has the settings that make a model small, by the names in configurations; a type uses those that it has. `OWN`
has settings that a type requires in addition. `EXCLUDED` has the types that are not text decoders by themselves, each
with the reason. Windows, chunks and kernels are shorter than the prompt, so that positions beyond them are tested, too.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import zlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import secant as sc
from secant.model.lm import LM

VOCABULARY = 97
LENGTH = 11  # tokens in a prompt; longer than the windows, chunks and kernels below

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 56, "n_inner": 56, "ffn_dim": 56,
    "encoder_ffn_dim": 56, "decoder_ffn_dim": 56, "d_inner": 56, "num_hidden_layers": 3, "n_layer": 3,
    "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "max_position_embeddings": 64, "n_positions": 64, "is_decoder": True,
    # windows and chunks
    "sliding_window": 4, "window_size": 4, "attention_chunk_size": 4, "mamba_chunk_size": 4, "chunk_size": 4,
    "block_size": 4, "keep_window_size": 4, "local_attention": 8, "index_block_size": 4, "index_topk_blocks": 1,
    "use_sliding_window": True, "max_window_layers": 1,
    # nothing at random
    "dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent and sparse attention
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_topk": 4, "index_head_dim": 8, "index_n_heads": 2, "gated_norm_rank": 4,
    # states
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "state_size": 8, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_head_dim": 8,
    "linear_num_heads": 4,
    # embeddings for each layer
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4,
}  # fmt: skip

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
AS_MANY_KEYS = {"num_key_value_heads": 4}
OWN: dict[str, dict[str, Any]] = {
    # the paper's families
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {}, "qwen3": {"head_dim": 12}, "gemma3_text": {"layer_types": MIXED}, "phi3": {}, "mistral": {},
    "ministral": {"layer_types": MIXED}, "olmo2": {}, "gpt2": {},
    # the others
    "axk1": AS_MANY_KEYS, "axk2": AS_MANY_KEYS, "deepseek_v2": AS_MANY_KEYS, "deepseek_v3": AS_MANY_KEYS,
    "deepseek_v32": AS_MANY_KEYS, "dots3_note_text": AS_MANY_KEYS, "glm4_moe_lite": AS_MANY_KEYS,
    "glm_moe_dsa": AS_MANY_KEYS, "hy_v4": AS_MANY_KEYS, "kimi_linear": AS_MANY_KEYS, "youtu": AS_MANY_KEYS,
    "minicpm3": {**AS_MANY_KEYS, "dim_model_base": 16},
    "bailing_hybrid": {**AS_MANY_KEYS, "layer_group_size": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 50, "patching_threshold": 4.4, "local_attention_window_len": 4,
        "encoder_config": {"hidden_size_global": 64}, "decoder_config": {"hidden_size_global": 64},
        "global_config": {"hidden_size": 64},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            "full_attention": None,
        },
    },
    "cpmant": {
        "dim_head": 8, "dim_ff": 56, "prompt_types": 4, "prompt_length": 4, "segment_types": 4,
        "position_bias_num_buckets": 16, "position_bias_max_distance": 16,
    },
    "dbrx": {
        "n_heads": 4, "n_layers": 3, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {
        "vision_config": {"mlp_layer_types": ["dense"], "adapter_in_dim": 16, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 16, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "intermediate_size": [56] * 4,
    },
    "gemma4_text": {"layer_types": MIXED, "global_head_dim": 8},
    "gemma4_unified_text": {"layer_types": MIXED, "global_head_dim": 8},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {
        **AS_MANY_KEYS, "num_layers": 2, "ffn_hidden_size": 56, "moe_topk": 2, "zero_expert_num": 2,
        "expert_ffn_hidden_size": 24,
    },
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "nemotron_h": {
        "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2,
        "moe_shared_expert_intermediate_size": 24,
    },
    "qwen4_exp_text": {
        "hc_lowrank": 8, "ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2,
        "heads_per_ngram": 2,
    },
    "reformer": {
        "attn_layers": ["local", "lsh", "local"], "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (8, 24),
        "attention_head_size": 8, "feed_forward_size": 56, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
        "num_buckets": 2, "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16, "pronunciation_vocab_size": 20, "shape_embed_dim": 16, "shape_vocab_size": 20,
    },
    "xglm": {"num_layers": 3, "attention_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "n_mamba_heads": 8,
        "mamba_ngroups": 2, "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip

UNSEEN: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "depth": 1, "num_heads": 2, "vocab_size": 8, "embed_dim": 16,
}  # fmt: skip
"""Settings of the parts that see or hear, which a text does not reach."""

EXCLUDED: dict[str, str] = {
    "gemma3n": "its image tower is a timm model; its decoder of text is the type gemma3n_text",
    "gemma4_assistant": "drafts tokens for another model, from the keys and values that this one has computed",
    "gemma4_unified_assistant": "drafts tokens for another model, from the keys and values that this one has computed",
    "musicgen": "decodes codebooks of sound; its configuration is that of an encoder-decoder",
    "musicgen_melody": "decodes codebooks of sound; its configuration is that of an encoder-decoder",
}
"""Types that are no text decoder of their own, and why."""

PAPER = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mistral", "ministral", "olmo2", "gpt2")
"""The families of the paper; DeepSeek R1 has Llama's type or Qwen 3's, Phi 4 has Phi 3's."""

GATED = tuple(family for family in PAPER if family != "gpt2")


def types() -> list[str]:
    """Every type that is run."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(EXCLUDED))


def fields(kind: type[PreTrainedConfig]) -> set[str]:
    """The settings that a configuration has."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    names = set(inspect.signature(kind.__init__).parameters)  # transformers 5.0
    return names | ({"pad_token_id", "bos_token_id", "eos_token_id"} if "vocab_size" in names else set())


def small(kind: type[PreTrainedConfig], **options: object) -> dict[str, Any]:
    """The settings of SMALL that a configuration has, under the names that it has them by, and options."""
    names = fields(kind)
    aliases = getattr(kind, "attribute_map", {})
    found = {aliases.get(name, name): value for name, value in SMALL.items() if aliases.get(name, name) in names}
    return {**found, **{name: value for name, value in SMALL.items() if name in names}, **options}


def config_of(family: str, **options: Any) -> PreTrainedConfig:
    """The configuration of a small model, and of those inside it."""
    kind, own = CONFIG_MAPPING[family], {**OWN.get(family, {}), **options}
    if inside := [name for name in kind.sub_configs if name.endswith(("_config", "coder"))]:
        default = kind()
        for name in inside:
            part = type(getattr(default, name))
            if part is type(None):
                continue
            unseen = UNSEEN if any(sense in name for sense in ("vision", "audio", "vq")) else {}
            given = {k: v for k, v in unseen.items() if k in fields(part)} | OWN.get(part.model_type, {})
            given |= own.pop(name, {})
            own[name] = small(part, **given)
            own[name]["model_type"] = part.model_type
    settings = copy.deepcopy(small(kind, **own))  # a configuration may write to its lists, as Gemma 4's does
    return AutoConfig.for_model(family, **settings)


def model_of(
    family: str, attention: str = "eager", dtype: torch.dtype = torch.float64, seed: int = 0, **options: object
) -> LM:
    """A small random model: weights large enough that every part of it matters, nothing left at 0 or 1.

    The test is skipped where the installed transformers has no such type.
    """
    if not has(family):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    config = config_of(family, **options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_moved(name, weight, seed))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and "bias" in name:  # of routers
                buffer.copy_(_moved(name, buffer, seed))
    return LM(model.to(dtype).eval(), None, family)


_SHARED: list[sc.Run] = []


def shared(family: str, attention: str = "eager", dtype: torch.dtype = torch.float64) -> LM:
    """`model_of`, built once a process: for tests that leave the model as it is."""
    return _shared(family, attention, dtype)


@functools.cache
def _shared(*which: Any) -> LM:  # a cache tells a default apart from the same argument
    return model_of(*which)


def frozen(
    family: str,
    attention: str = "eager",
    dtype: torch.dtype = torch.float64,
    *,
    convention: str = "gate",
    length: int = LENGTH,
    precision: str | None = None,
) -> sc.Run:
    """The run of a `shared` model at `prompt(length)`, frozen once a process; tests leave it as it is, too."""
    return _frozen(family, attention, dtype, convention, length, precision)


@functools.cache
def _frozen(
    family: str, attention: str, dtype: torch.dtype, convention: str, length: int, precision: str | None
) -> sc.Run:
    run = sc.freeze(shared(family, attention, dtype), prompt(length), convention=convention, precision=precision)
    _SHARED.append(run)
    return run


def assert_unchanged() -> None:
    """Raises ReplayMismatch where the weights of a `frozen` run's model were written since."""
    for run in _SHARED:
        run.unchanged()


def _moved(name: str, weight: Tensor, seed: int) -> Tensor:
    """Another value for a weight: a matrix at random, a vector moved off what it was."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    if weight.ndim == 1:
        return weight + noise * 0.3
    return noise if "embed" in name or "wte" in name else noise * 1.5 / weight.shape[-1] ** 0.5


def prompt(length: int = LENGTH, seed: int = 1) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def has(kind: str) -> bool:
    """Whether the installed transformers knows this type."""
    return kind in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
