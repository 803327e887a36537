"""How far does a linear system reach? The held network, and the network itself, between one prompt and another.

A frozen prompt's system y = J x + b is exact at x. On the line x(α) = (1 - α) x + α x' to another prompt's embeddings
it is an approximation of the network, y(α); so is the ordinary Jacobian's tangent, y(0) + J' (x(α) - x), and so is to
say that nothing changes, y(0). At each α the network is frozen anew, which tells how far y and J have turned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsFloat, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from torch import Tensor

from secant.errors import BadArgument, BadPrompt, checked, integer
from secant.linearize.network import Network, record, running
from secant.linearize.run import Run, tangent
from secant.memory import allowance
from secant.model.lm import Prompt
from secant.numeric import relative, wide
from secant.operators.decomposition import SVD, Progress, svd
from secant.operators.operator import Operator
from secant.results.files import saving

Swap = tuple[int, str | int]


@dataclass(frozen=True, eq=False)
class Reach:
    """A way from one prompt's embeddings to another's, and how the system of the first one does on it.

    `table` has a row for each α. Errors are ‖ŷ - y(α)‖ / ‖y(α)‖ at the last position: `held_error` of J x(α) + b,
    `ordinary_error` of y(0) + J' (x(α) - x), `still_error` of y(0). `predicted` is the network's next token at α, and
    `held_predicted` the held network's. Angles are in degrees: `y_angle` between y(α) and y(0); `u_angle` the largest
    and `u_mean` the mean principal angle between the spans of the first k left singular vectors of J(α) and J(0), and
    `v_angle`, `v_mean` of the right ones. `gap` is 1 - σ_{k+1} / σ_k of J(α): where it is small, the spans mean little.
    `j_distance`: ‖J(α) - J(0)‖ / ‖J(0)‖ (Frobenius), missing where J does not fit in memory. `reconstruction`: of the
    network that was frozen at α.
    """

    run: Run = field(repr=False)
    ids: list[int] = field(repr=False)
    tokens: list[str]
    k: int
    table: pd.DataFrame = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def save(self, folder: str | Path) -> None:
        """Write reach (.parquet and .csv) and columns.csv. Raises OutputFailed."""
        with saving(folder, {"reach": self.table}):
            pass


@checked
def reach(
    run: Run,
    other: Prompt | Swap,
    *,
    steps: int | Iterable[SupportsFloat] = 11,
    k: int = 4,
    progress: Progress | None = None,
) -> Reach:
    """Go from a run's embeddings to those of another prompt, and compare the network with its system on the way.

    `other`: a prompt of as many tokens, or a tuple (position, token): the run's own with that token in that place, a
    token given by its text or id. `steps`: how many α there are, evenly from 0 to 1, or the α themselves. `k`: leading
    singular vectors whose spans are compared. What the model makes of tokens besides their embeddings stays the run's.
    `progress(what, done, all)` is called as the work goes on.
    Raises BadPrompt where the lengths differ, BadArgument, NotExact, TrainingMode, and what `svd` raises.
    """
    lm, x, network = run.lm, run.input, run.network
    ids, alphas = _other(run, other), _alphas(steps)
    start = network.operator("norm", [-1])
    most = min(start.shape)
    k = integer(k, 1, most, f"An operator of this shape has 1 to {most} singular triplets", "k = ")
    lm.ready()
    with running(lm, lm.dtype, state=network.recording.state):
        to = lm.embed(ids)
    J, first = _decomposed(start, k)
    y = wide(start.output)
    slope = wide(tangent(lm, network.recording, x).forward((to - x).reshape(-1, 1))[:, 0])
    rows = []
    for done, alpha in enumerate(alphas):
        at = torch.lerp(x, to, alpha) if 0 < alpha < 1 else (to if alpha else x)
        recording = record(
            lm, run.ids, at, network.recording.convention, network.precision, state=network.recording.state
        )
        op = Network.of(lm, recording, at, network.precision).operator("norm", [-1])
        run.certify(op.reconstruction, op.bias, op.output, f"at α = {alpha:g}")
        held, now = network.replay(at), wide(op.output)
        J_now, found = _decomposed(op, k)
        u, v = _angles(first.U, found.U), _angles(first.V, found.V)
        rows.append(
            {
                "alpha": alpha,
                "held_error": relative(held["norm"][-1], now),
                "ordinary_error": relative(y + alpha * slope, now),
                "still_error": relative(y, now),
                "predicted": lm.text(int(recording.values["logits"][-1].argmax())),
                "held_predicted": lm.text(int(held["logits"][-1].argmax())),
                "y_angle": angle(y, now),
                "u_angle": u.max(),
                "u_mean": u.mean(),
                "v_angle": v.max(),
                "v_mean": v.mean(),
                "gap": 1 - found.following / found.S[-1].item() if found.S[-1] > 0 else 0.0,
                "j_distance": relative(J_now, J) if J_now is not None and J is not None else np.nan,
                "reconstruction": op.reconstruction,
            }
        )
        if progress:
            progress("steps", done + 1, len(alphas))
    return Reach(run, ids, [lm.text(i) for i in ids], k, pd.DataFrame(rows))


def angle(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    """The angle between two vectors in degrees, accurate for small ones too: 2 atan(‖â - b̂‖ / ‖â + b̂‖) of unit vectors
    (W. Kahan, "How futile are mindless assessments of roundoff in floating-point computation?", 2006, section 12).

    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), angle(torch.ones(3), torch.ones(3))
    (45.0, 0.0)
    """
    a, b = (wide(c) / torch.linalg.vector_norm(wide(c)) for c in (a, b))
    apart, together = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b)
    return float(torch.rad2deg(2 * torch.atan2(apart, together)))


def _angles(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> np.ndarray:
    """Principal angles between the spans of columns, in degrees."""
    return np.rad2deg(subspace_angles(wide(one).numpy(), wide(other).numpy()))


def _decomposed(op: Operator, k: int) -> tuple[Tensor | None, SVD]:
    """J, where a few of it fit in memory, and the first k triplets."""
    if 8 * op.bias.element_size() * op.shape[0] * op.shape[1] > allowance(op.bias.device):
        return None, svd(op, k)
    formed = op.solidified()
    return formed.dense(), svd(formed, k)


def _other(run: Run, other: Prompt | Swap) -> list[int]:
    """The tokens that the way goes to. Raises BadPrompt and BadArgument."""
    T = len(run.ids)
    if isinstance(other, tuple) and len(other) == 2:
        position, token = cast(Swap, other)
        place = integer(position, -T, T - 1, f"A position is one of the prompt's {T} tokens") % T
        return [*run.ids[:place], run.lm.token(token, "input"), *run.ids[place + 1 :]]
    ids = run.lm.encode(other)
    if len(ids) != T:
        raise BadPrompt(
            "Two prompts have a way between them if they have as many tokens", f"{T} and {len(ids)}",
            "Give one of the same length, or a swap (position, token).",
        )  # fmt: skip
    return ids


def _alphas(steps: int | Iterable[SupportsFloat]) -> list[float]:
    """From 0 to 1. Raises BadArgument."""
    if isinstance(steps, Iterable) and not isinstance(steps, str) and getattr(steps, "ndim", 1) == 1:
        each = list(steps)
        if each and all(isinstance(a, SupportsFloat) and not isinstance(a, bool) and 0 <= float(a) <= 1 for a in each):
            return [float(a) for a in each]
        raise BadArgument("Steps of a way are from 0 to 1", repr(each), "Give such as [0, 0.5, 1].")
    count = integer(steps, 2, 10**6, "A way has steps: how many, or each of them", "steps = ")
    return [i / (count - 1) for i in range(count)]
