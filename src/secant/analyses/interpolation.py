"""Interpolation between two prompts: how well the linear system of one of them approximates the network.

The system y = J x + b of a prompt is exact at x. Let x(α) = (1 - α) x + α x' lead to another prompt's embeddings x',
and let y(α) be the network's output there. `reach` returns the errors of three approximations of y(α): the frozen
network, J x(α) + b; the ordinary Jacobian's tangent, y(0) + J' (x(α) - x); and no change, y(0). It also freezes the
network at each α, and returns the angles between y(α) and y(0), and between the leading singular vectors of J(α) and
J(0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsFloat, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from torch import Tensor

from secant.errors import BadArgument, BadPrompt, checked, integer, number
from secant.linearize.network import Network, record, running
from secant.linearize.run import Run, tangent
from secant.memory import Progress, allowance
from secant.model.lm import Prompt
from secant.numeric import relative, wide
from secant.operators.decomposition import svd
from secant.operators.operator import Operator
from secant.operators.spectrum import SVD
from secant.results.columns import RECONSTRUCTION, RELATIVE, TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Tokens, View
from secant.text import count, excerpt

Swap = tuple[int, str | int]

DEGREES = "degrees"

REACH = Table(
    "reach",
    "a step from one prompt to another",
    (
        Column("alpha", float, "how far from the prompt (0) to the other (1)", "share of the distance", heading="α"),
        Column("frozen_error", float, "‖ŷ - y(α)‖ / ‖y(α)‖ for ŷ of the frozen network", RELATIVE, heading="frozen"),
        Column("ordinary_error", float, "the same for the ordinary Jacobian's tangent", RELATIVE, heading="ordinary"),
        Column("still_error", float, "the same for no change, y(0)", RELATIVE, heading="no change"),
        TOKEN.but(name="predicted", meaning="the network's next token at α", heading="next token"),
        TOKEN.but(name="frozen_predicted", meaning="the frozen network's next token", heading="frozen token"),
        Column("y_angle", float, "angle between y(α) and y(0)", DEGREES, heading="y turns"),
        Column("u_angle", float, "largest principal angle between the spans of the first left vectors at α and at 0",
               DEGREES, heading="U turns"),
        Column("u_mean", float, "mean of these angles", DEGREES, heading="U, mean"),
        Column("v_angle", float, "largest principal angle between the spans of the first right vectors", DEGREES,
               heading="V turns"),
        Column("v_mean", float, "mean of these angles", DEGREES, heading="V, mean"),
        Column("gap", float, "1 - σ_{k+1} / σ_k of J(α): where it is small, the angles mean little", "ratio"),
        Column("j_distance", float, "‖J(α) - J(0)‖ / ‖J(0)‖; missing if J does not fit in memory", RELATIVE,
               heading="J moves"),
        RECONSTRUCTION.but(meaning="‖J x + b - y‖ / ‖y‖ of the network frozen at α"),
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Reach(Result):
    """The linear system of one prompt, evaluated between this prompt and another.

    Attributes:
        run: The run of the first prompt.
        ids: The token ids of the second.
        tokens: The texts of these tokens.
        k: The number of leading singular vectors whose spans are compared.
        table: A row for each α. Errors are ‖ŷ - y(α)‖ / ‖y(α)‖ at the last position: `frozen_error` of J x(α) + b,
            `ordinary_error` of y(0) + J' (x(α) - x), `still_error` of y(0). `predicted` is the network's next token at
            α, and `frozen_predicted` the frozen network's. Angles are in degrees: `y_angle` is the one between y(α) and
            y(0); `u_angle` is the largest and `u_mean` the mean principal angle between the spans of the first k left
            singular vectors of J(α) and J(0), and `v_angle` and `v_mean` are those of the right ones. `gap` is
            1 - σ_{k+1} / σ_k of J(α): where it is small, the angles mean little. `j_distance` is ‖J(α) - J(0)‖ / ‖J(0)‖
            (Frobenius), missing if J does not fit in memory. `reconstruction` is the error of the network frozen at α.

    """

    schema = (REACH,)

    run: Run
    ids: list[int]
    tokens: list[str]
    k: int
    table: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        other = f"to {excerpt(''.join(self.tokens))}"
        return [*self.run.brief()[:2], other, f"at {count(len(self.table), 'value')} of α", f"k {self.k}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its table, `reach`."""
        return {"reach": self.table}

    def about(self) -> dict[str, Any]:
        """Returns the model, both prompts' tokens, and how many singular vectors were compared."""
        return {"model": self.run.lm.name, "tokens": self.run.tokens, "to": self.tokens, "k": self.k}

    def view(self) -> View:
        """Shows the three errors, the next tokens, and the angles at each step."""
        facts = {"from": Tokens(self.run.tokens), "to": Tokens(self.tokens)}
        angles = ("y_angle", "u_angle", "v_angle", "gap", "j_distance")
        names = ("alpha", "frozen_error", "ordinary_error", "still_error", "predicted", "frozen_predicted", *angles)
        spare = {"y_angle": 1, "j_distance": 2, "u_angle": 3, "v_angle": 3, "gap": 3}
        grid = Grid.of(REACH, self.table, names, spare=spare)
        several = f"the first {self.k} singular vectors" if self.k > 1 else "the first singular vector"
        notes = [
            "frozen, ordinary, no change: errors of the frozen network, of the ordinary Jacobian's tangent, and of the "
            "first prompt's own output, relative to y(α). Turns are angles in degrees; those of U and V are between "
            f"the spans of {several}, and mean little where the gap to the next singular value is small."
        ]
        return View("From one prompt to another", facts, [grid], notes)


