"""The terms of a logit: derivatives with respect to tokens, constants, parts and heads, times their values.

A backward pass through the whole frozen network gives the derivatives along all paths. Another, with the outputs of all
parts frozen, gives those along the direct path. Contributions are their products with the activations (`attribution`
has the sums).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.origins import Origin
from secant.linearize.network import Network
from secant.linearize.points import ActivationGraph
from secant.linearize.replay import InjectedConstant
from secant.linearize.run import Run
from secant.numeric import wide
from secant.operators.batched import Blocks
from secant.operators.operator import Graph

ORIGIN = "origin"
"""The name of the row of kind constant that has J x₀."""


def entry(kind: str, name: str, contribution: float, **where: Any) -> dict[str, Any]:
    """Returns a row of the table of contributions, with the same contribution along all paths.

    Args:
        kind: The kind of the row.
        name: Its name.
        contribution: What it adds to the logit.
        **where: Other columns.

    """
    return {"kind": kind, "name": name, "contribution": contribution, "all_paths": contribution, **where}


def dot(g: Tensor | None, x: Tensor) -> float:
    """g·x in float64; 0 if the logit does not depend on x, which may then be infinite, as in a mask."""
    if g is None:
        return 0.0
    slope, value = wide(g).flatten(), wide(x).flatten()
    if not value.isfinite().all():
        value = torch.where(slope == 0, 0, value)
    return (slope @ value).item()


def functional(logits: Float[Tensor, "*rows vocabulary"], e: Float[Tensor, " vocabulary"]) -> Float[Tensor, "*rows"]:
    """Returns e·logits, in the type of the logits, which some models in half precision compute in float32.

    Args:
        logits: The logits.
        e: The functional.

    """
    return logits @ e.to(logits)


def slopes_of(y: Tensor, inputs: Sequence[Any]) -> list[Tensor | None]:
    """The derivatives of a number with respect to tensors or edges of its graph."""
    return list(torch.autograd.grad(y, inputs, retain_graph=True, allow_unused=True)) if inputs else []


def _inputs(network: Network) -> list[Any]:
    """The embeddings, and the edges of the graph at which constants are added."""
    return [network.input, *(c.edge for c in network.with_constants[2])]


def slopes_by_input(run: Run, at: int, e: Float[Tensor, " vocabulary"]) -> list[Tensor | None]:
    """The derivatives of a target with respect to the embeddings and the constants, along all paths."""
    return slopes_of(functional(run.network.with_constants[0]["logits"][at], e), _inputs(run.network))


def input_rows(run: Run, by_input: Sequence[Tensor | None], origin: Origin) -> list[dict[str, Any]]:
    """The contributions of tokens, of the origin unless it is zero, and of each module's constants, along all paths."""
    constants, (gradient, *slopes) = run.network.with_constants[2], by_input
    x = wide(run.network.input) - wide(origin.embeddings)
    rows = token_rows(run, [0.0] * len(x) if gradient is None else (wide(gradient) * x).sum(1).tolist())
    if origin.moved:
        rows.append(entry("constant", ORIGIN, dot(gradient, origin.embeddings)))
    return rows + _by_module("constant", constants, slopes)


