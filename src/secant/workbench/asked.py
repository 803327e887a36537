"""Checks of a browser's requests: sizes, types and names, before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from secant.analyses.targets import baseline_named
from secant.errors import BadArgument, integer, number, one_of, quoted, shown
from secant.linearize.conventions import convention_named
from secant.steering.forms import FORMS

CHARACTERS = 32_768
"""The most characters of a prompt."""

WORD = 400
"""The most characters of a token or a name."""

Field = Callable[[Any, str], Any]
"""A function that checks a value, given the value and its name."""


def text(most: int, *, empty: bool = False) -> Field:
    """Returns the check of a text.

    Args:
        most: The most characters that it may have.
        empty: Whether it may be empty.

    """

    def check(value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise BadArgument(f"{name} is a text", shown(value), "Send one.")
        if len(value) > most or not (value or empty):
            raise BadArgument(f"{name} has {0 if empty else 1} to {most} characters", f"{len(value)}", "Change it.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadArgument(f"{name} is Unicode text", "half a surrogate pair", "Remove it.") from None
        return value

    return check


def optional(check: Field) -> Field:
    """Returns the check of a value that can be missing.

    Args:
        check: The check of a value that is not missing.

    """
    return lambda value, name: None if value in (None, "") else check(value, name)


def truth(value: Any, name: str) -> bool:
    """Checks that a value is true or false.

    Args:
        value: The value.
        name: Its name.

    """
    if not isinstance(value, bool):
        raise BadArgument(f"{name} is true or false", shown(value), "Send one of them.")
    return value


def whole(least: int, most: int) -> Field:
    """Returns the check of a whole number.

    Args:
        least: The lower bound.
        most: The upper bound.

    """
    return lambda value, name: integer(value, least, most, f"{name} is a whole number", f"{name} = ")


def checked_by(checks: Mapping[str, Field], given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checked values of a JSON object.

    Args:
        checks: The check of each field.
        given: The object.
        defaults: The values of fields that may be missing.

    Raises:
        BadArgument: It is not an object, a field is unknown or missing, or a value is not valid.

    """
    if not isinstance(given, dict):
        raise BadArgument("A request is a JSON object", shown(given), "Send one.")
    if odd := sorted(str(name)[:40] for name in given.keys() - checks.keys()):
        raise BadArgument(f"A request has the fields {', '.join(checks)}", quoted(odd[0]), "Leave it out.")
    if lacking := sorted(checks.keys() - given.keys() - defaults.keys()):
        raise BadArgument("A request must have all of its fields", f"none called {lacking[0]}", "Add it.")
    return {name: check({**defaults, **given}[name], name) for name, check in checks.items()}


@dataclass(frozen=True)
class Asked:
    """A request for an explanation.

    Attributes:
        model: The model's name.
        prompt: The prompt.
        target: The token whose logit is explained; None for the predicted one.
        convention: The convention; None for secant's defaults.
        baseline: What logits are measured from.
        chat: Whether the prompt is sent as a chat message.

    """

    model: str
    prompt: str
    target: str | None = None
    convention: str | None = None
    baseline: str = "vocabulary"
    chat: bool = False

    @property
    def id(self) -> str:
        """A name that is the same for the same request."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:20]

    @classmethod
    def of(cls, given: Any) -> Asked:
        """Returns the request in a JSON object.

        Args:
            given: The object.

        Raises:
            BadArgument: It is not valid.

        """
        defaults = {field.name: field.default for field in fields(cls) if field.name not in ("model", "prompt")}
        return cls(**checked_by(EXPLANATION, given, defaults))


EXPLANATION: Mapping[str, Field] = {
    "model": text(WORD),
    "prompt": text(CHARACTERS),
    "target": optional(text(WORD)),
    "convention": optional(lambda value, name: convention_named(text(WORD)(value, name)).label),
    "baseline": lambda value, name: baseline_named(value),
    "chat": truth,
}
"""The fields of a request for an explanation."""

ABLATION: Mapping[str, Field] = {
    "what": lambda value, name: value if isinstance(value, str) and len(value) < 80 else whole(0, 10**6)(value, name),
    "by": text(WORD),
    "position": optional(whole(0, 10**6)),
}
"""The fields of a request to ablate."""

STEERING: Mapping[str, Field] = {
    "concept": text(CHARACTERS),
    "layer": whole(0, 10**6),
    "strength": lambda value, name: number(value, -1e6, 1e6, "A strength is a number"),
    "form": lambda value, name: one_of(value, list(FORMS), "A form"),
    "tokens": whole(1, 100),
}
"""The fields of a request to steer."""