@checked
def reach(
    run: Run,
    other: Prompt | Swap,
    *,
    steps: int | Iterable[SupportsFloat] = 11,
    k: int = 4,
    progress: Progress | None = None,
) -> Reach:
    """Returns how well a run's linear system approximates the network between the run's prompt and another.

    Only the embeddings change. Everything else that the model computes from token ids stays as in the run.

    Args:
        run: The run.
        other: A prompt with as many tokens as the run's, or a tuple (position, token) for the run's prompt with this
            token, given by its text or id, at this position.
        steps: The number of α, evenly spaced from 0 to 1, or the α themselves.
        k: The number of leading singular vectors whose spans are compared.
        progress: Called as `progress("steps", done, all)` after each α.

    Raises:
        BadPrompt: The prompts have different lengths, or the vocabulary does not have a token.
        BadArgument: Another argument is out of range.
        NotExact: The network frozen at an α does not reproduce the model.
        TrainingMode: The model is in training mode.
        SecantError: Any error of `svd`.

    """
    lm, x, network = run.lm, run.input, run.network
    ids, alphas = _other(run, other), _alphas(steps)
    start = network.operator("norm", [-1])
    most = min(start.shape)
    k = integer(k, 1, most, f"An operator of this shape has 1 to {most} singular triplets", "k = ")
    lm.ready()
    with running(lm, lm.dtype, state=network.recording.state):
        to = lm.embed(ids)
    y, (J, first) = wide(start.output), _decomposed(start, k)
    slope = wide(tangent(lm, network.recording, x).forward((to - x).reshape(-1, 1))[:, 0])
    rows = []
    for done, alpha in enumerate(alphas):
        at = torch.lerp(x, to, alpha) if 0 < alpha < 1 else (to if alpha else x)
        op, predicted = _frozen_at(run, at, f"at α = {alpha:g}")
        frozen, now = network.replay(at), wide(op.output)
        rows.append(
            {
                "alpha": alpha,
                "frozen_error": relative(frozen["norm"][-1], now),
                "ordinary_error": relative(y + alpha * slope, now),
                "still_error": relative(y, now),
                "predicted": lm.text(predicted),
                "frozen_predicted": lm.text(int(frozen["logits"][-1].argmax())),
                "y_angle": angle(y, now),
                "reconstruction": op.reconstruction,
                **_turned(J, first, *_decomposed(op, k)),
            }
        )
        if progress:
            progress("steps", done + 1, len(alphas))
    return Reach(run, ids, [lm.text(i) for i in ids], k, REACH.frame(rows))


