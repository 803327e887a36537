"""The options that commands share, in groups: loading a model, freezing a prompt, decomposing its operator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.analyses.origins import ORIGINS, origin_named
from secant.analyses.targets import BASELINES, baseline_named
from secant.arguments import counted, size_of, spoken
from secant.cli.progress import stage
from secant.cli.verb import Group
from secant.errors import seeded
from secant.linearize.conventions import CHOICES, NAMES, convention_named
from secant.results.paths import path_of
from secant.steering.forms import FORMS
from secant.text import named

if TYPE_CHECKING:
    from secant.linearize.run import Run
    from secant.model.lm import LM, Prompt


class Dtype(StrEnum):
    """The floating-point types that a model can be loaded in."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


if TYPE_CHECKING:
    SteeringForm = str
else:
    SteeringForm = StrEnum("SteeringForm", {name: name for name in FORMS})


# ------------------------------------------------------------------------------------------------- completion


def paths(incomplete: str) -> list[str]:
    """Files and folders that complete a path.

    Args:
        incomplete: The start of the path.

    Returns:
        The completions in fish, and none in other shells, which complete paths themselves.
    """
    return _beginning(incomplete, lambda path: True) if _in_fish() else []


def models(incomplete: str) -> list[str]:
    """Models that complete a name: atlas, folders and GGUF files.

    A single folder, and folders with spaces, are left to the shell, which appends no space and quotes them. Fish does
    so for everything.

    Args:
        incomplete: The start of the name.

    Returns:
        The completions.
    """
    folders = _beginning(incomplete, lambda path: path.is_dir() or path.suffix == ".gguf")
    found = (["atlas"] if "atlas".startswith(incomplete) else []) + folders
    alone, spaced = len(found) == 1, any(" " in folder for folder in folders)
    return [] if folders and (alone or spaced) and not _in_fish() else found


def _in_fish() -> bool:
    return os.environ.get("_SECANT_COMPLETE", "").endswith("_fish")


