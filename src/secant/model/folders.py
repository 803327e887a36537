"""The files in a model's folder, checked before anything is loaded: nothing here runs, downloads or unpickles.

The folder is not trusted. Its JSON files must be objects of a sane size. Its files must be inside it, or in the
Hugging Face cache around it. An index must name weights files of this folder. It must contain one model and no adapter.
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
"""Names that always belong to files."""

DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
"""Names of files that transformers prefers to a model's own weights and passes to torch's distributed checkpoints."""

SMALL = (*OBJECTS, f"{PICKLE}.index.json", ADAPTER)
"""Files of a hub model that are downloaded first, to be checked."""

READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of files that are read; also .bin when pickles are allowed."""

TEMPLATES = "additional_chat_templates"
"""The only subfolder that is read by default."""

LARGEST = 64 * 2**20
"""Bytes of the largest JSON file that is read."""

FETCH = "Correct it, or download it again."

POINTER = b"version https://git-lfs.github.com/spec/"
"""The start of a pointer, which Git leaves instead of a large file if Git LFS is not set up."""

POINTED = 1024
"""A pointer has fewer bytes than this."""

INERT = ("special_tokens_map_file",)
"""Entries of a tokenizer's configuration that name a file which is never opened; old ones contain such leftovers."""


def check(folder: Path, name: str, allow_pickle: bool) -> dict[str, Any]:
    """A model's config.json, after a check of its folder.

    Args:
        folder: The folder.
        name: The model's name, for messages.
        allow_pickle: Whether pickled weights may be read.

    Raises:
        ModelRefused: The folder is not one model that can be read safely.

    """
    with explained(ModelRefused, "A model's folder must be readable", FETCH, name):
        _check_files(folder, name, allow_pickle)
        if (folder / ADAPTER).exists():
            raise ModelRefused(
                "A model's folder must contain one model", f"{name}, a model and an adapter ({ADAPTER})",
                "Move the adapter out of it if it is already merged. Otherwise load it with peft's PeftModel and"
                " give secant.LM the model and its tokenizer.",
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
    """The JSON object in a file.

    Args:
        path: The file.

    Raises:
        ModelRefused: The file is too large, damaged, or another kind of JSON.

    """
    rule = f"A model's {path.name} must be a JSON object in UTF-8"
    with explained(ModelRefused, rule, FETCH, f"{path}"):
        if (size := path.stat().st_size) > LARGEST:
            raise ModelRefused(rule, f"{size:,} bytes in {path}", FETCH)
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelRefused(rule, f"a {type(found).__name__} in {path}", FETCH)
    return found


def shards(index: Path) -> list[str]:
    """The weights files that an index names.

    Args:
        index: The index file.

    Raises:
        ModelRefused: It does not map weights to files.

    """
    rule = "An index must map each weight to its file"
    mapping = object_in(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(file, str) for file in mapping.values()):
        raise ModelRefused(rule, f"a different weight_map in {index}", FETCH)
    return sorted(set(mapping.values()))


def weights_files(folder: Path, config: dict[str, Any], allow_pickle: bool) -> list[Path]:
    """The weights files of a folder that transformers reads, in its order of preference; empty if there are none.

    Args:
        folder: The folder.
        config: Its config.json.
        allow_pickle: Whether pickled weights may be read.

    Raises:
        ModelRefused: Both a file and an index of different files claim to be the model.

    """
    endings = (WEIGHTS, PICKLE) if allow_pickle else (WEIGHTS,)
    own = config.get("transformers_weights")
    for one in (own,) if own is not None else endings:
        whole, index = folder / one, folder / f"{one}.index.json"
        named = shards(index) if own is None and index.exists() else []
        if one == WEIGHTS and whole.exists() and named and named != [WEIGHTS]:
            raise ModelRefused(
                "A model's weights are in one file or in those of an index", f"{WEIGHTS} and {index.name} in {folder}",
                "Remove the one that does not belong to the model.",
            )  # fmt: skip
        if whole.exists():
            return [whole]
        if named:
            return [folder / file for file in named]
    return []


def check_complete(path: Path, name: str) -> None:
    """Check that a file is the file itself.

    Args:
        path: The file.
        name: The model's name, for messages.

    Raises:
        ModelRefused: It is a pointer of Git LFS.

    """
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelRefused(
                "A model's files must be downloaded", f"{path.name} of {name}, a pointer of Git LFS to the file",
                "Run git lfs pull in the folder, or download the model with hf download.",
            )  # fmt: skip


def unfinished(folder: Path) -> str:
    """A sentence about interrupted downloads, if the folder or the hub's cache around it has any; else nothing.

    Args:
        folder: A model's folder.

    """
    homes = (folder / ".cache" / "huggingface" / "download", folder.parent.parent / "blobs")
    if not any(path for home in homes if home.is_dir() for path in home.rglob("*.incomplete")):
        return ""
    return " A download was interrupted: run it again, for example with hf download."


def _check_files(folder: Path, name: str, allow_pickle: bool) -> None:
    """Raises ModelRefused if something that would be read is not a file in this folder, or in the hub's cache around
    it.
    """
    for path in sorted([*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")]):
        if DISTRIBUTED.fullmatch(path.name):
            raise ModelRefused(
                "A model's weights must be whole, not split by process", f"{path.name} in {name}",
                "Save the model with save_pretrained from one process.",
            )  # fmt: skip
        if path.name.endswith((*READ, ".bin") if allow_pickle else READ):
            _check_file(path, folder, name)
            if path.is_file() and path.stat().st_size < POINTED:
                check_complete(path, name)


def _check_file(path: Path, folder: Path, name: str) -> None:
    """Raises ModelRefused if a path that is read as a file is a link out of the folder, or not a plain file."""
    root, target = folder.resolve(), path.resolve()
    caches = [above.parents[1] / "blobs" for above in (root, *root.parents) if above.parent.name == "snapshots"]
    homes = [root, *caches[-1:]]
    if not any(target.is_relative_to(home) for home in homes):
        raise ModelRefused(
            "A model's files must be in its folder", f"{path.name} of {name}, a link to {target}",
            "Copy the file into the folder.",
        )  # fmt: skip
    if not target.is_file() and not (target.is_dir() and path.name not in NAMES):
        raise ModelRefused(
            "A model's folder must contain plain files",
            f"{path.name} of {name}, which is not one",
            "Download it again.",
        )


def _check_named(file: Any, where: str, name: str, allow_pickle: bool) -> None:
    """Raises ModelRefused unless `file` names a weights file inside the folder that may be read."""
    rule = "Weights must be safetensors files in the model's folder"
    parts = file.replace("\\", "/").split("/") if isinstance(file, str) else []
    if not parts or any(part in ("", ".", "..") or ":" in part for part in parts):
        raise ModelRefused(
            rule, f"{file!r}, which {where} of {name} names", "Download the model again, or do not use it."
        )
    if not file.endswith((".safetensors", *((".bin", ".pt") if allow_pickle else ()))):
        raise ModelRefused(
            rule, f"{file!r}, which {where} of {name} names",
            "If you trust that pickled file, pass allow_pickle (--allow-pickle).",
        )  # fmt: skip


def _check_tokenizer(folder: Path, config: dict[str, Any], name: str) -> None:
    """Raises ModelRefused if a tokenizer's configuration names a file outside the folder."""
    for key, value in config.items():
        if not key.endswith(("_file", "_files")) or key in INERT:
            continue
        for file in value if isinstance(value, list) else [value]:
            path = folder / file if isinstance(file, str) else folder
            if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
                raise ModelRefused(
                    "A tokenizer's files must be in the model's folder", f"{file!r}, which {TOKENIZER} of {name} names",
                    f"Remove {key} from it.",
                )  # fmt: skip
