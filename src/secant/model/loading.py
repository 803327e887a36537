"""Loading of causal language models and their tokenizers, from folders, GGUF files and the Hugging Face hub."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from secant.errors import BadArgument, ModelNotFound, ModelRefused, SecantError, checked, quoted
from secant.foreign import explained, quiet, said_by
from secant.memory import announce, room
from secant.model import checkpoint, converter, folders, gguf, quantization, weights
from secant.model.lm import LM, dtype_of
from secant.model.sources import ATLAS, RULE, Hub, Place, Source, place_of

FUSED = ("flash", "flex", "paged", "/")
"""Parts of the names of attention implementations that are not torch functions, or are downloaded from the hub."""

EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
"""Implementations of experts that consist of torch functions."""

ANSWER = 5.0
"""Seconds within which the hub must accept a connection, and also answer if the cache has the model."""

LARGE = 1_000_000_000
"""Loading a folder with more bytes of weights shows progress; loading from the hub always does."""

OFFLINE = ("the hub may not be asked", "Check the path, or load it once without --offline and HF_HUB_OFFLINE.")
"""Why a model is not looked up on the hub, and what to do about it."""

NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
"""The environment variable that keeps transformers from asking a hub service to convert a model's pickles."""


@checked
def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    allow_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LM:
    """A causal LM and its tokenizer from a folder, a GGUF file or the Hugging Face hub, ready for `freeze`.

    Code from the repository never runs, and pickled weights are never read, unless you allow it. The weights of
    a GGUF file are dequantised; the memory that this takes is announced if it is large.

    Args:
        name: A folder, a GGUF file, a name on the hub, or "atlas", the small model that ships with the package (a
            folder of that name is "./atlas"). A name on the hub may be followed by a revision and a GGUF file in it:
            "someone/something@main:model.gguf".
        dtype: float64, float32, bfloat16 or float16; by default the checkpoint's own, and float32 for a GGUF file.
        device: Where the model runs; "auto" spreads it over all devices, GPUs first, as accelerate does.
        attention: eager or sdpa; by default the configuration's.
        dequantize: Whether to replace packed weights with the plain ones that they represent.
        revision: A branch, a tag or a commit on the hub; by default the main branch.
        subfolder: The model's folder inside the repository, or inside the folder.
        token: Your access token for the hub; by default that of `hf auth login`, or of HF_TOKEN.
        cache_dir: The folder of the hub's cache; by default its own.
        offline: Whether models on the hub come from the cache only, as with HF_HUB_OFFLINE=1.
        allow_remote_code: Whether code from the repository may run.
        allow_pickle: Whether pickled weights may be read.

    Raises:
        ModelNotFound: There is no such model, or the hub is unreachable or refuses access.
        ModelRefused: The model is not a causal LM, needs code or pickles that are not allowed, or is damaged.
        BadWeights: A weight is NaN or infinite, or has a type that models do not multiply with.
        BadArgument: An option is not valid for this model.
        TooLarge: The model does not fit in memory.

    """
    _check_options(
        dtype, device, attention, dequantize=dequantize, offline=offline, allow_remote_code=allow_remote_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    hub = Hub(revision, subfolder, token, None if cache_dir is None else str(cache_dir), offline)
    with room("A model", "Load a smaller dtype, or give it a computer with more memory."):
        place = place_of(name, hub)
        if place.file is not None:
            model, tokenizer = _of_gguf(place, dtype_of(dtype), device, attention)
        else:
            source = _opened(place, allow_pickle)
            config = _configured(source, allow_remote_code, attention, dequantize)
            model = _model(source, config, dtype_of(dtype), device, allow_remote_code, dequantize)
            with _explained(place, "tokenizer"), quiet(), _quiet_transformers(), _without_panics():
                tokenizer = AutoTokenizer.from_pretrained(
                    source.where, trust_remote_code=allow_remote_code, **source.arguments
                )
        with _explained(place, "tokenizer"), quiet(), _without_panics():
            tokenizer("")  # some broken tokenizers load, and fail at every text
        if device not in (None, "auto"):
            with explained(BadArgument, "A model must fit on its device", "Leave the device out.", str(device)):
                model = model.to(device)
        return LM(model.eval(), tokenizer, place.name)


def is_packed(
    name: str | Path,
    *,
    dequantize: bool = False,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | Path | None = None,
    offline: bool = False,
    allow_remote_code: bool = False,
) -> bool:
    """Whether a model's weights stay packed when it is loaded, so that you cannot choose their dtype.

    Args:
        name: As in `load`.
        dequantize: As in `load`.
        revision: As in `load`.
        subfolder: As in `load`.
        cache_dir: As in `load`.
        offline: As in `load`.
        allow_remote_code: Whether code from the repository may run.

    Raises:
        ModelNotFound: There is no such model.
        ModelRefused: The configuration cannot be read safely.
        BadWeights: The weights files contain complex weights.

    """
    hub = Hub(revision, subfolder, None, None if cache_dir is None else str(cache_dir), offline)
    place = place_of(name, hub)
    if place.file is not None or dequantize:
        return False
    return hasattr(_configured(_opened(place, False), allow_remote_code, None), "quantization_config")


def weights_size(name: str | Path) -> int | None:
    """Bytes of the weights of a model on this computer; None if it is on the hub.

    Args:
        name: A folder, a GGUF file, a name on the hub, or "atlas".

    Raises:
        ModelNotFound: The path leads nowhere, or to a file of another kind.
        ModelRefused: The folder contains no model, or the GGUF file is damaged.

    """
    place = place_of(name)
    if place.file is not None:
        return 4 * gguf.File.read(Path(place.where) / place.file, place.name).elements if place.is_here else None
    folder = Path(place.where)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files if file.is_file()) if files else None


