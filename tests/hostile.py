"""A model whose tokens and name are hostile: they would run as code if secant failed to escape them."""

from __future__ import annotations

import re

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import secant as sc

HOSTILE = [
    "</script><img src=x onerror=window.ran=1>", "<!--", "<b>bold</b>", "&lt;i&gt;", "{{ 7 * 7 }}", "${window.ran=1}",
    "javascript:1", "\N{LINE SEPARATOR}", "\n", " ", "\t\x00", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "שלום", "مرحبا",
    "中文字",    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "\N{COMBINING ACUTE ACCENT}", "'\"",
    "<a href='https://example.org'>x</a>", "a" * 60,
]  # fmt: skip
NAME = "</title><script>window.ran=1</script>"


def hostile_model() -> tuple[sc.LM, str]:
    """The model, and a prompt of all of its tokens."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(HOSTILE)}, unk_token=HOSTILE[0]))
    any_of_them = "|".join(map(re.escape, sorted(HOSTILE, key=len, reverse=True)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(any_of_them), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(HOSTILE), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return sc.LM(LlamaForCausalLM(config).eval(), fast, NAME), "".join(HOSTILE)
