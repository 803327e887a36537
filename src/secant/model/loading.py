"""Loading of causal language models and their tokenizers. The only file that imports transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import is_offline_mode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from secant.errors import BadArgument, ModelNotFound, ModelRefused, SecantError, checked
from secant.foreign import explained, quiet, said_by
from secant.memory import room
from secant.model import checkpoint, folders, weights
from secant.model.lm import LM, dtype_of
from secant.model.sources import ATLAS, Source, where_is

FUSED = ("flash", "flex", "paged", "/")
"""Parts of the names of attention implementations that are not torch functions, or are downloaded from the hub."""

EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
"""Implementations of experts that consist of torch functions."""

NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
"""The environment variable that keeps transformers from asking a hub service to convert a model's pickles."""

FROM_THE_HUB = ("eetq", "fbgemm_fp8", "fp8", "metal", "mxfp4", "nvfp4")
"""Quantisation methods whose kernels transformers downloads from the hub if the package kernels is installed."""


@checked
def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    allow_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LM:
    """A causal LM and its tokenizer from a folder or the Hugging Face hub, ready for `freeze`.

    Code from the repository never runs, and pickled weights are never read, unless you allow it by name.

    Args:
        name: A folder, a name on the hub, or "atlas", the small model that ships with the package (a folder of that
            name is "./atlas").
        dtype: float64, float32, bfloat16 or float16; by default the checkpoint's own.
        device: Where it computes; "auto" spreads it over all devices, GPUs first, as accelerate does.
        attention: eager or sdpa; by default the configuration's.
        allow_remote_code: Whether code from the repository may run.
        allow_pickle: Whether pickled weights may be read.

    Raises:
        ModelNotFound: There is no such model, or the hub is unreachable or refuses access.
        ModelRefused: The model is not a causal LM, needs code or pickles that are not allowed, or is damaged.
        BadWeights: A weight is NaN or infinite, or has a type that models do not multiply with.
        BadArgument: An option is not valid for this model.
        TooLarge: The model does not fit in memory.

    """
    _check_options(dtype, device, attention, allow_remote_code, allow_pickle)
    with room("A model", "Load a smaller dtype, or give it a computer with more memory."):
        source = _opened(name, allow_pickle)
        config = _configured(source, allow_remote_code, attention)
        model = _model(source, config, dtype_of(dtype), device, allow_remote_code)
        with _explained(source.name, "tokenizer"), quiet(), _alone(), _without_panics():
            tokenizer = AutoTokenizer.from_pretrained(
                source.where, trust_remote_code=allow_remote_code, **source.revision
            )
            tokenizer("")  # some broken tokenizers load, and fail at every text
        if device not in (None, "auto"):
            with explained(BadArgument, "A model must fit on its device", "Leave the device out.", str(device)):
                model = model.to(device)
        return LM(model.eval(), tokenizer, source.name)


def configuration(name: str | Path, allow_remote_code: bool = False) -> Any:
    """A model's configuration, without its weights.

    Args:
        name: A folder, a name on the hub, or "atlas".
        allow_remote_code: Whether code from the repository may run.

    Raises:
        ModelNotFound: There is no such model.
        ModelRefused: The configuration cannot be read safely.
        BadWeights: The weights files contain complex weights.

    """
    return _configured(_opened(name, False), allow_remote_code, None)


def weights_size(name: str | Path) -> int | None:
    """Bytes of the weights in a model's folder; None if the model is not in a folder.

    Args:
        name: A folder, a name on the hub, or "atlas".

    Raises:
        ModelNotFound: The path leads nowhere, or to a file.
        ModelRefused: The folder contains no model.

    """
    folder = Path(where_is(name))
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files if file.is_file()) if files else None


# ------------------------------------------------------------------------------------------------ where it is


def _opened(name: str | Path, allow_pickle: bool) -> Source:
    """A model's folder, checked before anything is loaded; of a hub model, the small files are downloaded first.

    Raises ModelNotFound, ModelRefused, BadWeights.
    """
    where, name = where_is(name), str(name)
    folder = Path(where)
    if not folder.is_dir():
        folder = _fetched(where, name)
    source = Source(name, where, folder, folders.check(folder, name, allow_pickle), allow_pickle)
    checkpoint.check_before(source.tensors if source.is_here else {}, source.config, name)
    return source


def _fetched(where: str, name: str) -> Path:
    """The snapshot of a hub model in the cache, with its small files."""
    with _explained(name), quiet(), _alone():
        folder = Path(str(cached_file(where, folders.CONFIG))).parent
        for file in folders.SMALL:
            cached_file(
                where, file, revision=folder.name, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=not is_offline_mode(),
            )  # fmt: skip
    return folder


# ------------------------------------------------------------------------------------------------ what it consists of


