"""The certificate of a frozen network: the evidence that it is affine, and that it reproduces the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor

from secant.errors import ModelRefused, NotExact
from secant.foreign import explained
from secant.linearize.conventions import convention_named
from secant.linearize.network import Network
from secant.linearize.untouched import State, untouched
from secant.model.lm import LM
from secant.numeric import relative, wide

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}
"""The largest allowed error by dtype: of reconstruction by the model's dtype, of affinity by the precision."""


HIDDEN_OPERATION = (
    "A custom kernel or autograd function hides a nonlinearity: use the model's plain torch implementation, such as"
    " attention='eager'. Or rounding alone exceeds the tolerance."
)

OTHER_CONVENTION = "Secants from this reference are too steep: choose another reference or convention, such as 'gate'."


@dataclass(frozen=True)
class Certificate:
    """The evidence that a run is exact. All errors are relative norms.

    In half precision the tolerances catch only gross errors; `precision="float32"` tightens `affinity_tolerance`.

    Attributes:
        forward_equal: Whether the recorded logits equal the plain model's bit for bit; in float64, those of the model
            without its casts to float32.
        reconstruction: ‖J x + b - y‖ / ‖y‖, from products with J.
        affinity: The largest of two errors at a random input v: ‖J v + b - r(v)‖ / ‖r(v)‖ at any position, where r is
            a replay, and |u·J v - v·Jᵀ u| / (‖u‖ ‖J v‖) for a random u.
        readout: The error of the logits if the head is applied to J x + b in a pass whose input is v.
        stock: In float64, the difference between the logits of the stock model, which casts to float32, and these.
        constants: ‖b‖ / ‖y‖.
        ordinary: ‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J', if it was requested.
        tolerance: The largest allowed `reconstruction` and `readout`.
        affinity_tolerance: The largest allowed `affinity`.
        convention: The label of the convention, which says which exact affine map replaces each operation.
        dtype: The model's type.
        precision: The type in which the frozen network is evaluated.
        attention: The model's attention implementation.
        versions: The versions of the packages involved.
        operations: How many calls with live arguments there were, by function and kind of frozen form.
    """

    forward_equal: bool
    reconstruction: float
    affinity: float
    readout: float
    stock: float | None
    constants: float
    ordinary: float | None
    tolerance: float
    affinity_tolerance: float
    convention: str
    dtype: str
    precision: str
    attention: str
    versions: dict[str, str] = field(repr=False)
    operations: dict[str, int] = field(repr=False)

    def lines(self) -> list[str]:
        """Returns a summary in two lines: the errors, and how the run was computed."""
        equal = "forward bit-equal" if self.forward_equal else "forward differs"
        precision = "" if self.precision == self.dtype else f", system in {self.precision}"
        live, linear = sum(self.operations.values()), self.operations.get("linear", 0)
        secants = sum(count for name, count in self.operations.items() if name.endswith(": secant"))
        replaced = f"{live - linear - secants} of {live} operations frozen" + (
            f", {secants} secants" if secants else ""
        )
        return [
            f"{equal} · reconstruction {self.reconstruction:.1e} · affinity {self.affinity:.1e}",
            f"{self.dtype}{precision} · {self.attention} attention · convention {self.convention} · {replaced}",
        ]


def certified(network: Network, seed: int, unmeasured: Certificate) -> Certificate:
    """Returns the certificate with the measured errors of a network.

    Args:
        network: The network.
        seed: The seed of the random input that affinity is measured at.
        unmeasured: The certificate without these errors.

    Raises:
        NotExact: An error exceeds its tolerance.
        ModelRefused: An error is NaN.
    """
    with explained(NotExact, "The frozen network must have products with J and its transpose", HIDDEN_OPERATION):
        reconstruction, affinity, readout = _errors(network, seed)
    constants = (wide(network.biases["norm"][-1]).norm() / wide(network.points["norm"][-1]).norm()).item()
    certificate = replace(
        unmeasured, reconstruction=reconstruction, affinity=affinity, readout=readout, constants=constants
    )
    if isnan(reconstruction + affinity + readout):
        secants = convention_named(unmeasured.convention).secants
        raise not_numbers(network.lm, "NaN in its frozen factors", OTHER_CONVENTION if secants else None)
    _refuse(certificate)
    return certificate


