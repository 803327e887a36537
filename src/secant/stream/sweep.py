"""The operators of all layers at one position, layer by layer, from a forward sweep or from backward passes.

*Reverse*: one backward pass for each row of each part, through all layers below it. *Forward*: H, the derivative of the
residual stream at every position with respect to the embeddings, is carried through the layers once, and gives the
operators of all parts. A part that mixes tokens updates H ← H + A H. If a layer ends in a part that does not, its
matrix M_s at each position s is formed once, and H_s ← H_s + M_s H_s. A forward sweep costs T d vectors for each layer,
whichever operators are requested; backward passes cost d vectors for each part and each layer below it. Both keep the
matrices of only one layer in memory; the forward sweep also keeps H.

Layerwise operators take backward passes through one layer. A last part that mixes no tokens takes none: its operator is
M_s times those of the parts before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, TooLarge, quoted
from secant.linearize.points import ActivationGraph
from secant.memory import allowance, bytes_in_words
from secant.operators.operator import CHUNK, Graph, Operator

METHODS = ("auto", "forward", "reverse")
STREAM = "residual"

Matrices = dict[str, Float[Tensor, "d_out T d_in"]]
"""J at one position for each part of a layer, and for the residual stream after it."""


@dataclass(frozen=True)
class Plan:
    """How the cumulative operators are computed, and the cost: vectors through one layer, and bytes of memory."""

    method: str
    vectors: float
    memory: float


def plan(inside: ActivationGraph, method: str = "auto") -> Plan:
    """Returns the cheapest plan that fits into the allowed memory.

    Args:
        inside: The network.
        method: One of METHODS.

    Raises:
        BadArgument: The method is unknown, or the network allows no forward sweep.
        TooLarge: No plan fits.
    """
    if method not in METHODS:
        raise BadArgument(f"A method is one of {', '.join(METHODS)}", quoted(method), "Choose one of them.")
    chained = method != "reverse" and inside.chain
    if method == "forward" and not chained:
        raise BadArgument(
            "A forward sweep requires a network in which each layer reads only the stream before it",
            "a network in which a layer reads more", "Use method='reverse', or 'auto'.",
        )  # fmt: skip
    plans = [reverse_cost(inside)] + ([forward_cost(inside)] if chained else [])
    room = allowance(inside.graph["embed"].device)
    fitting = [p for p in plans if method in ("auto", p.method) and p.memory <= room]
    if not fitting:
        least = min(p.memory for p in plans if method in ("auto", p.method))
        raise TooLarge(
            "The matrices of one layer must fit in memory",
            f"{bytes_in_words(least)} for them and {bytes_in_words(room)} to work in",
            "Shorten the prompt, allow more with max_memory, or use run.operator() and its products.",
        )
    return min(fitting, key=lambda p: p.vectors)


def forward_cost(inside: ActivationGraph) -> Plan:
    """Returns the cost of T d vectors through each layer. A part that mixes no tokens takes only d, and one product."""
    T, d = inside.graph["embed"].shape
    width = max(inside.graph[f"layers.{i}"].shape[1] for i in range(len(inside.layers)))
    shares = [SMALL + (1 - SMALL) / T if separate(inside, i) else 1.0 for i in range(len(inside.layers))]
    size = inside.graph["embed"].element_size()
    return Plan("forward", T * d * sum(shares), size * (2.2 * T * width * T * d + T * width**2) + _spectra(inside))


SMALL = 0.4
"""Share of a layer's cost without the part that mixes no tokens, but with that part's products, in Llama's shape."""


def reverse_cost(inside: ActivationGraph) -> Plan:
    """Returns the cost of d vectors for each part through each layer below it."""
    width = max(inside.graph[f"layers.{i}"].shape[1] for i in range(len(inside.layers)))
    vectors = float(sum(width * len(targets(inside, i)) * (i + 1) for i in range(len(inside.layers))))
    return Plan("reverse", vectors, _spectra(inside))


def layerwise_vectors(inside: ActivationGraph, known: bool) -> float:
    """Returns how many vectors through one layer the layerwise operators of all layers take.

    Args:
        inside: The network.
        known: Whether the matrices of parts that mix no tokens are known from a forward sweep.
    """
    shares = [SMALL if known and separate(inside, i) else 1.0 for i in range(len(inside.layers))]
    return sum(s * inside.graph[n].shape[1] for i, s in enumerate(shares) for n in targets(inside, i))


