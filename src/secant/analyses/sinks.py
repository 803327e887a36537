"""Attention sinks: tokens that later tokens attend to, whatever the sinks say.

At most positions most heads have nothing to move, and then attend to the first token (G. Xiao et al., ICLR 2024, arXiv
2309.17453). A sink's contribution to a logit says little about the prompt, but under frozen patterns it can be most of
the logit. What a token receives is the mean, over layers, heads and later positions, of the attention to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import checked
from secant.linearize.forms import Attended, Constant
from secant.linearize.rules import ROWS
from secant.linearize.run import Run
from secant.linearize.secants import LiveAttention
from secant.numeric import wide
from secant.results.columns import POSITION, TOKEN
from secant.results.schema import Column, Table
from secant.text import visible

MUCH = 0.3
"""A token that receives at least this mean attention is a sink."""

RECEIVED = Column(
    "received", float,
    "mean attention that the token receives, over layers, heads and later positions; missing for the last token, and "
    "where patterns are unknown",
    "attention", heading="attention", show="percent", missing=True,
)  # fmt: skip
SINK = Column(
    "sink", str, f"why the token counts as an attention sink: first, BOS, or received (at least {MUCH}); else empty"
)

PATTERNS = Table(
    "patterns",
    "a head and a token that the last position attends to",
    (
        Column("layer", int, "the layer, from 0"),
        Column("head", int, "the attention head, from 0"),
        POSITION,
        TOKEN,
        Column("attention", float, "the head's attention from the last position to the token", "attention",
               show="percent"),
    ),
)  # fmt: skip


S = TypeVar("S", bound="Selective")


def received(run: Run) -> Float[Tensor, " T"] | None:
    """Returns the mean attention that each token receives from later positions, NaN for the last; None if unknown.

    Args:
        run: The run whose patterns are used.
    """
    T, total, count = len(run.ids), torch.zeros(len(run.ids), dtype=torch.float64), 0
    for _, first, rows in _patterns(run):
        n = rows.shape[-1]
        own = wide(rows).reshape(-1, rows.shape[-2], n)
        later = torch.arange(first, first + own.shape[1])[:, None] > torch.arange(n)
        total[:n] += (own * later).sum((0, 1))
        count += len(own) if first == 0 else 0
    if not count:
        return None
    later = torch.arange(T - 1, -1, -1, dtype=torch.float64)
    return torch.where(later > 0, total / count / later, torch.nan)


def _patterns(run: Run) -> Iterator[tuple[int, int, Tensor]]:
    """Rows of each attention pattern, (..., heads, rows, keys), with the step and the position of the first."""
    T = len(run.ids)
    for number, step in enumerate(run.tape.steps):
        form, row = step.form, ROWS.get(step.function)
        if isinstance(form, LiveAttention):
            form = form.calls[0]
        if isinstance(form, Attended) and form.query.shape[-2] == T == form.key.shape[-2]:
            yield from ((number, lo, form.pattern(lo, hi)) for lo, hi in form.blocks())
        elif isinstance(form, Constant) and row is not None and row.pattern:
            shape = form.value.shape if isinstance(form.value, Tensor) else ()
            if len(shape) >= 3 and shape[-2] == T and shape[-1] in (T, T + 1):
                yield number, 0, form.value[..., :T]


def patterns(run: Run) -> pd.DataFrame:
    """Returns what each head of each layer attends to from the last position.

    Args:
        run: The run, whose layers have been found.

    Returns:
        The table PATTERNS, without layers whose pattern is unknown or that have several.

    """
    T, ends = len(run.ids), [layer.output.step for layer in run.inside.layers]
    found: dict[int, list[Tensor]] = {}
    for number, first, rows in _patterns(run):
        layer = next((i for i, end in enumerate(ends) if number < end), None)
        if layer is not None and first + rows.shape[-2] == T:
            found.setdefault(layer, []).append(wide(rows[..., -1, :]).reshape(-1, rows.shape[-1]))
    lines = [
        (layer, head, t, run.tokens[t], own)
        for layer, (last, *more) in found.items()
        if not more
        for head, values in enumerate(last.tolist())
        for t, own in enumerate(values)
    ]
    return PATTERNS.frame(lines)


def sink_columns(run: Run) -> tuple[list[float | None], list[str]]:
    """Returns the attention that each token receives, and why it counts as a sink: the columns RECEIVED and SINK.

    Args:
        run: The run.
    """
    mass = received(run)
    begins = getattr(run.lm.tokenizer, "bos_token_id", None)
    why = []
    for t, own in enumerate(run.ids):
        reasons = ["first"] * (t == 0) + ["BOS"] * (begins is not None and own == begins)
        reasons += ["received"] * (mass is not None and bool(mass[t] >= MUCH))
        why.append(", ".join(reasons))
    shares: list[float | None] = [None] * len(run.ids) if mass is None else mass.tolist()
    return shares, why


@checked
def sinks(run: Run) -> tuple[int, ...]:
    """Returns the positions of a prompt's attention sinks: the first, BOS, and those that receive much attention.

    Args:
        run: The run.
    """
    return where(sink_columns(run)[1])


def where(why: Iterable[str]) -> tuple[int, ...]:
    """Returns the positions of the sinks.

    Args:
        why: Why each token counts as a sink; empty if it does not.
    """
    return tuple(t for t, reasons in enumerate(why) if reasons)


def sink_line(tokens: Sequence[str], mass: Sequence[float | None]) -> str:
    """Returns which tokens receive much attention, in one line.

    Args:
        tokens: The prompt's tokens.
        mass: The attention that each receives.
    """
    return ", ".join(
        f"{visible(token)} receives {own:.0%} of later tokens' attention"
        for token, own in zip(tokens, mass, strict=True)
        if own is not None and own >= MUCH
    )


class Selective:
    """A result about the tokens of a prompt, whose views can leave out some tokens.

    Attributes:
        left_out: The positions that views leave out. Tables and sums have all tokens.
    """

    left_out: tuple[int, ...]

    if TYPE_CHECKING:  # a field of some classes, and a property of others

        @property
        def tokens(self) -> list[str]:
            """The prompt's tokens."""

    @property
    def note(self) -> str:
        """The note of views on the tokens that they leave out; empty if there are none."""
        names = ", ".join(f"{visible(self.tokens[t])} at {t}" for t in self.left_out)
        return f"Left out: {names}. Sums and tables have all tokens." if names else ""

    def without(self: S, positions: Iterable[int]) -> S:
        """Returns the result with positions left out of its views, which say so.

        Args:
            positions: The positions, such as those of attention sinks.
        """
        return replace(self, left_out=tuple(sorted(positions)))  # type: ignore[type-var]
