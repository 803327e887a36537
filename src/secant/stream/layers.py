"""The linear systems of every layer: what the network has written by each depth, and what each layer does by itself.

Let h_i be the residual stream after layer i at one position. It is affine in the embeddings, with the cumulative
operator J_i, and in the residual stream before the layer, with the layerwise operator. So is what each part of the
layer adds to it. Through the readout N, the final norm frozen at h_i, the output N h_i is in the space that the head
decodes (a logit lens). `layers` returns the leading singular triplets of all of these operators, for each token's block
and for all tokens together (J. Golden, TMLR 2025, arXiv 2505.24293, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, checked, integer, quoted
from secant.linearize.points import ActivationGraph
from secant.linearize.readout import Readout
from secant.linearize.run import Run
from secant.memory import Progress, limited
from secant.numeric import relative, wide
from secant.operators.cost import Plan, announce_plan
from secant.operators.decomposition import leading, operations
from secant.operators.operator import CHUNK, Graph
from secant.stream.decode import Decodings
from secant.stream.depths import SPANS, Depth, Layers
from secant.stream.sweep import STREAM, Matrices, before, layerwise_vectors, operators, plan, targets


@checked
def layers(
    run: Run,
    k: int = 8,
    *,
    position: int = -1,
    readout: str | None = "norm",
    spans: Sequence[str] = SPANS,
    method: str = "auto",
    all_tokens: bool = True,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Layers:
    """Returns the leading singular triplets of every layer's operators at one position.

    Work that takes more than a minute, or more than half of the free memory, is announced beforehand.

    Args:
        run: The run.
        k: The number of triplets of each token's block, and of all tokens together.
        position: The position whose residual stream is decomposed; by default the last.
        readout: "norm" to end each operator after the final norm, frozen at the activation that it is applied to; None
            to end it in the residual stream.
        spans: Some of "cumulative" (from the embeddings) and "layerwise" (from the residual stream before the layer).
        method: How to compute the cumulative operators: "forward", "reverse", or "auto" for the cheaper one that fits
            in memory (see `secant.stream.sweep`).
        all_tokens: Whether all tokens' blocks together are decomposed too.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress("layers", done, all)` after each layer.

    Raises:
        NoPoint: The network has no layers, or the readout can't be applied to them.
        BadArgument: Another argument is out of range.
        TooLarge: The work does not fit in memory.
        NotExact: An operator does not reproduce the model within tolerance.

    """
    count = len(run.found_layers("Use the activations that run.points lists."))
    inside, T = run.inside, len(run.ids)
    if readout not in (None, "norm"):
        raise BadArgument("A readout of all layers is norm, or None", quoted(readout), "Choose one of them.")
    if not spans or not set(spans) <= set(SPANS):
        raise BadArgument(f"Spans are {' and '.join(SPANS)}", quoted(spans), "Choose from them.")
    d = min(inside.graph[name].shape[1] for name in ("embed", "norm", *(f"layers.{i}" for i in range(count))))
    k = integer(k, 1, d, f"Blocks have 1 to {d} singular triplets", "k = ")
    position = integer(position, -T, T - 1, f"A position is one of the prompt's {T} tokens") % T
    with limited(max_memory):
        return _layers(run, k, position, readout, spans, method, all_tokens, progress)


def _layers(
    run: Run,
    k: int,
    position: int,
    readout: str | None,
    spans: Sequence[str],
    method: str,
    all_tokens: bool,
    progress: Progress | None,
) -> Layers:
    """All layers, from checked arguments."""
    inside, count = run.inside, len(run.inside.layers)
    whole = plan_of(run, k, spans, method, all_tokens)
    announce_plan(f"All {count} layers, {whole.solver} sweep", run.operator(), whole)
    readouts = Readouts.of(inside, position, readout is not None)
    report = progress or (lambda what, done, of: None)
    alone = inside.without_streams() if "layerwise" in spans and inside.chain else None
    depths: list[Depth] = []
    blocks: list[Tensor] = []
    couplings: list[float] = []
    for i, span, found in operators(inside, position, whole.solver, spans):
        without = inside.biases
        if span == "layerwise":
            blocks = [*blocks[-1:], *_added(found, position)]
            if len(blocks) == 2 and blocks[0].shape == blocks[1].shape:
                couplings.append(_mismatch(blocks[0], blocks[1], k))
            without = alone if alone is not None and i else inside.without(before(inside, i))
        depths += _depths(run, readouts, i, span, found, without, k, all_tokens)
        if span == max(spans):  # layerwise operators come last
            report("layers", i + 1, count)
    decodings = Decodings(run.lm, token=int(run.logits[position].argmax()))
    return Layers(run, position, readout, whole.solver, depths, couplings, decodings)


def plan_of(run: Run, k: int, spans: Sequence[str] = SPANS, method: str = "auto", all_tokens: bool = True) -> Plan:
    """Returns what all layers cost; its solver is the method of the sweep.

    Args:
        run: The run, whose layers have been found.
        k: The number of triplets, as in `layers`, like the other arguments.
        spans: Some of "cumulative" and "layerwise".
        method: How to compute the cumulative operators.
        all_tokens: Whether all tokens' blocks together are decomposed too.

    """
    inside, count = run.inside, len(run.inside.layers)
    chosen = plan(inside, method)
    vectors = chosen.vectors if "cumulative" in spans else 0.0
    if "layerwise" in spans:
        vectors += layerwise_vectors(inside, known="cumulative" in spans and chosen.method == "forward")
    decomposing = len(spans) * sum(_decomposing(inside, i, k, all_tokens) for i in range(count))
    return Plan(chosen.method, True, vectors / count / CHUNK, vectors / count, decomposing, chosen.memory)


def _decomposing(inside: ActivationGraph, i: int, k: int, all_tokens: bool) -> float:
    """Operations that the decompositions of one layer's operators take, for one span."""
    T, d = inside.graph["embed"].shape
    shapes = [(T, d), (1, T * d)] if all_tokens else [(T, d)]
    names = dict.fromkeys([*targets(inside, i), f"layers.{i}"])
    widths = [inside.graph[name].shape[1] for name in names]
    return sum(operations((n, width, d_in), k, inside.graph["embed"]) for width in widths for n, d_in in shapes)


