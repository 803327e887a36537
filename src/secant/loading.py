"""Loading a causal language model and its tokenizer. The only file that imports transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from secant import weights
from secant.errors import BadArgument, ModelNotFound, ModelRefused, SecantError
from secant.foreign import quiet
from secant.model import LM, dtype_of

ATLAS = "atlas"
"""The name of the model that ships with the package, in the folder of that name beside this file."""


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    attention: str | None = None,
    allow_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LM:
    """Load a causal LM and its tokenizer from a folder or the Hugging Face hub, ready for `freeze`.

    `name`: "atlas" is the small model that ships with the package (a folder of that name is "./atlas").
    `dtype`: float64, float32, bfloat16 or float16; the checkpoint's own by default. `attention`: eager or sdpa.
    `device`: where it computes; "auto" spreads it over what there is, GPUs first, as accelerate does.
    Code from the repository is never run, and pickled weights never read, unless allowed by name.
    Raises ModelNotFound, ModelRefused, BadWeights, BadArgument.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": allow_remote_code, "dtype": dtype_of(dtype) or "auto"}
    if attention is not None:
        kwargs["attn_implementation"] = attention
    if device == "auto":
        kwargs["device_map"] = "auto"
    if not allow_pickle:
        kwargs["use_safetensors"] = True
    where, name = _where(name), str(name)
    config = configuration(name, allow_remote_code)
    with _explained(name), quiet(), _without_bars():
        model, info = AutoModelForCausalLM.from_pretrained(where, config=config, output_loading_info=True, **kwargs)
    with _explained(name, "tokenizer"), quiet(), _without_bars():
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=allow_remote_code)
    if missing := sorted(info["missing_keys"]):
        raise ModelRefused(
            "A checkpoint holds every weight of its model", f"{name} without {', '.join(missing[:3])}",
            "Complete it, or use the checkpoint of the causal LM, not of its base model.",
        )  # fmt: skip
    if getattr(model, "is_quantized", False) and dtype_of(dtype) not in (None, model.dtype):
        raise BadArgument(
            "Packed weights compute in the type that their library gives", f"{dtype} for {model.dtype}",
            "Leave dtype out; precision widens the system that a run holds.",
        )  # fmt: skip
    weights.in_own_type_(model, model.dtype)
    try:
        model = model if device in (None, "auto") else model.to(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0][:60]
        raise BadArgument("A device is one that torch has here", f"{device} ({said})", "Try cpu.") from error
    return LM(model.eval(), tokenizer, name)


def configuration(name: str | Path, allow_remote_code: bool = False) -> Any:
    """A model's configuration, without its weights. Raises ModelNotFound, ModelRefused."""
    where = _where(name)
    with _explained(str(name)), quiet():
        return AutoConfig.from_pretrained(where, trust_remote_code=allow_remote_code)


def _where(name: str | Path) -> str:
    """The folder of a model, or its name on the hub. Raises where a path leads to no folder of a model."""
    path = Path(__file__).parent / ATLAS if name == ATLAS else Path(name).expanduser()
    name = str(path)
    if path.is_file():
        raise ModelNotFound("A model is a folder or a name on the hub", f"the file {name}", "Give the folder it is in.")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise ModelRefused(
            "A model's folder holds a whole model", f"{name}, an adapter alone",
            "Load it with peft's AutoPeftModelForCausalLM, and give secant.LM the model and its tokenizer.",
        )  # fmt: skip
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelRefused("A model's folder holds a config.json", f"{name} without one", "Give the folder of a model.")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip()):
        raise ModelNotFound("A model is a folder or a name on the Hugging Face hub", f"{name!r}", "Check the path.")
    return name


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of transformers."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


@contextmanager
def _explained(name: str, part: str = "model") -> Iterator[None]:
    """Turn a failure to load into one clear line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise _reason(name, error, part) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelRefused(
            "A checkpoint's weights have the shapes of its configuration", f"others in {name}", "Mend its config.json."
        ) from error


def _reason(name: str, error: Exception, part: str) -> SecantError:
    said, kind = str(error).strip(), type(error).__name__
    folder = Path(name).is_dir()
    if "deserializing header" in said or "safetensors" in kind.lower():
        return ModelRefused("Weights are whole safetensors files", f"a damaged one in {name}", "Fetch it again.")
    if "FlashAttention" in said or "flash_attn" in said or "attn_implementation" in said:
        return BadArgument(
            "An attention implementation is one that the model has", said.splitlines()[0][:120], "Try eager."
        )
    if "no file named" in said or ("does not appear to have a file named" in said and "safetensors" in said):
        return ModelRefused(
            "Weights come as safetensors", f"{name} without such a file",
            "Complete the folder; if it has pickled weights that you trust, pass allow_pickle (--allow-pickle).",
        )  # fmt: skip
    if "trust_remote_code" in said or ("execute" in said and "code" in said):
        return ModelRefused(
            "Code that comes with a model is not run", f"{name}, which brings its own",
            "Read it, and if you trust it pass allow_remote_code (--allow-remote-code).",
        )  # fmt: skip
    if "gated" in said or "Gated" in kind or "401" in said or "403" in said:
        return ModelNotFound(
            "A gated model needs your access token", name, "Accept its licence on the hub, and run `hf auth login`."
        )
    if not folder and ("connect" in said or "offline" in said.lower()):
        return ModelNotFound(
            "A model is a folder or a name on the Hugging Face hub",
            f"{name}, which is no folder here, and the hub can't be reached", "Check the path, or the network.",
        )  # fmt: skip
    if "Unrecognized configuration class" in said:
        return ModelRefused(
            "A model must be a causal language model", f"{name}, of another kind", "Choose a decoder of text."
        )
    if "does not recognize this architecture" in said or "Unrecognized model" in said:
        return ModelRefused(
            f"A model's config.json names a type that transformers {transformers.__version__} knows", name,
            "Check the folder, or update transformers.",
        )  # fmt: skip
    if isinstance(error, ImportError) and part == "model":
        return BadArgument(
            "Loading takes the packages that it needs", " ".join(said.split())[:200], "Install them: pip install"
            " 'secant[weights]' has those for packed, adapted and spread weights.",
        )  # fmt: skip
    if not folder:
        return ModelNotFound("A model is a folder or a name on the Hugging Face hub", name, "Check the spelling.")
    if part == "tokenizer":
        return ModelRefused("A model comes with its tokenizer", f"{name} without one", "Add its tokenizer.json.")
    return ModelRefused(
        "A model's folder must load", f"{name}: {said.splitlines()[0][:200] if said else kind}", "Mend it."
    )


def weights_size(name: str | Path) -> int | None:
    """Bytes of a model's weights in its folder; None where it is not in one. Raises ModelNotFound and ModelRefused."""
    folder = Path(_where(name))
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files) if files else None
