"""What tokens and heads write at every depth.

An activation is affine in the embeddings, so it is the sum of one term for each token, J_t (x_t - x₀_t), and of
constants. The activations are each layer's stream and what its parts add to it. The term of a head is what it adds to
the stream through the output projection.

Each term is read out by the final norm, frozen at the activation's own statistics, and decoded. The term promotes the
tokens whose rows of the head are nearest to it, and suppresses those whose rows are farthest from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import NoPoint
from secant.linearize.run import Run
from secant.operators.batched import Blocks
from secant.operators.operator import Graph
from secant.results.columns import POSITION, TOKEN
from secant.results.schema import Column, Table
from secant.stream.decode import decode
from secant.stream.depths import LAYER, PART
from secant.stream.sweep import depths, part_of
from secant.stream.words import RANK, SCORE, WORD, WORD_ID, Null, Z, ranked

SIGNS = {"promoted": 1, "suppressed": -1}

SIGN = Column("sign", str, "promoted: nearest to the contribution; suppressed: farthest from it")
SIGNED = (
    RANK.but(meaning="rank among the top tokens, from 0"),
    WORD,
    WORD_ID,
    SCORE.but(meaning="the cosine, with the opposite sign for suppressed tokens"),
    Z,
)
"""A top token in the direction of a contribution, or in the opposite one."""

DEPTH_WORDS = Table(
    "depth_words",
    "a top token of what a token contributes to the residual stream after a layer, or to what a part of it adds",
    (LAYER, PART, POSITION, TOKEN, SIGN, *SIGNED),
)

HEAD_WORDS = Table(
    "head_words",
    "a top token of what an attention head adds to the residual stream at the last position",
    (LAYER, Column("head", int, "the attention head, from 0"), SIGN, *SIGNED),
)

ELEMENTS = 2**26
"""The approximate maximum of elements of the streams that are read out in one batch."""


def depth_words(
    run: Run, tokens: Sequence[int], top: int, null: Null | None, origin: Float[Tensor, "T d"] | None = None
) -> pd.DataFrame:
    """Returns the top tokens of what some tokens contribute at every depth, at the last position.

    Args:
        run: The run.
        tokens: The positions of the tokens.
        top: The number of top tokens.
        null: What random directions decode to at the output.
        origin: The embeddings that contributions are measured from; by default zero.

    Returns:
        A row for each top token; none if the layers can't be found or read out.

    """

    def each() -> Iterator[tuple[dict[str, Any], Tensor]]:
        for name, terms in depth_terms(run, tokens, origin):
            where = {"layer": run.inside[name].layer, "part": part_of(name)}
            yield from (
                (where | {"position": t, "token": run.tokens[t]}, term) for t, term in zip(tokens, terms, strict=True)
            )

    return DEPTH_WORDS.frame(_decoded(run, each(), top, null))


def head_words(run: Run, top: int, null: Null | None) -> pd.DataFrame:
    """Returns the top tokens of what each attention head adds to the stream at the last position.

    Args:
        run: The run.
        top: The number of top tokens.
        null: What random directions decode to at the output.

    Returns:
        A row for each top token; none if the heads can't be found or read out.

    """
    each = (
        ({"layer": run.inside[name].layer, "head": head}, term)
        for name, terms in head_terms(run) for head, term in enumerate(terms)
    )  # fmt: skip
    return HEAD_WORDS.frame(_decoded(run, each, top, null))


def head_terms(run: Run) -> Iterator[tuple[str, Float[Tensor, "heads d_out"]]]:
    """Yields the name of each attention and, read out by the final norm, what each of its heads adds to the stream at
    the last position in the model's own pass.

    Raises:
        NoPoint: The attentions can't be read out.

    """
    inside, at = run.inside, len(run.ids) - 1
    found: dict[str, Tensor] = {}
    for name in inside.points:
        heads = inside.heads(name)
        if not heads:
            continue
        with torch.inference_mode(False), torch.enable_grad():
            graph = Graph(inside.graph[f"{name}.heads"], inside.graph[name][at].flatten())
        alone = torch.zeros(len(heads), *graph.x.shape, dtype=graph.x.dtype, device=graph.x.device)
        for i, point in enumerate(heads):
            alone[i, at, point.columns] = inside.values[f"{name}.heads"][at, point.columns].to(alone)
        found[name] = graph.forward(alone.flatten(1).T).T
    for count in dict.fromkeys(len(terms) for terms in found.values()):
        names = [name for name, terms in found.items() if len(terms) == count]
        yield from _read_out(run, names, torch.stack([found[name] for name in names], 1))


def _decoded(
    run: Run, each: Iterable[tuple[dict[str, Any], Float[Tensor, " d_out"]]], top: int, null: Null | None
) -> list[dict[str, Any]]:
    """A row for each top token of each term, promoted and suppressed; none if the activations can't be read out."""
    try:
        every = list(each)
    except NoPoint:
        every = []
    if not every:
        return []
    columns = torch.stack([term for _, term in every], 1)
    found = decode(run.lm, torch.cat([way * columns for way in SIGNS.values()], 1), "output", top, null=null)
    return [
        here | {"sign": sign} | word
        for i, (here, _) in enumerate(every)
        for sign, words in zip(SIGNS, found[i :: len(every)], strict=True)
        for word in ranked(words)
    ]


