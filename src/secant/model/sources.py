"""Where a model is, a folder or a snapshot in the hub's cache, with its configuration and the list of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from secant.errors import ModelNotFound, ModelRefused
from secant.foreign import explained
from secant.model import checkpoint, folders

ATLAS = "atlas"
"""The name of the model that ships with the package, in the folder of that name."""


@dataclass(frozen=True)
class Source:
    """A model's folder that has been checked; for a hub model, its snapshot in the cache.

    Attributes:
        name: The name that the user gave.
        where: The folder, or the name on the hub.
        folder: The folder, or the snapshot.
        config: The model's config.json.
        allow_pickle: Whether pickled weights may be read.

    """

    name: str
    where: str
    folder: Path
    config: dict[str, Any]
    allow_pickle: bool

    @property
    def revision(self) -> dict[str, str]:
        """The commit of a hub model that was checked, as an argument for loading."""
        return {} if self.is_here else {"revision": self.folder.name}

    @property
    def is_here(self) -> bool:
        """Whether the model is a folder on this computer."""
        return Path(self.where).is_dir()

    @cached_property
    def tensors(self) -> dict[str, checkpoint.Stored]:
        """The tensors in the weights files, once the files exist. Raises ModelRefused, BadWeights."""
        files = folders.weights_files(self.folder, self.config, self.allow_pickle)
        if self.is_here and (absent := [file.name for file in files if not file.exists()]):
            raise ModelRefused(
                "Every file that an index names must exist", f"{self.name} without {absent[0]}", "Complete the folder."
            )
        tensors = checkpoint.stored([file for file in files if file.exists()], self.name)
        checkpoint.check_before(tensors, self.config, self.name)
        return tensors


def where_is(name: str | Path) -> str:
    """The folder of a model, or its name on the hub.

    Args:
        name: A path, a name on the hub, or "atlas".

    Raises:
        ModelNotFound: The path leads nowhere, or to a file.
        ModelRefused: The folder contains no model, or an adapter alone.

    """
    rule = "A model is a folder or a name on the Hugging Face hub"
    if not str(name).strip():
        raise ModelNotFound(rule, f"{str(name)!r}", "Give a path, or a name such as atlas.")
    if "://" in str(name):
        raise ModelNotFound(rule, f"{str(name)[:80]!r}", "Give its name, such as Qwen/Qwen3-4B, not an address.")
    with explained(ModelNotFound, rule, "Check the path.", f"{str(name)[:80]!r}"):
        path = Path(__file__).parents[1] / ATLAS if name == ATLAS else Path(name).expanduser()
        name, has_config = str(path), (path / folders.CONFIG).exists()
        if path.is_file():
            raise ModelNotFound(rule, f"the file {name}", "Give the folder it is in.")
        if (path / folders.ADAPTER).exists() and not has_config:
            raise ModelRefused(
                "A model's folder must contain a complete model", f"{name}, an adapter alone",
                "Load it with peft's AutoPeftModelForCausalLM and give secant.LM the model and its tokenizer.",
            )  # fmt: skip
        if path.is_dir() and not has_config:
            raise ModelRefused(
                "A model's folder must contain a config.json", f"{name} without one", "Give the folder of a model."
            )
        if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise ModelNotFound(rule, f"{name!r}", "Check the path.")
    return name
