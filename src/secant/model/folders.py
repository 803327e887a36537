"""What is in a model's folder, looked at before anything of it is loaded: nothing here runs, fetches or unpickles.

A folder comes from someone else. Its JSON files are objects of a sane size; its files are in it, or where the Hugging
Face cache keeps them; what an index names is a weights file of this folder; it holds one model, and no adapter beside.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from secant.errors import ModelRefused
from secant.foreign import explained

CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
OBJECTS = (
    CONFIG,
    TOKENIZER,
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    f"{WEIGHTS}.index.json",
)
"""Files that transformers reads as JSON objects before the weights."""

NAMES = (*OBJECTS, "tokenizer.json", WEIGHTS, PICKLE)
"""Names that are always those of files."""

DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
"""Names of files that transformers prefers to a model's own weights, and hands to torch's distributed checkpoints."""

SMALL = (*OBJECTS, f"{PICKLE}.index.json", ADAPTER)
"""What of a model on the hub is fetched first, to be looked at."""

READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of files that are read; pickles, .bin, when they are allowed."""

TEMPLATES = "additional_chat_templates"
"""The only folder in a model's folder that is read unasked."""

LARGEST = 64 * 2**20
"""Bytes of the largest JSON file that is read."""

INERT = ("special_tokens_map_file",)
"""Entries of a tokenizer's configuration that name a file which is never opened; old ones hold such leftovers."""


def check(folder: Path, name: str, allow_pickle: bool) -> dict[str, Any]:
    """Look at a model's folder; returns its config.json. Raises ModelRefused."""
    with explained(ModelRefused, "A model's folder can be read", "Mend it, or fetch it again.", name):
        _check_files(folder, name, allow_pickle)
        if (folder / ADAPTER).exists():
            raise ModelRefused(
                "A model's folder holds one model", f"{name}, a model and an adapter ({ADAPTER})",
                "Move the adapter out of it if it is merged already; if not, load it with peft's PeftModel, and give"
                " secant.LM the model and its tokenizer.",
            )  # fmt: skip
        objects = {file: object_in(folder / file) for file in OBJECTS if (folder / file).exists()}
        config = objects.get(CONFIG, {})
        if (own := config.get("transformers_weights")) is not None:
            _check_named(own, f"transformers_weights of {CONFIG}", name, False)
        for index in (f"{WEIGHTS}.index.json", *((f"{PICKLE}.index.json",) if allow_pickle else ())):
            for shard in shards(folder / index) if (folder / index).exists() else ():
                _check_named(shard, index, name, allow_pickle)
                if (folder / shard).exists():
                    _check_file(folder / shard, folder, name)
        _check_tokenizer(folder, objects.get(TOKENIZER, {}), name)
        return config


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelRefused."""
    rule, todo = f"A model's {path.name} is a JSON object in UTF-8", "Mend it, or fetch it again."
    with explained(ModelRefused, rule, todo, f"{path}"):
        if (size := path.stat().st_size) > LARGEST:
            raise ModelRefused(rule, f"{size:,} bytes in {path}", todo)
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelRefused(rule, f"a {type(found).__name__} in {path}", todo)
    return found


def shards(index: Path) -> list[str]:
    """The weights files that an index names. Raises ModelRefused."""
    rule, todo = "An index maps each weight to its file", "Mend it, or fetch it again."
    mapping = object_in(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(file, str) for file in mapping.values()):
        raise ModelRefused(rule, f"another weight_map in {index}", todo)
    return sorted(set(mapping.values()))


def weights_files(folder: Path, config: dict[str, Any], allow_pickle: bool) -> list[Path]:
    """The weights files of a folder that transformers reads, in its order of preference; none where there are none.

    Raises ModelRefused where a file and an index of others both claim to be the model.
    """
    endings = (WEIGHTS, PICKLE) if allow_pickle else (WEIGHTS,)
    own = config.get("transformers_weights")
    for one in (own,) if own is not None else endings:
        whole, index = folder / one, folder / f"{one}.index.json"
        named = shards(index) if own is None and index.exists() else []
        if one == WEIGHTS and whole.exists() and named and named != [WEIGHTS]:
            raise ModelRefused(
                "A model's weights are in one file or in those of an index", f"{WEIGHTS} and {index.name} in {folder}",
                "Remove the one that is not the model's.",
            )  # fmt: skip
        if whole.exists():
            return [whole]
        if named:
            return [folder / file for file in named]
    return []


def _check_files(folder: Path, name: str, allow_pickle: bool) -> None:
    """Raises ModelRefused at what would be read and is no file of this folder, or of the hub's cache around it."""
    for path in sorted([*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")]):
        if DISTRIBUTED.fullmatch(path.name):
            raise ModelRefused(
                "A model's weights are whole, not in parts of each process", f"{path.name} in {name}",
                "Save the model with save_pretrained from one process.",
            )  # fmt: skip
        if path.name.endswith((*READ, ".bin") if allow_pickle else READ):
            _check_file(path, folder, name)


def _check_file(path: Path, folder: Path, name: str) -> None:
    """Raises ModelRefused at a link out of the folder, and at what is no file and is read as one."""
    root, target = folder.resolve(), path.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(target.is_relative_to(home) for home in homes):
        raise ModelRefused(
            "A model's files are in its folder", f"{path.name} of {name}, a link to {target}",
            "Copy the file into the folder.",
        )  # fmt: skip
    if not target.is_file() and not (target.is_dir() and path.name not in NAMES):
        raise ModelRefused(
            "What a model's folder holds is read as files", f"{path.name} of {name}, which is none", "Fetch it again."
        )


def _check_named(file: Any, where: str, name: str, allow_pickle: bool) -> None:
    """Raises ModelRefused unless this is the name of a weights file inside the folder that may be read."""
    rule = "Weights are safetensors files in the model's folder"
    parts = file.replace("\\", "/").split("/") if isinstance(file, str) else []
    if not parts or any(part in ("", ".", "..") or ":" in part for part in parts):
        raise ModelRefused(rule, f"{file!r}, which {where} of {name} names", "Fetch the model again, or do not use it.")
    if not file.endswith((".safetensors", *((".bin", ".pt") if allow_pickle else ()))):
        raise ModelRefused(
            rule, f"{file!r}, which {where} of {name} names",
            "If it is a pickled file that you trust, pass allow_pickle (--allow-pickle).",
        )  # fmt: skip


def _check_tokenizer(folder: Path, config: dict[str, Any], name: str) -> None:
    """Raises ModelRefused where a tokenizer's configuration names a file of this computer outside of the folder."""
    for key, value in config.items():
        if not key.endswith(("_file", "_files")) or key in INERT:
            continue
        for file in value if isinstance(value, list) else [value]:
            path = folder / file if isinstance(file, str) else folder
            if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
                raise ModelRefused(
                    "A tokenizer's files are in the model's folder", f"{file!r}, which {TOKENIZER} of {name} names",
                    f"Take {key} out of it.",
                )  # fmt: skip
