"""The prompts of a study."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A prompt of a study: its number, from 0, its text or chat messages, and the category that it is counted in."""

    number: int
    prompt: str | list[dict[str, str]]
    category: str | None = None

    def text(self) -> str:
        """The prompt for people: its text, or the contents of its messages."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message["content"] for message in self.prompt)


Prompts = Sequence[str | list[dict[str, str]] | Item]


def given(prompts: Prompts) -> list[Item]:
    """Prompts as items."""
    return [p if isinstance(p, Item) else Item(i, p) for i, p in enumerate(prompts)]


def digest(items: Sequence[Item]) -> str:
    """A digest of all prompts and categories."""
    return hashlib.sha256(repr([(i.prompt, i.category) for i in items]).encode()).hexdigest()


def read(path: str, column=None, category=None, chat=False, split=None, limit=None):
    """Stand-in."""
    from secant.files import lines

    return given(lines(path, "Prompts"))
