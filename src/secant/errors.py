"""What can go wrong, one class per cause; every message gives the rule, what came, and what to do next."""

import unicodedata
from collections.abc import Iterable
from operator import index
from typing import Any

UNPRINTED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of characters that print nothing, or command a terminal."""


def printable(text: str) -> str:
    r"""A text with what does not print, or would command a terminal, as escapes.

    >>> print(printable("a\x1b[31m b"))
    a\x1b[31m b
    """
    return "".join(c if unicodedata.category(c) not in UNPRINTED else ascii(c)[1:-1] for c in text)


class SecantError(Exception):
    """Base of every error that secant raises on purpose: one line, ready to show to a user."""

    def __init__(self, rule: str, got: str, todo: str) -> None:
        self.rule, self.got, self.todo = rule, got, todo
        super().__init__(printable(" ".join(f"{rule}; got {got}. {todo}".split())))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.rule, self.got, self.todo)


class ModelNotFound(SecantError):
    """There is no such folder or hub model, or the hub could not be reached or refused access."""


class ModelRefused(SecantError):
    """The model was found and is not loaded: not a causal LM, remote code, pickled or missing weights."""


class BadWeights(SecantError):
    """A weight holds NaN, infinity, or numbers of another kind than a model multiplies with."""


class TrainingMode(SecantError):
    """The model is in training mode, so that its forward pass is random."""


class BadPrompt(SecantError):
    """The prompt is empty, too long, or names tokens that the vocabulary does not have."""


class BadArgument(SecantError):
    """An argument is outside what the function accepts."""


class NoRule(SecantError):
    """A torch function met a live tensor and the table of rules has no row for it."""


class NotExact(SecantError):
    """The held network does not reproduce the model within tolerance."""


class ReplayMismatch(SecantError):
    """A replay took another course than the recorded pass."""


class NoPoint(SecantError):
    """The network has no such point."""


class TooLarge(SecantError):
    """What was asked for does not fit in memory."""


class OutputFailed(SecantError):
    """A result could not be written; nothing half-written is left behind."""


class DamagedFile(SecantError):
    """A file is not what its name promises."""


class NotConverged(SecantError):
    """A solver did not reach its tolerance within its limit."""


def seeded(seed: Any) -> int:
    """A seed of random numbers. Raises BadArgument."""
    return integer(seed, 0, 2**63 - 1, "A seed is a whole number that is not negative", "seed = ")


def integer(value: Any, least: int, most: int, rule: str, name: str = "") -> int:
    """A whole number between two bounds. Raises BadArgument, with a rule that says what has them."""
    todo = f"Use {least} to {most}."
    try:
        found = index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise BadArgument(rule, f"{name}{value!r}, a {type(value).__name__}", todo)
    if not least <= found <= most:
        raise BadArgument(rule, f"{name}{found}", todo)
    return found


def chosen(values: Any, known: Iterable[str], rule: str) -> list[str]:
    """Some known names, each once, from one or several. Raises BadArgument, with a rule that says what they are."""
    known = list(known)
    every = [values] if isinstance(values, str) else list(values) if isinstance(values, Iterable) else []
    if not every or not all(isinstance(value, str) and value in known for value in every):
        raise BadArgument(f"{rule} are of {', '.join(known)}", f"{values!r:.60}", "Choose from them.")
    if len(set(every)) < len(every):
        raise BadArgument(f"{rule} are given once each", f"{values!r:.60}", "Leave out what comes twice.")
    return every
