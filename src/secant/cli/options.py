"""The options that commands share, in groups: how a model is loaded, what is frozen, and how much is decomposed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.verb import Group
from secant.errors import seeded
from secant.results.paths import path_of

if TYPE_CHECKING:
    from secant.linearize.run import Run
    from secant.model.lm import LM, Prompt


class Dtype(StrEnum):
    """Floating-point types by name."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Convention(StrEnum):
    """Which factor of a gated product is frozen."""

    gate = "gate"
    up = "up"
    half = "half"


class SteeringForm(StrEnum):
    """How a concept's operator is put into the stream."""

    mixture = "mixture"
    additive = "additive"
    activation = "activation"


# ------------------------------------------------------------------------------------------------- completion


def paths(incomplete: str) -> list[str]:
    """Files and folders that complete a path, in fish; other shells complete paths themselves."""
    return _beginning(incomplete, lambda path: True) if _in_fish() else []


def models(incomplete: str) -> list[str]:
    """Atlas, and folders that complete a path.

    A folder alone, or one with spaces, is left to the shell, which puts no space after it and quotes what it has to;
    fish does this for all.
    """
    folders = _beginning(incomplete, Path.is_dir)
    found = (["atlas"] if "atlas".startswith(incomplete) else []) + folders
    alone, spaced = len(found) == 1, any(" " in folder for folder in folders)
    return [] if folders and (alone or spaced) and not _in_fish() else found


def _in_fish() -> bool:
    return os.environ.get("_SECANT_COMPLETE", "").endswith("_fish")


def _beginning(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Paths that begin with a text, folders with a slash at their end; hidden ones where a dot asks for them."""
    folder, _, start = incomplete.rpartition("/")
    try:
        inside = sorted(Path(f"{folder}/" if "/" in incomplete else ".").expanduser().iterdir())
        return [
            incomplete.removesuffix(start) + path.name + ("/" if path.is_dir() else "")
            for path in inside
            if path.name.startswith(start) and (start or path.name[0] != ".") and wanted(path)
        ]
    except (OSError, RuntimeError):
        return []


def path_option(help: str) -> Any:
    """An option that is a path."""
    return typer.Option(parser=path_of, metavar="PATH", help=help, autocompletion=paths)


def path_argument(help: str) -> Any:
    """Arguments that are paths."""
    return typer.Argument(parser=path_of, metavar="PATH...", help=help, autocompletion=paths)


# ------------------------------------------------------------------------------------------------- single options

MaxMemory = Annotated[
    str | None, typer.Option(help="Memory to work in, such as 4GiB; by default half of what is free.")
]
Position = Annotated[int, typer.Option(help="The position that is read; -1 is the last.")]
Seed = Annotated[int, typer.Option(callback=seeded, help="Seed of all random numbers.")]


# ------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True, kw_only=True)
class Opening(Group):
    """How a model is opened."""

    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps or auto", autocompletion=lambda: ["cpu", "cuda", "mps", "auto"])
    ] = None
    attention: Annotated[
        str | None,
        typer.Option(help="The attention implementation: eager or sdpa.", autocompletion=lambda: ["eager", "sdpa"]),
    ] = None
    allow_remote_code: Annotated[
        bool, typer.Option("--allow-remote-code", help="Run code that comes with the model.")
    ] = False
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights.")] = False

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of `secant.load`."""
        return {
            "device": self.device,
            "attention": self.attention,
            "allow_remote_code": self.allow_remote_code,
            "allow_pickle": self.allow_pickle,
        }

    def load(self, name: str, dtype: Dtype | None = None) -> LM:
        """The model of a name. Raises what `secant.load` raises."""
        import secant as sc

        return sc.load(name, **{"dtype": dtype and dtype.value, **self.how})


@dataclass(frozen=True, kw_only=True)
class Loading(Opening):
    """How a model is opened, in one dtype."""

    dtype: Annotated[Dtype | None, typer.Option(help="Load the model in this type; its own by default.")] = None

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of `secant.load`."""
        return {"dtype": self.dtype and self.dtype.value, **super().how}


@dataclass(frozen=True, kw_only=True)
class Model(Loading):
    """The model of a command."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", autocompletion=models,
            help="A folder, a name on the Hugging Face hub, or atlas, which ships with secant.",
        ),
    ] = "atlas"  # fmt: skip

    def loaded(self) -> LM:
        """The model. Raises what `secant.load` raises."""
        return self.load(self.model)


@dataclass(frozen=True, kw_only=True)
class Models(Loading):
    """The models of a command."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", autocompletion=models,
            help="A folder, a name on the Hugging Face hub, or atlas (the default); may be given again.",
        ),
    ] = None  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Their names, atlas where none is given."""
        return self.model or ["atlas"]


@dataclass(frozen=True, kw_only=True)
class Prompting(Group):
    """How a prompt is read, and in which precision."""

    precision: Annotated[
        Dtype | None, typer.Option(help="Evaluate the linear system in this type, above the model's own.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's chat message.")] = False
    seed: Seed = 0

    def prompt(self, text: str) -> Prompt:
        """A prompt, or with `--chat` a user's message."""
        return [{"role": "user", "content": text}] if self.chat else text

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments of everything that freezes prompts."""
        return {"precision": self.precision and self.precision.value, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Freezing(Prompting):
    """How a prompt is frozen, in one convention."""

    convention: Annotated[Convention, typer.Option(help="Which factor of a gated product is frozen.")] = Convention.gate

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments of everything that freezes prompts."""
        return {"convention": self.convention.value, **super().how}

    def freeze(self, lm: LM, prompt: Prompt) -> Run:
        """A prompt, frozen. Raises what `secant.freeze` raises."""
        import secant as sc

        return sc.freeze(lm, prompt, **self.how)


@dataclass(frozen=True, kw_only=True)
class Conventions(Prompting):
    """How a prompt is frozen, in several conventions."""

    convention: Annotated[
        list[Convention] | None,
        typer.Option(help="Which factor of a gated product is frozen (gate by default); may be given again."),
    ] = None

    @property
    def conventions(self) -> list[str]:
        """Their names, gate where none is given."""
        return [each.value for each in self.convention or [Convention.gate]]


@dataclass(frozen=True, kw_only=True)
class Spectra(Group):
    """How much of each operator is decomposed and decoded."""

    k: Annotated[int, typer.Option("-k", help="Singular vectors of each token's block to keep.")] = 4
    top: Annotated[int, typer.Option(help="Top tokens of each singular vector.")] = 8