def _spectra(inside: ActivationGraph) -> float:
    """Bytes of one layer's matrices, of that of the stream before it, and of one readout and its decomposition."""
    T, d = inside.graph["embed"].shape
    size = inside.graph["embed"].element_size()
    widths = [
        [inside.graph[n].shape[1] for n in (*targets(inside, i), f"layers.{i}")] for i in range(len(inside.layers))
    ]
    most = max(map(max, widths))
    return float(T * d) * (size * (max(map(sum, widths)) + 2 * most) + 2 * max(size, 4) * most)


def targets(inside: ActivationGraph, i: int) -> list[str]:
    """Returns the points of a layer whose operators are computed. In an additive layer, the stream is their sum."""
    parts = [f"layers.{i}.{part}" for part in inside.parts(i)]
    return parts if inside.additive(i) else [*parts, f"layers.{i}"]


def before(inside: ActivationGraph, i: int) -> str:
    """Returns the name of the stream before a layer."""
    return f"layers.{i - 1}" if i else "embed"


def separate(inside: ActivationGraph, i: int) -> bool:
    """Returns whether a layer adds parts that mix tokens and, last, one part that does not."""
    return inside.additive(i) and inside.middle(i) is not None


def operators(
    inside: ActivationGraph, position: int, method: str, spans: Sequence[str] = ("cumulative",)
) -> Iterator[tuple[int, str, Matrices]]:
    """Yields each layer's number, the span, and J of its parts and stream, layer by layer, cumulative ones first.

    Args:
        inside: The network.
        position: The position of the parts and the stream.
        method: "forward" or "reverse", for cumulative operators.
        spans: Some of "cumulative" (from the embeddings) and "layerwise" (from the stream before the layer).
    """
    nothing: tuple[Matrices, Tensor | None] = ({}, None)
    ways = {"forward": forward, "reverse": reverse}
    sweep = ways[method](inside, position) if "cumulative" in spans else repeat(nothing)
    for i, (found, last) in zip(range(len(inside.layers)), sweep, strict=False):
        if found:
            yield i, "cumulative", found
        del found
        if "layerwise" in spans:
            yield i, "layerwise", layerwise(inside, i, position, last)


def reverse(inside: ActivationGraph, position: int) -> Iterator[tuple[Matrices, None]]:
    """Yields the cumulative J of each layer from backward passes."""
    stream = _identity(inside, "embed", position)
    for i in range(len(inside.layers)):
        found = rows(inside, inside.graph["embed"], targets(inside, i), i, position)
        if STREAM not in found:
            found[STREAM] = sum(found.values(), start=stream)
        stream = found[STREAM]
        yield found, None


def layerwise(inside: ActivationGraph, i: int, position: int, last: Tensor | None = None) -> Matrices:
    """Returns J from the stream before a layer to its parts and to the stream after it.

    Args:
        inside: The network.
        i: The layer.
        position: The position of the parts and the stream.
        last: The matrix of the layer's last part at the position, if that part mixes no tokens and the matrix is known.
    """
    x, names, itself = (
        inside.graph[before(inside, i)],
        targets(inside, i),
        _identity(inside, before(inside, i), position),
    )
    middle = inside.middle(i) if inside.additive(i) else None
    if middle is None:
        found = rows(inside, x, names, i, position)
    else:
        stream, mixed = middle
        if last is None:
            last = rows(inside, stream, names[-1:], i, position)[part_of(names[-1])][:, position]
        found = rows(inside, x, names[:-1], i, position)
        read = sum(found.values(), start=itself) if mixed else itself
        found[part_of(names[-1])] = (last @ read.flatten(1)).view(-1, *read.shape[1:])
    if STREAM not in found:
        found[STREAM] = sum(found.values(), start=itself)
    return found


def _identity(inside: ActivationGraph, name: str, position: int) -> Float[Tensor, "d T d"]:
    """J from a stream, at every position, to the same stream at one position."""
    T, d = inside.graph[name].shape
    itself = torch.zeros(d, T, d).to(inside.graph[name])
    itself[:, position] = torch.eye(d)
    return itself


def rows(inside: ActivationGraph, x: Tensor, names: list[str], i: int, position: int) -> Matrices:
    """Returns J from x to several points of a layer at one position. Their rows share the same backward passes."""
    if not names:
        return {}
    with torch.inference_mode(False), torch.enable_grad():
        y = torch.cat([inside.graph[name][position] for name in names])
    nothing = torch.zeros_like(y).detach()
    graph = inside.network.graph(x, y) if x is inside.graph["embed"] else Graph(x, y, _largest(inside, i))
    J = Operator(graph, x.detach(), nothing, nothing).dense(CHUNK)
    blocks = J.split([inside.graph[name].shape[1] for name in names])
    return {part_of(name): block for name, block in zip(names, blocks, strict=True)}