def depth_terms(
    run: Run, tokens: Sequence[int], origin: Float[Tensor, "T d"] | None = None
) -> Iterator[tuple[str, Float[Tensor, "n d_out"]]]:
    """Yields the name of each layer's parts and stream, and what some tokens contribute to it at the last position.

    Args:
        run: The run.
        tokens: The positions of the tokens.
        origin: The embeddings that contributions are measured from; by default zero.

    Raises:
        NoPoint: The layers can't be found, or can't be read out.

    """
    inside, at = run.inside, len(run.ids) - 1
    run.found_layers("Report the model's type.")
    names = depths(inside)
    if len({inside.graph[name].shape for name in names}) > 1:
        raise NoPoint(
            "Parts must be as wide as the residual stream to be read out",
            "activations of several widths",
            "Use run.operator().",
        )
    x = run.network.input
    moved = x.detach() if origin is None else x.detach() - origin
    with torch.inference_mode(False), torch.enable_grad():
        y = torch.stack([inside.graph[name][at] for name in names])
        graph = inside.network.graph(x, y.flatten())
        terms = Blocks(graph, (y.numel(), x.numel()), len(x), tokens, x).forward(moved[list(tokens), :, None])
        yield from _read_out(run, names, terms[:, :, 0].view(len(tokens), *y.shape))


def _read_out(
    run: Run, names: Sequence[str], terms: Float[Tensor, "n names d"]
) -> Iterator[tuple[str, Float[Tensor, "n d_out"]]]:
    """Yields each name, and n terms of that activation at the last position, through the final norm frozen there."""
    inside, at, width = run.inside, len(run.ids) - 1, terms.shape[2]
    group = max(1, ELEMENTS // (width * max(1, len(terms))))
    for start in range(0, len(names), group):
        some = iter(range(start, len(names)))
        for named, readout, rows in inside.readouts([(name, at) for name in names[start : start + group]]):
            places = [next(some) for _ in named]
            columns = readout.input.new_zeros(*readout.input.shape, len(terms))
            columns[rows] = terms[:, places].permute(1, 2, 0).to(columns)
            with torch.inference_mode(False), torch.enable_grad():
                norm = readout.points["norm"][rows]
                graph = Graph(readout.input, norm.flatten())
            made = graph.forward(columns.flatten(0, 1)).view(*norm.shape, len(terms))
            yield from ((name, made[i].T) for i, (name, _) in enumerate(named))
