"""All layers' operators at one position, one layer after the other: by a sweep forward, or by backward passes.

*Reverse*: a backward pass for each row of each part, through all layers below it. *Forward*: the derivative of the
stream by the embeddings, at every position, goes once through the layers and serves every part: H ← H + A H for what
mixes tokens; and where a layer ends in a part that does not, that part's own matrix M_s at each position s is formed
once, H_s ← H_s + M_s H_s. A forward sweep costs T d vectors a layer, whatever is asked for; backward passes cost d
vectors for each part and each layer below it. Neither holds more than one layer's matrices besides H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, TooLarge
from secant.linearize.points import Inside
from secant.memory import allowance, bytes_in_words
from secant.operators.operator import CHUNK, Operator

METHODS = ("auto", "forward", "reverse")
STREAM = "residual"

Matrices = dict[str, Float[Tensor, "d_out T d_in"]]
"""J of each part of a layer and of the stream after it, at one position."""


@dataclass(frozen=True)
class Plan:
    """How the cumulative operators are found, and what it takes: vectors through one layer, and bytes."""

    method: str
    vectors: float
    memory: float


def plan(inside: Inside, method: str = "auto") -> Plan:
    """The cheaper way that fits into the allowed memory, or the one asked for. Raises BadArgument, TooLarge."""
    if method not in METHODS:
        raise BadArgument(f"A method is one of {', '.join(METHODS)}", repr(method), "Choose one of them.")
    chained = method != "reverse" and inside.chain
    if method == "forward" and not chained:
        raise BadArgument(
            "A forward sweep needs a network in which each layer reads the stream before it alone",
            "one that does not", "Use method='reverse', or 'auto'.",
        )  # fmt: skip
    ways = [reverse_cost(inside)] + ([forward_cost(inside)] if chained else [])
    room = allowance(inside.graph["embed"].device)
    fitting = [way for way in ways if method in ("auto", way.method) and way.memory <= room]
    if not fitting:
        least = min(way.memory for way in ways if method in ("auto", way.method))
        raise TooLarge(
            "The matrices of one layer must fit in memory",
            f"{bytes_in_words(least)} for them and {bytes_in_words(room)} to work in",
            "Shorten the prompt, allow more with max_memory, or use run.operator() and its products.",
        )
    return min(fitting, key=lambda way: way.vectors)


def forward_cost(inside: Inside) -> Plan:
    """T d vectors through each layer, of which a part that does not mix tokens needs only d, and one small product."""
    T, d = inside.graph["embed"].shape
    width = max(inside.graph[f"layers.{i}"].shape[1] for i in range(len(inside.layers)))
    shares = [SMALL + (1 - SMALL) / T if separate(inside, i) else 1.0 for i in range(len(inside.layers))]
    size = inside.graph["embed"].element_size()
    return Plan("forward", T * d * sum(shares), size * (2.2 * T * width * T * d + T * width**2) + _spectra(inside))


SMALL = 0.4
"""What a layer costs without the part that mixes no tokens, with products with its matrices: in Llama's shape."""


def reverse_cost(inside: Inside) -> Plan:
    """D vectors for each part, through each layer below."""
    width = max(inside.graph[f"layers.{i}"].shape[1] for i in range(len(inside.layers)))
    vectors = float(sum(width * len(targets(inside, i)) * (i + 1) for i in range(len(inside.layers))))
    return Plan("reverse", vectors, _spectra(inside))


def _spectra(inside: Inside) -> float:
    """Bytes of one layer's matrices, with the stream before it, one as it is read, and what its spectrum takes."""
    T, d = inside.graph["embed"].shape
    size = inside.graph["embed"].element_size()
    widths = [
        [inside.graph[n].shape[1] for n in (*targets(inside, i), f"layers.{i}")] for i in range(len(inside.layers))
    ]
    most = max(map(max, widths))
    return float(T * d) * (size * (max(map(sum, widths)) + 2 * most) + 2 * max(size, 4) * most)


def targets(inside: Inside, i: int) -> list[str]:
    """The points of a layer whose operators are computed; a plain layer's stream is their sum."""
    parts = [f"layers.{i}.{part}" for part in inside.parts(i)]
    return parts if inside.additive(i) else [*parts, f"layers.{i}"]


def before(inside: Inside, i: int) -> str:
    """The point that a layer starts from."""
    return f"layers.{i - 1}" if i else "embed"


def separate(inside: Inside, i: int) -> bool:
    """Whether a layer is the stream plus what mixes tokens plus, last, one part that does not."""
    return inside.additive(i) and inside.middle(i) is not None


def operators(inside: Inside, position: int, method: str) -> Iterator[Matrices]:
    """The cumulative J of each layer's parts and stream, layer by layer."""
    return forward(inside, position) if method == "forward" else reverse(inside, position)


