"""What a report shows beyond an explanation: all sums of the logit, J as an image, and y beside what rebuilds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import COLUMNS as CONTRIBUTION
from secant.analyses.attribution import Attribution, attribute
from secant.linearize.run import Run, ordinary_output
from secant.memory import limited
from secant.numeric import wide
from secant.operators.cost import every_row, said
from secant.operators.operator import Operator
from secant.results.files import saving
from secant.stream.decode import Null, null

OTHERS = 4
"""Predictions that the first one is compared with."""

CELLS = 48
"""Rows of the image of J; and columns of each token's block, unless there are too many tokens."""

COLUMNS = 480
"""Columns of the image of J, of all tokens."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All sums of the logit, with parts, heads and flow, and against other predictions; and pictures of J.

    `image[r, t, c]` is the root mean square of a rectangle of J_t, which begins at row r d_out / R and at column
    c d_in / C (rounded up); None if it was left out. `shape` is (d_out, T, d_in). `output` is y, `rebuilt` is J x + b,
    and `ordinary` is J' x with the ordinary Jacobian J'. `writes` and `reads` are what random directions decode to.
    """

    attribution: Attribution
    versus: list[Attribution] = field(repr=False)
    image: Float[Tensor, "R T C"] | None = field(repr=False)
    shape: tuple[int, int, int]
    output: Float[Tensor, " d_out"] = field(repr=False)
    rebuilt: Float[Tensor, " d_out"] = field(repr=False)
    ordinary: Float[Tensor, " d_out"] = field(repr=False)
    writes: Null
    reads: Null

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its tables by name: contributions and flow, versus, rebuilt, chance, and image unless it was left out."""
        found = {**self.attribution.tables(), "versus": self._versus(), "rebuilt": self._rebuilt()}
        found["chance"] = pd.concat([_chance(self.writes), _chance(self.reads)], ignore_index=True)
        return found if self.image is None else found | {"image": _rectangles(self.image, self.shape)}

    def save(self, folder: str | Path) -> None:
        """Write its tables (.parquet and .csv) and columns.csv. Raises OutputFailed."""
        with saving(folder, self.tables()):
            pass

    def _versus(self) -> pd.DataFrame:
        """A row for each contribution to the prediction's logit over another's."""
        sums = [
            a.table.assign(prediction=number, versus=a.versus, difference=a.logit)
            for number, a in enumerate(self.versus, 1)
        ]
        names = ["prediction", "versus", "difference", *CONTRIBUTION]
        return pd.concat(sums, ignore_index=True)[names] if sums else pd.DataFrame(columns=names)

    def _rebuilt(self) -> pd.DataFrame:
        """A row for each unit of y."""
        numbers = {"output": self.output, "rebuilt": self.rebuilt, "ordinary": self.ordinary}
        return pd.DataFrame({"unit": range(self.shape[0]), **{name: own.tolist() for name, own in numbers.items()}})


def gathered(
    run: Run,
    top: int = 8,
    *,
    image: bool = True,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """The evidence of a run. `image`: of J, for which all of its rows are computed, some at a time; what takes more
    than a minute, or more than half of the free memory, is announced beforehand. `top`: words that chance decodes to,
    drawn with `seed`; `max_memory`: bytes to work in, or such as "4GiB"; `progress(what, done, all)` is called as the
    work goes on. Raises NotExact where a sum is not the logit, and TooLarge.
    """
    attribution = attribute(run, flow=True)
    versus = [attribute(run, None, p.id, parts=False) for p in run.prediction[1 : 1 + OTHERS]]
    op = run.operator()
    with torch.inference_mode(False), torch.enable_grad(), limited(max_memory):
        cells = imaged(op, progress) if image else None
        ordinary = wide(ordinary_output(run.lm, run.network.recording, run.input))
    return Evidence(
        attribution, versus, cells, (len(op.bias), *op.input.shape), wide(op.output), op.rebuilt, ordinary,
        null(run.lm, "output", top, seed=seed), null(run.lm, "input", top, seed=seed),
    )  # fmt: skip


def imaged(op: Operator, progress: Callable[[str, int, int], None] | None = None) -> Float[Tensor, "R T C"]:
    """The root mean square of each rectangle of each token's block; the same each time, and J is never kept."""
    said(f"All {len(op.bias)} rows of J, for its image", op, every_row(op))
    rows, (T, width) = len(op.bias), op.input.shape
    R, C = min(rows, CELLS), min(width, CELLS, max(1, COLUMNS // T))
    row, column = torch.arange(rows) * R // rows, torch.arange(width) * C // width
    squares = torch.zeros(R, T, C, dtype=torch.float64)
    for start, some in op.rows(op.chunk):
        J, end = wide(some).view(-1, T, width), start + len(some)
        pooled = torch.zeros(len(some), T, C, dtype=torch.float64).index_add_(2, column, J.square())
        squares.index_add_(0, row[start:end], pooled)
        if progress:
            progress("image", end, rows)
    sizes = torch.bincount(row, minlength=R)[:, None, None] * torch.bincount(column, minlength=C)
    return (squares / sizes).sqrt()


def _rectangles(image: Float[Tensor, "R T C"], shape: tuple[int, int, int]) -> pd.DataFrame:
    """A row for each rectangle, by where it begins."""
    (R, T, C), (rows, _, width) = image.shape, shape
    places = [(-(-r * rows // R), t, -(-c * width // C)) for r in range(R) for t in range(T) for c in range(C)]
    table = pd.DataFrame(places, columns=["unit", "position", "column"])
    return table.assign(size=image.flatten().tolist())


def _chance(null: Null) -> pd.DataFrame:
    """A row for each place among the words of a random direction."""
    table = pd.DataFrame({"mean": null.mean.tolist(), "std": null.std.tolist()})
    return (
        table.rename_axis("rank")
        .reset_index()
        .assign(side=null.side, samples=len(null.words))[["side", "rank", "mean", "std", "samples"]]
    )
