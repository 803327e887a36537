"""What the metadata of a GGUF file says about a model, as the configuration that transformers builds it from.

transformers' own reading of GGUF files leaves out rotary scaling, softcaps, windows, biases and widths of heads, and
fills them in from the defaults of one checkpoint. So each architecture has a function here, which takes the keys that
it knows from the file. A key that no function takes may change the model, so it is an error.

To add an architecture that transformers converts, write a function under `@architecture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secant.errors import ModelRefused
from secant.model.gguf import File

Settings = dict[str, Any]
"""Arguments of a configuration's class."""

UNSAID = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
"""Keys that say nothing about what a model computes: the vocabulary's size is that of the embedding."""

FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are not weights but factors of rotary frequencies, which go into the configuration."""


@dataclass
class Keys:
    """The metadata of a file under its architecture's name, with a record of the keys that were taken.

    Attributes:
        file: The file.

    """

    file: File
    _taken: set[str] = field(default_factory=lambda: set(UNSAID))

    def take(self, key: str, default: Any = None) -> Any:
        """A value, the same for all layers; the default if the file does not have it.

        Args:
            key: The key without the architecture.
            default: The default.

        Raises:
            ModelRefused: Layers have different values.

        """
        self._taken.add(key)
        value = self.file.get(key, default)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                self._refuse("have the same sizes in all layers", key)
            value = value[0]
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number.

        Args:
            key: The key without the architecture.
            default: The default.

        Raises:
            ModelRefused: The file has no such number.

        """
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._refuse("have a positive size", key)
        return value

    def need(self, key: str, value: Any, default: Any = None) -> None:
        """Check that a key has the only value that the model's class computes with.

        Args:
            key: The key without the architecture.
            value: The value.
            default: The value where the file does not have the key; by default the only one.

        Raises:
            ModelRefused: It has a different one.

        """
        if self.take(key, value if default is None else default) != value:
            self._refuse(f"have {key} = {value}", key)

    def everything(self, *keys: str) -> None:
        """Count keys as taken, because other code reads them or the model does not need them.

        Args:
            keys: The keys without the architecture.

        """
        self._taken.update(keys)

    def check_all_taken(self) -> None:
        """Check that no key is left.

        Raises:
            ModelRefused: A key says something that no function took.

        """
        start = f"{self.file.architecture}."
        for key in self.file.metadata:
            if key.startswith(start) and (rest := key.removeprefix(start)) not in self._taken:
                if rest.startswith("expert_") and not self.file.metadata[key]:
                    continue  # zero experts
                self._refuse("be described by keys that secant knows, since any other may change the model", rest)

    def _refuse(self, rule: str, key: str) -> None:
        raise ModelRefused(
            f"A {self.file.architecture} model in a GGUF file must {rule}",
            f"{key} = {self.file.get(key)!r:.60} in {self.file.name}",
            "Use the original checkpoint, or report the file as an issue.",
        )


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp that secant reads.

    Attributes:
        type: The model type of transformers.
        settings: Takes the settings of its configuration from a file.

    """

    type: str
    settings: Callable[[Keys], Settings]


ARCHITECTURES: dict[str, Architecture] = {}
"""Every architecture that secant reads, by llama.cpp's name."""


def architecture(name: str, type: str) -> Callable[[Callable[[Keys], Settings]], Any]:
    """Add a function to ARCHITECTURES.

    Args:
        name: llama.cpp's name of the architecture.
        type: The model type of transformers.

    """

    def add(settings: Callable[[Keys], Settings]) -> Callable[[Keys], Settings]:
        ARCHITECTURES[name] = Architecture(type, settings)
        return settings

    return add