def reverse(inside: Inside, position: int) -> Iterator[Matrices]:
    """By backward passes from each point to the embeddings."""
    T, d = inside.graph["embed"].shape
    stream = torch.zeros(d, T, d).to(inside.graph["embed"])
    stream[:, position] = torch.eye(d)
    for i in range(len(inside.layers)):
        found = rows(inside, "embed", targets(inside, i), i, position)
        if STREAM not in found:
            found[STREAM] = sum(found.values(), start=stream)
        stream = found[STREAM]
        yield found


def layerwise(inside: Inside, i: int, position: int) -> Matrices:
    """J of a layer's parts and of the stream after it by the stream before it."""
    found = rows(inside, before(inside, i), targets(inside, i), i, position)
    if STREAM not in found:
        T, d = inside.graph[before(inside, i)].shape
        itself = torch.zeros(d, T, d).to(inside.graph["embed"])
        itself[:, position] = torch.eye(d)
        found[STREAM] = sum(found.values(), start=itself)
    return found


def rows(inside: Inside, source: str, names: list[str], i: int, position: int) -> Matrices:
    """J of several points at one position, all rows of them in the same backward passes."""
    x = inside.graph[source]
    with torch.inference_mode(False), torch.enable_grad():
        y = torch.cat([inside.graph[name][position] for name in names])
    nothing = torch.zeros_like(y).detach()
    J = Operator(inside.network.graph(x, y), x.detach(), nothing, nothing).dense(CHUNK)
    parts = J.split([inside.graph[name].shape[1] for name in names])
    return {_part(name, i): part for name, part in zip(names, parts, strict=True)}


def _part(name: str, i: int) -> str:
    return STREAM if name == f"layers.{i}" else name.rpartition(".")[2]


def forward(inside: Inside, position: int) -> Iterator[Matrices]:
    """By one sweep of the embeddings' basis through the layers: H is `[columns, T, d]`, a column after the other."""
    T, d = inside.graph["embed"].shape
    H = torch.eye(T * d).to(inside.graph["embed"]).view(T * d, T, d)
    last = len(inside.layers) - 1
    for i in range(last + 1):
        found, H = _through(inside, i, H, position, slice(position, position + 1) if i == last else slice(0, T))
        yield {name: columns.T.reshape(-1, T, d) for name, columns in found.items()}


def _through(inside: Inside, i: int, H: Tensor, position: int, places: slice) -> tuple[dict[str, Tensor], Tensor]:
    """What a layer's parts make of H at the position, `[columns, n]`, and H after it at the places wanted."""
    x, at = inside.graph[before(inside, i)], position - places.start
    kinds, middle = inside.parts(i), inside.middle(i) if inside.additive(i) else None
    if middle is None:
        here = slice(position, position + 1)
        out = {part: _swept(inside, x, f"layers.{i}.{part}", H, here)[:, 0] for part in kinds}
        H = _swept(inside, x, f"layers.{i}", H, places)
        return {**out, STREAM: H[:, at]}, H
    stream, mixed = middle
    out, after = {}, H[:, places].clone()
    for part in kinds[:-1]:
        more = _swept(inside, x, f"layers.{i}.{part}", H, places)
        out[part] = more[:, at].clone()
        after += more
        del more
    read = after if mixed else H[:, places]
    T, d = inside.graph["embed"].shape
    basis = torch.eye(stream.shape[1]).to(stream)[:, None].expand(-1, T, -1)
    alone = _swept(inside, stream, f"layers.{i}.{kinds[-1]}", basis.contiguous(), places)  # transposed, at each place
    for s in range(after.shape[1]):
        reached = _reach(read[:, s], T) * d
        more = read[:reached, s] @ alone[:, s]
        if s == at:
            out[kinds[-1]] = torch.cat([more, more.new_zeros(len(H) - reached, more.shape[1])])
        after[:reached, s] += more  # each place reads itself alone, so that what is read is not written before
    return {**out, STREAM: after[:, at]}, after


def _reach(columns: Tensor, tokens: int) -> int:
    """How many tokens there are up to the last that reaches this place."""
    reaching = columns.view(tokens, -1, columns.shape[1]).ne(0).any(2).any(1).nonzero().flatten()
    return int(reaching[-1]) + 1 if len(reaching) else 0


def _swept(inside: Inside, x: Tensor, target: str, H: Tensor, places: slice) -> Tensor:
    """Columns `[columns, T, d]` through the map from x to some places of a point: `[columns, places, n]`."""
    y = inside.graph[target]
    whole = places == slice(0, len(y))
    with torch.inference_mode(False), torch.enable_grad():
        graph = inside.network.graph(x, y.flatten() if whole else y[places].flatten())
    return graph.forward(H.flatten(1).T).T.view(len(H), places.stop - places.start, y.shape[1])