def token_rows(run: Run, contributions: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each token."""
    each = enumerate(zip(run.tokens, contributions, strict=True))
    return [entry("token", name, c, position=t) for t, (name, c) in each]


def _by_module(
    kind: str, constants: Sequence[InjectedConstant], slopes: Sequence[Tensor | None]
) -> list[dict[str, Any]]:
    """The contribution of each module's constants; modules that contribute nothing are left out."""
    found: dict[str, float] = defaultdict(float)
    for constant, slope in zip(constants, slopes, strict=True):
        found[constant.module] += dot(slope, constant.value)
    return [entry(kind, module, c) for module, c in found.items() if c]


_Key = tuple[str, int | None, int | None, str]


@dataclass(frozen=True)
class _Term:
    """The derivative of the logit with respect to some columns of one tensor of a part or head, along one path."""

    name: str
    path: str
    layer: int | None
    head: int | None
    tensor: int
    slope: Tensor | None
    columns: slice | None = None

    @property
    def key(self) -> _Key:
        """The key of its contribution."""
        return self.name, self.layer, self.head, self.path

    def of(self, made: Float[Tensor, "T n c"]) -> list[float]:
        """Its contributions, for c values of the tensor."""
        if self.slope is None:
            return [0.0] * made.shape[2]
        chosen = self.columns or slice(None)
        return torch.einsum("tn,tnc->c", wide(self.slope[:, chosen]), wide(made[:, chosen])).tolist()


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that adds to the residual stream: the embeddings, the parts of each layer, and the attention heads.

    `tensors` are those of the graph, `[T, n]`. `terms` have the derivatives with respect to them, and `by_input` those
    with respect to the embeddings and each constant, along all paths. `outside` has the rows of constants outside
    parts.
    """

    inside: ActivationGraph
    tensors: list[Tensor]
    terms: list[_Term]
    by_input: list[Tensor | None]
    outside: list[dict[str, Any]]

    @classmethod
    def of(cls, inside: ActivationGraph, at: int, e: Float[Tensor, " vocabulary"]) -> Parts:
        """All derivatives, from a backward pass through the whole network and one with the outputs of parts frozen."""
        given, cut, constants = inside.cut_at_parts()
        names = ["embed", *given]
        owners = [name for name in names for _ in inside.rows(name)]
        tensors = [rows for name in names for rows in inside.rows(name)]
        mixed = [name for name in names if f"{name}.heads" in inside.points]
        heads = [inside.graph[f"{name}.heads"] for name in mixed]
        whole, straight = (functional(logits[at], e) for logits in (inside.graph["logits"], cut["logits"]))
        every = slopes_of(whole, [*tensors, *heads, *_inputs(inside.network)])
        leaves = [inside.graph["embed"], *(leaf for leaves in given.values() for leaf in leaves)]
        direct = slopes_of(straight, [*leaves, *(c.edge for c in constants)])
        outside = _by_module("outside", constants, direct[len(leaves) :])
        direct = direct[: len(leaves)] + [_pulled(inside, name, direct[owners.index(name)]) for name in mixed]
        terms = [
            _Term(name, path, inside[name].layer, None, i, slopes[i])
            for i, name in enumerate(owners)
            for path, slopes in (("direct", direct), ("all", every))
        ] + [
            _Term(point.name, path, point.layer, head, i, slopes[i], point.columns)
            for i, name in enumerate(mixed, len(owners))
            for head, point in enumerate(inside.heads(name))
            for path, slopes in (("direct", direct), ("all", every))
        ]
        return cls(inside, [*tensors, *heads], terms, every[len(tensors) + len(heads) :], outside)

    @cached_property
    def zeros(self) -> list[Tensor]:
        """The tensors in the network at zero."""
        inside = self.inside
        names = [name for name in dict.fromkeys(term.name for term in self.terms) if name != "embed"]
        zeros = [torch.zeros_like(self.tensors[0]), *(inside.zeros[s] for name in names for s in inside[name].steps)]
        return zeros + [inside.biases[f"{name}.heads"] for name in names if f"{name}.heads" in inside.points]

    def weighed(self, made: Sequence[Float[Tensor, "T _ c"]]) -> dict[_Key, list[float]]:
        """The contributions of all parts and heads by path, for c values of each tensor."""
        found: dict[_Key, list[float]] = {}
        for term in self.terms:
            key, own = term.key, term.of(made[term.tensor])
            found[key] = [a + b for a, b in zip(found[key], own, strict=True)] if key in found else own
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row for the embeddings, each part, each head, each attention's output bias, and constants outside parts."""
        found = self.weighed([t.detach()[:, :, None] for t in self.tensors])
        rows = []
        for (name, layer, head, path), (contribution,) in found.items():
            if path == "direct":
                (through,) = found[name, layer, head, "all"]
                kind = "embed" if name == "embed" else "layer" if head is None else "head"
                rows.append(entry(kind, name, contribution, layer=layer, head=head, all_paths=through))
        return rows + self._output_constants() + self.outside

    def _output_constants(self) -> list[dict[str, Any]]:
        """A row for what each attention adds whatever its heads output: its output bias, from the network at zero."""
        inside, rows = self.inside, []
        for name in dict.fromkeys(term.name for term in self.terms):
            if f"{name}.heads" in inside.points and self._adds(name):
                heads = Graph(inside.graph[f"{name}.heads"], inside.graph[name].flatten())
                zero = inside.biases[name]
                alone = zero - heads.forward(inside.biases[f"{name}.heads"].reshape(-1, 1)).view(zero.shape)
                direct, through = (term.of(alone[:, :, None])[0] for term in self.terms if term.name == name)
                if direct or through:
                    rows.append(entry("head", f"{name} constant", direct, layer=inside[name].layer, all_paths=through))
        return rows

    def _adds(self, name: str) -> bool:
        """Whether any step after an attention's heads, up to what it adds to the stream, adds a constant."""
        first, last = self.inside[f"{name}.heads"].steps[0], max(self.inside[name].steps)
        return any(first < c.step <= last for c in self.inside.constants)

    def flow(self, tokens: Sequence[str], origin: Float[Tensor, "T d"]) -> list[tuple[Any, ...]]:
        """The contribution of each token, and of the constants, through each part and head, along each path.

        Returns:
            Rows: the name, the path, the token's position and text, the layer, the head and the contribution.
        """
        x = self.inside.network.input
        T, names = len(x), {term.key for term in self.terms}
        every = torch.cat([t.flatten() for t in self.tensors])
        graph = replace(self.inside.network.graph(x, every), parts=tuple(self.tensors))
        moved = x.detach() - origin
        found = self._pulled_back(graph, moved) if len(names) < T else self._pushed(graph, moved)
        constants = self.weighed([value[:, :, None] for value in self._at(graph, origin)])
        rows = [
            (name, path, t, token, layer, head, value)
            for (name, layer, head, path), values in found.items()
            for t, token, value in zip(
                [*range(T), None], [*tokens, None], values + constants[name, layer, head, path], strict=True
            )
        ]
        outside = sum(row["contribution"] for row in self.outside)
        rows.append(("outside", "direct", None, None, None, None, outside))
        return rows

    def _at(self, graph: Graph, origin: Float[Tensor, "T d"]) -> list[Tensor]:
        """All tensors in the network at the origin."""
        if not origin.any():
            return self.zeros
        made = graph.forward(origin.reshape(-1, 1))[:, 0].split([t.numel() for t in self.tensors])
        return [zero + own.view(zero.shape) for zero, own in zip(self.zeros, made, strict=True)]

    def _pushed(self, graph: Graph, x: Float[Tensor, "T d"]) -> dict[_Key, list[float]]:
        """The contributions of each token through each part and head, from a product with J for each token."""
        T, shape = len(x), (graph.y.numel(), x.numel())
        found: dict[_Key, list[float]] = defaultdict(list)
        for start in range(0, T, graph.batch_size):
            places = range(start, min(start + graph.batch_size, T))
            columns = Blocks(graph, shape, T, places, x).forward(x[start : places.stop, :, None])[:, :, 0].T
            made = columns.split([t.numel() for t in self.tensors])
            shaped = [part.reshape(*t.shape, -1) for part, t in zip(made, self.tensors, strict=True)]
            for key, values in self.weighed(shaped).items():
                found[key] += values
        return found

    def _pulled_back(self, graph: Graph, x: Float[Tensor, "T d"]) -> dict[_Key, list[float]]:
        """The same from a product with Jᵀ for each part and head, which takes fewer products for long prompts."""
        keys = list(dict.fromkeys(term.key for term in self.terms))
        found: dict[_Key, list[float]] = {}
        for start in range(0, len(keys), graph.batch_size):
            some = {key: i for i, key in enumerate(keys[start : start + graph.batch_size])}
            slopes = [t.new_zeros(*t.shape, len(some)) for t in self.tensors]
            for term in self.terms:
                if term.key in some and term.slope is not None:
                    chosen = term.columns or slice(None)
                    slopes[term.tensor][:, chosen, some[term.key]] += term.slope[:, chosen]
            pulled = graph.adjoint(torch.cat([s.flatten(0, 1) for s in slopes])).view(*x.shape, -1)
            values = torch.einsum("td,tdk->kt", wide(x), wide(pulled))
            found |= dict(zip(some, values.tolist(), strict=True))
        return found


def _pulled(inside: ActivationGraph, name: str, slope: Tensor | None) -> Tensor | None:
    """A derivative with respect to an attention's output, pulled back to the outputs of its heads."""
    if slope is None:
        return None
    heads = inside.graph[f"{name}.heads"]
    return Graph(heads, inside.graph[name].flatten()).adjoint(slope.reshape(-1, 1)).view(heads.shape)