def _depths(
    run: Run,
    readouts: Readouts,
    i: int,
    span: str,
    found: Matrices,
    without: Mapping[str, Tensor],
    k: int,
    all_tokens: bool,
) -> list[Depth]:
    """The spectra of a layer's operators, parts first. `without` has each activation with the source at zero.

    Raises NotExact if an operator does not reproduce the model.
    """
    inside = run.inside
    source = "embed" if span == "cumulative" else before(inside, i)
    x = inside.value(source)
    depths = []
    for part in sorted(found, key=lambda part: part == STREAM):
        name = f"layers.{i}" if part == STREAM else f"layers.{i}.{part}"
        J, b, y = readouts.applied(name, found[part], without[name][readouts.position])
        error = relative(_applied(J, x) + wide(b), y)
        run.certify(error, b, y, f"from {source} to {name}")
        blocks = leading(J.movedim(1, 0), y, k)
        whole = leading(J.flatten(1)[None], y, k)[0] if all_tokens else None
        depths.append(Depth(i, part, span, blocks, whole, error))
    return depths


def _applied(J: Float[Tensor, "n T d"], x: Float[Tensor, "T d"]) -> Float[Tensor, " n"]:
    """J x in float64, in batches of rows."""
    v = wide(x).flatten()
    return torch.cat([wide(rows).flatten(1) @ v for rows in J.split(64)])


def _added(own: Matrices, position: int) -> list[Tensor]:
    """The Jacobian of what a layer adds to the stream with respect to the stream before it, at the same position.

    The list is empty if the layer has no parts.
    """
    parts = [J[:, position] for part, J in own.items() if part != STREAM]
    return [torch.stack(parts).sum(0)] if parts else []


