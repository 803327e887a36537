"""Readable forms of tokens, texts and names, wherever they are shown."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
NAMES = {
    "\u00ad": "SHY", "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM",
    "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ",
    "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM",
}  # fmt: skip
"""Characters that print nothing and have a short name, which Unicode gives them."""

UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
"""Unicode categories of characters that print nothing."""


def visible(token: str) -> str:
    """A token with every character visible: spaces, line ends, and characters that print nothing."""
    return "".join(map(_visible, token))


def _visible(c: str) -> str:
    """A character; one that prints nothing is replaced by a sign, its name or its number."""
    if c in SIGNS:
        return SIGNS[c]
    if c in NAMES:
        return f"‹{NAMES[c]}›"
    return f"\\x{ord(c):02x}" if unicodedata.category(c) in UNSEEN else c


def readable(text: str) -> str:
    """A text with its spaces unchanged, and all other characters that print nothing made visible."""
    return " ".join(map(visible, text.split(" ")))


def excerpt(text: str, most: int = 40) -> str:
    """The beginning of a text, in quotes, with characters that print nothing made visible.

    >>> excerpt("The bridge out of Marin", 12), excerpt("the")
    ("'The bridge o…'", "'the'")
    """
    return f"'{readable(text[:most])}{'…' if len(text) > most else ''}'"


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "row"), count(2500, "token")
    ('1 row', '2,500 tokens')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def named(model: str) -> str:
    """A model's name for pages that may be shown to others: the name of a folder, without its path.

    >>> named("/home/me/models/tiny"), named("Qwen/Qwen3-4B")
    ('tiny', 'Qwen/Qwen3-4B')
    """
    return PurePath(model).name if PurePath(model).is_absolute() else model