# ------------------------------------------------------------------------------------------------ where it is


def _opened(place: Place, allow_pickle: bool) -> Source:
    """A model's folder, checked before anything is loaded; of a hub model, the small files are downloaded first.

    Raises ModelRefused, BadWeights.
    """
    folder = Path(place.where)
    if not place.is_here:
        place, folder = _fetched(place)
    source = Source(place, folder, folders.check(folder, place.name, allow_pickle), allow_pickle)
    checkpoint.check_before(source.tensors if source.is_here else {}, source.config, place.name)
    return source


def _fetched(place: Place) -> tuple[Place, Path]:
    """The place of a hub model at its commit, and the folder in the cache that has its small files.

    If the hub cannot be reached but the cache has the model, only the cache is used from then on.
    """
    with _explained(place), quiet(), _quiet_transformers():
        place = replace(place, hub=_reached(place))
        folder = Path(str(cached_file(place.where, folders.CONFIG, **place.hub.arguments))).parent
        root = folder
        for _ in Path(place.hub.subfolder).parts:
            root = root.parent
        hub = replace(place.hub, revision=root.name, offline=place.hub.offline or is_offline_mode())
        for file in folders.SMALL:
            try:
                cached_file(place.where, file, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=not hub.offline, **hub.arguments)  # fmt: skip
            except OSError as error:
                if not _is_unreachable(error):
                    raise
                hub = replace(hub, offline=True)
    return replace(place, hub=hub), folder


def _reached(place: Place) -> Hub:
    """How a model is looked up: only in the cache, if the hub can't be reached, or is slow and the cache has the model.

    The hub's own client tries again for half a minute, for each file.
    """
    hub = place.hub
    file = "/".join([*Path(hub.subfolder).parts, place.file or folders.CONFIG])
    known = try_to_load_from_cache(place.where, file, cache_dir=hub.cache_dir, revision=hub.revision)
    if hub.offline or is_offline_mode():
        return hub
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER)
    except Exception as error:  # any error of the hub's client
        if isinstance(known, str) or _is_unreachable(error):
            return replace(hub, offline=True)
    return hub


def _is_unreachable(error: BaseException) -> bool:
    """Whether an error says that the hub cannot be reached."""
    return "connect" in str(error) or "Connect" in type(error).__name__


# ------------------------------------------------------------------------------------------------ GGUF files


def _of_gguf(
    place: Place, dtype: torch.dtype | None, device: str | torch.device | None, attention: str | None
) -> tuple[Any, Any]:
    """The model and the tokenizer in a GGUF file. Raises ModelNotFound, ModelRefused, BadWeights, BadArgument."""
    assert place.file is not None
    path, dtype = Path(place.where) / place.file, dtype or torch.float32
    if not place.is_here:
        with _explained(place), quiet(), _quiet_transformers(shown=True):
            path = Path(str(cached_file(place.where, place.file, **_reached(place).arguments)))
    file = gguf.File.read(path, place.name)
    with _explained(place), quiet():
        config = converter.configuration_of(file)
        if attention is not None:
            config._attn_implementation = attention
    if device != "auto":
        checkpoint.check_size(file.stored, dtype, place.name)
    need = file.elements * dtype.itemsize
    announce(f"Dequantising {place.name}", file.elements / gguf.DEQUANTISED, need, torch.device("cpu"))
    with _explained(place), quiet(), _quiet_transformers(), checkpoint.bounded(lambda: file.stored, place.name, False):
        model, missing = converter.model_of(file, config, dtype, "auto" if device == "auto" else None)
    _check_whole(missing, place.name)
    with _explained(place, "tokenizer"), quiet(), _without_panics():
        return model, converter.tokenizer_of(file)