def _mismatch(block: Float[Tensor, "d d"], following: Float[Tensor, "d d"], k: int) -> float:
    """‖U₂ᵀ J₁ V₂ - S₁‖ / ‖S₁‖ with the leading k triplets of each."""
    one, two = leading(torch.stack([block, following]), torch.zeros_like(block[0]), k)
    return (torch.linalg.matrix_norm(two.U.T @ block.to(two.U) @ two.V - one.S.diag()) / one.S.norm()).item()


@dataclass(frozen=True, eq=False)
class Readouts:
    """The readouts of every layer's activations at one position: the final norm, frozen at each of them, or none.

    Attributes:
        inside: The network.
        position: The position.
        networks: The final norm, applied to batches of activations; empty without a readout.
        rows: Which network each activation passes through, and at which of its rows.

    """

    inside: ActivationGraph
    position: int
    networks: list[Readout]
    rows: dict[str, tuple[int, int]]
    _frozen: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def _scales(self) -> list[Tensor | None]:
        """The diagonal of the norm at each row of each network, or None if a norm is not diagonal."""
        return [_diagonal(Graph(network.input, network.points["norm"])) for network in self.networks]

    @classmethod
    def of(cls, inside: ActivationGraph, position: int, normed: bool) -> Readouts:
        """Returns the readouts of all layers, batched where the model allows it.

        Args:
            inside: The network.
            position: The position.
            normed: Whether activations pass through the final norm.

        Raises:
            NoPoint: The final norm does not follow the last layer, or mixes positions.

        """
        layers = range(len(inside.layers))
        names = [name for i in layers for name in (*(f"layers.{i}.{part}" for part in inside.parts(i)), f"layers.{i}")]
        if not normed:
            return cls(inside, position, [], {})
        networks, rows = list[Readout](), dict[str, tuple[int, int]]()
        for some, readout, places in inside.readouts([(name, position) for name in names]):
            rows |= {name: (len(networks), row) for (name, _), row in zip(some, places, strict=True)}
            networks.append(readout)
        return cls(inside, position, networks, rows)

    def applied(
        self, name: str, J: Float[Tensor, "n T d"], b: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "m T d"], Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Returns J, b and y of an activation after its readout.

        Args:
            name: The activation.
            J: Its operator.
            b: The activation with the operator's source at zero.

        """
        if name not in self.rows:
            return J, b, self.inside.values[name][self.position]
        index, row = self.rows[name]
        network, scales = self.networks[index], self._scales[index]
        if scales is not None:
            product, constant = scales[row][:, None, None] * J, scales[row] * b
        else:
            N = self._norm(index, row).to(J)  # some models in half precision have streams in float32
            product, constant = (N @ J.flatten(1)).view(-1, *J.shape[1:]), N @ b.to(N)
        return product, constant + network.biases["norm"][row], network.values["norm"][row]

    def _norm(self, network: int, row: int) -> Float[Tensor, "m n"]:
        """The matrix of the frozen norm at one row. One batched backward pass computes those of as many rows as the
        prompt has tokens, which take as much memory as one operator.
        """
        graph, own = self.networks[network], self._frozen
        if (network, row) not in own:
            own.clear()
            with torch.inference_mode(False), torch.enable_grad():
                rows = slice(row, row + self.inside.tokens) if len(self.networks) == 1 else slice(row, row + 1)
                y = graph.points["norm"][rows]
            g, m = y.shape
            slopes = Graph(graph.input, y).adjoint(torch.eye(m).to(y).repeat(g, 1))
            norms = slopes.view(*graph.input.shape, m)[rows].mT
            own.update({(network, row + i): N for i, N in enumerate(norms)})
        return own[network, row]


def _diagonal(norm: Graph) -> Float[Tensor, "rows n"] | None:
    """The diagonal of a frozen norm, or None if any element of the output depends on another one of the input."""
    if norm.y.shape != norm.x.shape:
        return None
    random = torch.randn(norm.x.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(norm.x)
    sums, mixed = norm.adjoint(torch.stack([torch.ones_like(random), random], 1)).T
    diagonal = ((mixed - random * sums).abs() <= 8 * torch.finfo(sums.dtype).eps * (random * sums).abs()).all()
    return sums.view(norm.x.shape) if diagonal else None
