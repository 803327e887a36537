"""Why did it say that? The linear system of a prompt, token by token: contributions, spectra and decoded words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import CONTRIBUTIONS, FLOW, Attribution
from secant.analyses.case import Case
from secant.analyses.continuation import STEPS, Steps, follow
from secant.errors import BadArgument, checked, integer
from secant.linearize.run import (
    BLOCK_POSITION,
    HIDDEN_STATE,
    LOGIT,
    POSITION,
    PREDICTIONS,
    TOKEN,
    TOKEN_ID,
    Run,
    freeze,
)
from secant.memory import peak, timed
from secant.model.lm import LM, Prompt
from secant.numeric import wide
from secant.operators.decomposition import BLOCK, SIGMA, SPECTRUM, STABLE_RANK, SVD, VALUE, VECTOR, countable
from secant.results.paths import check_file
from secant.results.result import Described, Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, Style, View
from secant.stream.decode import RANK, SCORE, SIDE, WORD, WORD_ID, Null, Side, Word, Z, ranked
from secant.stream.layers import Layers
from secant.stream.sweep import STREAM
from secant.text import named, visible

CONTRIBUTED = Column(
    "contribution", float, "what the token adds to the predicted token's logit, by all paths", LOGIT, show="logit"
)
SHARE = Column(
    "share", float, "contribution as a share of the logit; missing where that is 0", "share of the logit", show="share"
)
NORM = Column(
    "norm", float, "‖J_t x_t‖: what the token writes to the final hidden state", HIDDEN_STATE, heading="‖J x‖"
)
OF_BLOCK = (BLOCK_POSITION, TOKEN.but(meaning="the token's text; missing: all tokens together", missing=True))

TOKENS = Table(
    "tokens",
    "a token of the prompt",
    (
        POSITION,
        TOKEN,
        TOKEN_ID,
        CONTRIBUTED,
        SHARE,
        NORM,
        VALUE.but(meaning="σ₀, the largest singular value of the token's block J_t", heading="σ₀"),
        STABLE_RANK.but(meaning="‖J_t‖_F² / σ₀²: how many directions matter"),
        Column("output", str, "top tokens of the first left singular vector, best first", heading="writes (U₀)"),
        Column("input", str, "top tokens of the first right singular vector, best first", heading="reads (V₀)"),
    ),
)
SINGULAR_VALUES = Table("singular_values", "a singular value of a token's block", (POSITION, TOKEN, *SPECTRUM))
WORDS = Table(
    "words",
    "a top token of a singular vector of a token's block",
    (
        POSITION,
        TOKEN,
        VECTOR,
        BLOCK,
        VALUE.but(meaning="the vector's singular value"),
        SIDE,
        RANK,
        WORD,
        WORD_ID,
        SCORE,
        Z,
    ),
)

VERSUS = CONTRIBUTIONS.but(
    "versus",
    "a contribution to the predicted token's logit over that of another prediction",
    before=(
        Column("prediction", int, "which prediction it is set against, from 1, likeliest first"),
        Column("versus", str, "its text", show="token"),
        Column(
            "difference", float, "the difference of the two logits, which the contributions sum to", LOGIT, show="logit"
        ),
    ),
)
REBUILT = Table(
    "rebuilt",
    "an element of the final hidden state",
    (
        Column("unit", int, "the element, from 0"),
        Column("output", float, "y, the model's own", HIDDEN_STATE),
        Column("rebuilt", float, "J x + b", HIDDEN_STATE),
        Column("ordinary", float, "J' x with the ordinary Jacobian J'", HIDDEN_STATE),
    ),
)
IMAGE = Table(
    "image",
    "a rectangle of a token's block of J, which ends where the next one begins",
    (
        Column("unit", int, "its first element of the final hidden state, from 0"),
        POSITION,
        Column("column", int, "its first element of the token's embedding, from 0"),
        Column("size", float, "root mean square of the entries of J in it", SIGMA),
    ),
)
CHANCE = Table(
    "chance",
    "a place among the top tokens of a random unit direction",
    (
        SIDE.but(meaning="output or input: what directions are compared with"),
        RANK,
        Column("mean", float, "mean of the score over random directions", "logit or cosine"),
        Column("std", float, "its standard deviation", "logit or cosine"),
        Column("samples", int, "how many directions were drawn", "directions"),
    ),
)

OTHERS = 4
"""Predictions that the first one is compared with."""


UNITS = 512
"""Elements of y that the page shows next to what rebuilds them, evenly spaced."""

MOST = 20_000
"""Top tokens of all depths that a page has room for; long prompts get fewer of each vector."""

IN_MAP = 3
"""Top tokens of a block that the map of layers and tokens is searched for; it shows the first."""

DRAWN = {
    "tokens": ["position", "token", "id", "norm", "stable_rank"],
    "predictions": ["token", "probability", "logit"],
    "singular_values": ["position", "vector", "block", "sigma"],
    "words": ["position", "vector", "side", "word", "score", "z"],
    "contributions": ["kind", "name", "layer", "head", "contribution", "all_paths"],
    "flow": ["position", "layer", "contribution"],
    "versus": ["prediction", "versus", "difference", "kind", "contribution"],
    "rebuilt": ["output", "rebuilt", "ordinary"],
    "chance": ["side", "mean", "std", "samples"],
    "image": ["size"],
    "layers": ["layer", "part", "span", "position", "stable_rank", "sigma_0", "reconstruction"],
    "spectra": ["layer", "position", "vector", "block", "sigma"],
    "layer_words": ["layer", "part", "span", "position", "vector", "side", "word", "score"],
    "path": ["layer", "vector", "x", "y"],
    "steps": ["step", "generated", "probability", "logit", "reconstruction", "contribution"],
}
"""The tables that the page draws, and the columns of each. Rows are in order, so that it can do without ranks."""


@dataclass(frozen=True, eq=False)
class Evidence(Result):
    """What supports an explanation: every sum of the logit, and pictures of J.

    Attributes:
        attribution: The logit by tokens and constants, by parts and heads, and their crossing.
        versus: Differences between the logit and those of other predictions.
        image: J as an image: `image[r, t, c]` is the root mean square of a rectangle of J_t, which begins at row
            r d_out / R and at column c d_in / C (rounded up); None if it was left out.
        shape: (d_out, T, d_in).
        output: y, the final hidden state.
        rebuilt: J x + b.
        ordinary: J' x with the ordinary Jacobian J'.
        writes: What random directions decode to at the output.
        reads: What they decode to at the input.
    """

    schema = (CONTRIBUTIONS, FLOW, VERSUS, REBUILT, CHANCE, IMAGE)

    attribution: Attribution
    versus: list[Attribution] = field(repr=False)
    image: Float[Tensor, "R T C"] | None = field(repr=False)
    shape: tuple[int, int, int]
    output: Float[Tensor, " d_out"] = field(repr=False)
    rebuilt: Float[Tensor, " d_out"] = field(repr=False)
    ordinary: Float[Tensor, " d_out"] = field(repr=False)
    writes: Null
    reads: Null

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its tables by name: contributions and flow, versus, rebuilt, chance, and image unless it was left out."""
        sums = [
            a.table.assign(prediction=number, versus=a.versus, difference=a.logit)
            for number, a in enumerate(self.versus, 1)
        ]
        rebuilt = zip(
            range(self.shape[0]), *(own.tolist() for own in (self.output, self.rebuilt, self.ordinary)), strict=True
        )
        chance = [
            (null.side, rank, mean, std, len(null.words))
            for null in (self.writes, self.reads)
            for rank, (mean, std) in enumerate(zip(null.mean.tolist(), null.std.tolist(), strict=True))
        ]
        found = {
            **self.attribution.tables(),
            "versus": VERSUS.frame(pd.concat(sums, ignore_index=True)) if sums else VERSUS.empty,
            "rebuilt": REBUILT.frame(rebuilt),
            "chance": CHANCE.frame(chance),
        }
        return found if self.image is None else found | {"image": _rectangles(self.image, self.shape)}

    def about(self) -> dict[str, Any]:
        """The target, its logit and both sums, and the shape of J."""
        return {**self.attribution.about(), "shape": list(self.shape)}

    def view(self) -> View:
        """Both sums of the logit, and its differences to those of other predictions."""
        own = self.attribution.view()
        rows = [(a.versus, a.logit, a.total) for a in self.versus]
        columns = [Shown("over", "token"), Shown("difference", "logit"), Shown("sum of tokens and constants", "logit")]
        return replace(own, title="Evidence", grids=[*own.grids, Grid(columns, rows)])


