"""The linear systems of every layer: what the network has written by each depth, and what each layer does by itself.

Let h_i be the residual stream after layer i at one position. It is affine in the embeddings, with the cumulative
operator J_i, and in the residual stream before the layer, with the layerwise operator. So is what each part of the
layer adds to it. Through the readout N, the final norm frozen at h_i, the output N h_i is in the space that the head
decodes (a logit lens). `layers` returns the leading singular triplets of all of these operators, for each token's block
and for all tokens together (J. Golden, TMLR 2025, arXiv 2505.24293, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NoPoint, checked, integer
from secant.linearize.points import ActivationGraph
from secant.linearize.readout import Readout, batchable
from secant.linearize.run import BLOCK_POSITION, BLOCK_TOKEN, RECONSTRUCTION, Run
from secant.memory import Progress, limited
from secant.numeric import relative, wide
from secant.operators.cost import Plan, announce_plan
from secant.operators.decomposition import (
    BLOCK,
    NORMALIZED,
    SIGMA,
    STABLE_RANK,
    SVD,
    VALUE,
    VECTOR,
    leading,
    operations,
)
from secant.operators.operator import CHUNK, Graph
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View
from secant.stream.decode import Decodings
from secant.stream.sweep import STREAM, Matrices, before, layerwise_vectors, operators, plan, targets
from secant.stream.words import RANK, SCORE, SIDE, SIDES, WORD, WORD_ID, Side
from secant.text import visible

SPANS = ("cumulative", "layerwise")

LAYER = Column("layer", int, "the layer, from 0")
PART = Column(
    "part", str, "residual (the residual stream after the layer), or what the layer adds to it: attn, mlp or mixer"
)
SPAN = Column("span", str, "cumulative (from the embeddings) or layerwise (from the residual stream before the layer)")
FROBENIUS = Column("frobenius", float, "‖J‖_F", SIGMA)

LAYERS = Table(
    "layers",
    "an operator: layer x part x span, for each token and for all tokens together",
    (
        LAYER,
        PART,
        SPAN,
        BLOCK_POSITION,
        BLOCK_TOKEN,
        STABLE_RANK,
        FROBENIUS,
        Column("sigma_{i}", float, "the singular value σ_i", SIGMA),
        RECONSTRUCTION.but(meaning="‖J x + b - y‖ / ‖y‖ of the whole operator at this depth"),
    ),
)
SPECTRA = Table(
    "spectra",
    "a singular value of an operator of the table layers",
    (LAYER, PART, SPAN, BLOCK_POSITION, VECTOR, BLOCK, VALUE, NORMALIZED),
)
LAYER_WORDS = Table(
    "layer_words",
    "a top token of a singular vector of an operator of the table layers",
    (LAYER, PART, SPAN, BLOCK_POSITION, VECTOR, SIDE, RANK, WORD, WORD_ID, SCORE),
)
FIRST_SEEN = Table(
    "first_seen",
    "a part and span, and a token or all tokens together",
    (
        PART,
        SPAN,
        BLOCK_POSITION,
        LAYER.but(meaning="the first layer at which the predicted token is the top token of U₀; missing: never",
                  missing=True),
    ),
)  # fmt: skip
PATH = Table(
    "path",
    "one of the first two left singular vectors of a layer's residual stream, cumulative, all tokens together",
    (
        LAYER,
        VECTOR,
        Column("x", float, "its dot product with the last layer's first left singular vector", "cosine"),
        Column("y", float, "its dot product with the last layer's second left singular vector", "cosine"),
    ),
)
COUPLING = Table(
    "coupling",
    "a layer and the next",
    (
        LAYER,
        Column("next", int, "the layer after it"),
        Column(
            "mismatch",
            float,
            "‖U'ᵀ J V' - S‖ / ‖S‖ with the next layer's U' and V': 0 if they are the same, about 1 if unrelated",
            "ratio",
        ),
    ),
)


@dataclass(frozen=True, eq=False)
class Depth:
    """One operator at one depth.

    Attributes:
        layer: The layer, from 0.
        part: "residual" for the residual stream after the layer, or what the layer adds to it: "attn", "mixer", "mlp".
        span: "cumulative" (from the embeddings) or "layerwise" (from the residual stream before the layer).
        tokens: The leading singular triplets of each token's block.
        whole: Those of all tokens together; None if they were left out.
        reconstruction: ‖J x + b - y‖ / ‖y‖.

    """

    layer: int
    part: str
    span: str
    tokens: list[SVD] = field(repr=False)
    whole: SVD | None = field(repr=False)
    reconstruction: float


@dataclass(frozen=True, eq=False)
class Layers(Result):
    """The operators of every layer of a run, at one position.

    Attributes:
        run: The run.
        position: The position whose residual stream is decomposed, from 0.
        readout: "norm" if the operators end after the final norm; None if they end in the residual stream.
        method: How the cumulative operators were computed: "forward" or "reverse".
        depths: The operators, layer by layer.
        couplings: The mismatch between each layer and the next; empty without layerwise operators.
        decodings: The cache of decoded singular vectors.
        highlight: The ids of tokens that views mark; by default the predicted one.

    """

    schema = (LAYERS, SPECTRA, LAYER_WORDS, FIRST_SEEN, PATH, COUPLING)

    run: Run = field(repr=False)
    position: int
    readout: str | None
    method: str
    depths: list[Depth] = field(repr=False)
    couplings: list[float]
    decodings: Decodings = field(repr=False)
    highlight: tuple[int, ...] = ()

    @property
    def predicted(self) -> int:
        """The id of the token that the model predicts at the position."""
        return int(self.run.logits[self.position].argmax())

    def depth(self, layer: int, part: str = STREAM, span: str = "cumulative") -> Depth:
        """Returns one of the operators.

        Args:
            layer: The layer, from 0.
            part: "residual", "attn", "mixer" or "mlp".
            span: "cumulative" or "layerwise".

        Raises:
            NoPoint: There is no such operator.

        """
        for depth in self.depths:
            if (depth.layer, depth.part, depth.span) == (layer, part, span):
                return depth
        raise NoPoint(
            "A depth is a layer, one of its parts, and a span", f"{layer}, {part}, {span}", "See to_pandas() for all."
        )

    def to_pandas(self) -> pd.DataFrame:
        """Returns a row for each operator, with its stable rank, ‖J‖_F, singular values, and reconstruction error.

        Position and token say whose block it is; they are missing for all tokens together.
        """
        rows = [
            {
                "layer": d.layer,
                "part": d.part,
                "span": d.span,
                "position": t,
                "token": None if t is None else self.run.tokens[t],
                "stable_rank": f.stable_rank,
                "frobenius": f.frobenius,
                **{f"sigma_{i}": s for i, s in enumerate(f.S.tolist())},
                "reconstruction": d.reconstruction,
            }
            for d, t, f in self._each()
        ]
        return LAYERS.frame(rows)

    def spectra(self) -> pd.DataFrame:
        """Returns a row for each singular value, with σ_i and σ_i / σ₀."""
        rows = [
            {"layer": d.layer, "part": d.part, "span": d.span, "position": t, **row}
            for d, t, f in self._each()
            for row in f.spectrum()
        ]
        return SPECTRA.frame([{name: row[name] for name in SPECTRA.names} for row in rows])

    def words(self, top: int = 8, vectors: int = 1, sides: Sequence[Side] = SIDES) -> pd.DataFrame:
        """Returns a row for each top token of a singular vector.

        Right singular vectors are decoded by cosine to the embeddings. Those of a layerwise operator are directions of
        the residual stream before the layer, which has the width of the embeddings. Those of all tokens together are
        not decoded. Each vector is decoded once, however often this is called.

        Args:
            top: The most top tokens of each vector.
            vectors: The number of singular vectors of each operator.
            sides: Some of "output" (left singular vectors) and "input" (right ones).

        """
        asked: list[tuple[Depth, int | None, Side, SVD, int]] = [
            (d, t, side, f, min(vectors, int((f.S > 0).sum())))  # a zero block has no directions
            for d, t, f in self._each()
            for side in (sides if t is not None else [side for side in sides if side == "output"])
        ]
        decoded = {
            side: iter(self.decodings([(f, count) for *_, own, f, count in asked if own == side], side, top))
            for side in sides
        }
        rows = [
            (d.layer, d.part, d.span, t, i, side, r, w.token, w.id, w.score)
            for d, t, side, *_ in asked
            for i, words in enumerate(next(decoded[side]).words(self.run.lm))
            for r, w in enumerate(words[:top])
        ]
        return LAYER_WORDS.frame(rows)

    def path(self) -> pd.DataFrame:
        """Returns the first two left singular vectors of each layer in the plane of the last layer's (the path plot).

        They are those of the cumulative operators of the residual stream, all tokens together.

        Returns:
            A row for each layer and vector. x and y are its dot products with the last layer's first and second vector.

        Raises:
            NoPoint: There are no cumulative operators of all tokens together, or they have fewer than two vectors.

        """
        streams = [(d.layer, f) for d, f in self._whole() if (d.part, d.span) == (STREAM, "cumulative")]
        plane = streams[-1][1].U[:, :2] if streams else torch.zeros(0, 0)
        if plane.shape[1] < 2:
            raise NoPoint("A path requires two vectors of each cumulative operator", "fewer", "Use k = 2 or more.")
        rows = [(layer, i, *(plane.T @ u).tolist()) for layer, f in streams for i, u in enumerate(f.U[:, :2].T)]
        return PATH.frame(rows)

    def first_seen(self, token: str | SupportsIndex | None = None, top: int = 1) -> pd.DataFrame:
        """Returns the first layer at which a token is among the top tokens of the first left singular vector, U₀.

        Args:
            token: The token, by its text or id; by default the one predicted at the position.
            top: How many top tokens of U₀ count.

        Returns:
            A row for each part, span and token of the prompt. Position is missing for all tokens together, layer if
            there is no such layer.

        Raises:
            BadPrompt: The vocabulary does not have the token.

        """
        wanted = self.predicted if token is None else self.run.lm.token(token)
        found: dict[tuple[str, str, int | None], int | None] = {}
        each = [(d.layer, (d.part, d.span, t), f) for d, t, f in self._each()]
        ranks = iter(self.decodings.ranks([f for *_, f in each if f.S[0] > 0], wanted))
        for layer, key, f in each:
            seen = f.S[0] > 0 and next(ranks) < top
            if found.setdefault(key, None) is None and seen:
                found[key] = layer
        return FIRST_SEEN.frame([(*key, layer) for key, layer in found.items()])

    def coupling(self) -> pd.DataFrame:
        """Returns how far each layer is from being diagonal in the leading singular vectors of the next layer.

        J_i is the Jacobian of what layer i adds to the residual stream, by the position's own token. The mismatch
        ‖U_{i+1}ᵀ J_i V_{i+1} - S_i‖ / ‖S_i‖ is 0 if both layers have the same singular vectors, and about 1 if they are
        unrelated (M. Aubry et al., "Transformer Block Coupling", ICLR 2025, arXiv 2407.07810).

        Returns:
            A row for each layer and the next; none without layerwise operators.

        """
        return COUPLING.frame([(i, i + 1, m) for i, m in enumerate(self.couplings)])

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `layers`, `spectra`, `layer_words`, `first_seen`, and `path` and `coupling` if they exist."""
        words = self.words(vectors=max(len(f.S) for _, _, f in self._each()))
        return {**self.spectral(), "layer_words": words, "first_seen": self.first_seen()}

    def spectral(self) -> dict[str, pd.DataFrame]:
        """Returns the tables without decoded tokens: `layers`, `spectra`, and `path` and `coupling` if they exist."""
        found = {"layers": self.to_pandas(), "spectra": self.spectra()}
        spans = {depth.span for depth in self.depths}
        if "cumulative" in spans and self.depths[0].whole is not None and len(self.depths[0].whole.S) > 1:
            found["path"] = self.path()
        return {**found, **({"coupling": self.coupling()} if self.couplings else {})}

    def about(self) -> dict[str, Any]:
        """Returns the model, the tokens, the position, the readout, and how the operators were computed."""
        where = {"model": self.run.lm.name, "tokens": self.run.tokens, "position": self.position}
        return {**where, "readout": self.readout, "method": self.method}

    def view(self) -> View:
        """Shows each layer's spectrum and top tokens, then the top token of each token's block at each layer."""
        marked = set(self.highlight or [self.predicted])
        streams = [d for d in self.depths if (d.part, d.span) == (STREAM, "cumulative")]
        words = replace(self, depths=streams).words(top=6, sides=["output"])
        normed = ", through the final norm" if self.readout else ""
        note = (
            f"At {visible(self.run.tokens[self.position])}{normed}. R: stable rank of the cumulative operator of all "
            "tokens; R alone: of the layer from its own input. The last table has the top token of each token's block "
            "after each layer. ▸ marks the predicted token, or those of --highlight."
        )
        return View("", grids=[self._by_layer(words, marked), self._by_token(words, marked)], notes=[note])

    def _by_layer(self, words: pd.DataFrame, marked: set[int]) -> Grid:
        """A line for each layer: stable ranks of its residual stream, of itself and of its parts, and top tokens."""
        rows = self.to_pandas()
        rows = rows[rows["position"].isna()] if rows["position"].isna().any() else rows[rows["position"] == 0]
        by = rows.set_index(["layer", "part", "span"])
        parts = [part for part in dict.fromkeys(rows["part"]) if part != STREAM]
        columns = [
            Shown("layer", "integer"),
            Shown("R", "rank"),
            Shown("R alone", "rank", spare=1),
            Shown("σ₀", "number"),
        ]
        columns += [Shown(f"R {part}", "rank", spare=2) for part in parts]

        def value(key: tuple[int, str, str], name: str) -> float | None:
            return by.loc[key, name] if key in by.index else None

        together = words[words["position"].isna()]
        lines = []
        for i in sorted(set(rows["layer"])):
            own = together[together["layer"] == i]
            tokens = [
                ("▸" if token in marked else "") + word.strip(" ")
                for word, token in zip(own["word"], own["id"], strict=True)
            ]
            lines.append([
                i,
                value((i, STREAM, "cumulative"), "stable_rank"),
                value((i, STREAM, "layerwise"), "stable_rank"),
                value((i, STREAM, "cumulative"), "sigma_0"),
                *(value((i, part, "cumulative"), "stable_rank") for part in parts),
                tokens,
            ])  # fmt: skip
        return Grid([*columns, Shown("writes by now (U₀)", "tokens")], lines)

    def _by_token(self, words: pd.DataFrame, marked: set[int]) -> Grid:
        """Layer x token: the top token of U₀ of the token's block; zero blocks have none."""
        first = words[(words["rank"] == 0) & words["position"].notna()]
        cells = {
            (row.layer, row.position): Cell((row.word,), *(("strong", "▸") if row.id in marked else ("", "")), "tokens")
            for row in first.itertuples(index=False)
        }
        tokens = range(len(self.run.tokens))
        columns = [Shown("layer", "integer"), *(Shown(self.run.tokens[t], "text", most=10, token=True) for t in tokens)]
        lines = [[i, *(cells.get((i, t)) for t in tokens)] for i in sorted(set(first["layer"]))]
        return Grid(columns, lines, keep=1)

    def _whole(self) -> list[tuple[Depth, SVD]]:
        """The operators of all tokens together. Raises NoPoint if they were left out."""
        found = [(depth, depth.whole) for depth in self.depths if depth.whole is not None]
        if not found:
            raise NoPoint(
                "A path requires operators of all tokens together", "none", "Use layers(run, all_tokens=True)."
            )
        return found

    def _each(self) -> Iterator[tuple[Depth, int | None, SVD]]:
        for depth in self.depths:
            yield from ((depth, t, f) for t, f in enumerate(depth.tokens))
            if depth.whole is not None:
                yield depth, None, depth.whole


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
    inside = run.inside
    T, count = inside.tokens, len(inside.layers)
    if not count:
        raise NoPoint(
            "A network's layers must be in a module list that carries the residual stream",
            "none",
            "Use points.",
        )
    if readout not in (None, "norm"):
        raise BadArgument("A readout of all layers is norm, or None", repr(readout), "Choose one of them.")
    if not spans or not set(spans) <= set(SPANS):
        raise BadArgument(f"Spans are {' and '.join(SPANS)}", repr(spans), "Choose from them.")
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

    Raises NotExact if one does not reproduce the model.
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
    """The Jacobian of what a layer adds to the residual stream by the position's own token, if the layer has parts."""
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
        site = inside.layers[-1].output
        shape = inside.network.recording.tape.steps[site.step].shape
        if batchable(shape, site.axis):
            values = torch.stack([inside.values[name][position] for name in names])
            values = torch.cat([values, values[-1:].expand(-len(values) % inside.tokens, -1)])
            batch = values.view(-1, inside.tokens, values.shape[1])  # each with as many rows as the prompt has tokens
            networks = [inside.readout_at(batch)]
            rows = {name: (0, row) for row, name in enumerate(names)}
        else:
            networks = [inside.readout_at(inside.values[name][None]) for name in names]
            rows = {name: (row, position) for row, name in enumerate(names)}
        readouts = cls(inside, position, networks, rows)
        own, (network, row) = inside.values["norm"][position], rows[f"layers.{len(layers) - 1}"]
        error = relative(networks[network].values["norm"][row], own)
        if not error <= 8 * torch.finfo(inside.network.lm.dtype).eps:
            raise NoPoint(
                "The readout of all layers requires a final norm right after the last layer, of each position alone",
                f"a different value there ({error:.1e})", "Use readout=None, or run.operator(..., readout='norm').",
            )  # fmt: skip
        return readouts

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
            N = self._norm(index, row)
            product, constant = (N @ J.flatten(1)).view(-1, *J.shape[1:]), N @ b
        return product, constant + network.biases["norm"][row], network.values["norm"][row]

    def _norm(self, network: int, row: int) -> Float[Tensor, "m n"]:
        """The frozen norm at one row. As many rows as the prompt has tokens are computed together: they take as much
        memory as one operator, and one batched backward pass.
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
