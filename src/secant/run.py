"""Freeze a model at a prompt: one recorded pass, the affine network that it holds, and a certificate that it is exact.

With every input-dependent factor held, the network is y = Σ_t J_t x_t + b: x_t the embeddings of the prompt's tokens,
y the final-normed hidden state before the head (J. Golden, TMLR 2025, arXiv 2505.24293, equation 5, where b is left
out), and b what the model's own constants contribute: the held network at zero input.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secant.errors import BadArgument, NoPoint, NotExact
from secant.model import LM, Prompt, dtype_of, versions
from secant.operator import Graph, Operator
from secant.rules import CONVENTIONS
from secant.tape import Precision, Record, Replay, Tape, WithoutParameters

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest reconstruction or affinity error of an exact network, by the type that it is computed in."""


@dataclass(frozen=True)
class Prediction:
    """A next token with its probability and logit."""

    token: str
    id: int
    probability: float
    logit: float


@dataclass(frozen=True)
class Certificate:
    """What was checked of a run. Errors are relative, in norms of y.

    `forward_equal`: the recorded logits equal the plain model's, bit for bit (in float64: those of the model without
    its casts to float32). `reconstruction`: ‖J x + b - y‖ / ‖y‖, from products with J. `affinity`:
    ‖J v + b - r(v)‖ / ‖r(v)‖, where r is a replay at a random input v. `ordinary`: ‖J' x - y‖ / ‖y‖ with the
    ordinary Jacobian J', if it was asked for. `operations`: live calls by function and what was held.
    """

    forward_equal: bool
    reconstruction: float
    affinity: float
    ordinary: float | None
    tolerance: float
    convention: str
    dtype: str
    precision: str
    attention: str
    versions: dict[str, str]
    operations: dict[str, int]


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded pass at a prompt. `input` are the embeddings, `hidden` and `logits` what the model made of them."""

    lm: LM = field(repr=False)
    ids: list[int] = field(repr=False)
    tokens: list[str]
    prediction: list[Prediction]
    certificate: Certificate
    input: Float[Tensor, "T d"] = field(repr=False)
    hidden: Float[Tensor, "T d"] = field(repr=False)
    logits: Float[Tensor, "T vocabulary"] = field(repr=False)
    tape: Tape = field(repr=False)
    network: Held = field(repr=False)

    def operator(self, source: str = "embed", target: str = "norm", position: int = -1) -> Operator:
        """The held network from the embeddings to the final norm, or to the logits, at one position.

        Raises NoPoint, and BadArgument for a position that the prompt does not have.
        """
        if source != "embed" or target not in self.network.points:
            raise NoPoint(
                "Operators go from embed to " + " or ".join(self.network.points), f"{source} to {target}", "Choose those."
            )
        T = len(self.ids)
        if not -T <= position < T:
            raise BadArgument(f"A position is one of the prompt's {T} tokens", f"{position}", f"Use 0 to {T - 1}.")
        recorded = {"norm": self.hidden, "logits": self.logits}[target]
        about = {
            "model": self.lm.name, "tokens": self.tokens, "source": source, "target": target,
            "position": position % T, "convention": self.certificate.convention, "dtype": self.certificate.dtype,
            "precision": self.certificate.precision, "versions": self.certificate.versions,
        }  # fmt: skip
        return self.network.operator(target, position, recorded[position], about)


@dataclass(frozen=True, eq=False)
class Held:
    """The held network: a tape that can be replayed on any input, and the graph and bias of two such replays."""

    lm: LM
    tape: Tape
    steps: dict[str, int]
    precision: torch.dtype
    upcast: bool
    input: Float[Tensor, "T d"]
    points: dict[str, Tensor]
    biases: dict[str, Tensor]

    @classmethod
    def of(cls, lm: LM, tape: Tape, steps: dict[str, int], x: Tensor, precision: torch.dtype) -> Held:
        upcast = precision != x.dtype
        leaf = x.detach().to(precision).requires_grad_()
        points = replay(lm, tape, steps, leaf, precision, upcast)
        biases = replay(lm, tape, steps, torch.zeros_like(leaf, requires_grad=True), precision, upcast)
        return cls(lm, tape, steps, precision, upcast, leaf, points, {k: b.detach() for k, b in biases.items()})

    def replay(self, v: Float[Tensor, "T d"]) -> dict[str, Tensor]:
        """The held network's value at each point for another input: `[T, n]` each."""
        leaf = v.detach().to(self.input).requires_grad_()
        points = replay(self.lm, self.tape, self.steps, leaf, self.precision, self.upcast)
        return {name: value.detach() for name, value in points.items()}

    def operator(self, target: str, position: int, recorded: Tensor, about: dict[str, Any]) -> Operator:
        graph = Graph(self.input, self.points[target][position])
        return Operator(graph, self.input.detach(), recorded.to(self.precision), self.biases[target][position], about)


def replay(
    lm: LM, tape: Tape, steps: dict[str, int], live: Tensor, precision: torch.dtype, upcast: bool
) -> dict[str, Tensor]:
    """Run the model with what the tape holds; the tensors at the named steps, on the graph from `live`."""
    mode = Replay(tape, steps.values(), precision if upcast else None)
    with torch.enable_grad(), throughout(precision, upcast), mode:
        lm.forward(live.clone())
    return {name: mode.points[step][0] for name, step in steps.items()}


def throughout(dtype: torch.dtype, upcast: bool = False) -> AbstractContextManager[Any]:
    """Keep a float64 model, or one that is evaluated above its own type, from casting down."""
    return Precision(dtype) if upcast or dtype == torch.float64 else nullcontext()


