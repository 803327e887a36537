"""Ablation of a token, head, attention or MLP, in the frozen network and in the model itself.

An ablation changes one activation by Δ. In the frozen network every other factor keeps its value, and the output
becomes exactly y + J Δ. In the model itself attention patterns, gates and norms respond to the change. Where the two
outputs agree, the linear system predicts the effect of the ablation. Results have the logits before and after, from
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import HEAD, HEADS_SHOWN, KIND, LAYER_OF, NAME, PLACE
from secant.errors import BadArgument, BadPrompt, NoPoint, checked, integer, quoted
from secant.linearize.network import patched_logits, replayed, running
from secant.linearize.points import PARTS, ActivationGraph, Point
from secant.linearize.run import Run
from secant.memory import Progress
from secant.numeric import wide
from secant.results.columns import ITS_LOGIT, LOGIT, PROBABILITY
from secant.results.page import shown_text
from secant.results.result import Result
from secant.results.schema import Column, Table, records
from secant.results.view import Grid, Tokens, View
from secant.stream.words import WORD, WORD_ID
from secant.text import count, readable, visible

REPLACEMENTS = ("zero", "mean")
"""What can replace a part or head."""

FROZEN, REAL = "the frozen network (the linear system)", "the model itself"

ABLATION = Table(
    "ablation",
    "a token that is among the most likely ones before or after, in either network",
    (
        WORD.but(name="token", meaning="the token's text"),
        WORD_ID.but(meaning="its id in the vocabulary"),
        ITS_LOGIT.but(name="before", meaning="its logit before"),
        PROBABILITY.but(name="before_probability", meaning="its probability before", heading="p before"),
        ITS_LOGIT.but(name="frozen", meaning=f"its logit after, in {FROZEN}"),
        PROBABILITY.but(name="frozen_probability", meaning="its probability by these logits", heading="p frozen"),
        ITS_LOGIT.but(name="real", meaning=f"its logit after, in {REAL}"),
        PROBABILITY.but(name="real_probability", meaning="its probability there", heading="p real"),
    ),
)
ABLATIONS = Table(
    "ablations",
    "a token, part or head that is ablated by itself",
    (
        KIND.but(meaning="token, layer (a part of one) or head"),
        NAME.but(meaning="the token's text, or the name of the part or head"),
        PLACE,
        LAYER_OF,
        HEAD,
        Column("frozen", float, f"how much the target's logit changes in {FROZEN}", LOGIT, show="logit"),
        Column("real", float, f"how much it changes in {REAL}", LOGIT, show="logit"),
    ),
)

LEGEND = "frozen: in the frozen network, y + J Δ; real: in the model itself, whose patterns, gates and norms respond."
"""The meaning of the two columns of changes."""


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """The last position's logits before and after an ablation.

    Attributes:
        run: The run.
        what: What was ablated: "token t" for the token at position t, or the name of a part or head.
        by: What replaces it: zero, mean, or another token's text.
        positions: The positions at which it was ablated.
        before: The model's logits.
        frozen: The logits of the linear system after the ablation, `before` + J Δ.
        real: The logits of the model itself after the ablation.

    """

    schema = (ABLATION,)

    run: Run
    what: str
    by: str
    positions: list[int]
    before: Float[Tensor, " vocabulary"]
    frozen: Float[Tensor, " vocabulary"]
    real: Float[Tensor, " vocabulary"]

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        return [*self.run.brief()[:2], f"{self.what} replaced by {self.by}"]

    def change(self, target: str | SupportsIndex | None = None) -> tuple[float, float]:
        """Returns how much a token's logit changes, in the frozen network and in the model itself.

        Args:
            target: The token, by its text or id; by default the predicted one.

        Raises:
            BadPrompt: The vocabulary does not have the token.

        """
        chosen = self.run.prediction[0].id if target is None else self.run.lm.token(target)
        frozen, real = (wide(after[chosen]) - wide(self.before[chosen]) for after in (self.frozen, self.real))
        return frozen.item(), real.item()

    def answers(self, target: str | SupportsIndex | None = None) -> dict[str, Any]:
        """Returns the answers of both networks as the page shows them, ready for JSON.

        Args:
            target: The token whose logit is followed, by its text or id; by default the predicted one.

        Raises:
            BadPrompt: The vocabulary does not have the token.

        """
        run = self.run
        chosen = run.prediction[0].id if target is None else run.lm.token(target)
        frozen, real = self.change(chosen)
        rows = [{**row, "token": shown_text(row["token"])} for row in records(self.to_pandas())]
        said = {"what": self.what, "by": readable(self.by), "positions": self.positions, "rows": rows}
        logits = {"target": shown_text(run.lm.text(chosen)), "frozen": frozen, "real": real}
        return {**said, **logits, "convention": run.certificate.convention}

    def to_pandas(self, top: int = 10) -> pd.DataFrame:
        """Returns a row for each token that is among the `top` most likely before or after, in either network.

        Args:
            top: The number of tokens from each of the three predictions.

        """
        every = (self.before, self.frozen, self.real)
        best = dict.fromkeys(i for logits in every for i in logits.topk(min(top, len(logits))).indices.tolist())
        likely = [torch.softmax(logits, 0) for logits in every]
        rows = [
            (self.run.lm.text(i), i, *(x[i].item() for pair in zip(every, likely, strict=True) for x in pair))
            for i in best
        ]
        return ABLATION.frame(rows)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `ablation`: the tokens that are among the most likely ones before or after, in either network."""
        return {"ablation": self.to_pandas()}

    def about(self) -> dict[str, Any]:
        """Returns the model, the prompt's tokens, what was ablated, and where."""
        where = {"what": self.what, "by": self.by, "positions": self.positions}
        return {"model": self.run.lm.name, "tokens": self.run.tokens, **where}

    def view(self) -> View:
        """Shows how the predicted token's logit changes, and the most likely tokens before and after."""
        frozen, real = self.change()
        where = "everywhere" if len(self.positions) == len(self.run.ids) else ", ".join(map(str, self.positions))
        facts = {
            "tokens": Tokens(self.run.tokens),
            "positions": where,
            "change": f"of the logit of {visible(self.run.prediction[0].token)}: {frozen:+.3f} in the frozen network, "
            f"{real:+.3f} in the model itself",
        }
        names = ("token", "before_probability", "frozen_probability", "real_probability", "before", "frozen", "real")
        grid = Grid.of(ABLATION, self.to_pandas(), names, spare=dict.fromkeys(("before", "frozen", "real"), 1))
        other = f"{visible(self.by)} instead of {self.what}"
        title = f"{self.by.capitalize()} ablation of {self.what}" if self.by in REPLACEMENTS else other
        return View(title, facts, [grid], [LEGEND])


