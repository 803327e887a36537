"""Targets: what an attribution explains, as a linear functional of an activation at one position.

Adding a constant to all logits does not change the softmax, so a single logit says nothing: a contribution to it may be
the same for every token of the vocabulary. By default a logit is therefore measured from the vocabulary's mean logit.
For weights that sum to 0, as for the difference of two logits, the baseline makes no difference.

Torch is not imported before a target is made, so that the command line can name baselines in its help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from secant.errors import BadArgument, number, one_of, shown
from secant.text import visible

if TYPE_CHECKING:
    from torch import Tensor

    from secant.linearize.run import Run
    from secant.model.lm import LM

    Token: TypeAlias = str | SupportsIndex
    Wanted: TypeAlias = Token | Sequence[Token] | Mapping[Token, float] | Tensor

BASELINES = {
    "vocabulary": "the vocabulary's mean logit",
    "expected": "the mean logit weighted by the model's own probabilities",
    "none": "zero",
}
"""What a logit is measured from."""


@dataclass(frozen=True, eq=False)
class Target:
    """A linear functional of an activation: what is attributed.

    Attributes:
        name: The token's text, or what else is attributed.
        label: The same as views write it, with `versus`.
        versus: The text of the token whose logit is subtracted, if there is one.
        baseline: What a logit is measured from: one of BASELINES; "none" if it makes no difference.
        point: The activation's name: "logits", "norm", or one inside the network.
        readout: Whether an activation inside is read out as logits, by the final norm at its own statistics and the
            head.
        weights: The functional, `[n]`, one element for each column of the activation, or of its logits.
    """

    name: str
    label: str
    versus: str | None
    baseline: str
    point: str
    readout: bool
    weights: Tensor = field(repr=False)


def baseline_named(name: str) -> str:
    """Returns the name of a baseline.

    Args:
        name: The name.

    Raises:
        BadArgument: There is no such baseline.
    """
    return one_of(name, list(BASELINES), "A baseline")


def target_of(
    run: Run, position: int, target: Wanted | None, versus: Token | None, baseline: str, point: str | None
) -> Target:
    """Returns what to attribute at one position of a run.

    Args:
        run: The run.
        position: The position, from 0.
        target: As in `attribute`, like the other arguments.
        versus: A token whose logit is subtracted.
        baseline: One of BASELINES.
        point: The activation; by default the logits, and of a vector the norm.

    Raises:
        BadPrompt: The vocabulary does not have a token.
        BadArgument: There is no such baseline, a token is named twice, or the vector does not fit.
        NoPoint: The model has no such activation.
    """
    from torch import Tensor

    baseline_named(baseline)
    if isinstance(target, Tensor):
        if versus is not None:
            raise BadArgument("A vector is not compared with a token", shown(versus), "Subtract the token's vector.")
        return _vector(run, position, target, point or "norm")
    weights = _weights(run, position, target, versus)
    width = run.logits.shape[1]
    e = run.logits.new_zeros(width, dtype=run.network.precision)
    for token, weight in weights.items():
        e[token] += weight
    total = sum(weights.values())
    if total == 0:
        baseline = "none"
    elif baseline == "vocabulary":
        size = min(run.lm.size, width)
        e[:size] -= total / size
    elif baseline == "expected":
        e -= total * run.logits[position].detach().double().softmax(0).to(e)
    where = "logits" if point in (None, "norm") else point
    other = None if versus is None else run.lm.text(run.lm.token(versus))
    own = [i for i in weights if versus is None or i != run.lm.token(versus)]
    name = ", ".join(map(run.lm.text, own))
    label = ", ".join(visible(run.lm.text(i)) for i in own)
    if isinstance(target, Mapping):
        label = " ".join(f"{weights[i]:+g} {visible(run.lm.text(i))}" for i in own)
    elif len(own) > 1:
        label = f"mean of {label}"
    if other is not None:
        label += f" over {visible(other)}"
    return Target(name, label, other, baseline, where, where != "logits", e)


def _weights(run: Run, position: int, target: Wanted | None, versus: Token | None) -> dict[int, float]:
    """The weight of each token's logit."""
    if target is None:
        weights = {predicted(run, position): 1.0}
    elif isinstance(target, Mapping):
        weights = _once(run.lm, list(target), [number(w, -1e30, 1e30, "A weight is a number") for w in target.values()])
    elif isinstance(target, Sequence) and not isinstance(target, str):
        weights = _once(run.lm, target, [1 / max(1, len(target))] * len(target))
    else:
        weights = {run.lm.token(target): 1.0}
    if versus is None:
        return weights
    other = run.lm.token(versus)
    if other in weights:
        raise BadArgument(
            "A token must be compared with a different one", f"{run.lm.text(other)!r} twice", "Choose two."
        )
    return {**weights, other: -sum(weights.values())}


def _once(lm: LM, tokens: Sequence[Token], weights: Sequence[float]) -> dict[int, float]:
    """The weight of each token, which may be named once."""
    ids = [lm.token(token) for token in tokens]
    if not ids:
        raise BadArgument("At least one token is attributed", "none", "Name a token, or leave the target out.")
    if len(set(ids)) < len(ids):
        twice = next(lm.text(i) for i in ids if ids.count(i) > 1)
        raise BadArgument("Each token is given once", f"{twice!r} twice", "Remove the repetition.")
    return dict(zip(ids, weights, strict=True))


def _vector(run: Run, position: int, vector: Tensor, point: str) -> Target:
    """A direction of an activation."""
    width = len(run.logits[position]) if point == "logits" else len(run.operator("embed", point, position).bias)
    if tuple(vector.shape) != (width,):
        got = " x ".join(map(str, vector.shape)) or "a number"
        raise BadArgument(
            f"A vector at {point} has {width} elements", got, "Give one of this length, or name its point."
        )
    if not vector.is_floating_point() or not bool(vector.isfinite().all()):
        raise BadArgument("A vector has finite elements", f"{vector.dtype}", "Give a vector of floating-point numbers.")
    e = vector.detach().to(run.logits.device, run.network.precision)
    return Target("a vector", f"a vector at {point}", None, "none", point, False, e)


def predicted(run: Run, position: int) -> int:
    """Returns the token predicted at a position; if logits are equal, the lowest id, as in `run.prediction`.

    Args:
        run: The run.
        position: The position, from 0.
    """
    import torch

    from secant.numeric import wide

    return int(torch.sort(wide(run.logits[position]), descending=True, stable=True).indices[0])
