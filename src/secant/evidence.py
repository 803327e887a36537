"""What a report shows beyond an explanation: all sums of the logit, J as an image, and y beside what rebuilds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from secant.attribution import Attribution, attribute
from secant.decoding import Null, null
from secant.operator import Operator, wide
from secant.resources import limited
from secant.run import Run, ordinary_output

OTHERS = 4
"""Predictions that the first one is compared with."""

CELLS = 48
"""Rows of the image of J; and columns of each token's block, unless there are too many tokens."""

COLUMNS = 480
"""Columns of the image of J, of all tokens."""

POINTS = 512
"""Units of y that are shown beside what rebuilds them."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All sums of the logit, with parts, heads and flow, and against other predictions; and pictures of J.

    `image[r, t, c]` is the root mean square of a rectangle of J_t: row r of d_out / R rows, column c of d_in / C
    columns. `units` are evenly spaced units of y; at these `output` is y, `rebuilt` is J x + b, and `ordinary` is J' x
    with the ordinary Jacobian J'. `writes` and `reads` are what random directions decode to.
    """

    attribution: Attribution
    versus: list[Attribution] = field(repr=False)
    image: Float[Tensor, "R T C"] = field(repr=False)
    shape: tuple[int, int, int]
    units: list[int] = field(repr=False)
    output: Float[Tensor, " n"] = field(repr=False)
    rebuilt: Float[Tensor, " n"] = field(repr=False)
    ordinary: Float[Tensor, " n"] = field(repr=False)
    writes: Null
    reads: Null


def gathered(
    run: Run,
    top: int = 8,
    *,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """The evidence of a run. All rows of J are computed for its image, some at a time. `top`: words that chance decodes
    to, drawn with `seed`; `max_memory`: bytes to work in, or such as "4GiB"; `progress(what, done, all)` is called as
    the work goes on. Raises NotExact where a sum is not the logit, and TooLarge.
    """
    attribution = attribute(run, flow=True)
    versus = [attribute(run, None, p.id, parts=False) for p in run.prediction[1 : 1 + OTHERS]]
    op = run.operator()
    with torch.inference_mode(False), torch.enable_grad(), limited(max_memory):
        image = imaged(op, progress)
        ordinary = wide(ordinary_output(run.lm, run.ids, run.input))
    d = len(op.bias)
    units = sorted({i * d // min(d, POINTS) for i in range(min(d, POINTS))})
    return Evidence(
        attribution, versus, image, (d, *op.input.shape), units, wide(op.output)[units], op.rebuilt[units],
        ordinary[units], null(run.lm, "output", top, seed=seed), null(run.lm, "input", top, seed=seed),
    )  # fmt: skip


def imaged(op: Operator, progress: Callable[[str, int, int], None] | None = None) -> Float[Tensor, "R T C"]:
    """The root mean square of each rectangle of each token's block; the same each time, and J is never kept."""
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