def _check_options(dtype: Any, device: Any, attention: Any, allow_remote_code: Any, allow_pickle: Any) -> None:
    """Raises BadArgument at invalid options, before anything is read."""
    if not isinstance(dtype, str | torch.dtype | None):
        raise BadArgument("A dtype is a name, such as float32", f"{dtype!r:.60}", "Give one, or leave it out.")
    dtype_of(dtype)
    for key, allowed in (("allow_remote_code", allow_remote_code), ("allow_pickle", allow_pickle)):
        if not isinstance(allowed, bool):
            raise BadArgument(f"{key} is True or False", f"{allowed!r:.60}", "Give one of them.")
    if attention is not None and not _is_of_torch(attention):
        raise BadArgument(
            "Attention must consist of torch functions, like eager and sdpa", f"{attention!r:.60}",
            "Try eager.",
        )  # fmt: skip
    if device not in (None, "auto"):
        with explained(BadArgument, "A device must be available to torch here", "Try cpu.", f"{device!r:.60}"):
            if not isinstance(device, str | torch.device) or torch.empty(0, device=device).is_meta:
                raise TypeError("not the name of a device that computes")


def _is_of_torch(attention: Any) -> bool:
    """Whether this names an available attention implementation that consists of torch functions."""
    with quiet():
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # importing it logs messages

    known = attention in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()) if isinstance(attention, str) else False
    return known and not any(part in attention for part in FUSED)


def _configured(source: Source, allow_remote_code: bool, attention: str | None) -> Any:
    """A model's configuration. Raises ModelRefused where it asks for code to be downloaded, or for fused kernels.

    This is checked here because transformers downloads such code as soon as it creates the model.
    """
    name = source.name
    with _explained(name), quiet():
        config = AutoConfig.from_pretrained(source.where, trust_remote_code=allow_remote_code, **source.revision)
        if attention is not None:
            config._attn_implementation = attention
        parts = list(_parts(config))
    for part in parts:
        said = getattr(part, "_attn_implementation", None)
        if said is not None and not _is_of_torch(said):
            raise ModelRefused(
                "Attention must consist of torch functions, like eager and sdpa",
                f"{said!r:.80}, which config.json of {name} asks for",
                "Choose a different one with attention (--attention).",
            )  # fmt: skip
        if (said := getattr(part, "_experts_implementation", None)) not in EXPERTS:
            raise ModelRefused(
                f"Experts must consist of torch functions, like {' and '.join(EXPERTS[1:3])}",
                f"{said!r:.80}, which config.json of {name} asks for", "Remove it from its config.json.",
            )  # fmt: skip
        packing = getattr(part, "quantization_config", None) or {}
        way = packing.get("quant_method") if isinstance(packing, dict) else getattr(packing, "quant_method", None)
        if way in FROM_THE_HUB and find_spec("kernels"):
            raise ModelRefused(
                "Code that comes over the network is not run",
                f"{name}, packed as {way}, whose kernels transformers downloads if the package kernels is installed",
                "Uninstall kernels, or use a different checkpoint.",
            )
    return config


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and the ones nested in it."""
    yield config
    for key in getattr(config, "sub_configs", ()):
        if (part := getattr(config, key, None)) is not None:
            yield from _parts(part)


def _model(
    source: Source, config: Any, dtype: torch.dtype | None, device: str | torch.device | None, allow_remote_code: bool
) -> Any:
    """The model with all its weights. Raises ModelRefused, BadWeights, BadArgument, TooLarge."""
    name, packed = source.name, bool(getattr(config, "quantization_config", None))
    if source.is_here and device != "auto":
        checkpoint.check_size(source.tensors, dtype, name)
    kwargs: dict[str, Any] = {"use_safetensors": None if source.allow_pickle else True, **source.revision}
    if device == "auto":
        kwargs["device_map"] = "auto"
    with _explained(name), quiet(), _alone(), checkpoint.bounded(lambda: source.tensors, name, packed):
        model, info = AutoModelForCausalLM.from_pretrained(
            source.where, config=config, output_loading_info=True, trust_remote_code=allow_remote_code,
            dtype=dtype or "auto", **kwargs,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise ModelRefused(
            "A checkpoint must contain every weight of its model", f"{name} without {', '.join(missing[:3])}",
            "Complete it, or use the checkpoint of the causal LM instead of its base model.",
        )  # fmt: skip
    unpacked = getattr(model, "hf_quantizer", None) is not None
    if packed and not unpacked:
        raise ModelRefused(
            "Packed weights must be of a kind that transformers unpacks", f"{name}, of an unknown kind",
            "Correct the quantization_config of its config.json, or update transformers.",
        )  # fmt: skip
    checkpoint.check_after(model, source.tensors, info["unexpected_keys"], name, unpacked)
    if getattr(model, "is_quantized", False) and dtype not in (None, model.dtype):
        raise BadArgument(
            "Packed weights compute in the dtype that their library chooses", f"{dtype} instead of {model.dtype}",
            "Leave dtype out; the precision of a run widens the frozen network.",
        )  # fmt: skip
    weights.in_own_type_(model, model.dtype)
    return model


@contextmanager
def _alone() -> Iterator[None]:
    """Keep transformers from showing progress bars and warnings, downloading kernels, and asking the hub for
    conversions.
    """
    from transformers.integrations import hub_kernels

    bars = transformers.utils.logging.is_progress_bar_enabled()
    off = {"_kernels_enabled": False, "get_kernel_hub": _no_kernel}
    kept = {key: value for key, value in vars(hub_kernels).items() if key in off}
    conversion = os.environ.get(NO_CONVERSION)
    transformers.utils.logging.disable_progress_bar()
    vars(hub_kernels).update(off)
    os.environ[NO_CONVERSION] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
        for key in off:
            vars(hub_kernels).pop(key)
        vars(hub_kernels).update(kept)
        os.environ.pop(NO_CONVERSION)
        if conversion is not None:
            os.environ[NO_CONVERSION] = conversion


def _no_kernel(name: str, *_: Any, **__: Any) -> Any:
    raise ModelRefused(
        "Code that comes over the network is not run", f"a model that asks for the kernel {name}",
        "Uninstall the package kernels, or use a different model.",
    )  # fmt: skip


@contextmanager
def _without_panics() -> Iterator[None]:
    """Hide what a Rust panic prints on stderr; the panic is raised as well."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# ------------------------------------------------------------------------------------------------ what went wrong


