"""Tokens as a person can read them, wherever they are shown."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath
from typing import Any

SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
"""Categories of characters that print nothing."""


def visible(token: str) -> str:
    """A token so that every character of it can be seen: spaces, line ends, and what does not print."""
    return "".join(SIGNS.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in UNSEEN else c) for c in token)


def named(model: str) -> str:
    """A model's name for a page that may be shown to others: of a folder, its own name and not where it is.

    >>> named("/home/me/models/tiny"), named("Qwen/Qwen3-4B")
    ('tiny', 'Qwen/Qwen3-4B')
    """
    return PurePath(model).name if PurePath(model).is_absolute() else model


def certified(c: Any) -> str:
    """What a certificate says, in a line."""
    equal = "forward bit-equal" if c.forward_equal else "forward differs"
    return f"{equal} · reconstruction {c.reconstruction:.1e} · affinity {c.affinity:.1e}"