# ------------------------------------------------------------------------------------------------ what it consists of


def _check_options(dtype: Any, device: Any, attention: Any, **switches: Any) -> None:
    """Raises BadArgument if an option is invalid, before anything is read."""
    if not isinstance(dtype, str | torch.dtype | None):
        raise BadArgument("A dtype is a name, such as float32", quoted(dtype), "Give one, or leave it out.")
    dtype_of(dtype)
    for key, allowed in switches.items():
        if not isinstance(allowed, bool):
            raise BadArgument(f"{key} is True or False", quoted(allowed), "Give one of them.")
    if attention is not None and not _is_of_torch(attention):
        raise BadArgument(
            "Attention must consist of torch functions, like eager and sdpa", quoted(attention),
            "Try eager.",
        )  # fmt: skip
    if device not in (None, "auto"):
        with explained(BadArgument, "A device must be available to torch here", "Try cpu.", f"{device!r:.60}"):
            if not isinstance(device, str | torch.device) or torch.empty(0, device=device).is_meta:
                raise TypeError("not the name of a device that computes")


def _is_of_torch(attention: Any) -> bool:
    """Whether a name is that of an available attention implementation that consists of torch functions."""
    with quiet():
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # importing it logs messages

    known = attention in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()) if isinstance(attention, str) else False
    return known and not any(part in attention for part in FUSED)


def _configured(source: Source, allow_remote_code: bool, attention: str | None, dequantize: bool = False) -> Any:
    """A model's configuration. Raises ModelRefused if it asks for code to be downloaded, or for fused kernels.

    The check comes first, because transformers downloads such code as soon as it creates the model.
    """
    name = source.name
    with _explained(source.place), quiet():
        config = AutoConfig.from_pretrained(source.where, trust_remote_code=allow_remote_code, **source.arguments)
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
        quantization.check(packing, name, dequantize, find_spec("kernels") is not None)
    return config


def _parts(config: Any) -> Iterator[Any]:
    """A configuration, and those nested in it."""
    yield config
    for key in getattr(config, "sub_configs", ()):
        if (part := getattr(config, key, None)) is not None:
            yield from _parts(part)


def _model(
    source: Source,
    config: Any,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    allow_remote_code: bool,
    dequantize: bool,
) -> Any:
    """The model with all its weights. Raises ModelRefused, BadWeights, BadArgument, TooLarge."""
    name, packed = source.name, bool(getattr(config, "quantization_config", None))
    if source.is_final and device != "auto":
        checkpoint.check_size(source.tensors, dtype, name)
    kwargs: dict[str, Any] = {"use_safetensors": None if source.allow_pickle else True, **source.arguments}
    if device == "auto":
        kwargs["device_map"] = "auto"
    elif packed and dequantize:
        kwargs["device_map"] = {"": "cpu"}  # by default some methods choose the device of their kernels
    kwargs["adapter_kwargs"] = {"local_files_only": source.is_final}  # or it asks a hub that may not answer
    shown = not source.is_here or sum(file.stat().st_size for file in source.folder.glob("*.safetensors")) > LARGE
    with (
        _explained(source.place),
        quiet(),
        _quiet_transformers(shown),
        checkpoint.bounded(lambda: source.tensors, name, packed),
    ):
        model, info = AutoModelForCausalLM.from_pretrained(
            source.where, config=config, output_loading_info=True, trust_remote_code=allow_remote_code,
            dtype=dtype or "auto", **kwargs,
        )  # fmt: skip
    _check_whole(sorted(info["missing_keys"]), name)
    way = quantization.method_of(getattr(config, "quantization_config", None))
    unpacked = getattr(model, "hf_quantizer", None) is not None or (dequantize and way in quantization.METHODS)
    if packed and not unpacked:
        raise ModelRefused(
            "Packed weights must be of a kind that transformers unpacks", f"{name}, of an unknown kind",
            "Correct the quantization_config of its config.json, or update transformers.",
        )  # fmt: skip
    checkpoint.check_after(model, source.tensors, info["unexpected_keys"], name, unpacked)
    if packed and dequantize:
        with _explained(source.place), quiet():
            if quantization.by_layers(way):
                weights.dequantize_(model)
            elif getattr(model, "is_quantized", False):
                model = model.dequantize()
        weights.convert_(model, dtype or model.dtype)
    if getattr(model, "is_quantized", False) and dtype not in (None, model.dtype):
        raise BadArgument(
            "Packed weights compute in the dtype that their library chooses", f"{dtype} instead of {model.dtype}",
            "Leave dtype out; the precision of a run widens the frozen network.",
        )  # fmt: skip
    weights.prepare_(model, model.dtype)
    return model


