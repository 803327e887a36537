"""Readable forms of tokens, texts and names, wherever they are shown."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
"""Unicode categories of characters that print nothing."""


def visible(token: str) -> str:
    """A token with every character visible: spaces, line ends, and characters that print nothing."""
    return "".join(SIGNS.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in UNSEEN else c) for c in token)


def readable(text: str) -> str:
    """A text with its spaces as they are, and other characters that print nothing made visible."""
    return " ".join(map(visible, text.split(" ")))


def named(model: str) -> str:
    """A model's name for pages that may be shown to others: the name of a folder, without its path.

    >>> named("/home/me/models/tiny"), named("Qwen/Qwen3-4B")
    ('tiny', 'Qwen/Qwen3-4B')
    """
    return PurePath(model).name if PurePath(model).is_absolute() else model