def _beginning(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """The paths that start with a text. Folders end in a slash; hidden files need a leading dot."""
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
    """An option that takes a path.

    Args:
        help: Its help text.
    """
    return typer.Option(parser=path_of, metavar="PATH", help=help, autocompletion=paths)


def path_argument(help: str) -> Any:
    """An argument that takes one path or several.

    Args:
        help: Its help text.
    """
    return typer.Argument(parser=path_of, metavar="PATH...", help=help, autocompletion=paths)


def convention_option(help: str) -> Any:
    """An option that takes a convention, as its label.

    Args:
        help: Its help text.
    """
    return typer.Option(
        parser=_convention_label, metavar=f"<{'|'.join(CHOICES)}>", help=help,
        autocompletion=lambda: list(NAMES),
    )  # fmt: skip


def named_option(parser: Callable[[str], str], names: Iterable[str], help: str) -> Any:
    """An option that takes one of some names.

    Args:
        parser: Returns the name, or raises BadArgument.
        names: The names.
        help: Its help text.
    """
    known = list(names)
    return typer.Option(parser=parser, metavar=f"<{'|'.join(known)}>", help=help, autocompletion=lambda: known)


def checked_option(check: Callable[[Any], object], help: str, *names: str) -> Any:
    """An option whose value, or each of whose values, is checked before a model is loaded.

    Args:
        check: Raises SecantError for a wrong value.
        help: Its help text.
        names: Its names; by default that of the parameter.
    """

    def callback(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else () if value is None else (value,):
            check(one)
        return value

    return typer.Option(*names, callback=callback, help=help)


def count_option(name: str, help: str, *names: str) -> Any:
    """An option that takes a count.

    Args:
        name: The name of the count in `secant.arguments.COUNTS`.
        help: Its help text.
        names: Its names; by default that of the parameter.
    """
    return checked_option(partial(counted, name), help, *names)


def _convention_label(label: str) -> str:
    """The label by which results name a convention. Raises BadArgument if there is no such convention."""
    return convention_named(label).label


# ------------------------------------------------------------------------------------------------- single options

MaxMemory = Annotated[
    str | None,
    checked_option(size_of, "The most memory to use, such as 4GiB; by default half of the free memory."),
]
Position = Annotated[int, typer.Option(help="The position whose output is explained; -1 is the last.")]
WithoutSinks = Annotated[
    bool,
    typer.Option("--without-sinks", help="Do not print the first token and attention sinks. Tables keep them."),
]
Seed = Annotated[int, typer.Option(callback=seeded, help="Seed of the random number generators.")]


# ------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True, kw_only=True)
class Opening(Group):
    """How a model is loaded, apart from its dtype."""

    device: Annotated[
        str | None,
        typer.Option(help="The device: cpu, cuda, mps or auto.", autocompletion=lambda: ["cpu", "cuda", "mps", "auto"]),
    ] = None
    attention: Annotated[
        str | None,
        typer.Option(help="The attention implementation: eager or sdpa.", autocompletion=lambda: ["eager", "sdpa"]),
    ] = None
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Replace packed weights with the plain ones that they represent.")
    ] = False
    revision: Annotated[str | None, typer.Option(help="The branch, tag or commit on the hub; also NAME@REVISION.")] = (
        None
    )
    subfolder: Annotated[str, typer.Option(help="The model's folder inside the repository or folder.")] = ""
    cache_dir: Annotated[
        str | None, typer.Option(help="The folder of the hub's cache.", autocompletion=paths, metavar="PATH")
    ] = None
    offline: Annotated[bool, typer.Option("--offline", help="Load hub models only from the cache.")] = False
    allow_remote_code: Annotated[
        bool, typer.Option("--allow-remote-code", help="Run the Python code in the model's folder.")
    ] = False
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights.")] = False

    @property
    def where(self) -> dict[str, Any]:
        """The keyword arguments of `secant.load` that say where a model is."""
        names = ("revision", "subfolder", "cache_dir", "offline")
        return {name: getattr(self, name) for name in names}

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of `secant.load`."""
        return {
            "device": self.device,
            "attention": self.attention,
            "dequantize": self.dequantize,
            **self.where,
            "allow_remote_code": self.allow_remote_code,
            "allow_pickle": self.allow_pickle,
        }

    def load(self, name: str, dtype: Dtype | None = None) -> LM:
        """Load a model.

        Args:
            name: Its folder or its name.
            dtype: The type to load it in; by default that of these options.

        Raises:
            SecantError: As `secant.load` does.
        """
        import secant as sc

        load = sc.load  # the imports are no part of the stage
        with stage(f"loading {named(name)}"):
            return load(name, **{"dtype": dtype and dtype.value, **self.how})


@dataclass(frozen=True, kw_only=True)
class Loading(Opening):
    """How a model is loaded, in one dtype."""

    dtype: Annotated[
        Dtype | None, typer.Option(help="Load the model in this type; by default in the type of its weights.")
    ] = None

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of `secant.load`."""
        return {"dtype": self.dtype and self.dtype.value, **super().how}


@dataclass(frozen=True, kw_only=True)
class Model(Loading):
    """One model."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", autocompletion=models,
            help="A folder, a GGUF file, a name on the Hugging Face hub, or atlas, which ships with secant.",
        ),
    ] = "atlas"  # fmt: skip

    def loaded(self) -> LM:
        """Load the model.

        Raises:
            SecantError: As `secant.load` does.
        """
        return self.load(self.model)


@dataclass(frozen=True, kw_only=True)
class Models(Loading):
    """One model or several."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", autocompletion=models,
            help="A folder, a GGUF file, a name on the Hugging Face hub (NAME@REVISION), or atlas (the default)."
            " Repeatable; 'run/checkpoint-*' means every checkpoint.",
        ),
    ] = None  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Their names; atlas if none is given. A pattern such as run/checkpoint-* stands for all that match.

        Raises:
            SecantError: One of them leads nowhere.
        """
        from secant.model.sources import Hub, expanded, place_of

        names = [one for name in self.model or ["atlas"] for one in expanded(name)]
        for name in names:
            place_of(name, Hub(**self.where))
        return names


@dataclass(frozen=True, kw_only=True)
class Prompting(Group):
    """How a prompt is encoded, and in which precision its linear system is evaluated."""

    precision: Annotated[
        Dtype | None,
        typer.Option(help="Evaluate the linear system in this type, which must be wider than the model's."),
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's chat message.")] = False
    seed: Seed = 0

    def prompt(self, text: str) -> Prompt:
        """The prompt of a text.

        Args:
            text: The text.

        Returns:
            The text, or with `--chat` one chat message by a user.

        Raises:
            BadPrompt: The text is empty.
        """
        return [{"role": "user", "content": text}] if self.chat else spoken(text)

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of functions that freeze prompts."""
        return {"precision": self.precision and self.precision.value, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Freezing(Prompting):
    """How a prompt is frozen, under one convention."""

    convention: Annotated[
        str | None,
        convention_option("Which exact affine map replaces each operation (see secant docs)."),
    ] = None

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of functions that freeze prompts."""
        return {"convention": self.convention, **super().how}

    def freeze(self, lm: LM, prompt: Prompt) -> Run:
        """Freeze a prompt.

        Args:
            lm: The model.
            prompt: The prompt.

        Raises:
            SecantError: As `secant.freeze` does.
        """
        import secant as sc

        return sc.freeze(lm, prompt, **self.how)


@dataclass(frozen=True, kw_only=True)
class Conventions(Prompting):
    """How a prompt is frozen, under one convention or several."""

    convention: Annotated[
        list[str] | None,
        convention_option("Which exact affine map replaces each operation (default: gate). Repeatable."),
    ] = None

    @property
    def conventions(self) -> list[str]:
        """Their labels; gate if none is given."""
        return self.convention or ["gate"]


@dataclass(frozen=True, kw_only=True)
class Measuring(Group):
    """What contributions are measured from."""

    origin: Annotated[
        str | None,
        named_option(
            origin_named,
            ORIGINS,
            "The embeddings that contributions of tokens are measured from (see secant docs). By default the "
            "reference under secants, otherwise zero.",
        ),
    ] = None
    baseline: Annotated[
        str,
        named_option(
            baseline_named,
            BASELINES,
            "What logits are measured from: their mean over the vocabulary, their mean weighted by the model's "
            "probabilities, or zero.",
        ),
    ] = "vocabulary"

    @property
    def how(self) -> dict[str, Any]:
        """The keyword arguments of functions that attribute."""
        return {"origin": self.origin, "baseline": self.baseline}


@dataclass(frozen=True, kw_only=True)
class Spectra(Group):
    """How much of each operator is decomposed and decoded."""

    k: Annotated[int, count_option("k", "Singular vectors of each token's block to keep.", "-k")] = 4
    top: Annotated[int, count_option("top", "Top tokens of each singular vector.")] = 8
