"""Every layer's operators and their singular triplets: the result of `layers`, with its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import pandas as pd
import torch

from secant.errors import NoPoint
from secant.linearize.run import Run
from secant.operators.spectrum import BLOCK, NORMALIZED, SIGMA, STABLE_RANK, SVD, VALUE, VECTOR
from secant.results.columns import BLOCK_POSITION, BLOCK_TOKEN, RECONSTRUCTION
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View
from secant.stream.decode import Decodings
from secant.stream.sweep import STREAM
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
        whole: Those of all tokens' blocks together; None if they were left out.
        reconstruction: ‖J x + b - y‖ / ‖y‖.

    """

    layer: int
    part: str
    span: str
    tokens: list[SVD] = field(repr=False)
    whole: SVD | None = field(repr=False)
    reconstruction: float


@dataclass(frozen=True, eq=False, repr=False)
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

    run: Run
    position: int
    readout: str | None
    method: str
    depths: list[Depth]
    couplings: list[float]
    decodings: Decodings
    highlight: tuple[int, ...] = ()

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        depths = f"{len({d.layer for d in self.depths})} layers at position {self.position}"
        return [*self.run.brief()[:2], depths, f"readout {self.readout or 'none'}", self.method]

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
        the residual stream before the layer, which in most models has the width of the embeddings. Vectors of another
        width, as in Electra and DeepSeek V4, and right ones of all tokens together are not decoded. Each vector is
        decoded once, however often this is called.

        Args:
            top: The most top tokens of each vector.
            vectors: The number of singular vectors of each operator.
            sides: Some of "output" (left singular vectors) and "input" (right ones).

        """
        asked: list[tuple[Depth, int | None, Side, SVD, int]] = [
            (d, t, side, f, min(vectors, int((f.S > 0).sum())) if self.decodings.fits(f, side) else 0)
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
            there is no such layer, or where the vectors are not as long as those of the head.

        Raises:
            BadPrompt: The vocabulary does not have the token.

        """
        wanted = self.predicted if token is None else self.run.lm.token(token)
        found: dict[tuple[str, str, int | None], int | None] = {}
        each = [(d.layer, (d.part, d.span, t), f) for d, t, f in self._each()]
        decoded = [f.S[0] > 0 and self.decodings.fits(f, "output") for *_, f in each]
        ranks = iter(self.decodings.ranks([f for (*_, f), does in zip(each, decoded, strict=True) if does], wanted))
        for (layer, key, _), does in zip(each, decoded, strict=True):
            seen = does and next(ranks) < top
            if found.setdefault(key, None) is None and seen:
                found[key] = layer
        return FIRST_SEEN.frame([(*key, layer) for key, layer in found.items()])

    def coupling(self) -> pd.DataFrame:
        """Returns how far each layer is from being diagonal in the leading singular vectors of the next layer.

        J_i is the Jacobian of what layer i adds to the residual stream at the position, with respect to the residual
        stream before the layer at the same position. The mismatch
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
