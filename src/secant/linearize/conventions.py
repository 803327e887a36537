"""Conventions: which exact affine map stands for each operation of the network.

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
is `zero` (embeddings of zero) or `random`: prompts of random tokens with the prompt's own first token, over which the
secants are averaged.

The module does not import torch, so that the command line can name conventions in its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from secant.errors import BadArgument

SECANT, FROZEN, ZERO, RANDOM = "secant", "frozen", "zero", "random"
SHARES = {"gate": 1.0, "up": 0.0, "half": 0.5, SECANT: 0.5}
"""The share of the map of a gated product in which the activation's output is frozen."""

GATES = tuple(SHARES)
ATTENTION = NORMS = (FROZEN, SECANT)
REFERENCES = (ZERO, RANDOM)

RANDOM_PROMPTS = 8
"""How many random prompts the secants of a `random` reference are averaged over."""


@dataclass(frozen=True)
class Convention:
    """Which exact affine map stands for each kind of operation.

    Attributes:
        gates: One of GATES, or the share of the map in which the activation's output is frozen.
        attention: Whether patterns are frozen or secants.
        norms: Whether the statistics of norms are frozen or secants.
        reference: The reference of all secants.
    """

    gates: str | float = "gate"
    attention: str = FROZEN
    norms: str = FROZEN
    reference: str = ZERO

    @property
    def share(self) -> float:
        """The share of the map of a gated product in which the activation's output is frozen."""
        return SHARES[self.gates] if isinstance(self.gates, str) else self.gates

    @property
    def secants(self) -> bool:
        """Whether any operation is replaced by a secant."""
        return SECANT in (self.gates, self.attention, self.norms)

    @property
    def frozen(self) -> Convention:
        """The same convention without secants: patterns and norms are frozen, and gates are shared by halves."""
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


def convention_named(convention: str) -> Convention:
    """Returns the convention of a name, or of its four parts joined by plus signs, such as 0.7+secant+frozen+zero.

    Args:
        convention: The name.

    Raises:
        BadArgument: There is no such convention.
    """
    if isinstance(convention, str):
        if convention in NAMES:
            return CONVENTIONS[ALIASES.get(convention, convention)]
        gates, *others = convention.split("+")
        try:
            share: str | float = gates if gates in GATES else float(gates)
        except ValueError:
            share = -1.0
        inside = isinstance(share, str) or 0 <= share <= 1
        known = len(others) <= 3 and all(
            o in kinds for o, kinds in zip(others, (ATTENTION, NORMS, REFERENCES), strict=False)
        )
        if inside and known:
            return Convention(share, *others)
    raise BadArgument(
        f"A convention is one of {', '.join(NAMES)}, or GATES+ATTENTION+NORMS+REFERENCE",
        repr(convention),
        "Choose one of them; docs/maths.md describes the parts.",
    )
