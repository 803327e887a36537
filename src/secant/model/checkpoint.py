"""The weights files of a model: what their headers say they contain, and whether the model uses all of it.

transformers ignores weights of a checkpoint that the model has no place for, and converts complex numbers and integers
to the model's dtype. Here both are errors, except for weights that no model needs.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from secant.errors import BadWeights, ModelRefused, TooLarge, printable
from secant.foreign import explained
from secant.memory import bytes_in_words

_LOGGER = logging.getLogger("secant")

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
"""Bits of each plain dtype of weights; other dtypes are packed weights or tables."""

UNNEEDED = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|position_ids|masked_bias|cos_cached|sin_cached|num_batches_tracked|_extra_state)$"
    r"|\.([qkv]|kv|attn|prob_output)_(zero_)?scale$"
)
"""Names of buffers that models compute themselves, and of scales for a low-bit cache, which secant does not use."""

MASK = re.compile(r"(^|\.)(attn|attention|attn\.attention)\.bias$")
"""Names of weights in old checkpoints that are causal masks if they have four axes."""

NOT_LANGUAGE = re.compile(
    r"(vision|visual|image|img|video|audio|speech|talker|code2wav|token2wav|mm_|multi_?modal|patch_merger|connector|"
    r"embed_vision|embed_audio|mtp|nextn|optimizer|scheduler|ema|v_head|value_head|score|reward|classifier|pooler|"
    r"cls|seq_relationship)",
    re.IGNORECASE,
)
"""Prefixes of weights that do not belong to the language model: vision, audio, other heads, and training state."""

PREDICTS_MORE = ("eh_proj", "enorm", "hnorm", "shared_head", "mtp")
"""Modules of a layer that predicts later tokens (multi-token prediction), which follows the model's own layers."""