@dataclass(frozen=True, eq=False, repr=False)
class Ablations(Result):
    """How much the target's logit changes when each token, part and head is ablated by itself.

    Attributes:
        target: The token whose logit changes.
        by: What replaces the ablated activations: zero or mean.
        table: A row for each ablation, with kind (token, layer, head), name, position, layer, head, and the change of
            the logit in the frozen network (`frozen`) and in the model itself (`real`).

    """

    schema = (ABLATIONS,)

    target: str
    by: str
    table: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        return [visible(self.target), f"replaced by {self.by}", count(len(self.table), "ablation")]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its table, `ablations`."""
        return {"ablations": self.table}

    def about(self) -> dict[str, Any]:
        """Returns the target, and what replaces the ablated activations."""
        return {"target": self.target, "by": self.by}

    def view(self) -> View:
        """Shows tokens and parts in order, and the heads that matter most to the model itself."""
        grids = []
        for kind, title in (("token", "tokens"), ("layer", "parts"), ("head", "heads")):
            rows = self.table[self.table["kind"] == kind]
            if kind == "head" and len(rows) > HEADS_SHOWN:
                title = f"heads that matter most to the model itself, of {len(rows)}"
                rows = rows.loc[rows["real"].abs().sort_values(ascending=False, kind="stable").index[:HEADS_SHOWN]]
            names = ("position", "name", "frozen", "real|bar") if kind == "token" else ("name", "frozen", "real|bar")
            grids.append(Grid.of(ABLATIONS, rows, names, title=title))
        title = f"Change of the logit of {visible(self.target)} by {self.by} ablation of each by itself"
        return View(title, grids=[grid for grid in grids if grid.rows], notes=[LEGEND])


@checked
def ablate(
    run: Run,
    what: str | SupportsIndex,
    by: str | SupportsIndex = "zero",
    *,
    position: SupportsIndex | Sequence[SupportsIndex] | slice | None = None,
    reference: Run | Sequence[Run] = (),
) -> Ablation:
    """Returns the logits before and after a token, part or head is ablated.

    Ablating a token replaces its embedding. If another token replaces it, everything else that the model computes from
    token ids changes too.

    Args:
        run: The run.
        what: A token by its position, or a part or head by its name, such as "layers.0.mlp".
        by: What replaces it: "zero"; "mean", over all positions of the runs in `reference`; or, for a token, the text
            or id of another token.
        position: The positions at which a part or head is ablated; by default all of them.
        reference: The runs over whose positions means are taken; by default only this run.

    Raises:
        NoPoint: The network has no part or head of this name.
        BadArgument: Another argument is out of range.
        BadPrompt: The vocabulary does not have the other token.
        ReplayMismatch: The model has changed since the run was frozen.

    """
    run.unchanged()
    reference = [reference] if isinstance(reference, Run) else list(reference)
    if any(other.lm.model is not run.lm.model for other in reference):
        raise BadArgument(
            "Means are taken over runs of the same model",
            "a run of a different one",
            "Freeze its prompts with this model.",
        )
    if isinstance(what, str):
        return _part(run, what, by, run.rows(position), reference or [run])
    if position is not None:
        raise BadArgument(
            "A position applies to parts and heads, not to a token", f"position = {quoted(position)}",
            "Leave it out, or name a part.",
        )  # fmt: skip
    last = len(run.ids) - 1
    place = integer(what, -len(run.ids), last, "A token is ablated by its position in the prompt")
    return _token(run, place, by, reference)


def _part(run: Run, what: str, by: str | SupportsIndex, rows: list[int], reference: Sequence[Run]) -> Ablation:
    """The ablation of a part or head at some positions. Raises NoPoint and BadArgument."""
    inside = run.inside
    point = inside[what]
    if what in ("embed", "norm", "logits") or (point.columns is None and what.rpartition(".")[2] not in PARTS):
        raise NoPoint(
            "An ablation takes the position of a token, or the name of a part or head of a layer", quoted(what),
            "Give, for example, 3, 'layers.0.mlp' or 'layers.0.attn.heads.1'.",
        )  # fmt: skip
    if by not in REPLACEMENTS:
        raise BadArgument("A part or head is ablated by zero or mean", quoted(by), "Choose one of them.")
    whole = inside[f"{point.stem}.attn.heads"] if point.columns else point
    given = {step: _replaced(inside, point, step, rows, _mean(by, reference, whole, step)) for step in whole.steps}
    token_axes = {step: inside.token_axes[step] for step in given}
    network = run.network
    frozen, _ = replayed(run.lm, network.recording, network.input, network.precision, token_axes, patches=given)
    real = patched_logits(run.lm, network.recording, token_axes, given)
    return _beside(run, what, str(by), rows, frozen["logits"][-1], real[-1])


def _beside(run: Run, what: str, by: str, rows: list[int], frozen: Tensor, real: Tensor) -> Ablation:
    """The ablation. The frozen change is a difference of two of the frozen network's logits, so no change gives 0."""
    change = wide(frozen) - wide(run.network.points["logits"][-1])
    before = run.logits[-1]
    return Ablation(run, what, by, rows, before, (wide(before) + change).to(frozen), real)


