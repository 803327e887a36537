"""Small random models of the paper's families, norms and biases moved off their initial values."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from secant.model import LM

VOCABULARY = 97
LENGTH = 9  # tokens in a prompt; longer than the sliding windows below

COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 12}),  # DeepSeek-R1-0528-Qwen3 has this type too
    "gemma3": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": MIXED},
    ),
    "phi3": ("phi3", {"head_dim": 8}),  # Phi 4 has this type too
    "mistral": ("mistral", {"head_dim": 8, "sliding_window": 4}),
    "ministral": (
        "ministral",
        {"head_dim": 8, "sliding_window": 4, "layer_types": MIXED},
    ),
    "olmo2": ("olmo2", {}),
    "gpt2": ("gpt2", {}),
}  # fmt: skip
GATED = [name for name in FAMILIES if name != "gpt2"]


def model_of(
    family: str, attention: str = "eager", dtype: torch.dtype = torch.float64, seed: int = 0, **options: object
) -> LM:
    """A small random model: weights large enough that every part of it matters, nothing left at 0 or 1."""
    kind, own = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**COMMON, **own, **options})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
            elif "embed" not in name and "wte" not in name:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.copy_(torch.randn_like(weight))
    return LM(model.to(dtype).eval(), None, family)


def prompt(length: int = LENGTH, seed: int = 1) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def has(kind: str) -> bool:
    """Whether the installed transformers knows this type."""
    return kind in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
