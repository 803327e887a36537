"""The forms of steering: how a residual stream h is combined with a direction a, at a strength s.

Torch is not imported before a form is used, so that the command line can name the forms in its help.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from secant.errors import number, one_of

if TYPE_CHECKING:
    from torch import Tensor


def mixed(h: Tensor, a: Tensor, strength: float) -> Tensor:
    """The mean (1 - s) h + s a.

    Args:
        h: The residual stream, [..., d].
        a: The direction, [..., d], which broadcasts to h.
        strength: The strength s.

    """
    return (1 - strength) * h + strength * a


def added(h: Tensor, a: Tensor, strength: float) -> Tensor:
    """The sum h + s ‖h‖ / (2 ‖a‖) a; h itself where a is 0.

    Args:
        h: The residual stream, [..., d].
        a: The direction, [..., d], which broadcasts to h.
        strength: The strength s.

    """
    import torch

    length = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    there = length > 0
    scale = strength * torch.linalg.vector_norm(h, dim=-1, keepdim=True) / (2 * length.masked_fill(~there, 1))
    return torch.where(there, h + scale * a, h)


@dataclass(frozen=True)
class Form:
    """A form of steering.

    Attributes:
        combined: Combines the residual stream and a direction with a strength.
        of_operator: Whether the direction is the operator's a; else it is the concept's own activation.
        least: The smallest strength.
        most: The largest strength.
        grid: Strengths to try.

    """

    combined: Callable[[Tensor, Tensor, float], Tensor]
    of_operator: bool
    least: float
    most: float
    grid: tuple[float, ...]


FORMS = {
    "mixture": Form(mixed, True, 0.0, 1.0, (0.2, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "additive": Form(added, True, -math.inf, math.inf, (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)),
    "activation": Form(added, False, -math.inf, math.inf, (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)),
}
"""Every form by name."""


def strength_of(form: str, strength: SupportsFloat) -> float:
    """A strength that is valid for a form.

    Args:
        form: One of FORMS.
        strength: The strength.

    Raises:
        BadArgument: There is no such form, or its strengths are different numbers.

    """
    of = FORMS[one_of(form, list(FORMS), "A form")]
    bounds = "a finite number" if math.isinf(of.most) else f"from {of.least:g} to {of.most:g}"
    return number(strength, of.least, of.most, f"The strength of a {form} is {bounds}", todo="Choose one of these.")
