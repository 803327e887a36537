"""Origins: the embeddings x₀ that contributions are measured from.

The frozen network is affine, so y = J x + b = J (x - x₀) + (J x₀ + b) for any x₀. A token contributes J_t (x_t - x₀_t),
and J x₀ is one more constant. The sum is as exact as from zero.

Torch is not imported before an origin is computed, so that the command line can name origins in its help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secant.errors import BadArgument, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from secant.linearize.run import Run

GIVEN = "given"
"""The name of an origin that the user gives as embeddings."""

CHUNK = 2**22
"""The approximate number of elements of the embedding that are averaged in one batch."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The embeddings that contributions are measured from.

    Attributes:
        name: One of ORIGINS, or "given".
        embeddings: x₀, one row for each token of the prompt, as in the network's input.
    """

    name: str
    embeddings: Tensor = field(repr=False)

    @property
    def moved(self) -> bool:
        """Whether it is anything but zero."""
        return self.name != "zero"

    @property
    def line(self) -> str:
        """What contributions are measured from, in one line."""
        return origin_line(self.name)


def origin_line(name: str) -> str:
    """Returns what an origin is, in one line.

    Args:
        name: One of ORIGINS, or "given".
    """
    return ORIGINS[name][0] if name in ORIGINS else "given embeddings"


def _zero(run: Run) -> Tensor:
    return run.input.new_zeros(run.input.shape)


def _mean(run: Run) -> Tensor:
    """The mean embedding of all tokens of the vocabulary, at every position."""
    import torch

    from secant.linearize.network import running
    from secant.numeric import wide

    lm, total = run.lm, torch.zeros(run.input.shape[1], dtype=torch.float64)
    step = max(1, CHUNK // run.input.shape[1])
    with running(lm, lm.dtype, state=run.network.recording.state), torch.no_grad():
        for start in range(0, lm.size, step):
            total += wide(lm.embed(range(start, min(start + step, lm.size)))).sum(0)
    return (total / lm.size).expand(run.input.shape)


def _reference(run: Run) -> Tensor:
    """The embeddings of the convention's reference."""
    from secant.linearize.conventions import convention_named
    from secant.linearize.network import reference

    recording, convention = run.network.recording, convention_named(run.network.recording.convention)
    if not convention.secants:
        raise BadArgument(
            "The origin is the reference only in conventions with secants", f"the convention {convention.label}",
            'Use the origin "mean", or freeze the prompt in the convention "secant".',
        )  # fmt: skip
    return reference(run.lm, run.input, convention, recording.state, recording.seeds)


ORIGINS: dict[str, tuple[str, Callable[[Run], Tensor]]] = {
    "zero": ("embeddings of zero", _zero),
    "mean": ("the vocabulary's mean embedding", _mean),
    "reference": (
        "the convention's reference; a random one begins with the prompt's first token, which contributes 0",
        _reference,
    ),
}
"""A description of each origin, and the function of a run that computes it."""


def origin_named(name: str) -> str:
    """Returns the name of an origin.

    Args:
        name: The name.

    Raises:
        BadArgument: There is no such origin.
    """
    if name not in ORIGINS:
        raise BadArgument(f"An origin is one of {', '.join(ORIGINS)}", quoted(name), "Choose one of them.")
    return name


def origin_of(run: Run, origin: str | Tensor | Origin | None = None) -> Origin:
    """Returns the embeddings that the contributions of a run are measured from.

    Args:
        run: The run.
        origin: One of ORIGINS; embeddings, `[T, d]` or `[d]` for all tokens; or an `Origin`, which is returned. By
            default the reference if it is random, and zero otherwise.

    Raises:
        BadArgument: It is none of these.
    """
    if isinstance(origin, Origin):
        return origin
    if origin is None:
        from secant.linearize.conventions import convention_named

        origin = "reference" if convention_named(run.certificate.convention).varies else "zero"
    T, d = run.input.shape
    x = run.network.input
    if isinstance(origin, str):
        found = ORIGINS[origin_named(origin)][1](run).to(x)
        return Origin(origin, found.repeat_interleave(x.shape[1] // found.shape[1], 1))
    if tuple(origin.shape) not in ((d,), (T, d)):
        got = " x ".join(map(str, origin.shape)) or "a number"
        raise BadArgument(
            f"An origin has a row of {d} elements, or one for each of the {T} tokens", got,
            "Give embeddings as the model has them, [d] or [T, d].",
        )  # fmt: skip
    if not origin.is_floating_point() or not bool(origin.isfinite().all()):
        raise BadArgument("An origin has finite elements", f"{origin.dtype}", "Give embeddings, as run.input has them.")
    return Origin(GIVEN, origin.detach().to(x).expand(T, d).repeat_interleave(x.shape[1] // d, 1))
