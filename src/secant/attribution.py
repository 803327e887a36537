"""Exact additive attribution: a logit as the sum of what each input token and the model's constants contribute.

The held network is affine, so that logit = Σ_t g_t·x_t + b, with g = Jᵀ e for the target's unit vector e: one adjoint
product, and no remainder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import SupportsIndex

import pandas as pd
import torch

from secant.run import Run


@dataclass(frozen=True, eq=False)
class Attribution:
    """Contributions to the logit of `target`, or to its difference to that of `versus`.

    `logit` is the model's own, `total` the sum of the contributions, equal to it to within rounding. `table` has the
    columns kind (token or constant), name, position, layer, head, contribution.
    """

    target: str
    versus: str | None
    logit: float
    total: float
    table: pd.DataFrame = field(repr=False)

    @property
    def constant(self) -> float:
        """What the model's constants contribute."""
        return float(self.table.loc[self.table["kind"] == "constant", "contribution"].sum())

    def share(self, contribution: float) -> float:
        """A contribution as a share of the logit; NaN where that is 0."""
        return contribution / self.logit if self.logit else float("nan")

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()


def attribute(
    run: Run, target: str | SupportsIndex | None = None, versus: str | SupportsIndex | None = None
) -> Attribution:
    """What every token and the constants contribute to a next token's logit at the last position.

    `target`: a token by text or id, by default the prediction; `versus`: one whose logit is taken off.
    Raises BadPrompt where that is no token of the vocabulary.
    """
    chosen = run.prediction[0].id if target is None else run.lm.token(target)
    other = None if versus is None else run.lm.token(versus)
    op = run.operator(target="logits")
    direction = torch.zeros_like(op.bias)
    direction[chosen] = 1
    if other is not None:
        direction[other] -= 1
    gradient = (op.T @ direction).reshape(op.input.shape)
    tokens = (gradient.cpu().double() * op.input.cpu().double()).sum(1).tolist()
    constant = (direction.cpu().double() @ op.bias.cpu().double()).item()
    rows = [("token", name, t, c) for t, (name, c) in enumerate(zip(run.tokens, tokens, strict=True))]
    table = pd.DataFrame(
        [*rows, ("constant", "b", None, constant)], columns=["kind", "name", "position", "contribution"]
    )
    table = table.astype({"position": "Int64"})
    for place, name in ((3, "layer"), (4, "head")):
        table.insert(place, name, pd.Series([None] * len(table), dtype="Int64"))
    return Attribution(
        target=run.lm.text(chosen),
        versus=None if other is None else run.lm.text(other),
        logit=(direction @ op.output).item(),
        total=float(table["contribution"].sum()),
        table=table,
    )
