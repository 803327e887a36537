"""What arguments accept whatever the model is, in one table. The command line checks it before a model is loaded.

Nothing slow is imported, so that a wrong option is refused at once.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from secant.errors import BadArgument, BadPrompt, NoPoint, integer, quoted, share


class Count(NamedTuple):
    """The bounds of a whole number.

    Attributes:
        rule: What it counts, for the message.
        least: The lower bound.
        most: The upper bound.

    """

    rule: str
    least: int
    most: int


COUNTS = {
    "k": Count("A block has at least one singular vector", 1, 10**6),
    "layer": Count("Layers are counted from 0", 0, 10**6),
    "limit": Count("A limit is at least one prompt", 1, 2**63 - 1),
    "max-tokens": Count("A prompt has at least one token", 1, 10**6),
    "port": Count("A port is a number", 0, 65_535),
    "resamples": Count("An interval requires at least 100 resamples", 100, 10**6),
    "runs": Count("At least one run is kept", 1, 1000),
    "samples": Count("A test requires at least one random direction", 1, 10**7),
    "shard": Count("A shard requires at least one prompt", 1, 10**6),
    "steps": Count("A continuation has at least one step", 1, 10**6),
    "threads": Count("A worker requires at least one thread", 1, 4096),
    "tokens": Count("A continuation requires at least one token", 1, 2**31),
    "top": Count("A direction has at least one top token", 1, 10**9),
    "workers": Count("A study requires at least one worker", 1, 10**6),
}
"""Every count by name. A model, or a prompt, may allow less."""

POINT = re.compile(r"embed|norm|logits|layers\.\d+(\.(attn|mlp|mixer|attn\.heads(\.\d+)?))?")
"""The names of activations."""


def counted(name: str, value: Any) -> int:
    """A count.

    Args:
        name: Its name in COUNTS.
        value: The number.

    Raises:
        BadArgument: `value` is not a whole number within the bounds.

    """
    rule, least, most = COUNTS[name]
    return integer(value, least, most, rule, f"{name} = ")


def level_of(level: Any) -> float:
    """A false discovery rate.

    Args:
        level: The number.

    Raises:
        BadArgument: It is not above 0 and below 1.

    """
    rule = "A level is the share of false positives among flagged vectors, above 0 and below 1"
    return share(level, rule, "level = ", "Use 0.05.")


NOTHING = ("A prompt must have at least one token", "an empty one", "Give some text.")
"""What is wrong with an empty prompt: the arguments of BadPrompt."""


def spoken(prompt: str) -> str:
    """A prompt that is a text.

    Args:
        prompt: The text.

    Raises:
        BadPrompt: It is empty.

    """
    if not prompt:
        raise BadPrompt(*NOTHING)
    return prompt


def token_text(text: str) -> str:
    """The text that names a token.

    Args:
        text: The text.

    Raises:
        BadPrompt: It is empty.

    """
    if not text:
        raise BadPrompt("A target is one token of the vocabulary", "an empty text", "Give its text, or its id.")
    return text


def point_named(name: str) -> str:
    """The name of an activation, which a model may not have.

    Args:
        name: The name.

    Raises:
        NoPoint: No model has an activation of that name.

    """
    if not POINT.fullmatch(name):
        raise NoPoint(
            "Activations are called embed, layers.3, layers.3.attn, layers.3.mlp, layers.3.attn.heads.0, norm, logits",
            repr(name[:60]), "Choose one of them, with the number of a layer.",
        )  # fmt: skip
    return name


def size_of(memory: float | str) -> float:
    """Bytes of a size.

    Args:
        memory: A number of bytes, or a size such as "512MiB", "4GB" or "4g".

    Raises:
        BadArgument: `memory` is neither.

    >>> size_of("1.5KiB"), size_of("2 GB"), size_of(100)
    (1536.0, 2000000000.0, 100.0)

    """
    if isinstance(memory, int | float) and not isinstance(memory, bool) and 0 < memory < math.inf:
        return float(memory)
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?b)?", str(memory).strip().lower())
    if not found or float(found[1]) <= 0:
        raise BadArgument("Memory is a number of bytes, or a size", quoted(memory), "Write it like 4GiB or 500MB.")
    return float(found[1]) * (1000 if found[3] == "b" else 1024) ** (1 + "kmgt".find(found[2]) if found[2] else 0)
