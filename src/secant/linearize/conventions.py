"""Conventions: which exact affine map replaces each operation of the network.

Exactness asks only that each operation f is replaced by an affine map that agrees with it at the prompt's x, which is
f(x) + L (v - x) with a constant L. The chain of these maps is then exact, whatever L is. A convention chooses L for
three kinds of operation:

- *gates*: activations and the products of an activation with another tensor of its size. `gate` freezes the
  activation's output (the paper's choice for Llama, Qwen, Gemma, Mistral and OLMo), `up` freezes the other factor (its
  code for Phi), `half` is the mean of the two, and a number between 0 and 1 is the share of the map that leaves the
  gate's other factor live: 1 is `gate`, 0 is `up`. `secant` follows the reference.
- *attention*: the pattern is `frozen`, or a `secant`, in which queries and keys are live.
- *norms*: the statistic of a norm is `frozen`, or a `secant`.

A *secant* goes through the operation's values at the prompt and at a reference: f(x) - f(r) = S (x - r). The reference
is `zero` (embeddings of zero) or `random`: a prompt of random tokens that begins with the prompt's own first token.

The module does not import torch, so that the command line can name conventions in its help.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any, TypeAlias

from secant.errors import BadArgument

SECANT, FROZEN, ZERO, RANDOM = "secant", "frozen", "zero", "random"
SHARES = {"gate": 1.0, "up": 0.0, "half": 0.5, SECANT: 0.5}
"""The share of the map of a gated product in which the activation's output is frozen."""

GATES = tuple(SHARES)
ATTENTION = NORMS = (FROZEN, SECANT)
REFERENCES = (ZERO, RANDOM)


@dataclass(frozen=True)
class Convention:
    """Which exact affine map replaces each kind of operation. The text of a convention is its label.

    >>> Convention(0.7, attention="secant").label
    '0.7+secant+frozen+zero'
    >>> Convention("half").label
    'half'

    Attributes:
        gates: "gate", "up", "half" or "secant", or the share of the map in which the activation's output is frozen,
            from 0 to 1.
        attention: Whether patterns are "frozen" or a "secant".
        norms: Whether the statistics of norms are "frozen" or a "secant".
        reference: The reference of all secants: "zero" or "random".

    Raises:
        BadArgument: A part has another value.
    """

    gates: str | float = "gate"
    attention: str = FROZEN
    norms: str = FROZEN
    reference: str = ZERO

    def __post_init__(self) -> None:
        share = self.gates
        if isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1:
            object.__setattr__(self, "gates", float(share))
        elif not (isinstance(share, str) and share in GATES):
            raise _wrong(f"gates {share!r:.60}")
        kinds = {"attention": ATTENTION, "norms": NORMS, "reference": REFERENCES}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                raise _wrong(f"{name} {getattr(self, name)!r:.60}")

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """Its name, or its four parts joined by plus signs. `convention_named` returns the same convention for it."""
        named = (name for name, convention in CONVENTIONS.items() if convention == self)
        return next(named, "+".join(map(str, astuple(self))))

    @property
    def share(self) -> float:
        """The share of the map of a gated product in which the activation's output is frozen."""
        return SHARES[self.gates] if isinstance(self.gates, str) else self.gates

    @property
    def varies(self) -> bool:
        """Whether it depends on a seed: contributions are then averaged over several random references."""
        return self.secants and self.reference == RANDOM

    @property
    def secants(self) -> bool:
        """Whether any operation is replaced by a secant."""
        return SECANT in (self.gates, self.attention, self.norms)

    @property
    def frozen(self) -> Convention:
        """The same convention without secants: patterns and norms are frozen, and half of each gated product."""
        return Convention("half" if self.gates == SECANT else self.gates)


CONVENTIONS = {
    "gate": Convention(),
    "up": Convention("up"),
    "half": Convention("half"),
    "halves": Convention("half", SECANT),
    "secant": Convention(SECANT, SECANT, SECANT, RANDOM),
}
"""The conventions by name."""

ALIASES = {"paper": "gate", "relevance": "half"}
"""Other names: what the paper does, and how relevance propagation shares a product."""

NAMES = (*CONVENTIONS, *ALIASES)


FOR_OPERATORS, FOR_CONTRIBUTIONS = "gate", "secant"
"""The defaults. Spectra and decoded directions say most with frozen factors, where b is small and J_t x_t decodes to
what a token is about. Contributions go best with what the model does without a token under secants
(docs/explanation/science.md).
"""


Named: TypeAlias = str | Convention
"""What is accepted as a convention: a `Convention`, one of NAMES, or parts joined by plus signs."""

CHOICES = f"{', '.join(NAMES)}, or GATES+ATTENTION+NORMS+REFERENCE such as 0.7+secant+frozen+zero"
"""The labels that users can choose, for messages."""


def convention_named(convention: Named) -> Convention:
    """Returns the convention with a label.

    >>> convention_named("paper") == convention_named("gate") == Convention("gate")
    True
    >>> convention_named("0.7+secant")
    Convention(gates=0.7, attention='secant', norms='frozen', reference='zero')

    Args:
        convention: One of NAMES, or one to four parts joined by plus signs: gates, attention, norms and reference, as
            in `Convention`. A `Convention` is returned as it is.

    Raises:
        BadArgument: There is no such convention.
    """
    if isinstance(convention, Convention):
        return convention
    if not isinstance(convention, str):
        raise _wrong(f"{convention!r:.60}")
    if convention in NAMES:
        return CONVENTIONS[ALIASES.get(convention, convention)]
    gates, *others = convention.split("+")
    try:
        return Convention(gates if gates in GATES else float(gates), *others)
    except (ValueError, TypeError, BadArgument):  # no number, too many parts, or a wrong one
        raise _wrong(repr(convention[:60])) from None


def conventions_named(conventions: Any) -> list[Convention]:
    """Returns one convention or several as a list, each once.

    Args:
        conventions: A label or a `Convention`, or several.

    Raises:
        BadArgument: One is wrong, there is none, or one is repeated, under whatever name.
    """
    alone = isinstance(conventions, Named) or not isinstance(conventions, Iterable)
    found = [convention_named(each) for each in ([conventions] if alone else conventions)]
    if not found:
        raise BadArgument("At least one convention is required", "none", f"Choose from {', '.join(NAMES)}.")
    if len(set(found)) < len(found):
        raise BadArgument(
            "Conventions are given once each", ", ".join(each.label for each in found), "Remove the repetition."
        )
    return found


def _wrong(got: str) -> BadArgument:
    """The error for what is not a convention."""
    return BadArgument(
        f"A convention is one of {CHOICES}",
        got,
        "Choose one; docs/explanation/conventions.md describes the parts.",
    )
