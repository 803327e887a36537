"""What the analyses of one run share, each computed at most once, when it is first needed.

A `Case` has the operator, with J formed at most once; the singular triplets of each token's block and of J; the top
tokens of each singular vector, decoded once; the top tokens of random directions; attributions, which share one replay
at zero; and the image of J. The run itself caches what depends only on the run: its activations, the constants of the
network at zero, and the ordinary Jacobian's product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import Attribution, attribute
from secant.analyses.faithfulness import Faithfulness, faithfulness
from secant.analyses.lens import Lens, lens
from secant.analyses.origins import Origin, origin_of
from secant.analyses.overview import chosen
from secant.analyses.sensitivity import DELETED, Sensitivity, beside
from secant.analyses.sinks import patterns, sink_columns
from secant.analyses.writes import depth_words, head_words
from secant.errors import BadArgument, NoPoint
from secant.linearize.conventions import convention_named
from secant.linearize.run import Run
from secant.memory import Progress, limited, stopping_point
from secant.numeric import lengths, wide
from secant.operators.batched import token_terms
from secant.operators.cost import announce_plan, estimated_pace, model_plan, plans, row_plan
from secant.operators.decomposition import TOLERANCE, decomposed
from secant.operators.operator import Matrix, Operator
from secant.operators.solvers import Wanted
from secant.operators.spectrum import SVD
from secant.stream.decode import Decodings, decode, null
from secant.stream.depths import SPANS, Layers
from secant.stream.largest import Largest, largest
from secant.stream.layers import layers
from secant.stream.scores import is_tied, norms_kept
from secant.stream.words import Null, Side, Word

CELLS = 48
"""The most rows of the image of J, and the most columns of each token's block in it."""

JUDGED = 24
"""The most tokens of a prompt for which faithfulness is computed by default."""

ALTERNATIVES = 4
"""The number of other predictions with which the target is compared by default."""

IMAGE_COLUMNS = 480
"""The most columns of the image of J, over all tokens. Each token has at least one."""