def settings_of(file: File) -> tuple[str, Settings]:
    """The model type of a file, and the settings of its configuration.

    Args:
        file: The file.

    Raises:
        ModelRefused: The architecture is not supported, or the file has a key that secant does not know.

    """
    if (row := ARCHITECTURES.get(file.architecture)) is None:
        raise ModelRefused(
            f"A GGUF file must be of one of the architectures {', '.join(sorted(ARCHITECTURES))}",
            f"{file.architecture!r:.40} in {file.name}", "Use the original checkpoint, as a folder of safetensors.",
        )  # fmt: skip
    keys = Keys(file)
    keys.need("attention.causal", True)
    settings = {"vocab_size": _rows(file), **_tokens(file), **row.settings(keys)}
    keys.check_all_taken()
    return row.type, settings


def _rows(file: File) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelRefused("A GGUF file must contain a language model", f"{file.name} without an embedding",
                           "Give the file of the language model.")  # fmt: skip
    return file.tensors["token_embd.weight"].shape[0]


def _tokens(file: File) -> Settings:
    """The special tokens, and whether the head shares the embedding's weights."""
    found: Settings = {"tie_word_embeddings": "output.weight" not in file.tensors}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        found[f"{name}_token_id"] = token if token is None or token < _rows(file) else None
    return found


# ------------------------------------------------------------------------------------------------ parts


def _sizes(keys: Keys) -> Settings:
    """The sizes that every architecture with attention has."""
    heads = keys.size("attention.head_count")
    return {
        "hidden_size": keys.size("embedding_length"),
        "num_hidden_layers": keys.size("block_count"),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "max_position_embeddings": keys.size("context_length"),
    }


