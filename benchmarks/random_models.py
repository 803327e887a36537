"""The models with random weights that benchmarks of speed and memory run on."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama(
    d: int, inner: int, layers: int, heads: int, *, kv: int | None = None, vocabulary: int = 1000, longest: int = 64
) -> LlamaForCausalLM:
    """A model in Llama's layout; the same sizes give the same weights.

    Args:
        d: The width of the residual stream.
        inner: The width inside MLPs.
        layers: The number of layers.
        heads: The number of heads.
        kv: The number of heads of keys and values; by default as many.
        vocabulary: The number of tokens.
        longest: The longest prompt.

    """
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=d, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv or heads, vocab_size=vocabulary, max_position_embeddings=longest,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)
