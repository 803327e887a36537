"""Where a model is: a folder, a GGUF file or a snapshot in the hub's cache; with its configuration and its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from secant.errors import BadArgument, ModelNotFound, ModelRefused, quoted
from secant.foreign import explained
from secant.model import checkpoint, folders
from secant.model.gguf import ENDING

ATLAS = "atlas"
"""The name of the model that ships with the package, in the folder of that name."""

RULE = "A model is a folder, a GGUF file or a name on the Hugging Face hub"


@dataclass(frozen=True)
class Hub:
    """How a name is looked up on the Hugging Face hub.

    Attributes:
        revision: A branch, a tag or a commit; by default the main branch.
        subfolder: The folder inside the repository; also inside a folder of this computer.
        token: An access token; by default that of the login.
        cache_dir: The folder of the cache; by default the hub's own.
        offline: Whether only the cache is used.

    """

    revision: str | None = None
    subfolder: str = ""
    token: str | bool | None = None
    cache_dir: str | None = None
    offline: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The attributes that are set, as keyword arguments of transformers."""
        said = {
            "revision": self.revision, "subfolder": self.subfolder, "token": self.token, "cache_dir": self.cache_dir,
            "local_files_only": self.offline,
        }  # fmt: skip
        return {key: value for key, value in said.items() if value or (key == "token" and value is not None)}


@dataclass(frozen=True)
class Place:
    """Where a model is, as its name says.

    Attributes:
        name: The name that the user gave.
        where: The folder, or the name on the hub.
        file: The GGUF file in it; None for a model in a folder of its own.
        hub: How it is looked up, if it is not on this computer.

    """

    name: str
    where: str
    file: str | None
    hub: Hub

    @property
    def is_here(self) -> bool:
        """Whether the model is on this computer."""
        return Path(self.where).is_dir()


@dataclass(frozen=True)
class Source:
    """A model's folder that has been checked; for a hub model, its snapshot in the cache.

    Attributes:
        place: Where it is.
        folder: The folder, or the snapshot.
        config: The model's config.json.
        allow_pickle: Whether pickled weights may be read.

    """

    place: Place
    folder: Path
    config: dict[str, Any]
    allow_pickle: bool

    @property
    def name(self) -> str:
        """The name that the user gave."""
        return self.place.name

    @property
    def where(self) -> str:
        """The folder, or the name on the hub."""
        return self.place.where

    @property
    def is_here(self) -> bool:
        """Whether the model is a folder on this computer."""
        return self.place.is_here

    @property
    def is_final(self) -> bool:
        """Whether nothing will be downloaded."""
        return self.is_here or self.place.hub.offline

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments with which transformers looks up the model: at the commit that was checked."""
        return {} if self.is_here else self.place.hub.arguments

    @cached_property
    def tensors(self) -> dict[str, checkpoint.Stored]:
        """The tensors in the weights files, once the files exist. Raises ModelRefused, BadWeights."""
        files = folders.weights_files(self.folder, self.config, self.allow_pickle)
        if self.is_final and (absent := [file.name for file in files if not file.exists()]):
            raise ModelRefused(
                "Every file that an index names must exist", f"{self.name} without {absent[0]}",
                f"Complete the folder.{folders.unfinished(self.folder)}",
            )  # fmt: skip
        tensors = checkpoint.stored([file for file in files if file.exists()], self.name)
        checkpoint.check_before(tensors, self.config, self.name)
        return tensors


def place_of(name: str | Path, hub: Hub | None = None) -> Place:
    """Where a model is.

    Args:
        name: A folder, a GGUF file, a name on the hub, or "atlas". A name on the hub may be followed by a revision and
            a GGUF file: "someone/something@main:model.gguf".
        hub: How a name on the hub is looked up.

    Raises:
        BadArgument: A revision is given twice, or for a model on this computer.
        ModelNotFound: The path leads nowhere, or to a file of another kind.
        ModelRefused: The folder contains no model, or only an adapter.

    """
    hub = hub or Hub()
    if not str(name).strip():
        raise ModelNotFound(RULE, f"{str(name)!r}", "Give a path, or a name such as atlas.")
    if "://" in str(name):
        raise ModelNotFound(RULE, f"{str(name)[:80]!r}", "Give its name, such as Qwen/Qwen3-4B, not an address.")
    with explained(ModelNotFound, RULE, "Check the path.", f"{str(name)[:80]!r}"):
        path = Path(__file__).parents[1] / ATLAS if name == ATLAS else Path(name).expanduser()
        if not path.exists():
            return _on_the_hub(str(name), str(path), hub)
        if hub.revision is not None:
            raise BadArgument(
                "A revision belongs to a name on the hub", f"{hub.revision!r:.40} for {name}, which is here",
                "Leave it out, or give the name that the model has on the hub.",
            )  # fmt: skip
        if path.is_file():
            if path.suffix.lower() != ENDING:
                raise ModelNotFound(RULE, f"the file {path}", "Give the folder it is in.")
            return Place(str(name), str(path.parent), path.name, hub)
        path /= hub.subfolder
        _check_folder(path)
        return Place(str(name), str(path), None, hub)


def expanded(name: str) -> list[str]:
    """The models that a name stands for: those that match a pattern such as "run/checkpoint-*", in order of the numbers
    in their names; else the name itself.

    Args:
        name: A name, or a pattern of paths.

    Raises:
        ModelNotFound: No model matches.

    """
    path = Path(name).expanduser()
    if not any(sign in name for sign in "*?[") or path.exists():
        return [name]
    with explained(ModelNotFound, RULE, "Check the pattern.", f"{name[:80]!r}"):
        found = [Path(one) for one in glob(str(path)) if _is_model(Path(one))]
    if not found:
        raise ModelNotFound(
            "A pattern must match the folder of a model, or a GGUF file", quoted(name), "Check the path."
        )
    return sorted(map(str, found), key=_by_numbers)


def _is_model(path: Path) -> bool:
    return (path / folders.CONFIG).is_file() or (path.is_file() and path.suffix.lower() == ENDING)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A sort key that puts checkpoint-9 before checkpoint-100."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _on_the_hub(name: str, path: str, hub: Hub) -> Place:
    """The place of a name on the hub, with a revision and a file. Raises BadArgument, ModelNotFound."""
    where, file = path, None
    if ":" in where and where.lower().endswith(ENDING):
        where, _, file = where.rpartition(":")
    where, _, revision = where.partition("@")
    if name.startswith((".", "/", "~")) or where.count("/") > 1 or where.lower().endswith(ENDING):
        raise ModelNotFound(RULE, quoted(name), "Check the path.")
    if revision and hub.revision not in (None, revision):
        raise BadArgument(
            "A revision is given once", f"{hub.revision!r:.40} and {name}", "Leave it out of the name, or of revision."
        )
    return Place(name, where, file, replace(hub, revision=revision or hub.revision))


def _check_folder(path: Path) -> None:
    """Raises ModelRefused if a folder does not contain a complete model."""
    has_config = (path / folders.CONFIG).exists()
    if (path / folders.ADAPTER).exists() and not has_config:
        raise ModelRefused(
            "A model's folder must contain a complete model", f"{path}, which has only an adapter",
            "Load it with peft's AutoPeftModelForCausalLM and give secant.LM the model and its tokenizer.",
        )  # fmt: skip
    if not has_config:
        found = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else []
        todo = f"Give one of its GGUF files, such as {found[0]}." if found else "Give the folder of a model."
        raise ModelRefused("A model's folder must contain a config.json", f"{path} without one", todo)