def _frozen_at(run: Run, at: Float[Tensor, "T d"], where: str) -> tuple[Operator, int]:
    """The operator of the network frozen at other embeddings, and the id that the model predicts. Raises NotExact."""
    lm, network = run.lm, run.network
    convention, state = network.recording.convention, network.recording.state
    recording = record(lm, run.ids, at, convention, network.precision, state=state, seeds=network.recording.seeds)
    op = Network.of(lm, recording, at, network.precision).operator("norm", [-1])
    run.certify(op.reconstruction, op.bias, op.output, where)
    return op, int(recording.values["logits"][-1].argmax())


def _turned(J: Tensor | None, first: SVD, J_now: Tensor | None, found: SVD) -> dict[str, float]:
    """How far J and the spans of its leading singular vectors have moved."""
    u, v = _angles(first.U, found.U), _angles(first.V, found.V)
    return {
        "u_angle": u.max(),
        "u_mean": u.mean(),
        "v_angle": v.max(),
        "v_mean": v.mean(),
        "gap": 1 - found.following / found.S[-1].item() if found.S[-1] > 0 else 0.0,
        "j_distance": relative(J_now, J) if J_now is not None and J is not None else np.nan,
    }


def angle(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    """Returns the angle between two vectors in degrees, accurate for small angles too.

    It is 2 atan(‖â - b̂‖ / ‖â + b̂‖) for the unit vectors â and b̂ (W. Kahan, "How futile are mindless assessments of
    roundoff in floating-point computation?", 2006, section 12).

    Args:
        a: A vector.
        b: Another.

    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), angle(torch.ones(3), torch.ones(3))
    (45.0, 0.0)
    """
    a, b = (wide(c) / torch.linalg.vector_norm(wide(c)) for c in (a, b))
    difference, total = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b)
    return float(torch.rad2deg(2 * torch.atan2(difference, total)))


def _angles(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> np.ndarray:
    """The principal angles between the spans of two matrices' columns, in degrees."""
    return np.rad2deg(subspace_angles(wide(one).numpy(), wide(other).numpy()))


def _decomposed(op: Operator, k: int) -> tuple[Tensor | None, SVD]:
    """J, or None if memory does not suffice for eight copies of it, and the first k triplets."""
    if 8 * op.bias.element_size() * op.shape[0] * op.shape[1] > allowance(op.bias.device):
        return None, svd(op, k)
    formed = op.solidified()
    return formed.dense(), svd(formed, k)


def _other(run: Run, other: Prompt | Swap) -> list[int]:
    """The token ids of the other prompt. Raises BadPrompt and BadArgument."""
    T = len(run.ids)
    if isinstance(other, tuple) and len(other) == 2:
        position, token = cast(Swap, other)
        place = integer(position, -T, T - 1, f"A position is one of the prompt's {T} tokens") % T
        return [*run.ids[:place], run.lm.token(token, "input"), *run.ids[place + 1 :]]
    ids = run.lm.encode(other)
    if len(ids) != T:
        raise BadPrompt(
            "Both prompts must have the same number of tokens", f"{T} and {len(ids)}",
            "Give one of the same length, or a tuple (position, token).",
        )  # fmt: skip
    return ids


def _alphas(steps: int | Iterable[SupportsFloat]) -> list[float]:
    """The α, from 0 to 1. Raises BadArgument."""
    if isinstance(steps, Iterable) and not isinstance(steps, str) and getattr(steps, "ndim", 1) == 1:
        each, todo = list(steps), "Give, for example, [0, 0.5, 1]."
        if not each:
            raise BadArgument("Steps are numbers from 0 to 1", "none", todo)
        return [number(a, 0, 1, "Steps are numbers from 0 to 1", todo=todo) for a in each]
    count = integer(steps, 2, 10**6, "Steps are at least two, or a list of them", "steps = ")
    return [i / (count - 1) for i in range(count)]