def _check_whole(missing: list[str], name: str) -> None:
    """Raises ModelRefused if weights of a model are missing."""
    if missing:
        raise ModelRefused(
            "A checkpoint must contain every weight of its model", f"{name} without {', '.join(missing[:3])}",
            "Complete it, or use the checkpoint of the causal LM instead of its base model.",
        )  # fmt: skip


@contextmanager
def _quiet_transformers(shown: bool = False) -> Iterator[None]:
    """Keep transformers from showing warnings, downloading kernels, and asking the hub for conversions.

    If `shown`, its progress bars appear on a terminal or in a notebook.
    """
    from transformers.integrations import hub_kernels

    bars = transformers.utils.logging.is_progress_bar_enabled()
    off = {"_kernels_enabled": False, "get_kernel_hub": _no_kernel}
    kept = {key: value for key, value in vars(hub_kernels).items() if key in off}
    conversion = os.environ.get(NO_CONVERSION)
    if not (shown and _is_watched()):
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


def _is_watched() -> bool:
    """Whether someone would see a progress bar, on a terminal or in a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def _no_kernel(name: str, *_: Any, **__: Any) -> Any:
    raise ModelRefused(
        "secant does not run code from the network", f"a model that asks for the kernel {name}",
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
def _explained(place: Place, part: str = "model") -> Iterator[None]:
    """Turn a failure to load into one clear line."""
    rule, reason = "A model's folder must load", partial(_reason, place, part)
    with explained(ModelRefused, rule, "Correct it.", place.name, reason):
        yield


def _reason(place: Place, part: str, error: BaseException) -> SecantError | None:
    """The error for a failure to load whose cause is known; None for others."""
    said, name = " ".join(str(error).split()), place.name
    if name != ATLAS and not place.is_here and (known := _reason_of_hub(place, said, error)):
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
            "secant does not run code that comes with a model", f"{name}, which requires its own",
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
            "Loading this model requires more packages", said[:200], "Install what it names. pip install"
            " 'secant[weights]' installs those for packed, adapted and spread weights.",
        )  # fmt: skip
    if part == "tokenizer":
        return ModelRefused(
            "A model must come with its tokenizer", f"{name} with none that loads, {said_by(error)}",
            "Add its tokenizer.json, or download it again.",
        )  # fmt: skip
    return None


def _reason_of_hub(place: Place, said: str, error: BaseException) -> SecantError | None:
    """The error for a failure to load from the hub whose cause is known; None for others."""
    name, hub = place.name, place.hub
    if "gated" in said.lower() or "Gated" in type(error).__name__ or "401 Client" in said or "403 Client" in said:
        return ModelNotFound(
            "A gated model requires an access token that may read it", name,
            "Accept its licence on the hub, and run `hf auth login`, set HF_TOKEN or pass token.",
        )  # fmt: skip
    if _is_unreachable(error) or "offline" in said.lower() or "local_files_only" in said:
        offline = hub.offline or is_offline_mode()
        why, todo = OFFLINE if offline else (f"{constants.ENDPOINT} is unreachable", "Check the path and the network.")
        got = f"{name}, which is not a folder here nor complete in the cache, while {why}"
        return ModelNotFound(RULE, got, f"{todo} The model atlas ships with secant.")
    if "valid git identifier" in said or "Revision" in type(error).__name__:
        return ModelNotFound(
            "A revision is a branch, a tag or a commit of the model's repository", f"{hub.revision} of {place.where}",
            "Check its spelling on the model's page.",
        )  # fmt: skip
    if place.file is not None and "a file named" in said:
        return ModelNotFound(
            "A GGUF file must be in the repository",
            f"{place.file} of {place.where}",
            "Check its name on the model's page.",
        )
    if f"a file named {folders.CONFIG}" in said or (hub.subfolder and "a file named" in said):
        todo = "Check the subfolder." if hub.subfolder else "Give the name of a model; a GGUF file follows a colon."
        return ModelRefused("A model must have a config.json", f"{name} without one", todo)
    if "valid model identifier" in said or "epo id" in said:
        return ModelNotFound(
            RULE, name, "Check the spelling. A private repository requires an access token (HF_TOKEN)."
        )
    return None