def _mean(by: str | SupportsIndex, reference: Sequence[Run], whole: Point, step: int) -> Tensor | None:
    """The mean of one step's rows over all positions of some runs; None if zero replaces the activation."""
    if by == "zero":
        return None
    place = whole.steps.index(step)
    rows = []
    for run in reference:
        point = run.inside[whole.name]
        rows.append(run.inside.own(point.steps[place]))
    return torch.cat(rows).mean(0)


def _replaced(inside: ActivationGraph, point: Point, step: int, rows: Sequence[int], mean: Tensor | None) -> Tensor:
    """The recorded rows of a step, in which some rows, or a head's columns of them, are zero or a mean."""
    with torch.inference_mode(False):
        own, columns = inside.own(step).detach().clone(), point.columns or slice(None)
        block = own[list(rows)]
        block[:, columns] = 0 if mean is None else mean[columns].to(block)
        own[list(rows)] = block
        return own.requires_grad_()  # otherwise operations on it would not be live, and the replay would diverge


def _token(run: Run, position: int, by: str | SupportsIndex, reference: Sequence[Run]) -> Ablation:
    """The ablation of a token's embedding, by zero, mean or another token."""
    lm, network, t = run.lm, run.network, position % len(run.ids)
    ids, x = list(run.ids), run.input.clone()
    if by in REPLACEMENTS:
        x[t] = 0 if by == "zero" else torch.cat([r.input for r in reference or [run]]).mean(0)
        with running(lm, lm.dtype, state=network.recording.state):
            real = lm.forward(ids, x)[0, -1].detach()
    else:
        try:
            ids[t] = lm.token(by, "input")
        except BadPrompt as error:
            raise BadPrompt("A token is ablated by zero, mean, or another token", error.got, error.todo) from error
        with running(lm, lm.dtype, state=network.recording.state):
            x[t] = lm.embed(ids)[t]
            real = lm.logits(ids)[-1]
    frozen = network.replay(x)["logits"][-1]
    return _beside(run, f"token {t}", lm.text(ids[t]) if by not in REPLACEMENTS else str(by), [t], frozen, real)