@contextmanager
def _explained(name: str, part: str = "model") -> Iterator[None]:
    """Turn a failure to load into one clear line."""
    with explained(ModelRefused, "A model's folder must load", "Correct it.", name, partial(_reason, name, part)):
        yield


def _reason(name: str, part: str, error: BaseException) -> SecantError | None:
    """The cause of a failure to load, if more can be said than the error's own text."""
    said = " ".join(str(error).split())
    if name != ATLAS and not Path(name).expanduser().is_dir() and (known := _reason_of_hub(name, said, error)):
        return known
    if "deserializing header" in said or "safetensors" in type(error).__name__.lower():
        rule = "Weights must be complete safetensors files"
        return ModelRefused(rule, f"a damaged one in {name}", "Download it again.")
    if "FlashAttention" in said or "flash_attn" in said or "attn_implementation" in said:
        return BadArgument("An attention implementation must be one that the model has", said[:120], "Try eager.")
    if "ignore_mismatched_sizes" in said:
        return ModelRefused(
            "A checkpoint's weights must have the shapes of its configuration",
            f"different ones in {name}",
            "Correct its config.json.",
        )
    if "no file named" in said or ("does not appear to have a file named" in said and "safetensors" in said):
        return ModelRefused(
            "Weights must be safetensors files", f"{name} without such a file",
            "Complete the folder. If it has pickled weights that you trust, pass allow_pickle (--allow-pickle).",
        )  # fmt: skip
    if "trust_remote_code" in said or "execute the" in said:
        return ModelRefused(
            "Code that comes with a model is not run", f"{name}, which requires its own",
            "Read it. If you trust it, pass allow_remote_code (--allow-remote-code).",
        )  # fmt: skip
    if "Unrecognized configuration class" in said:
        return ModelRefused(
            "A model must be a causal language model", f"{name}, a different kind", "Choose a text decoder."
        )
    if "does not recognize this architecture" in said or "Unrecognized model" in said:
        return ModelRefused(
            f"A model's config.json must name a type that transformers {transformers.__version__} knows", name,
            "Check the folder, or update transformers.",
        )  # fmt: skip
    if isinstance(error, ImportError) and part == "model":
        return BadArgument(
            "Loading this model requires more packages", said[:200], "Install them: pip install"
            " 'secant[weights]' has those for packed, adapted and spread weights.",
        )  # fmt: skip
    if part == "tokenizer":
        return ModelRefused(
            "A model must come with its tokenizer", f"{name} with none that loads, {said_by(error)}",
            "Add its tokenizer.json, or download it again.",
        )  # fmt: skip
    return None


def _reason_of_hub(name: str, said: str, error: BaseException) -> SecantError | None:
    """The cause of a failure to load from the hub."""
    rule = "A model is a folder or a name on the Hugging Face hub"
    if "gated" in said.lower() or "Gated" in type(error).__name__ or "401 Client" in said or "403 Client" in said:
        return ModelNotFound(
            "A gated model requires your access token", name, "Accept its licence on the hub and run `hf auth login`."
        )
    if "connect" in said or "offline" in said.lower():
        got = f"{name}, which is not a folder here, while the hub is unreachable"
        return ModelNotFound(rule, got, "Check the path, or the network.")
    if f"a file named {folders.CONFIG}" in said:
        return ModelRefused("A model must have a config.json", f"{name} without one", "Give the name of a model.")
    if "valid model identifier" in said or "epo id" in said:
        return ModelNotFound(rule, name, "Check the spelling.")
    return None
