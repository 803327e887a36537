"""Models from GGUF files, through transformers' converter: its names and layouts of weights, and its tokenizers.

The converter drops every tensor that it has no place for, and makes a Python object for each entry of the header, which
takes minutes. So `secant.model.gguf` reads the header and the blocks, `secant.model.gguf_config` makes the
configuration, and every tensor must have a place in the model.
"""

from __future__ import annotations

from importlib.util import find_spec
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from secant.errors import BadArgument, ModelRefused
from secant.model import gguf_tokens
from secant.model.gguf import File
from secant.model.gguf_config import FREQUENCIES, settings_of

_reading = Lock()


def configuration_of(file: File) -> Any:
    """The configuration of the model in a file.

    Args:
        file: The file.

    Raises:
        BadArgument: transformers is too old.
        ModelRefused: The architecture is not supported, or the file has a key that secant does not know.

    """
    if find_spec("transformers.integrations.gguf") is None:
        raise BadArgument(
            "Opening a GGUF file requires a newer transformers", f"transformers {transformers.__version__}",
            "Update it: pip install -U transformers.",
        )  # fmt: skip
    kind, settings = settings_of(file)
    return AutoConfig.for_model(kind, **settings, name_or_path=file.name)


def model_of(file: File, config: Any, dtype: torch.dtype, device_map: str | None) -> tuple[Any, list[str]]:
    """The model in a file, with plain weights.

    Args:
        file: The file.
        config: Its configuration.
        dtype: The type of its weights.
        device_map: Where accelerate places them; None for this computer's memory.

    Returns:
        The model, and the names of the weights that the file lacks.

    Raises:
        ModelRefused: The model has no place for a tensor.

    """
    kwargs = {"device_map": device_map} if device_map else {}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    model, info = type(empty).from_pretrained(
        None, config=config, state_dict=_tensors(file, empty, dtype), output_loading_info=True, dtype=dtype, **kwargs
    )
    return model, sorted(info["missing_keys"])


def _tensors(file: File, empty: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, in its layouts. Raises ModelRefused."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    converter = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(_Named(empty.config))
    places = get_gguf_hf_weights_map(_Names(empty, True), converter)
    shapes = {name: weight.shape for name, weight in empty.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    lost = []
    for name, values in file.weights():
        if name in FREQUENCIES:
            continue
        wide = values.astype(np.float64) if dtype == torch.float64 and values.ndim == 1 else values
        made = converter.process(
            weights=wide, name=name, tensor_key_mapping=places, parsed_parameters={"tensors": found}
        )
        if made.name in places:
            found[places[made.name]] = torch.from_numpy(file.own(made.weights)).to(dtype)
        elif made.name is not None:
            lost.append(name)
    if lost:
        more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        raise ModelRefused(
            "A model must use every weight of its GGUF file",
            f"{', '.join(sorted(lost)[:3])}{more} in {file.name}, for which transformers has no place",
            "Use the original checkpoint, as a folder of safetensors.",
        )
    return {name: _shaped(tensor, shapes.get(name)).to(dtype) for name, tensor in found.items()}


def _shaped(tensor: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """A tensor with the axes of length 1 that the model expects; files have more or fewer of them."""
    if shape is None or [n for n in tensor.shape if n > 1] != [n for n in shape if n > 1]:
        return tensor
    return tensor.reshape(shape)


class _Names:
    """A model that shows the converter only itself and the modules directly below, which suffice for names of weights.

    The converter would go through every module, each time from the start.
    """

    def __init__(self, model: Any, is_top: bool) -> None:
        self.config, self.state_dict = getattr(model, "config", None), model.state_dict
        self._below = list(model.named_children()) if is_top else []

    def named_children(self) -> list[tuple[str, _Names]]:
        return [(name, _Names(child, False)) for name, child in self._below]


class _Named:
    """A configuration that the converter reads by any of its names."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self.config, name, default)

    def __getitem__(self, name: str) -> Any:
        return getattr(self.config, name)


def tokenizer_of(file: File) -> Any:
    """The tokenizer in a file, with its chat template.

    Args:
        file: The file.

    Raises:
        ModelRefused: secant does not know the kind of the file's vocabulary.

    """
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer, reader
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    path = str(file.path)
    with _reading:  # one file at a time: a patch of a patch would stay
        read = reader.read_gguf_metadata

        def known(other: str, *of: Any) -> Any:
            return (file.metadata, tuple(file.tensors)) if other == path else read(other, *of)

        with patch.object(reader, "read_gguf_metadata", known):
            architecture, vocabulary, settings = get_gguf_tokenizer(path)
    backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    settings |= gguf_tokens.complete_(backend, file, GGUF_PRE_TOKENIZER_SPLITS)
    return PreTrainedTokenizerFast(tokenizer_object=_Handed(backend), **settings)


class _Handed:
    """A tokenizer that is not copied where it is handed over: a large vocabulary takes seconds."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._tokenizer