CONFIGURED = "A configuration must match the weights of its checkpoint"


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it.

    Attributes:
        dtype: The name of its type in the file, such as F32.
        shape: Its shape.

    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether its elements are floating-point numbers that are used as they are."""
        return self.dtype in BITS


# ------------------------------------------------------------------------------------------------ before loading


def stored(files: Iterable[Path], name: str) -> dict[str, Stored]:
    """Every tensor in the weights files, by name.

    Args:
        files: The weights files.
        name: The model's name, for messages.

    Raises:
        ModelRefused: A file is damaged, or two files contain the same name.

    """
    found: dict[str, Stored] = {}
    for file in files:
        kind = "safetensors" if file.suffix == ".safetensors" else "pickled tensor"
        rule = f"Weights must be complete {kind} files"
        got = f"a damaged one in {name}, {file.name}"
        with explained(ModelRefused, rule, "Download it again.", got, partial(_cut_short, file, name)):
            own = _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file)
        if twice := found.keys() & own.keys():
            raise ModelRefused(
                "A weight is in one file only", f"{min(twice)} in two files of {name}", "Remove the outdated file."
            )
        found |= own
    return found


def _cut_short(file: Path, name: str, error: BaseException) -> ModelRefused | None:
    """The error for a safetensors file whose end is missing; None for other files."""
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        head = opened.read(length) if len(start) == 8 and length <= 2**27 else b""
    try:
        ends = [part["data_offsets"][1] for key, part in json.loads(head).items() if key != "__metadata__"]
        need, have = 8 + length + max(ends), file.stat().st_size
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    if file.suffix != ".safetensors" or have >= need:
        return None
    return ModelRefused(
        "Weights must be complete safetensors files", f"{file.name} of {name}, {have:,} of {need:,} bytes",
        "Download it again.",
    )  # fmt: skip


def _of_safetensors(file: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        names = opened.keys()
        slices = {name: opened.get_slice(name) for name in names}
        return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _of_pickle(file: Path) -> dict[str, Stored]:
    """Names, dtypes and shapes without elements; torch lets such a file create only tensors and plain values."""
    tree = torch.load(file, map_location="meta", weights_only=True)
    codes = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return {
        key: Stored(codes.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
        for key, tensor in tree.items()
        if isinstance(tensor, Tensor)
    }


def check_before(tensors: Mapping[str, Stored], config: Mapping[str, Any], name: str) -> None:
    """Check the files of a checkpoint against its configuration, before anything is loaded.

    Args:
        tensors: The tensors in the weights files.
        config: The model's config.json.
        name: The model's name, for messages.

    Raises:
        BadWeights: A weight is complex.
        ModelRefused: The configuration has absurdly more layers than there are weights; transformers would list all of
            them.

    """
    for key, tensor in tensors.items():
        if tensor.dtype[0].lower() == "c":
            raise BadWeights(
                "Weights must be real numbers",
                f"{key} of {name} in {tensor.dtype}",
                "Use a checkpoint of real weights.",
            )
    for key, value, listed in _numbers(config):
        if value > (1000 + len(tensors) if "layer" in key else 10**7 if listed else math.inf):
            raise ModelRefused(
                CONFIGURED, f"{key} = {value:,} in config.json of {name}, for {len(tensors):,} weights", "Correct it."
            )


def _numbers(tree: Any, key: str = "", listed: bool = False) -> Iterator[tuple[str, int, bool]]:
    """The integers in a configuration, at any depth, each with its name and whether it is in a list."""
    if isinstance(tree, int):
        yield key, tree, listed
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _numbers(value, str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value, key, True)


def check_size(tensors: Mapping[str, Stored], dtype: torch.dtype | None, name: str) -> None:
    """Check that the weights fit into the memory of this computer.

    Args:
        tensors: The tensors in the weights files.
        dtype: The type to load them in; None for their own.
        name: The model's name, for messages.

    Raises:
        TooLarge: They do not.

    """
    bits = 0 if dtype is None else 8 * dtype.itemsize
    need = sum(t.elements * (bits if bits and t.is_plain else BITS.get(t.dtype, 8)) for t in tensors.values()) / 8
    most = psutil.virtual_memory().total + psutil.swap_memory().total
    if need > most:
        raise TooLarge(
            "A model must fit in memory", f"{bytes_in_words(need)} of weights in {name}, {bytes_in_words(most)} here",
            'Load a smaller dtype, or spread it over devices with device="auto".',
        )  # fmt: skip


@contextmanager
def bounded(found: Callable[[], Mapping[str, Stored]], name: str, packed: bool) -> Iterator[None]:
    """Stop the block from building a model much larger than the weights in its files.

    A configuration can ask for more modules than can be built, and for more memory than there is.

    Args:
        found: Returns the tensors in the weights files; called while the model is built.
        name: The model's name, for messages.
        packed: Whether weights are packed, so that one stored element stands for several.

    Raises:
        ModelRefused: The model has far more elements or modules than its files.
        TooLarge: Its buffers do not fit in memory.

    """
    thread, seen, asked, tables = threading.get_ident(), set[tuple[int, str]](), 0, 0

    def count(module: nn.Module, key: str, part: Any) -> None:
        nonlocal asked, tables
        if threading.get_ident() != thread or part is None or (id(module), key) in seen:
            return
        seen.add((id(module), key))
        if isinstance(part, nn.Parameter):
            asked += part.numel()
        elif isinstance(part, Tensor):
            tables += part.nbytes
        tensors = found()
        stored_elements = sum(tensor.elements for tensor in tensors.values()) if asked > 2**22 else 0
        if asked > stored_elements * (64 if packed else 4) + 2**22 or len(seen) > 64 * len(tensors) + 2000:
            raise ModelRefused(
                CONFIGURED,
                f"over {asked:,} elements in {len(seen):,} modules and tensors for {name}, of {len(tensors):,} weights",
                "Correct its config.json.",
            )
        if tables > psutil.virtual_memory().total:
            raise TooLarge(
                "A model must fit in memory", f"{bytes_in_words(tables)} of positions and masks for {name}",
                "Correct the maximum prompt length in its config.json.",
            )  # fmt: skip

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
        hooks.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------ after loading


def check_after(
    model: nn.Module, tensors: Mapping[str, Stored], unread: Iterable[str], name: str, packed: bool
) -> None:
    """Check that a loaded model uses every weight of its checkpoint; weights that may stay unread are logged.

    Args:
        model: The loaded model.
        tensors: The tensors in the weights files.
        unread: Names of the tensors that transformers reports as unused.
        name: The model's name, for messages.
        packed: Whether transformers packed or unpacked weights.

    Raises:
        ModelRefused: A weight of the language model stays unread, or a tied head has weights of its own.
        BadWeights: A weight is stored in a type that the model does not compute in.

    """
    hidden = _hidden(model, tensors)
    left, behind = set(unread) | hidden, _behind(model)
    lost = []
    for key in sorted(left):
        if (layer := behind(key)) is not None:
            may = any(k.startswith(layer) and any(part in k for part in PREDICTS_MORE) for k in left)
        else:
            may = key in hidden or _is_table(key, tensors.get(key)) or _is_beside(key, model)
        lost += [] if may else [key]
    if lost:
        more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        raise ModelRefused(
            "A model must use every weight of its checkpoint",
            f"{', '.join(lost[:3])}{more} in {name}, which the model of its config.json does not have",
            "Correct the config.json, or remove those weights if they do not belong to the model.",
        )
    if not packed:
        _check_kinds(model, tensors, left, name)
    _check_tied(model, name)
    if left:
        parts = Counter(re.sub(r"\d+", "*", key) for key in left).most_common(3)
        said = printable(f"{name}: {', '.join(f'{key} ({count})' for key, count in parts)}")
        _LOGGER.info("%d weights do not belong to the language model and stay unread: %s", len(left), said)


def _hidden(model: Any, tensors: Iterable[str]) -> set[str]:
    """Weights that transformers leaves unread without reporting them, for this model's class or for every class."""
    ignored = "|".join(f"({pattern})" for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    own, base = model.state_dict().keys(), f"{getattr(model, 'base_model_prefix', '')}."
    unread = (key for key in tensors if not own & {key, base + key, key.removeprefix(base)})
    return {key for key in unread if UNNEEDED.search(key) or (ignored and re.search(ignored, key))}


def _behind(model: nn.Module) -> Callable[[str], str | None]:
    """A function of a key: the prefix of its layer, if that layer comes after the model's last one; else None."""
    lists: dict[str, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            place = path.split(".")  # keys may lack the base model's name in front
            lists |= {".".join(place[start:]): len(module) for start in range(len(place))}

    def behind(key: str) -> str | None:
        names = key.split(".")
        for depth, part in enumerate(names):
            place = ".".join(names[:depth])
            if place in lists and part.isdecimal() and int(part) >= lists[place]:
                return f"{place}.{part}."
        return None

    return behind


def _is_beside(key: str, model: nn.Module) -> bool:
    """Whether a key belongs to a module that the model lacks and that language models do without."""
    at: Any = model
    for depth, part in enumerate(key.split(".")):
        if not isinstance(at, nn.Module) or not hasattr(at, part):
            return depth < 3 and NOT_LANGUAGE.match(part) is not None
        at = getattr(at, part)
    return False


def _is_table(key: str, tensor: Stored | None) -> bool:
    """Whether a key names a buffer that models compute themselves."""
    is_mask = MASK.search(key) is not None and (tensor is None or len(tensor.shape) == 4)
    return is_mask or UNNEEDED.search(key) is not None


def _check_kinds(model: nn.Module, tensors: Mapping[str, Stored], left: set[str], name: str) -> None:
    """Raises BadWeights if integers or low-bit types are stored for a model's floating-point weights."""
    whole = {key.split(".")[-1] for key, weight in model.state_dict().items() if not weight.is_floating_point()}
    for key, tensor in tensors.items():
        if not (tensor.is_plain or key in left or key.split(".")[-1] in whole or _is_table(key, tensor)):
            raise BadWeights(
                "Weights must be floating-point numbers, or packed as config.json says",
                f"{key} of {name} in {tensor.dtype}, without a quantization_config",
                "Use the checkpoint's own config.json, or a checkpoint that is not packed.",
            )


def _check_tied(model: Any, name: str) -> None:
    """Raises ModelRefused if the head is tied to the embedding but the checkpoint has different weights for it."""
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    head = getattr(model.get_output_embeddings(), "weight", None)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not tied or not getattr(model, "_tied_weights_keys", None) or embedding is None or head is None:
        return
    if embedding is head or embedding.is_meta or head.is_meta or embedding.shape != head.shape:
        return
    if not torch.equal(embedding, head.to(embedding.device)):
        raise ModelRefused(
            "A tied head has the embedding's weights", f"{name}, whose head has different ones",
            "Set tie_word_embeddings to false in its config.json if the head is right, or remove its weights.",
        )  # fmt: skip
