"""The border: what someone else's code or files make Python raise becomes one line that says whose fault it is.

A model's forward pass, its tokenizer and chat template, its configuration and the files of a study are not ours: what
they raise is an answer about them. What is raised anywhere else and is no SecantError is a fault of secant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secant.errors import ModelRefused, SecantError
from secant.resources import is_out_of_memory

COMPILED = ("A model is run as plain torch", "a compiled region", "Give the model without torch.compile.")


@contextmanager
def explained(kind: type[SecantError], rule: str, todo: str, got: str = "an error in its own code") -> Iterator[None]:
    """Raise `kind` for whatever the block raises, with its class and text; errors of ours, and memory that is full,
    stay what they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SecantError) or is_out_of_memory(error):
            raise
        if type(error).__module__.startswith("torch._dynamo"):
            raise ModelRefused(*COMPILED) from error
        raise kind(rule, f"{got}, {said_by(error)}", todo) from error


def said_by(error: BaseException, most: int = 200) -> str:
    """An error's class and text in one line, cut to a length.

    >>> said_by(ValueError("not  so."))
    'ValueError: not so'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:most].rstrip(". :")
