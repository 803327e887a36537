"""Tokens as a person can read them, wherever they are shown."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
"""Categories of characters that print nothing."""


def visible(token: str) -> str:
    """A token so that every character of it can be seen: spaces, line ends, and what does not print."""
    return "".join(SIGNS.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in UNSEEN else c) for c in token)


def readable(text: str) -> str:
    """A text with its spaces as they are, and what else does not print in sight."""
    return " ".join(map(visible, text.split(" ")))


def named(model: str) -> str:
    """A model's name for a page that may be shown to others: of a folder, its own name and not where it is.

    >>> named("/home/me/models/tiny"), named("Qwen/Qwen3-4B")
    ('tiny', 'Qwen/Qwen3-4B')
    """
    return PurePath(model).name if PurePath(model).is_absolute() else model