def _errors(network: Network, seed: int) -> tuple[float, float, float]:
    """The errors of reconstruction, affinity and readout."""
    last, T = network.operator("norm", [-1]), len(network.input)
    op = network.operator("norm", range(T))
    x, b = op.input, wide(op.bias)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * x.std(correction=0)
    u = torch.randn(op.bias.shape, generator=generator, dtype=torch.float64).to(op.bias)
    Jx, Jv = wide(op @ torch.stack([x.flatten(), v.flatten()], dim=1)).T
    rebuilt, affine, adjoint = (Jx + b).view(T, -1), (Jv + b).view(T, -1), op.T @ u
    replayed = network.replay(v, norm=rebuilt)
    dot = (wide(u) @ Jv - wide(adjoint) @ wide(v).flatten()).abs() / (wide(u).norm() * Jv.norm())
    rows = [relative(*pair) for pair in zip(affine, replayed["norm"], strict=True)]
    logits = network.recording.values["logits"][-1]
    return relative(rebuilt[-1], last.output), max(*rows, dot.item()), relative(replayed["logits"][-1], logits)


def stock_error(lm: LM, ids: Sequence[int], logits: Tensor, state: State) -> float | None:
    """Returns the error of the stock float64 pass, which casts to float32; None if it can't run in float64.

    Args:
        lm: The model.
        ids: The tokens.
        logits: The logits of the pass without these casts.
        state: The state in which the model starts.
    """
    try:
        with untouched(lm.model, state):
            return relative(lm.logits(ids), logits)
    except RuntimeError:
        return None


def not_numbers(lm: LM, got: str, todo: str | None = None) -> ModelRefused:
    """Returns the error for a model whose pass is not finite; it names settings of the model that are NaN.

    Args:
        lm: The model.
        got: What is not finite.
        todo: What the user can do; by default this depends on the model's type.
    """
    odd = list(_nan_in(lm.model.config.to_dict()))
    todo = todo or ("Load it in bfloat16 or float32." if lm.dtype == torch.float16 else "Report its type.")
    return ModelRefused(
        "A model must compute finite numbers",
        f"{got}, with {' and '.join(odd)} = NaN in its configuration" if odd else f"{got}, in {lm.dtype}",
        "Correct its config.json." if odd else todo,
    )


def _nan_in(settings: Any) -> Iterator[str]:
    """The names of settings, at any depth, that are NaN."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, float) and isnan(value):
            yield name
        yield from _nan_in(value)


def _refuse(c: Certificate) -> None:
    """Raise NotExact if the certificate fails."""
    if not c.forward_equal:
        raise NotExact(
            "The recorded pass must equal the plain model's, bit for bit", "a different result",
            "The model's forward pass is not deterministic. Remove what is random in it.",
        )  # fmt: skip
    if c.stock is not None and not c.stock < 1e-3:
        raise NotExact(
            "A float64 pass may differ from the stock one only by its casts to float32, by at most 1e-03",
            f"{c.stock:.0e}",
            "Freeze the model in float32, and report its type.",
        )  # fmt: skip
    checks = ((c.reconstruction, c.tolerance, "reconstruction"), (c.affinity, c.affinity_tolerance, "affinity"))
    for error, tolerance, name in checks:
        if not error <= tolerance:
            raise NotExact(
                f"The frozen network must be affine and reproduce the model to {tolerance:.0e} in {c.precision}",
                f"{name} {error:.1e}",
                HIDDEN_OPERATION,
            )
    if not c.readout <= c.tolerance:
        raise NotExact(
            f"The head applied to J x + b must give the model's logits to {c.tolerance:.0e}",
            f"an error of {c.readout:.1e}",
            "The logits depend on more than the hidden states that the head reads: report the model's type.",
        )  # fmt: skip
