"""What transformers leaves out of a GGUF file's tokenizer, so that texts are encoded as llama.cpp encodes them.

Patterns split a text into pieces, and a byte-level tokenizer merges tokens inside each piece. The file names its
patterns by a word, tokenizer.ggml.pre. transformers knows some of these words. For all others it splits as GPT-2 does,
which gives different tokens; the rest are here, after llama.cpp's llama-vocab.cpp. A file with any other word is
refused.
"""

from __future__ import annotations

from typing import Any

from secant.errors import ModelRefused
from secant.model.gguf import File

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = (r"\p{N}", GPT2)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
WORDS = (r" ?[^(\s|.,!?…。，、।۔،)]+",)

SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "a.x-4.0", "gigachat", "mellum",
         "exaone4", "modern-bert"), (GPT2,),
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), DIGITS
    ),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), (QWEN2,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), DEEPSEEK3),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), WORDS),
    "viking": (*WORDS, r"\p{N}"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}  # fmt: skip
"""The patterns that split a text, one after the other, by their word in GGUF files; transformers has the others."""

WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
         "tekken")  # fmt: skip
"""Words for tokenizers that, if a piece is a token of the vocabulary, take it whatever the merges are. They begin every
text with BOS unless the file says otherwise."""


def complete_(backend: Any, file: File, known: Any) -> dict[str, Any]:
    """Make a tokenizer split and join as the file says, if transformers left that out.

    Args:
        backend: The tokenizer of the package tokenizers, which is changed.
        file: The file.
        known: The words of `tokenizer.ggml.pre` that transformers has applied.

    Returns:
        Settings of the tokenizer around it that the file implies.

    Raises:
        ModelRefused: The file's word for its patterns is unknown.

    """
    from tokenizers import Regex, pre_tokenizers

    said = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    if said.get("model") == "gpt2":
        word = said.get("pre", "default")
        if word in SPLITS:
            splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[word]]
            levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, levels])
        elif word not in known:
            raise ModelRefused(
                "A GGUF file must split texts by patterns that secant knows",
                f"tokenizer.ggml.pre = {word!r:.40} in {file.name}",
                "Use the original checkpoint, or report the file as an issue.",
            )
        if word in WHOLE:
            backend.model.ignore_merges = True
            return {"add_bos_token": said.get("add_bos_token", True)}
    if said.get("model") == "llama" and not file.architecture.startswith("gemma"):
        _spaced_(backend, said.get("add_space_prefix", True))
    return {}


def _spaced_(backend: Any, prefix: bool) -> None:
    """Make a tokenizer put a space before a text and after special tokens, even before another space, or none."""
    from tokenizers import decoders, normalizers

    ways = [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    backend.normalizer, backend.pre_tokenizer = normalizers.Sequence(ways), None
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", left=1)] if prefix else [])])