def _head(keys: Keys) -> int:
    """The width of an attention head."""
    width = keys.size("attention.key_length", keys.size("embedding_length") // keys.size("attention.head_count"))
    keys.need("attention.value_length", width)
    return width


def _rms(keys: Keys) -> Settings:
    return {"rms_norm_eps": keys.take("attention.layer_norm_rms_epsilon", 1e-6)}


def _rope(keys: Keys, partly: bool = False) -> Settings:
    """The rotary embeddings: their base, their scaling, and, if `partly`, the share of a head that they rotate."""
    width, context = _head(keys), keys.size("context_length")
    turned = keys.size("rope.dimension_count", width)
    rope: Settings = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base", 1e4)}
    if partly:
        rope["partial_rotary_factor"] = turned / width
    elif turned != width:
        keys.need("rope.dimension_count", width)
    kind = keys.take("rope.scaling.type", "linear")
    factor = keys.take("rope.scaling.factor", keys.take("rope.scale_linear", 0.0)) or 1.0
    original = keys.take("rope.scaling.original_context_length", context)
    factors = [_factors(keys.file, name) for name in FREQUENCIES]
    if factors[0] is not None:  # Llama 3's, computed for each frequency
        if factor != 1.0:
            keys.need("rope.scaling.factor", 1.0)
        own = {"short_factor": factors[0], "long_factor": factors[0], "attention_factor": 1.0, "factor": 1.0}
        return {**rope, "rope_type": "longrope", "original_max_position_embeddings": context, **own}
    if factors[1] is not None and factors[2] is not None:
        own = {"long_factor": factors[1], "short_factor": factors[2]}
        attention = keys.take("rope.scaling.attn_factor", 1.0)
        return {**rope, "rope_type": "longrope", "original_max_position_embeddings": original,
                "factor": context / original, "attention_factor": attention, **own}  # fmt: skip
    if kind == "linear" and factor != 1.0:
        return {**rope, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        fast, slow = (
            keys.take(f"rope.scaling.yarn_beta_{one}", value) for one, value in (("fast", 32.0), ("slow", 1.0))
        )
        return {**rope, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                "beta_fast": fast, "beta_slow": slow}  # fmt: skip
    if kind not in ("linear", "none"):
        keys.need("rope.scaling.type", "none")
    return rope


def _factors(file: File, name: str) -> list[float] | None:
    """The factors of rotary frequencies in a file, if it has any."""
    return file.values(name).reshape(-1).tolist() if name in file.tensors else None


def _experts(keys: Keys) -> Settings:
    """A mixture of experts in every layer."""
    down = keys.file.tensors.get("blk.0.ffn_down_exps.weight")
    width = down.shape[-1] if down is not None else None
    return {
        "num_experts": keys.size("expert_count"),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length", width),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


# ------------------------------------------------------------------------------------------------ architectures


@architecture("llama", "llama")
def _llama(keys: Keys) -> Settings:
    file = keys.file
    biases = {"attention_bias": file.has("attn_q.bias"), "mlp_bias": file.has("ffn_up.bias")}
    return {**_sizes(keys), **_rms(keys), "head_dim": _head(keys), "rope_parameters": _rope(keys), **biases}


@architecture("qwen2", "qwen2")
def _qwen2(keys: Keys) -> Settings:
    return {**_sizes(keys), **_rms(keys), "head_dim": _head(keys), "rope_parameters": _rope(keys)}


@architecture("qwen3", "qwen3")
def _qwen3(keys: Keys) -> Settings:
    return {**_qwen2(keys), "attention_bias": keys.file.has("attn_q.bias")}


@architecture("qwen2moe", "qwen2_moe")
def _qwen2moe(keys: Keys) -> Settings:
    shared = keys.file.tensors.get("blk.0.ffn_down_shexp.weight")
    width = keys.size("expert_shared_feed_forward_length", shared.shape[-1] if shared is not None else None)
    return {**_qwen2(keys), **_experts(keys), "shared_expert_intermediate_size": width, "norm_topk_prob": False}


@architecture("qwen3moe", "qwen3_moe")
def _qwen3moe(keys: Keys) -> Settings:
    return {**_qwen3(keys), **_experts(keys), "norm_topk_prob": True}


def _gemma(keys: Keys, largest: int) -> Settings:
    """What Gemma 2 and 3 have in common. llama.cpp tells attention's scale from the number of layers."""
    sizes, width = _sizes(keys), _head(keys)
    is_largest = sizes["num_hidden_layers"] == largest
    scale = sizes["hidden_size"] // sizes["num_attention_heads"] if is_largest else width
    return {**sizes, **_rms(keys), "head_dim": width, "query_pre_attn_scalar": scale}


@architecture("gemma2", "gemma2")
def _gemma2(keys: Keys) -> Settings:
    return {
        **_gemma(keys, largest=46), "rope_parameters": _rope(keys),
        "sliding_window": keys.size("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.take("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.take("final_logit_softcapping", 30.0),
    }  # fmt: skip


@architecture("gemma3", "gemma3_text")
def _gemma3(keys: Keys) -> Settings:
    common, window = _gemma(keys, largest=62), keys.take("attention.sliding_window", 0)
    keys.need("attention.sliding_window_pattern", 6)
    layers = range(common["num_hidden_layers"])
    local = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base_swa", 1e4)}
    return {
        **common, "rope_parameters": {"full_attention": _rope(keys), "sliding_attention": local},
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if window and (i + 1) % 6 else "full_attention" for i in layers],
        "final_logit_softcapping": keys.take("final_logit_softcapping") or None, "attn_logit_softcapping": None,
    }  # fmt: skip


@architecture("phi3", "phi3")
def _phi3(keys: Keys) -> Settings:
    original = keys.take("rope.scaling.original_context_length", keys.size("context_length"))
    return {
        **_sizes(keys), **_rms(keys), "rope_parameters": _rope(keys, partly=True),
        "original_max_position_embeddings": original,
        "sliding_window": keys.take("attention.sliding_window", 0) or None,
    }  # fmt: skip


@architecture("gpt2", "gpt2")
def _gpt2(keys: Keys) -> Settings:
    return {
        "n_embd": keys.size("embedding_length"), "n_layer": keys.size("block_count"),
        "n_head": keys.size("attention.head_count"), "n_positions": keys.size("context_length"),
        "n_inner": keys.size("feed_forward_length"),
        "layer_norm_epsilon": keys.take("attention.layer_norm_epsilon", 1e-5),
    }  # fmt: skip


@architecture("starcoder2", "starcoder2")
def _starcoder2(keys: Keys) -> Settings:
    _head(keys)
    return {
        **_sizes(keys), "norm_epsilon": keys.take("attention.layer_norm_epsilon", 1e-5),
        "rope_parameters": _rope(keys), "use_bias": keys.file.has("attn_q.bias"), "sliding_window": None,
    }  # fmt: skip


@architecture("stablelm", "stablelm")
def _stablelm(keys: Keys) -> Settings:
    parallel = keys.take("use_parallel_residual", not keys.file.has("ffn_norm.weight"))
    return {
        **_sizes(keys), "layer_norm_eps": keys.take("attention.layer_norm_epsilon", 1e-5),
        "rope_parameters": _rope(keys, partly=True), "use_qkv_bias": keys.file.has("attn_q.bias"),
        "use_parallel_residual": parallel, "qk_layernorm": keys.file.has("attn_q_norm.weight"),
    }  # fmt: skip


@architecture("bloom", "bloom")
def _bloom(keys: Keys) -> Settings:
    width, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    keys.need("feed_forward_length", 4 * width)
    keys.need("attention.head_count_kv", heads)
    keys.everything("context_length")  # ALiBi has none
    epsilon = keys.take("attention.layer_norm_epsilon", 1e-5)
    return {"hidden_size": width, "n_layer": keys.size("block_count"), "n_head": heads, "layer_norm_epsilon": epsilon}


@architecture("nemotron", "nemotron")
def _nemotron(keys: Keys) -> Settings:
    file = keys.file
    keys.everything("attention.layer_norm_rms_epsilon")  # a copy; its norms are LayerNorms
    return {
        **_sizes(keys), "norm_eps": keys.take("attention.layer_norm_epsilon", 1e-5), "head_dim": _head(keys),
        "rope_parameters": _rope(keys, partly=True), "attention_bias": file.has("attn_q.bias"),
        "mlp_bias": file.has("ffn_up.bias"),
    }  # fmt: skip


@architecture("mamba", "mamba")
def _mamba(keys: Keys) -> Settings:
    width, inner = keys.size("embedding_length"), keys.size("ssm.inner_size")
    keys.everything("context_length", "feed_forward_length", "attention.head_count")
    keys.need("ssm.dt_b_c_rms", False)
    if inner % width:
        keys.need("ssm.inner_size", 2 * width)
    return {
        "hidden_size": width, "num_hidden_layers": keys.size("block_count"), "expand": inner // width,
        "conv_kernel": keys.size("ssm.conv_kernel"), "state_size": keys.size("ssm.state_size"),
        "time_step_rank": keys.size("ssm.time_step_rank"), "use_conv_bias": keys.file.has("ssm_conv1d.bias"),
        "layer_norm_epsilon": keys.take("attention.layer_norm_rms_epsilon", 1e-5),
    }  # fmt: skip


@architecture("lfm2", "lfm2")
def _lfm2(keys: Keys) -> Settings:
    heads = keys.file.get("attention.head_count_kv")
    keys.everything("attention.head_count_kv")
    per_layer = heads if isinstance(heads, list) else [heads] * keys.size("block_count")
    if len({count for count in per_layer if count}) != 1:
        keys.need("attention.head_count_kv", None)
    return {
        "hidden_size": keys.size("embedding_length"), "num_hidden_layers": keys.size("block_count"),
        "intermediate_size": keys.size("feed_forward_length"), "block_auto_adjust_ff_dim": False,
        "num_attention_heads": keys.size("attention.head_count"), "num_key_value_heads": max(per_layer),
        "max_position_embeddings": keys.size("context_length"), "conv_L_cache": keys.size("shortconv.l_cache"),
        "layer_types": ["full_attention" if count else "conv" for count in per_layer],
        "norm_eps": keys.take("attention.layer_norm_rms_epsilon", 1e-5), "rope_parameters": _rope(keys),
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in keys.file.tensors),
    }  # fmt: skip