@dataclass(frozen=True, eq=False)
class Explanation(Result):
    """A prompt's linear system, token by token.

    Attributes:
        run: The run.
        attribution: The predicted token's logit by tokens and constants.
        svds: The leading triplets of each token's block J_t.
        outputs: The top tokens of each left singular vector: token x vector x rank.
        inputs: The same of the right ones.
        norms: ‖J_t x_t‖ of each token: what it writes to the final hidden state.
        case: What it was taken from; its evidence is taken from it too.
        layers: Every layer, if they were asked for.
        steps: The continuation, if it was asked for.
        seconds: How long each stage took.
        memory: The most memory that was taken, in bytes; None where that is not known.
    """

    schema = (TOKENS, PREDICTIONS, SINGULAR_VALUES, WORDS, *Layers.schema, STEPS)

    run: Run
    attribution: Attribution
    svds: list[SVD] = field(repr=False)
    outputs: list[list[list[Word]]] = field(repr=False)
    inputs: list[list[list[Word]]] = field(repr=False)
    norms: list[float] = field(repr=False)
    case: Case = field(repr=False)
    layers: Layers | None = None
    steps: Steps | None = None
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    memory: int | None = field(default=None, repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its tables by name: tokens, predictions, singular_values, words; those of layers and steps, if it has any."""
        vectors = [(t, token, f) for t, (token, f) in enumerate(zip(self.run.tokens, self.svds, strict=True))]
        spectra = [{"position": t, "token": token, **row} for t, token, f in vectors for row in f.spectrum()]
        return {
            "tokens": self._tokens(),
            "predictions": self.run.tables()["predictions"],
            "singular_values": SINGULAR_VALUES.frame(spectra),
            "words": self.words(),
            **({} if self.layers is None else self.layers.tables()),
            **({} if self.steps is None else self.steps.tables()),
        }

    def _tokens(self) -> pd.DataFrame:
        """A row for each token: its contribution to the predicted logit, its share, ‖J_t x_t‖, σ₀, stable rank."""
        contributions = self.attribution.of("token")["contribution"].tolist()
        return TOKENS.frame(
            zip(
                range(len(self.svds)),
                self.run.tokens,
                self.run.ids,
                contributions,
                map(self.attribution.share, contributions),
                self.norms,
                (f.S[0].item() for f in self.svds),
                (f.stable_rank for f in self.svds),
                *(
                    [" ".join(w.token.strip() for w in words[0]) for words in side]
                    for side in (self.outputs, self.inputs)
                ),
                strict=True,
            )
        )

    def to_pandas(self) -> pd.DataFrame:
        """A row for each token: its contribution to the predicted logit, its share, ‖J_t x_t‖, σ₀, stable rank."""
        return self._tokens()

    def words(self) -> pd.DataFrame:
        """A row for each top token; vectors, ranks and blocks (of near-equal singular values) count from 0."""
        rows = [
            {"position": t, "token": self.run.tokens[t], **vector, "side": side, **word}
            for side, decoded in (("output", self.outputs), ("input", self.inputs))
            for t, own in enumerate(decoded)
            for vector, words in zip(self.svds[t].vectors(), own, strict=True)
            for word in ranked(words)
        ]
        return WORDS.frame(rows)

    def about(self) -> dict[str, Any]:
        """The model, the certificate, the logit and both of its sums, and how it was computed."""
        constant = self.attribution.constant
        said = {
            "model": self.run.lm.name,
            "prediction": [asdict(p) for p in self.run.prediction],
            "certificate": asdict(self.run.certificate),
            **self.attribution.about(),
            "constant": {"contribution": constant, "share": self.attribution.share(constant)},
        }
        return said if self.steps is None else {**said, "continuation": self.steps.about()}

    def tensors(self) -> dict[str, Described]:
        """U, S and V of each token's block; x, y and b."""
        op = self.run.operator()
        return {
            "U": Described(
                "token, d_out, k: left singular vectors of J_t in columns", torch.stack([f.U for f in self.svds])
            ),
            "S": Described("token, k: singular values", torch.stack([f.S for f in self.svds])),
            "V": Described("token, d_in, k: right singular vectors in columns", torch.stack([f.V for f in self.svds])),
            "input": Described("token, d_in: embeddings x", op.input),
            "output": Described("d_out: y, the final-normed hidden state", op.output),
            "bias": Described("d_out: b; y = sum of J_t x_t + b", op.bias),
        }

    def view(self) -> View:
        """The prediction, the certificate, and a row for each token; then layers and steps."""
        c, a = self.run.certificate, self.attribution
        guesses = [f"{visible(p.token)} {p.probability:.1%}" for p in self.run.prediction[:5]]
        facts = {"next token": "   ".join(guesses), "certificate": c.lines()}
        if c.ordinary is not None:
            facts["certificate"] = [*c.lines(), f"the ordinary Jacobian is off by {c.ordinary:.0%}"]
        several = any(len(f.blocks[0]) > 1 for f in self.svds)
        legend = (
            f"share: of the logit of {visible(a.target)} ({a.logit:.4f}); the shares sum to it to "
            f"{abs(a.total - a.logit):.0e}. σ₀: largest singular value of the token's block J, R: its stable rank. "
            "writes, reads: what its first left and right singular vectors decode to."
        )
        legend += " ≈: the next is near-equal, and a vector alone means nothing." if several else ""
        legend += "" if a.logit > 0 else " The logit is negative: a positive share lowers it."
        grids = [replace(self._by_token(), note=legend)]
        for view in (result.view() for result in (self.layers, self.steps) if result is not None):
            *first, last = view.grids
            grids += [*first, replace(last, note=" ".join(view.notes))]
        return View(
            f"Explanation by {named(self.run.lm.name)}",
            facts,
            grids,
        )

    def _by_token(self) -> Grid:
        """A row for each token, and one for the constants."""
        columns = [
            Shown("", "integer"), Shown("token", most=16), Shown("share", "share"), Shown("‖J x‖", "number", spare=2),
            Shown("σ₀", "number"), Shown("R", "rank", spare=2), Shown("writes (U₀)", "tokens"),
            Shown("reads (V₀)", "tokens"),
        ]  # fmt: skip
        frame = self._tokens()
        largest = frame["share"].abs().max()
        rows: list[tuple[Any, ...]] = []
        for row, f, out, into in zip(frame.itertuples(index=False), self.svds, self.outputs, self.inputs, strict=True):
            near = "≈" if len(f.blocks[0]) > 1 else ""
            bold: Style = "strong" if abs(row.share) == largest else ""
            tokens = ([w.token for w in side[0]] for side in (out, into))
            rows.append((
                row.position, Cell(row.token, show="token"), Cell(row.share, bold), row.norm,
                Cell(row.sigma, mark=near), row.stable_rank, *tokens,
            ))  # fmt: skip
        constant = self.attribution.share(self.attribution.constant)
        return Grid(columns, [*rows, (None, "constants", constant, None, None, None, (), ())])

    @checked
    def evidence(
        self,
        *,
        image: bool = True,
        max_memory: float | str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Evidence:
        """What supports it: sums against other predictions, by layer and by head, J as an image, y next to what
        rebuilds it, and what random directions decode to; with tables of its own.

        Args:
            image: Whether J's image is part of it, for which all rows of J are computed.
            max_memory: As in `explain`.
            progress: As in `explain`.

        Raises:
            TooLarge: It does not fit in the memory.
            NotExact: A sum is not the logit.
        """
        with self.case.working(max_memory, progress):
            return gathered(self.case, image=image)

    def report(self, path: str | Path, evidence: Evidence | None = None) -> None:
        """Write one page of HTML with all of it, and with its evidence. The page needs no network.

        Args:
            path: The file.
            evidence: Its evidence, which is gathered unless it is given.

        Raises:
            SecantError: plotly is not installed.
            OutputFailed: The file can't be written.
        """
        from secant.results.page import EXPLANATION, library, write

        if not isinstance(evidence, Evidence | None):
            raise BadArgument(
                "A page has an explanation's evidence", f"{evidence!r:.60}", "Give explanation.evidence()."
            )
        check_file(path)  # before there is any work
        library()
        about, tables = self._page(self.evidence() if evidence is None else evidence)
        write(path, EXPLANATION, about, [(_described(name), frame) for name, frame in tables.items()])

    def _page(self, evidence: Evidence) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """What the page shows: what is said of the whole, and the tables, as much of them as `DRAWN` names. Those that
        grow with the model have no more rows than there is room for.
        """
        tables = replace(self, layers=None).tables() | evidence.tables()
        d_out = evidence.shape[0]
        rows: dict[str, Any] = {
            "rebuilt": sorted({i * d_out // min(d_out, UNITS) for i in range(min(d_out, UNITS))}),
            "flow": lambda flow: (flow["path"] == "direct") & flow["head"].isna() & flow["position"].notna(),
            "spectra": lambda spectra: _of_stream(spectra) & spectra["position"].notna(),
            "steps": lambda steps: steps["kind"] == "token",
        }
        about: dict[str, Any] = {
            "model": named(self.run.lm.name),
            "certificate": asdict(self.run.certificate),
            "logit": evidence.attribution.logit,
            "direct": evidence.attribution.direct,
            "totals": [a.total for a in (evidence.attribution, *evidence.versus)],
            "shape": list(evidence.shape),
            "rectangles": None if evidence.image is None else list(evidence.image.shape),
            "how": {
                "device": str(self.run.lm.device),
                "seconds": self.seconds,
                "memory": self.memory,
                "solvers": sorted({f.solver for f in self.svds}),
                "seed": self.run.seed,
            },
        }
        if "image" in tables:  # most of a page, which shows three digits of it
            size = [float(f"{size:.3g}") for size in tables["image"]["size"]]
            tables["image"] = tables["image"].assign(size=size)
        if self.steps is not None:
            about["steps"] = {"prompt": self.steps.prompt, "ended": self.steps.ended}
        if self.layers is not None:
            words, shown = self._layer_words(self.layers, len(evidence.writes.mean))
            tables |= {**self.layers.spectral(), "layer_words": words}
            about["layers"] = {"position": self.layers.position, "method": self.layers.method, **shown}
        drawn = {
            name: frame.loc[rows.get(name, slice(None)), DRAWN[name]] for name, frame in tables.items() if name in DRAWN
        }
        return about, drawn

    def _layer_words(self, layers: Layers, most: int) -> tuple[pd.DataFrame, dict[str, int]]:
        """The top tokens of each token's block of the residual stream, of as many vectors and as many tokens as there
        is room for, and how many those are; of the first vector of every operator at least three, which the map shows.
        """
        depths = [replace(depth, whole=None) for depth in layers.depths]
        stream = [depth for depth in depths if (depth.part, depth.span) == (STREAM, "cumulative")]
        kept = max((len(f.S) for depth in stream for f in depth.tokens), default=0)
        each = MOST // max(1, 2 * len(self.run.ids) * len(stream))  # of both sides of a block
        vectors = max(1, min(kept, each // 4))
        top = max(1, min(most, each // vectors))
        words = replace(layers, depths=stream).words(top=top, vectors=vectors)
        first = replace(layers, depths=depths).words(top=IN_MAP, sides=["output"])
        both = pd.concat([words, first]).drop_duplicates(
            ["layer", "part", "span", "position", "vector", "side", "rank"]
        )
        return both, {"vectors": vectors, "top": top, "count": len(stream)}


def _of_stream(rows: pd.DataFrame) -> pd.Series:
    """Which rows of a table of layers are of the residual stream, from the embeddings on."""
    return (rows["part"] == STREAM) & (rows["span"] == "cumulative")


def _described(name: str) -> Table:
    """The description of a table of an explanation or of its evidence."""
    return {table.name: table for table in (*Explanation.schema, *Evidence.schema)}[name]


def gathered(case: Case, *, image: bool = True) -> Evidence:
    """The evidence of a case. `image`: of J. Raises NotExact where a sum is not the logit, and TooLarge."""
    run, op = case.run, case.run.operator()
    return Evidence(
        case.attribution(parts=True, flow=True),
        [case.attribution(p.id) for p in run.prediction[1 : 1 + OTHERS]],
        case.image if image else None,
        (len(op.bias), *op.input.shape),
        wide(op.output),
        op.rebuilt,
        wide(run.ordinary),
        case.null("output"),
        case.null("input"),
    )


def _rectangles(image: Float[Tensor, "R T C"], shape: tuple[int, int, int]) -> pd.DataFrame:
    """A row for each rectangle, by where it begins."""
    (R, T, C), (rows, _, width) = image.shape, shape
    places = [(-(-r * rows // R), t, -(-c * width // C)) for r in range(R) for t in range(T) for c in range(C)]
    return IMAGE.frame([(*place, size) for place, size in zip(places, image.flatten().tolist(), strict=True)])


@checked
def explain(
    lm: LM,
    prompt: Prompt,
    *,
    k: int = 4,
    top: int = 8,
    convention: str = "gate",
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    layers: bool = False,
    steps: int = 1,
    max_memory: float | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """Freeze a model at a prompt and look inside: exact contributions, each token's spectrum, and its words.

    `k`: singular triplets of each block; `top`: words of each vector; `layers`: also at every depth, as `secant.layers`
    does; `steps`: so many tokens of the model's own continuation, as `follow` does; `max_memory`: bytes to work in, or
    such as "4GiB", by default half of what is free; the rest as in `freeze`. `progress(what, done, all)` is called as
    the work goes on. Raises what `freeze`, `svd`, `layers` and `follow` raise.
    """
    return explained(
        lm, prompt, k=k, top=top, convention=convention, precision=precision, seed=seed, layers=layers, steps=steps,
        max_memory=max_memory, progress=progress, nulls={},
    )  # fmt: skip


def explained(
    lm: LM,
    prompt: Prompt,
    *,
    k: int,
    top: int,
    convention: str,
    precision: str | torch.dtype | None,
    seed: int,
    max_memory: float | str | None,
    progress: Callable[[str, int, int], None] | None,
    nulls: dict[Side, Null],
    layers: bool = False,
    steps: int = 1,
) -> Explanation:
    """What `explain` does; `nulls`: what random directions decode to, which runs of one model share."""
    seconds: dict[str, float] = {}
    top = integer(top, 1, 10**9, "A direction has some words", "top = ")
    steps = integer(steps, 1, 10**6, "A continuation has at least one step", "steps = ")
    with timed("freezing", seconds):
        run = freeze(lm, prompt, convention=convention, precision=precision, ordinary=True, top=max(top, 10), seed=seed)
    case = Case(run, countable(run.operator(), k, per_token=True), top, seed, nulls=nulls)
    with case.working(max_memory, progress):
        with timed("contributions", seconds):
            attribution = case.attribution()
        with timed("spectra", seconds):
            svds = case.blocks
        with timed("words", seconds):
            outputs, inputs = case.words(svds, "output"), case.words(svds, "input")
        with timed("norms", seconds):
            norms = case.norms
        depths, further = None, None
        if layers:
            with timed("layers", seconds):
                depths = case.layers()
        if steps != 1:
            with timed("steps", seconds):
                further = follow(run, steps, progress=progress)
    return Explanation(run, attribution, svds, outputs, inputs, norms, case, depths, further, seconds, peak(lm.device))
