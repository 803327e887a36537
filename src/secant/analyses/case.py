"""One prompt, computed once: what the analyses of a run share. Each part is computed when it is first asked for.

These are the operator, with J formed at most once; the singular triplets of each token's block and of all together; the
top tokens of each direction, decoded once; what random directions decode to; attributions, which share one replay at
zero; the image of J; and the layers. The run itself keeps what depends on nothing else: its points, the constants of
the network at zero, and the ordinary Jacobian's product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import Attribution, attribute
from secant.linearize.run import Run
from secant.memory import limited
from secant.numeric import lengths, wide
from secant.operators.batched import token_terms
from secant.operators.cost import announce_plan, row_plan
from secant.operators.decomposition import SVD, decomposed
from secant.operators.operator import Matrix, Operator
from secant.stream.decode import Decodings, Null, Side, Word, null
from secant.stream.layers import SPANS, Layers, layers

CELLS = 48
"""Rows of the image of J; and columns of each token's block, unless there are too many tokens."""

COLUMNS = 480
"""Columns of the image of J, of all tokens."""

Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class Case:
    """A run, and what analyses take from it.

    Args:
        run: The run.
        k: Singular triplets of each token's block, of all together, and of every layer's operators.
        top: Top tokens of each direction.
        seed: Of solvers and of random directions.
        full: Whether J is needed in full, so that it is formed before anything else is taken from it.
        nulls: What random directions decode to, by side. Runs of one model share them, for one `top` and `seed`.

    """

    run: Run
    k: int = 4
    top: int = 8
    seed: int = 0
    full: bool = False
    nulls: dict[Side, Null] = field(default_factory=dict, repr=False)
    _op: Operator | None = field(default=None, init=False, repr=False)
    _progress: Progress | None = field(default=None, init=False, repr=False)
    _attributions: dict[tuple[int | None, bool, bool], Attribution] = field(
        default_factory=dict, init=False, repr=False
    )
    _layers: dict[tuple[int, int, tuple[str, ...]], Layers] = field(default_factory=dict, init=False, repr=False)

    @contextmanager
    def working(self, max_memory: float | str | None = None, progress: Progress | None = None) -> Iterator[None]:
        """Compute what is asked for inside in so much memory, and report how far it is."""
        before, self._progress = self._progress, progress
        try:
            with limited(max_memory):
                yield
        finally:
            self._progress = before

    @property
    def op(self) -> Operator:
        """The operator from the embeddings to the last hidden state, with J in memory once anything has formed it."""
        if self._op is None:
            op = self.run.operator()
            self._op = op.solidified() if self.full else op
        return self._op

    @cached_property
    def blocks(self) -> list[SVD]:
        """The leading triplets of each token's block."""
        return self._decomposed(min(self.k, self.op.shape[0], self.op.input.shape[1]), per_token=True)

    @cached_property
    def whole(self) -> SVD:
        """The leading triplets of all blocks together, found after those of each block, whatever is asked for first."""
        assert self.blocks, "a prompt has tokens"
        return self._decomposed(min(self.k, *self.op.shape), per_token=False)[0]

    def _decomposed(self, k: int, per_token: bool) -> list[SVD]:
        found, self._op = decomposed(self.op, k, per_token=per_token, seed=self.seed, progress=self._progress)
        return found

    def each(self) -> Iterator[tuple[int | None, str | None, SVD]]:
        """Position, token and triplets of each block, and of all together, which have neither."""
        yield from zip(range(len(self.blocks)), self.run.tokens, self.blocks, strict=True)
        yield None, None, self.whole

    @cached_property
    def norms(self) -> list[float]:
        """‖J_t x_t‖ of each token."""
        return lengths(token_terms(self.op), 1).tolist()

    @cached_property
    def _decodings(self) -> Decodings:
        return Decodings(self.run.lm, self.top)

    def null(self, side: Side) -> Null:
        """What random directions decode to."""
        if side not in self.nulls:
            self.nulls[side] = null(self.run.lm, side, self.top, seed=self.seed)
        return self.nulls[side]

    def words(self, found: Sequence[SVD], side: Side) -> list[list[list[Word]]]:
        """The top tokens of each singular vector of some SVDs; none of those whose singular value is zero."""
        asked = [(f, int((f.S > 0).sum())) for f in found]
        decoded = self._decodings(asked, side, self.top)
        words = [own.words(self.run.lm, self.null(side)) for own in decoded]
        return [own + [[] for _ in f.S[len(own) :]] for f, own in zip(found, words, strict=True)]

    def attribution(self, versus: int | None = None, *, parts: bool = False, flow: bool = False) -> Attribution:
        """What the predicted token's logit, or its difference to another token's, is made of."""
        key = (versus, parts, flow)
        if key not in self._attributions:
            self._attributions[key] = attribute(self.run, None, versus, parts=parts, flow=flow)
        return self._attributions[key]

    @cached_property
    def image(self) -> Float[Tensor, "R T C"]:
        """J as an image."""
        return imaged(self.op, self._progress)

    def layers(self, k: int | None = None, *, position: int = -1, spans: Sequence[str] = SPANS) -> Layers:
        """Every layer, with the leading triplets of each of its operators."""
        key = (self.k if k is None else k, position, tuple(spans))
        if key not in self._layers:
            found = layers(self.run, key[0], position=position, spans=spans, progress=self._progress)
            found.decodings.top = max(found.decodings.top, self.top)
            self._layers[key] = found
        return self._layers[key]


def imaged(op: Operator, progress: Progress | None = None) -> Float[Tensor, "R T C"]:
    """The root mean square of each rectangle of each token's block; the same each time, and J is never kept.

    All rows of J are computed for it, some at a time, unless they are there; what takes more than a minute, or more
    than half of the free memory, is announced beforehand.
    """
    if not isinstance(op.products, Matrix):
        announce_plan(f"All {len(op.bias)} rows of J, for its image", op, row_plan(op))
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
