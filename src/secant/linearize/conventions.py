"""Conventions: which exact affine map replaces each operation of the network.

The frozen network is exact if each operation f is replaced by an affine map f(x) + L (v - x), which agrees with f at
the prompt's x. L may be any constant. A convention chooses L for three kinds of operation:

- *gates*: activations and the products of an activation with another tensor of its size. `gate` freezes the
  activation's output (the paper's choice for Llama, Qwen, Gemma, Mistral and OLMo), `up` freezes the other factor (the
  choice of the paper's code for Phi), and `half` is the mean of these two maps. A number w between 0 and 1 is w times
  the map of `gate` plus 1 - w times that of `up`. `secant` is the secant.
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

from secant.errors import BadArgument, quoted

SECANT, FROZEN, ZERO, RANDOM = "secant", "frozen", "zero", "random"
SHARES = {"gate": 1.0, "up": 0.0, "half": 0.5, SECANT: 0.5}
"""The weight of the map of `gate`, in a mean with that of `up`, by the name of the gates."""

GATES = tuple(SHARES)
ATTENTION = NORMS = (FROZEN, SECANT)
REFERENCES = (ZERO, RANDOM)


@dataclass(frozen=True)
class Convention:
    """Which exact affine map replaces each kind of operation. `str` of a convention is its label.

    >>> Convention(0.7, attention="secant").label
    '0.7+secant+frozen+zero'
    >>> Convention("half").label
    'half'

    Attributes:
        gates: "gate", "up", "half" or "secant", or a number from 0 to 1: the weight of the map of "gate", in a mean
            with that of "up".
        attention: Whether patterns are "frozen" or a "secant".
        norms: Whether the statistics of norms are "frozen" or a "secant".
        reference: The reference of all secants: "zero" or "random".

    Raises:
        BadArgument: An attribute has a different value.
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
            raise _wrong(f"gates {quoted(share)}")
        kinds = {"attention": ATTENTION, "norms": NORMS, "reference": REFERENCES}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                raise _wrong(f"{name} {quoted(getattr(self, name))}")

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """Its name, or its four parts joined by plus signs. `convention_named` returns the convention of a label."""
        named = (name for name, convention in CONVENTIONS.items() if convention == self)
        return next(named, "+".join(map(str, astuple(self))))

    @property
    def share(self) -> float:
        """The weight of the map of `gate`, in a mean with that of `up`."""
        return SHARES[self.gates] if isinstance(self.gates, str) else self.gates

    @property
    def varies(self) -> bool:
        """Whether it depends on a seed, so that contributions are averaged over several random references."""
        return self.secants and self.reference == RANDOM

    @property
    def secants(self) -> bool:
        """Whether any operation is replaced by a secant."""
        return SECANT in (self.gates, self.attention, self.norms)

    @property
    def frozen(self) -> Convention:
        """The same convention without secants: patterns and norms are frozen, and gates under "secant" are "half"."""
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
"""Other names: the paper's choice, and how relevance propagation splits a product."""

NAMES = (*CONVENTIONS, *ALIASES)


FOR_OPERATORS, FOR_CONTRIBUTIONS = "gate", "secant"
"""The default conventions. Operators and spectra use frozen factors, with which b is small and J_t x_t decodes to what
token t is about. Contributions use secants, with which they best predict what the model does without a token
(docs/explanation/science.md).
"""


Named: TypeAlias = str | Convention
"""What arguments named `convention` accept: a `Convention`, one of NAMES, or parts joined by plus signs."""

CHOICES = (*NAMES, "PARTS")
"""What users can choose, as help texts and messages list it: PARTS are GATES+ATTENTION+NORMS+REFERENCE."""


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
        raise _wrong(quoted(convention))
    if convention in NAMES:
        return CONVENTIONS[ALIASES.get(convention, convention)]
    gates, *others = convention.split("+")
    try:
        return Convention(gates if gates in GATES else float(gates), *others)
    except (ValueError, TypeError, BadArgument):  # not a number, too many parts, or a wrong one
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
    """The error for a value that is not a convention."""
    return BadArgument(
        f"A convention is one of {', '.join(CHOICES)}",
        got,
        "Choose one; PARTS are like 0.7+secant+frozen+zero, and docs/explanation/conventions.md describes them.",
    )