def depths(inside: ActivationGraph, parts: bool = True) -> list[str]:
    """Returns the name of every layer's stream, each after the names of the layer's parts if `parts`."""
    return [
        name
        for i in range(len(inside.layers))
        for name in (*((f"layers.{i}.{part}" for part in inside.parts(i)) if parts else ()), f"layers.{i}")
    ]


def part_of(name: str) -> str:
    """Returns which part of its layer an activation is, from its name: STREAM for the stream after the layer."""
    return name.split(".")[2] if name.count(".") == 2 else STREAM


def forward(inside: ActivationGraph, position: int) -> Iterator[tuple[Matrices, Tensor | None]]:
    """Yields the cumulative J of each layer from one forward sweep, and the matrix of its last part at the position.

    H is `[columns, T, d]`, column by column. There is no such matrix if the last part mixes tokens.
    """
    T, d = inside.graph["embed"].shape
    H = torch.eye(T * d).to(inside.graph["embed"]).view(T * d, T, d)
    last = len(inside.layers) - 1
    for i in range(last + 1):
        places = slice(position, position + 1) if i == last else slice(0, T)
        found, H, alone = _through(inside, i, H, position, places)
        yield {name: columns.T.reshape(-1, T, d) for name, columns in found.items()}, alone


def _through(
    inside: ActivationGraph, i: int, H: Tensor, position: int, places: slice
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """H through each part of a layer at the position, `[columns, n]`, H after the layer at the wanted places, and the
    matrix of the last part at the position if that part mixes no tokens.
    """
    x, at = inside.graph[before(inside, i)], position - places.start
    kinds, middle = inside.parts(i), inside.middle(i) if inside.additive(i) else None
    if middle is None:
        here = slice(position, position + 1)
        out = {part: _swept(inside, i, x, f"layers.{i}.{part}", H, here)[:, 0] for part in kinds}
        H = _swept(inside, i, x, f"layers.{i}", H, places)
        return {**out, STREAM: H[:, at]}, H, None
    stream, mixed = middle
    added = {part: _swept(inside, i, x, f"layers.{i}.{part}", H, places) for part in kinds[:-1]}
    out = {part: more[:, at].clone() for part, more in added.items()}
    read = H[:, places]
    after = read if mixed else read.clone()  # in place: H is not used again
    while added:
        after += added.popitem()[1]
    T, d = inside.graph["embed"].shape
    basis = torch.eye(stream.shape[1]).to(stream)[:, None].expand(-1, T, -1)
    alone = _swept(inside, i, stream, f"layers.{i}.{kinds[-1]}", basis.contiguous(), places)  # M_s, transposed
    for s, tokens in enumerate(_reach(read, T)):
        more = read[: tokens * d, s] @ alone[:, s]
        if s == at:
            out[kinds[-1]] = torch.cat([more, more.new_zeros(len(H) - len(more), more.shape[1])])
        after[: len(more), s] += more  # a place reads only its own rows, which are written after that
    return {**out, STREAM: after[:, at].clone()}, after, alone[:, at].T


def _reach(H: Float[Tensor, "columns places d"], tokens: int) -> list[int]:
    """For each place, the number of tokens up to the last one that it depends on."""
    columns = H.view(tokens, -1, *H.shape[1:])
    reached = ((columns.amax(3) != 0) | (columns.amin(3) != 0)).any(1)
    number = torch.arange(1, tokens + 1, device=H.device)[:, None]
    return (reached * number).amax(0).tolist()


def _swept(inside: ActivationGraph, i: int, x: Tensor, target: str, H: Tensor, places: slice) -> Tensor:
    """The columns of H, `[columns, T, d]`, mapped from x to some places of a layer's point, `[columns, places, n]`."""
    y = inside.graph[target]
    whole = places == slice(0, len(y))
    with torch.inference_mode(False), torch.enable_grad():
        graph = Graph(x, y.flatten() if whole else y[places].flatten(), _largest(inside, i))
    return graph.forward(H.flatten(1).T).T.view(len(H), places.stop - places.start, y.shape[1])


def _largest(inside: ActivationGraph, i: int) -> int:
    """Elements of the largest tensor in a layer. The head is wider and would make batches smaller."""
    start = inside.layers[i - 1].output.step + 1 if i else 0
    steps = inside.network.recording.tape.steps[start : inside.layers[i].output.step + 1]
    return max(math.prod(step.shape) for step in steps)
