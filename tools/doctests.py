"""Doctests in docstrings as blocks of code, for the pages that mkdocstrings makes. mkdocs.yml names the extension."""

from __future__ import annotations

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts doctests that stand outside of a section between fences."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object.

        Args:
            obj: The object.
        """
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Returns a docstring with fences around each paragraph that begins with a doctest.

    Args:
        text: The docstring.
    """
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{own}\n```" if own.startswith(">>> ") else own for own in paragraphs)
