"""Why did it say that? The linear system of a prompt, token by token: contributions, spectra and decoded words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import COLUMNS as CONTRIBUTION
from secant.analyses.attribution import Attribution
from secant.analyses.case import Case
from secant.analyses.continuation import Steps, follow
from secant.errors import BadArgument, checked, integer
from secant.files import check_file, replacing, write_json, write_tensors, write_text
from secant.linearize.run import Run, freeze
from secant.memory import peak, timed
from secant.model.lm import LM, Prompt
from secant.numeric import wide
from secant.operators.decomposition import SVD, countable
from secant.results.files import saving
from secant.stream.decode import Null, Side, Word, ranked
from secant.stream.layers import Layers

OTHERS = 4
"""Predictions that the first one is compared with."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All sums of the logit, with parts, heads and flow, and against other predictions; and pictures of J.

    `image[r, t, c]` is the root mean square of a rectangle of J_t, which begins at row r d_out / R and at column
    c d_in / C (rounded up); None if it was left out. `shape` is (d_out, T, d_in). `output` is y, `rebuilt` is J x + b,
    and `ordinary` is J' x with the ordinary Jacobian J'. `writes` and `reads` are what random directions decode to.
    """

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
        found = {**self.attribution.tables(), "versus": self._versus(), "rebuilt": self._rebuilt()}
        found["chance"] = pd.concat([_chance(self.writes), _chance(self.reads)], ignore_index=True)
        return found if self.image is None else found | {"image": _rectangles(self.image, self.shape)}

    def save(self, folder: str | Path) -> None:
        """Write its tables (.parquet and .csv) and columns.csv. Raises OutputFailed."""
        with saving(folder, self.tables()):
            pass

    def _versus(self) -> pd.DataFrame:
        """A row for each contribution to the prediction's logit over another's."""
        sums = [
            a.table.assign(prediction=number, versus=a.versus, difference=a.logit)
            for number, a in enumerate(self.versus, 1)
        ]
        names = ["prediction", "versus", "difference", *CONTRIBUTION]
        return pd.concat(sums, ignore_index=True)[names] if sums else pd.DataFrame(columns=names)

    def _rebuilt(self) -> pd.DataFrame:
        """A row for each unit of y."""
        numbers = {"output": self.output, "rebuilt": self.rebuilt, "ordinary": self.ordinary}
        return pd.DataFrame({"unit": range(self.shape[0]), **{name: own.tolist() for name, own in numbers.items()}})


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prompt's linear system, token by token.

    `svds[t]` are the leading triplets of J_t; `outputs[t][i]` and `inputs[t][i]` the words of its i-th left and right
    singular vectors; `norms[t]` is ‖J_t x_t‖, what the token writes to the final hidden state.
    """

    run: Run
    attribution: Attribution
    svds: list[SVD] = field(repr=False)
    outputs: list[list[list[Word]]] = field(repr=False)
    inputs: list[list[list[Word]]] = field(repr=False)
    norms: list[float] = field(repr=False)
    case: Case = field(repr=False)  # all of it is taken from, and its evidence too
    layers: Layers | None = None
    steps: Steps | None = None
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    memory: int | None = field(default=None, repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each token: its contribution to the predicted logit, its share, ‖J_t x_t‖, σ₁, stable rank."""
        contributions = self.attribution.of("token")["contribution"].tolist()
        return pd.DataFrame(
            {
                "position": range(len(self.svds)),
                "token": self.run.tokens,
                "id": self.run.ids,
                "contribution": contributions,
                "share": [self.attribution.share(c) for c in contributions],
                "norm": self.norms,
                "sigma": [f.S[0].item() for f in self.svds],
                "stable_rank": [f.stable_rank for f in self.svds],
                "output": [" ".join(w.token.strip() for w in words[0]) for words in self.outputs],
                "input": [" ".join(w.token.strip() for w in words[0]) for words in self.inputs],
            }
        )

    def words(self) -> pd.DataFrame:
        """A row for each decoded word; vectors, ranks and blocks (of near-equal singular values) count from 0."""
        rows = [
            {"position": t, "token": self.run.tokens[t], **vector, "side": side, **word}
            for side, decoded in (("output", self.outputs), ("input", self.inputs))
            for t, own in enumerate(decoded)
            for vector, words in zip(self.svds[t].vectors(), own, strict=True)
            for word in ranked(words)
        ]
        names = ["position", "token", "vector", "block", "sigma", "side", "rank", "word", "id", "score", "z"]
        return pd.DataFrame(rows, columns=names)

    def _repr_html_(self) -> str:
        from secant.results.html import explanation

        return explanation(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        tokens = self.to_pandas().drop(columns=["output", "input"]).to_dict("records")
        for row, f, out, into in zip(tokens, self.svds, self.outputs, self.inputs, strict=True):
            row["singular_values"] = f.S.tolist()
            row["blocks"] = [list(block) for block in f.blocks]
            row["output"] = [[asdict(w) for w in words] for words in out]
            row["input"] = [[asdict(w) for w in words] for words in into]
        constant = self.attribution.constant
        said = {
            "model": self.run.lm.name,
            "prediction": [asdict(p) for p in self.run.prediction],
            "certificate": asdict(self.run.certificate),
            "logit": self.attribution.logit,
            "total": self.attribution.total,
            "constant": {"contribution": constant, "share": self.attribution.share(constant)},
            "tokens": tokens,
        }
        if self.layers is not None:
            tables = self.layers.tables()
            said["layers"] = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        if self.steps is not None:
            table = self.steps.to_pandas()
            said["steps"] = {"ended": self.steps.ended, "rows": json.loads(table.to_json(orient="records"))}
        return _without_nan(said)

    def save(self, folder: str | Path) -> None:
        """Write explanation.json, tokens, words, the tables of layers and steps (.parquet and .csv), columns.csv and
        tensors.safetensors. Raises OutputFailed.
        """
        tensors = {
            "U": torch.stack([f.U for f in self.svds]),
            "S": torch.stack([f.S for f in self.svds]),
            "V": torch.stack([f.V for f in self.svds]),
        }
        op = self.run.operator()
        tensors |= {"input": op.input, "output": op.output, "bias": op.bias}
        about = {
            "secant": json.dumps({**op.about, "attention": self.run.certificate.attention}),
            "U": "token, d_out, k: left singular vectors of J_t in columns",
            "S": "token, k: singular values",
            "V": "token, d_in, k: right singular vectors in columns",
            "input": "token, d_in: embeddings x",
            "output": "d_out: y, the final-normed hidden state",
            "bias": "d_out: b; y = sum of J_t x_t + b",
        }
        layers = {} if self.layers is None else self.layers.tables()
        steps = {} if self.steps is None else {"steps": self.steps.to_pandas()}
        with saving(folder, {"tokens": self.to_pandas(), "words": self.words(), **layers, **steps}) as new:
            write_json(new / "explanation.json", self.to_dict())
            write_tensors(new / "tensors.safetensors", tensors, about)

    @checked
    def evidence(
        self,
        *,
        image: bool = True,
        max_memory: float | str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Evidence:
        """What the page shows beyond this: sums against other predictions, by layer and by head, J as an image, y
        beside what rebuilds it, and what random directions decode to; with tables of its own.

        `image`: False leaves J's out, for which all of its rows are computed. `max_memory` and `progress` as in
        `explain`. Raises TooLarge, and what `attribute` raises.
        """
        with self.case.working(max_memory, progress):
            return gathered(self.case, image=image)

    def report(self, path: str | Path, evidence: Evidence | None = None) -> None:
        """Write one page of HTML with all of it and with its evidence, which is gathered unless it is given.

        The page needs no network. Raises SecantError where plotly is not installed, OutputFailed, and what `evidence`
        raises.
        """
        from secant.report.page import contents
        from secant.results.page import EXPLANATION, html, library

        if not isinstance(evidence, Evidence | None):
            raise BadArgument(
                "A page has an explanation's evidence", f"{evidence!r:.60}", "Give explanation.evidence()."
            )
        check_file(path)  # before there is any work
        plotly = library()
        page = contents(self, self.evidence() if evidence is None else evidence)
        with replacing(path) as new:
            write_text(new, html(EXPLANATION, page, plotly))


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
    table = pd.DataFrame(places, columns=["unit", "position", "column"])
    return table.assign(size=image.flatten().tolist())


def _chance(null: Null) -> pd.DataFrame:
    """A row for each place among the words of a random direction."""
    table = pd.DataFrame({"mean": null.mean.tolist(), "std": null.std.tolist()})
    return (
        table.rename_axis("rank")
        .reset_index()
        .assign(side=null.side, samples=len(null.words))[["side", "rank", "mean", "std", "samples"]]
    )


def _without_nan(tree: Any) -> Any:
    """The same with null for numbers that there are none of, such as a share of a logit of 0; JSON has no NaN."""
    if isinstance(tree, dict):
        return {key: _without_nan(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(leaf) for leaf in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


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