@dataclass(eq=False)
class Case:
    """A run, and what its analyses share.

    Args:
        run: The run.
        k: The number of singular triplets of each token's block, of J, and of every layer's operators.
        top: The number of top tokens of each singular vector.
        seed: The seed of solvers and of random directions.
        full: Whether J is formed before anything is computed from it, because all of it will be needed.
        nulls: What random directions decode to, by side. Cases of one model, `top` and `seed` can share them.
        origin: What contributions of tokens are measured from, as in `attribute`.
        baseline: What logits are measured from, likewise.
        target: The id of the token whose logit is explained; by default that of the predicted one.
        over: The id of the token whose logit is subtracted from it; by default none.

    """

    run: Run
    k: int = 4
    top: int = 8
    seed: int = 0
    full: bool = False
    nulls: dict[Side, Null] = field(default_factory=dict, repr=False)
    origin: str | Tensor | None = field(default=None, repr=False)
    baseline: str = "vocabulary"
    target: int | None = None
    over: int | None = None
    _op: Operator | None = field(default=None, init=False, repr=False)
    _progress: Progress | None = field(default=None, init=False, repr=False)
    _attributions: dict[tuple[int | None, bool, bool], Attribution] = field(
        default_factory=dict, init=False, repr=False
    )

    @contextmanager
    def working(self, max_memory: float | str | None = None, progress: Progress | None = None) -> Iterator[None]:
        """Limit the memory of what is computed inside the block, and report its progress.

        Args:
            max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
            progress: Called as `progress(what, done, all)` during the work.

        Raises:
            BadArgument: `max_memory` is not a size.

        """
        before, self._progress = self._progress, progress
        try:
            with limited(max_memory), norms_kept():
                yield
        finally:
            self._progress = before

    @property
    def op(self) -> Operator:
        """The operator from the embeddings to the final hidden state. It keeps J once J has been formed."""
        if self._op is None:
            op = self.run.operator()
            self._op = op.solidified() if self.full else op
        return self._op

    @cached_property
    def blocks(self) -> list[SVD]:
        """The leading singular triplets of each token's block J_t."""
        return self._decomposed(min(self.k, self.op.shape[0], self.op.input.shape[1]), per_token=True)

    @cached_property
    def whole(self) -> SVD:
        """The leading singular triplets of J. The blocks always come first, so that results do not depend on order."""
        assert self.blocks, "a prompt has tokens"
        return self._decomposed(min(self.k, *self.op.shape), per_token=False)[0]

    def _decomposed(self, k: int, per_token: bool) -> list[SVD]:
        found, self._op = decomposed(self.op, k, per_token=per_token, seed=self.seed, progress=self._progress)
        return found

    def each(self) -> Iterator[tuple[int | None, str | None, SVD]]:
        """Yields position, token and triplets of each block, and then those of J, with None for position and token."""
        yield from zip(range(len(self.blocks)), self.run.tokens, self.blocks, strict=True)
        yield None, None, self.whole

    @cached_property
    def terms(self) -> Float[Tensor, "T d_out"]:
        """J_t (x_t - x₀_t) of each token: what it contributes to the final hidden state."""
        moved = self.op.input - self._origin.embeddings if self._origin.moved else None
        return token_terms(self.op, moved)

    @property
    def norms(self) -> list[float]:
        """The norms of these terms."""
        return lengths(self.terms, 1).tolist()

    @cached_property
    def written(self) -> list[list[Word]]:
        """The top tokens of each of these terms."""
        return decode(self.run.lm, self.terms.T, "output", self.top, null=self.null("output"))

    @cached_property
    def _origin(self) -> Origin:
        return origin_of(self.run, None if self.origin == "reference" else self.origin)

    @cached_property
    def _decodings(self) -> Decodings:
        return Decodings(self.run.lm, self.top)

    def null(self, side: Side) -> Null:
        """Returns what random directions decode to.

        Args:
            side: "output" or "input".

        """
        if side not in self.nulls:
            if side == "input" and is_tied(self.run.lm):
                self.nulls[side] = replace(self.null("output"), side=side)
            else:
                self.nulls[side] = null(self.run.lm, side, self.top, seed=self.seed)
        return self.nulls[side]

    def words(self, found: Sequence[SVD], side: Side) -> list[list[list[Word]]]:
        """Returns the top tokens of each singular vector of some SVDs, as SVD x vector x rank.

        Args:
            found: The SVDs.
            side: "output" for left singular vectors, "input" for right ones.

        Returns:
            Lists of tokens, best first; empty for vectors whose singular value is zero.

        """
        asked = [(f, int((f.S > 0).sum())) for f in found]
        decoded = self._decodings(asked, side, self.top)
        words = [own.words(self.run.lm, self.null(side)) for own in decoded]
        return [own + [[] for _ in f.S[len(own) :]] for f, own in zip(found, words, strict=True)]

    def attribution(self, versus: int | None = None, *, parts: bool = False, flow: bool = False) -> Attribution:
        """Returns the attribution of the target's logit, or of its difference to another token's logit.

        Args:
            versus: The id of the other token; by default `over`.
            parts: Whether layers and heads are in its table, as in `attribute`.
            flow: Whether token x part is computed too, as in `attribute`.

        Raises:
            NotExact: A sum does not equal the logit.

        """
        versus = self.over if versus is None else versus
        key = (versus, parts, flow)
        if key not in self._attributions:
            stopping_point()
            self._attributions[key] = attribute(
                self.run, self.target, versus, baseline=self.baseline, parts=parts, flow=flow, origin=self.origin
            )
        return self._attributions[key]

    @cached_property
    def first(self) -> Attribution:
        """The attribution of the target's logit with one random reference, which takes less time than the mean over
        several; only its sums are certified yet. If the convention has no random reference, this is `attribution()`.
        """
        (run,) = self.run.recorded([None])
        label = run.certificate.convention
        if not convention_named(label).varies:
            return self.attribution()
        return attribute(
            run,
            self.target,
            self.over,
            convention=label,
            baseline=self.baseline,
            parts=False,
            origin=self.origin,
            references=1,
        )

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The attribution of the target's logit under other conventions, and what deleting each token does."""
        deletion = self._deletes
        if deletion:
            count = len(self.run.ids)
            announce_plan(f"Deleting each of {count} tokens", self._graph, model_plan(self._graph, count))
        return beside(
            self.run, self.attribution(), self.target, self.over, baseline=self.baseline, origin=self.origin,
            deletion=deletion, progress=self._progress,
        )  # fmt: skip

    @property
    def _graph(self) -> Operator:
        """The operator whose products run through the network; costs are counted with it."""
        return self.run.operator()

    @property
    def _deletes(self) -> bool:
        """Whether each token is deleted: yes if the prompt is short, or if that costs less than the spectra."""
        op, T = self._graph, len(self.run.ids)
        if T <= DELETED:
            return True
        pace, wanted = estimated_pace(op), Wanted(min(self.k, op.shape[0], op.input.shape[1]), TOLERANCE[op.bias.dtype])
        return model_plan(op, T).cost(pace) <= min(plan.cost(pace) for plan in plans(op, wanted, T))

    @cached_property
    def lens(self) -> Lens | None:
        """The lens on the target; None if the model's layers can't be read out."""
        try:
            origin = None if self.origin == "reference" else self.origin
            return lens(
                self.run, self.target, top=self.top, baseline=self.baseline, origin=origin, progress=self._progress
            )
        except NoPoint:
            return None

    @cached_property
    def sinks(self) -> tuple[list[float | None], list[str]]:
        """The attention that each token receives, and why it counts as an attention sink."""
        return sink_columns(self.run)

    @cached_property
    def alternatives(self) -> list[int]:
        """The tokens that the target is compared with: the next predictions, to which others can be added."""
        others = [p.id for p in self.run.prediction if p.id not in (self.aim, self.over)]
        return others[:ALTERNATIVES]

    @property
    def depth(self) -> int:
        """The number of layers found in the network. It takes no pass."""
        return len(self.run.network.recording.layers)

    @property
    def aim(self) -> int:
        """The id of the target."""
        return self.run.prediction[0].id if self.target is None else self.target

    @property
    def versus(self) -> list[Attribution]:
        """The differences between the target's logit and those of the alternatives."""
        return [self.attribution(token) for token in self.alternatives]

    @cached_property
    def chosen(self) -> list[int]:
        """The tokens that have a row of their own in views: all, or the largest contributors of a long prompt."""
        return chosen(self.attribution())

    @cached_property
    def depth_words(self) -> pd.DataFrame:
        """The top tokens of what each chosen token contributes at every depth, in the table DEPTH_WORDS."""
        origin = self._origin.embeddings if self._origin.moved else None
        return depth_words(self.run, self.chosen, self.top, self.null("output"), origin)

    @cached_property
    def head_words(self) -> pd.DataFrame:
        """The top tokens of what each head adds to the stream, in the table HEAD_WORDS."""
        return head_words(self.run, self.top, self.null("output"))

    @cached_property
    def patterns(self) -> pd.DataFrame:
        """What each head attends to from the last position, in the table PATTERNS."""
        return patterns(self.run)

    @cached_property
    def faithfulness(self) -> Faithfulness | None:
        """How well contributions under each convention predict the logit when tokens are removed, next to gradients and
        a random order; None if no token was deleted, or if the prompt has more than JUDGED tokens or too few.
        """
        own = self.sensitivity
        if own.effects is None or len(self.run.ids) > JUDGED:
            return None
        scores = {label: own.contributions(label) for label in own.attributions}
        try:
            return faithfulness(
                self.run, self.target, self.over, methods=("gradient x input", "random"), scores=scores,
                baseline=self.baseline, seed=self.seed,
            )  # fmt: skip
        except BadArgument:  # fewer than two tokens can be removed
            return None

    @cached_property
    def largest(self) -> list[Largest]:
        """The largest columns and rows of J, decoded; none unless J is in memory."""
        if not isinstance(self.op.products, Matrix):
            return []
        return [largest(self.run.lm, self.op, of, top=self.top) for of in ("columns", "rows")]

    @cached_property
    def image(self) -> Float[Tensor, "R T C"]:
        """J as an image, computed by `imaged`."""
        return imaged(self.op, self._progress)

    @cached_property
    def every_layer(self) -> Layers:
        """Every layer, with `k` triplets of each of its operators, or as many as it has."""
        return self.layers(min(self.k, self.op.shape[0], self.op.input.shape[1]))

    def layers(self, k: int | None = None, *, position: int = -1, spans: Sequence[str] = SPANS) -> Layers:
        """Returns every layer, with the leading singular triplets of each of its operators.

        Args:
            k: The number of triplets; by default `self.k`.
            position: The position whose residual stream is decomposed.
            spans: Some of "cumulative" and "layerwise".

        Raises:
            SecantError: Any error of `secant.layers`.

        """
        k = self.k if k is None else k
        found = layers(self.run, k, position=position, spans=spans, progress=self._progress)
        found.decodings.top = max(found.decodings.top, self.top)
        return found


def imaged(op: Operator, progress: Progress | None = None) -> Float[Tensor, "R T C"]:
    """Returns J as an image: the root mean square of each rectangle of each token's block.

    Unless J is already in memory, all of its rows are computed, a batch at a time, and none is kept. Work that takes
    more than a minute, or more than half of the free memory, is announced beforehand.

    Args:
        op: The operator.
        progress: Called as `progress("image", done, all)`, in rows of J.

    """
    if not isinstance(op.products, Matrix):
        announce_plan(f"All {len(op.bias)} rows of J, for its image", op, row_plan(op))
    rows, (T, width) = len(op.bias), op.input.shape
    R, C = min(rows, CELLS), min(width, CELLS, max(1, IMAGE_COLUMNS // T))
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