def freeze(
    lm: LM,
    prompt: Prompt,
    *,
    convention: str = "gate",
    precision: str | torch.dtype | None = None,
    ordinary: bool = False,
    tolerance: float | None = None,
    top: int = 10,
    seed: int = 0,
) -> Run:
    """Record a model's pass at a prompt (text, token ids or chat messages), and certify the affine network it holds.

    `precision`: evaluate the held network in this type, above the model's own; the recorded pass stays as it is.
    `ordinary`: measure the ordinary Jacobian beside it. `tolerance`: largest errors, instead of TOLERANCE.
    `seed`: of the random input that affinity is measured at. `top`: how many predictions.
    Raises BadPrompt, BadArgument, TrainingMode, NoRule, ReplayMismatch, and NotExact above tolerance.
    """
    if convention not in CONVENTIONS:
        raise BadArgument(f"A convention is one of {', '.join(CONVENTIONS)}", repr(convention), "Choose one of them.")
    lm.ready()
    ids = lm.encode(prompt)
    wide = _precision(lm, precision)
    with throughout(lm.dtype):
        x, plain = lm.embed(ids), lm.logits(ids)
    record = Record(lm.model, lm.unembedding, convention, wide if wide != lm.dtype else None)
    with torch.enable_grad(), throughout(lm.dtype), record:
        logits = lm.forward(x.clone().requires_grad_().clone())
    hidden = record.before_head
    steps = {name: record.made(point) for name, point in (("norm", hidden), ("logits", logits))}
    network = Held.of(lm, record.tape, steps, x, wide)
    hidden, logits = hidden.detach()[0], logits.detach()[0]
    reconstruction, affinity = _errors(network, hidden[-1], seed)
    certificate = Certificate(
        forward_equal=torch.equal(plain, logits),
        reconstruction=reconstruction,
        affinity=affinity,
        ordinary=ordinary_error(lm, x, hidden[-1]) if ordinary else None,
        tolerance=TOLERANCE[wide if wide == lm.dtype else lm.dtype] if tolerance is None else tolerance,
        convention=convention,
        dtype=str(lm.dtype).removeprefix("torch."),
        precision=str(wide).removeprefix("torch."),
        attention=lm.attention,
        versions=versions(),
        operations=record.tape.operations(),
    )
    _refuse(certificate)
    tokens = [lm.text(i) for i in ids]
    return Run(lm, ids, tokens, _predictions(lm, logits[-1], top), certificate, x, hidden, logits, record.tape, network)


def _precision(lm: LM, precision: str | torch.dtype | None) -> torch.dtype:
    wide = dtype_of(precision) or lm.dtype
    if torch.finfo(wide).bits < torch.finfo(lm.dtype).bits:
        raise BadArgument(
            f"The precision is at least the model's own, {lm.dtype}", str(wide), "Load the model in a lower dtype instead."
        )
    return wide


def _errors(network: Held, y: Float[Tensor, " d"], seed: int) -> tuple[float, float]:
    """Reconstruction and affinity errors at the last position."""
    op = network.operator("norm", -1, y, {})
    x = op.input
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * x.std(correction=0)
    u = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(op.bias)
    Jx, Jv = _wide(op @ torch.stack([x.flatten(), v.flatten()], dim=1)).T
    replayed, adjoint = network.replay(v)["norm"][-1], op.T @ u
    dot = (_wide(u) @ Jv - _wide(adjoint) @ _wide(v).flatten()).abs() / (_wide(u).norm() * Jv.norm())
    b = _wide(op.bias)
    return _relative(Jx + b, op.output), max(_relative(Jv + b, replayed), dot.item())


def _wide(tensor: Tensor) -> Tensor:
    """In float64 on the CPU, which every device can be copied to."""
    return tensor.detach().cpu().double()


def _relative(value: Tensor, true: Tensor) -> float:
    """‖value - true‖ / ‖true‖"""
    return (torch.linalg.vector_norm(_wide(value) - _wide(true)) / torch.linalg.vector_norm(_wide(true))).item()


def ordinary_error(lm: LM, x: Float[Tensor, "T d"], y: Float[Tensor, " d"]) -> float:
    """‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J' of the last hidden state: the baseline that fails."""
    leaf = x.detach().requires_grad_()
    watch = WithoutParameters(lm.unembedding)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), throughout(lm.dtype), watch:
        lm.forward(leaf.clone())
    return _relative(Graph(leaf, watch.before_head[0, -1]).forward(leaf.detach().reshape(-1, 1))[:, 0], y)


def _refuse(c: Certificate) -> None:
    """Raise NotExact where the certificate does not hold."""
    if not c.forward_equal:
        raise NotExact(
            "The recorded pass must equal the plain model's, bit for bit", "another result",
            "The model's forward pass is not repeatable; make it deterministic.",
        )  # fmt: skip
    for name, error in (("reconstruction", c.reconstruction), ("affinity", c.affinity)):
        if not error <= c.tolerance:
            raise NotExact(
                f"The held network must be affine and reproduce the model to {c.tolerance:.0e} in {c.precision}",
                f"a {name} error of {error:.1e}",
                "A nonlinearity is hidden from torch functions (a custom kernel or autograd function): use the model's"
                " plain torch implementation, for instance attention='eager'; or the dtype is too coarse for it.",
            )


def _predictions(lm: LM, logits: Float[Tensor, " vocabulary"], top: int) -> list[Prediction]:
    logits = _wide(logits)
    probabilities = torch.softmax(logits, -1)
    best: Sequence[int] = torch.sort(logits, descending=True, stable=True).indices[:top].tolist()
    return [Prediction(lm.text(i), i, probabilities[i].item(), logits[i].item()) for i in best]