@checked
def ablations(
    run: Run,
    by: str = "zero",
    *,
    kinds: Sequence[str] = ("token", "layer", "head"),
    target: str | SupportsIndex | None = None,
    reference: Run | Sequence[Run] = (),
    progress: Progress | None = None,
) -> Ablations:
    """Returns how a token's logit changes when each token, part and head is ablated by itself.

    Args:
        run: The run.
        by: What replaces them: "zero" or "mean".
        kinds: What is ablated: some of "token", "layer" (the parts of layers) and "head".
        target: The token whose logit is measured, by its text or id; by default the predicted one.
        reference: The runs over whose positions means are taken; by default only this run.
        progress: Called as `progress(what, done, all)` during the work.

    Raises:
        BadArgument: A kind is unknown, or `by` is neither "zero" nor "mean".
        SecantError: Any error of `ablate`.

    """
    if not kinds or not set(kinds) <= {"token", "layer", "head"}:
        raise BadArgument("Kinds of ablation are token, layer and head", quoted(kinds), "Choose from them.")
    named = [p for p in run.inside.points.values() if p.layer is not None] if {"layer", "head"} & set(kinds) else []
    found: list[tuple[str, str | int, Point | None]] = []
    if "token" in kinds:
        found += [("token", t, None) for t in range(len(run.ids))]
    found += [("layer", p.name, p) for p in named if "layer" in kinds and p.name.rpartition(".")[2] in PARTS]
    found += [("head", p.name, p) for p in named if "head" in kinds and p.columns]
    chosen, rows = run.prediction[0].id if target is None else run.lm.token(target), []
    for number, (kind, what, point) in enumerate(found):
        frozen, real = ablate(run, what, by, reference=reference).change(chosen)
        head = int(point.name.rpartition(".")[2]) if point is not None and point.columns else None
        name = run.tokens[what] if isinstance(what, int) else what
        position = what if isinstance(what, int) else None
        rows.append((kind, name, position, point.layer if point else None, head, frozen, real))
        if progress:
            progress("ablations", number + 1, len(found))
    return Ablations(run.lm.text(chosen), by, ABLATIONS.frame(rows))
