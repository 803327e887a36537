"""A prompt explained: the result of `explain`, and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses import frames, live
from secant.analyses.attribution import CONTRIBUTIONS, FLOW, Attribution
from secant.analyses.case import Case
from secant.analyses.continuation import STEPS, Steps
from secant.analyses.faithfulness import Faithfulness
from secant.analyses.frames import (
    CHANCE,
    IMAGE,
    REBUILT,
    SINGULAR_VALUES,
    TOKENS,
    VERSUS,
    WORDS,
    WRITTEN,
)
from secant.analyses.lens import Lens
from secant.analyses.origins import origin_line
from secant.analyses.overview import CHANCE_Z, chosen, contributions, depths, spectra
from secant.analyses.page_tables import drawn, layer_words
from secant.analyses.sensitivity import Sensitivity
from secant.analyses.sinks import PATTERNS, sink_line, where
from secant.analyses.targets import BASELINES
from secant.analyses.writes import DEPTH_WORDS, HEAD_WORDS
from secant.errors import BadArgument, checked, quoted
from secant.foreign import required
from secant.linearize.run import (
    PREDICTIONS,
    Run,
)
from secant.memory import Progress
from secant.numeric import wide
from secant.operators.spectrum import SVD
from secant.results.page import EXPLANATION, contents, shown_text, write
from secant.results.paths import check_file
from secant.results.result import Described, Result
from secant.results.schema import Table
from secant.results.view import Grid, Shown, View
from secant.stream.depths import Layers
from secant.stream.largest import Largest
from secant.stream.words import Null, Word
from secant.text import named, readable, visible

EXTREMES = 4
"""The number of largest columns and rows of J that a view shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(Result):
    """What supports an explanation: every sum of the logit, an image of J, and the rebuilt output.

    Attributes:
        attribution: The logit by tokens and constants, by parts and heads, and by token x part and token x head.
        versus: The differences between the logit and those of the next predictions, by tokens and constants.
        image: J as an image: `image[r, t, c]` is the root mean square of a rectangle of J_t, which begins at row
            r d_out / R and at column c d_in / C (rounded up). None if it was left out.
        shape: The shape of J: (d_out, T, d_in).
        output: The model's final hidden state y.
        rebuilt: The linear system's output J x + b.
        ordinary: J' x with the ordinary Jacobian J'.
        writes: What random directions decode to at the output.
        reads: What random directions decode to at the input.
        depths: The top tokens of what each token contributes at every depth.
        heads: The top tokens of what each head adds to the stream.
        patterns: What each head attends to from the last position.
        faithfulness: How well contributions predict the logit when tokens are removed; None for long prompts.
        largest: The largest columns and rows of J, decoded; empty unless J was formed.

    """

    schema = (
        CONTRIBUTIONS, FLOW, VERSUS, REBUILT, CHANCE, DEPTH_WORDS, HEAD_WORDS, PATTERNS, *Faithfulness.schema,
        *Largest.schema, IMAGE,
    )  # fmt: skip

    attribution: Attribution
    versus: list[Attribution]
    image: Float[Tensor, "R T C"] | None
    shape: tuple[int, int, int]
    output: Float[Tensor, " d_out"]
    rebuilt: Float[Tensor, " d_out"]
    ordinary: Float[Tensor, " d_out"]
    writes: Null
    reads: Null
    depths: pd.DataFrame
    heads: pd.DataFrame
    patterns: pd.DataFrame
    faithfulness: Faithfulness | None
    largest: list[Largest]

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        d_out, T, d_in = self.shape
        return [*self.attribution.brief(), f"J of {d_out} x {T} * {d_in}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its tables: `contributions`, `flow`, `versus`, `rebuilt`, `chance`, `depth_words`, `head_words` and
        `patterns`; if it has them, also those of the faithfulness, `largest_columns`, `largest_rows`, and `image`.
        """
        found = {
            **self.attribution.tables(),
            "versus": frames.versus(self.versus),
            "rebuilt": frames.rebuilt(self.output, self.rebuilt, self.ordinary),
            "chance": frames.chance(self.writes, self.reads),
            "depth_words": self.depths,
            "head_words": self.heads,
            "patterns": self.patterns,
            **({} if self.faithfulness is None else self.faithfulness.tables()),
            **{name: table for own in self.largest for name, table in own.tables().items()},
        }
        return found if self.image is None else found | {"image": frames.rectangles(self.image, self.shape)}

    def about(self) -> dict[str, Any]:
        """Returns the target, its logit, both sums, and the shape of J."""
        said = self.attribution.about()
        said["over"] = said.pop("versus")  # the table of this name has the differences to other tokens
        return {**said, "shape": list(self.shape)}

    def view(self) -> View:
        """Shows both sums of the logit, and its differences to those of other predictions."""
        own = self.attribution.view()
        rows = [(a.versus, a.logit, a.total) for a in self.versus]
        columns = [Shown("over", "token"), Shown("difference", "logit"), Shown("sum of tokens and constants", "logit")]
        return replace(own, title="Evidence", grids=[*own.grids, Grid(columns, rows)])


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Result):
    """A prompt's linear system, token by token.

    Attributes:
        run: The run.
        attribution: The predicted token's logit by tokens and constants.
        svds: The leading singular triplets of each token's block J_t. Columns of U and V are singular vectors.
        outputs: The top tokens of each left singular vector, as token x vector x rank.
        inputs: The top tokens of each right singular vector, as token x vector x rank.
        norms: ‖J_t (x_t - x₀_t)‖ of each token, with the origin x₀, by default zero.
        written: The top tokens of J_t (x_t - x₀_t), as token x rank.
        received: The mean attention that each token receives from later ones; None where it is unknown.
        sinks: Why each token counts as an attention sink; empty if it does not.
        case: The case that computed it, and that computes its evidence.
        layers: Every layer, if `explain` was called with layers=True.
        steps: The model's continuation, if `explain` was called with more than one step.
        seconds: The time that each stage took, in seconds.
        memory: The peak of the memory used, in bytes; None if it is unknown.

    """

    schema = (
        TOKENS, PREDICTIONS, WRITTEN, SINGULAR_VALUES, WORDS, *Sensitivity.schema, *Lens.schema, *Layers.schema, STEPS,
    )  # fmt: skip

    run: Run
    attribution: Attribution
    svds: list[SVD]
    outputs: list[list[list[Word]]]
    inputs: list[list[list[Word]]]
    norms: list[float]
    written: list[list[Word]]
    received: list[float | None]
    sinks: list[str]
    case: Case
    layers: Layers | None = None
    steps: Steps | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory: int | None = None

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        more = {"with every layer": self.layers, "with a continuation": self.steps}
        return [*self.run.brief()[:3], *self.attribution.brief(), *(what for what, own in more.items() if own)]

    @property
    def sensitivity(self) -> Sensitivity:
        """Contributions under other conventions, and what deleting each token does."""
        return self.case.sensitivity.without(self.attribution.left_out)

    @property
    def lens(self) -> Lens | None:
        """What the model would predict at every depth; None if its layers can't be read out."""
        found = self.case.lens
        return None if found is None else found.without(self.attribution.left_out)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `tokens`, `predictions`, `written`, `singular_values` and `words`; the tables of the sensitivity; and
        those of lens, layers and steps if it has them.
        """
        return {
            "tokens": self._tokens(),
            "predictions": self.run.tables()["predictions"],
            "written": frames.written(self.run, self.written),
            "singular_values": frames.singular_values(self.run, self.svds),
            "words": self.words(),
            **self.sensitivity.tables(),
            **({} if self.lens is None else self.lens.tables()),
            **({} if self.layers is None else self.layers.tables()),
            **({} if self.steps is None else self.steps.tables()),
        }

    def _tokens(self) -> pd.DataFrame:
        return frames.tokens(
            self.run, self.attribution, (self.received, self.sinks), effects=self.sensitivity.effects,
            norms=self.norms, written=self.written, svds=self.svds, outputs=self.outputs, inputs=self.inputs,
        )  # fmt: skip

    def to_pandas(self) -> pd.DataFrame:
        """Returns a row for each token: contribution to the predicted logit, share, ‖J_t x_t‖, σ₀, stable rank."""
        return self._tokens()

    def words(self) -> pd.DataFrame:
        """Returns a row for each top token. Vectors, ranks and blocks (of near-equal singular values) count from 0."""
        return frames.words(self.run, self.svds, self.outputs, self.inputs)

    def about(self) -> dict[str, Any]:
        """Returns the model, the predictions, the certificate, the logit and its sums, and the continuation if any."""
        constant = self.attribution.constant
        said = {
            "model": self.run.lm.name,
            "prediction": [asdict(p) for p in self.run.prediction],
            "certificate": asdict(self.run.certificate),
            **self.attribution.about(),
            "constant": {"contribution": constant, "share": self.attribution.share(constant)},
            "sensitivity": self.sensitivity.line,
        }
        return said if self.steps is None else {**said, "continuation": self.steps.about()}

    def tensors(self) -> dict[str, Described]:
        """Returns U, S and V of each token's block, and x, y and b."""
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
        """Shows the prediction, what each token contributes to it, the lens, and spectra; then layers and steps.

        Where J was formed, its largest columns and rows are shown too.
        """
        a, lm = self.attribution, self.run.lm
        text = " ".join(self.run.tokens) if lm.tokenizer is None else lm.tokens.decoded(self.run.ids)
        guesses = [f"{visible(p.token)} {p.probability:.1%}" for p in self.run.prediction[:5]]
        facts: dict[str, Any] = {"prompt": readable(text), "next token": "   ".join(guesses)}
        facts |= {name: fact for name, fact in a.view().facts.items() if name != "origin" or a.origin != "reference"}
        facts["conventions"] = self.sensitivity.line
        facts["sinks"] = sink_line(self.run.tokens, self.received)
        own = self.run.certificate
        facts["certificate"] = own.lines()
        if own.convention != a.convention:
            facts["certificate"].append(
                f"{own.convention}: spectra, top tokens, lens; contributions: {a.convention}, certified by their sum"
            )
        grids = [
            contributions(self.run, a, self.sensitivity, self.written, self.sinks),
            *([] if self.lens is None else [depths(self.lens)]),
            spectra(self.run, chosen(a), self.svds, self.norms, self.outputs, self.inputs),
            *(own.grid(EXTREMES) for own in self.case.largest),
        ]
        for view in (result.view() for result in (self.layers, self.steps) if result is not None):
            *first, last = view.grids
            grids += [*first, replace(last, note=" ".join(view.notes))]
        return View(f"Explanation by {named(lm.name)}", {k: v for k, v in facts.items() if v}, grids)

    def without_sinks(self) -> Explanation:
        """Returns the explanation with the first token and all attention sinks left out of its views.

        Its tables keep them, and views say what is left out.
        """
        return replace(self, attribution=self.attribution.without(where(self.sinks)))

    @checked
    def evidence(
        self,
        *,
        image: bool = True,
        max_memory: float | str | None = None,
        progress: Progress | None = None,
    ) -> Evidence:
        """Returns what supports the explanation, with tables of its own.

        It consists of the logit by layer and by head, its differences to those of other predictions, an image of J, y
        next to J x + b, and what random directions decode to.

        Args:
            image: Whether it has the image of J, which requires all rows of J.
            max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
            progress: Called as `progress(what, done, all)` during the work.

        Raises:
            BadArgument: `max_memory` is not a size.
            TooLarge: The work does not fit in memory.
            NotExact: A sum does not equal the logit.

        """
        with self.case.working(max_memory, progress):
            return gathered(self.case, image=image)

    def report(self, path: str | Path, evidence: Evidence | None = None) -> None:
        """Writes the explanation and its evidence as one HTML page that works offline.

        Args:
            path: The file to write.
            evidence: The result of `evidence()`; by default it is computed.

        Raises:
            BadArgument: `path` is not a path, or `evidence` is not an Evidence.
            OutputFailed: The file can't be written.

        """
        if not isinstance(evidence, Evidence | None):
            raise BadArgument(
                "A page takes the evidence of an explanation", quoted(evidence), "Pass explanation.evidence()."
            )
        check_file(path)  # before there is any work
        write(path, EXPLANATION, self.contents(evidence))

    def widget(self, evidence: Evidence | None = None) -> Any:
        """Returns the page as a live widget for notebooks (extra `widget`).

        In it you can ablate tokens and parts, compare the target with any token, and steer; the kernel computes the
        answers.

        Args:
            evidence: The result of `evidence()`; by default it is computed.

        Raises:
            SecantError: The package anywidget is not installed.

        """
        required("A widget", "widget", "anywidget")
        from secant.results.page.widget import PageWidget

        return PageWidget(self.contents(evidence), live.answers(self.case), live.choices(self.case))

    def contents(self, evidence: Evidence | None = None) -> dict[str, Any]:
        """Returns the content of its page, ready for JSON.

        Args:
            evidence: The result of `evidence()`; by default it is computed.

        """
        about, tables = self._page(self.evidence() if evidence is None else evidence)
        return contents(about, [(described(name), frame) for name, frame in tables.items()])

    def _page(self, evidence: Evidence) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """The facts and the tables that the page shows: the columns that `DRAWN` names, and no more rows than fit."""
        tables = replace(self, layers=None).tables() | evidence.tables()
        about = heading(self.case, self.attribution) | {
            "direct": evidence.attribution.direct,
            "totals": [a.total for a in (evidence.attribution, *evidence.versus)],
            "rectangles": None if evidence.image is None else list(evidence.image.shape),
            "how": how(self.run, self.svds, self.seconds, self.memory),
        }
        if self.steps is not None:
            about["steps"] = {"prompt": self.steps.prompt, "ended": self.steps.ended}
        if self.layers is not None:
            words, kept = layer_words(self.layers, len(evidence.writes.mean))
            tables |= {**self.layers.spectral(), "layer_words": words}
            about["layers"] = {"position": self.layers.position, "method": self.layers.method, **kept}
        return about, drawn(tables, evidence.shape[0], about["shown"])


def heading(case: Case, attribution: Attribution) -> dict[str, Any]:
    """Returns the facts that a page shows from its first stage on.

    Args:
        case: The case.
        attribution: The contributions to the target's logit.

    """
    run = case.run
    op = run.operator()
    return {
        "model": named(run.lm.name),
        "target": shown_text(attribution.target),
        "versus": None if attribution.versus is None else shown_text(attribution.versus),
        "texts": [readable(token) for token in run.tokens],
        "shown": chosen(attribution),
        "left_out": list(attribution.left_out),
        "chance_z": CHANCE_Z,
        "certificate": asdict(run.certificate),
        "convention": attribution.convention,
        "logit": attribution.logit,
        "origin": attribution.origin,
        "measured": origin_line(attribution.origin),
        "under": attribution.under,
        "baseline": BASELINES[attribution.baseline] if attribution.baseline != "none" else None,
        "shape": [len(op.bias), *op.input.shape],
    }


def how(run: Run, svds: Sequence[SVD], seconds: Mapping[str, float], memory: int | None) -> dict[str, Any]:
    """Returns how a page's contents were computed.

    Args:
        run: The run.
        svds: The triplets of each token's block.
        seconds: The time that each stage took, in seconds.
        memory: The peak of the memory used, in bytes.

    """
    solvers = sorted({f.solver for f in svds})
    said = {"device": str(run.lm.device), "seconds": dict(seconds), "memory": memory}
    return {**said, "solvers": solvers, "seed": run.seed}


def described(name: str) -> Table:
    """Returns the description of a table of an explanation, or of its evidence.

    Args:
        name: The name.

    """
    return {table.name: table for table in (*Explanation.schema, *Evidence.schema)}[name]


def gathered(case: Case, *, image: bool = True) -> Evidence:
    """Returns the evidence of a case.

    Args:
        case: The case.
        image: Whether it has the image of J, which requires all rows of J.

    Raises:
        NotExact: A sum does not equal the logit.
        TooLarge: The work does not fit in memory.

    """
    run, op = case.run, case.run.operator()
    return Evidence(
        case.attribution(parts=True, flow=True),
        case.versus,
        case.image if image else None,
        (len(op.bias), *op.input.shape),
        wide(op.output),
        op.rebuilt,
        wide(run.ordinary),
        case.null("output"),
        case.null("input"),
        case.depth_words,
        case.head_words,
        case.patterns,
        case.faithfulness,
        case.largest,
    )
