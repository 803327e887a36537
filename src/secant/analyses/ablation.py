"""Ablation: take a token, head, attention or MLP out of the frozen network and of the model itself, side by side.

In the frozen network everything else stays as it was, so that the answer is exactly what the linear system says,
y + J Δ. In the model itself patterns, gates and norms respond to the change. Where the two agree, the linear system
predicts; how often they do has to be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import HEAD, HEADS, KIND, LAYER_OF, NAME, PLACE
from secant.errors import BadArgument, BadPrompt, NoPoint, checked, integer
from secant.linearize.network import patched_logits, replayed, running
from secant.linearize.points import PARTS, ActivationGraph, Point
from secant.linearize.run import ITS_LOGIT, LOGIT, PROBABILITY, Run
from secant.numeric import wide
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Tokens, View
from secant.stream.decode import WORD, WORD_ID
from secant.text import visible

BY = ("zero", "mean")

FROZEN, REAL = "the frozen network (the linear system)", "the model itself"

ABLATION = Table(
    "ablation",
    "a token that is among the best before, frozen or real",
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
    "a token, part or head that is taken out by itself",
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

SIDES = "frozen: in the frozen network, y + J Δ; real: in the model itself, whose patterns, gates and norms respond."
"""What the two columns of changes mean."""


@dataclass(frozen=True, eq=False)
class Ablation(Result):
    """The last position's logits before and after something was taken out.

    Attributes:
        run: The run that it was taken out of.
        what: What was taken out: a token by its position, or the name of a part or head.
        by: What stands there instead: zero, mean, or another token's text.
        positions: Where it was taken out.
        before: The model's own logits.
        frozen: What the linear system says of them after, `before` + J Δ.
        real: What the model itself then gives.

    """

    schema = (ABLATION,)

    run: Run = field(repr=False)
    what: str
    by: str
    positions: list[int]
    before: Float[Tensor, " vocabulary"] = field(repr=False)
    frozen: Float[Tensor, " vocabulary"] = field(repr=False)
    real: Float[Tensor, " vocabulary"] = field(repr=False)

    def change(self, target: str | SupportsIndex | None = None) -> tuple[float, float]:
        """How much a token's logit changes: in the frozen network, and in the model itself.

        Args:
            target: The token; by default the predicted one.

        """
        chosen = self.run.prediction[0].id if target is None else self.run.lm.token(target)
        frozen, real = (wide(after[chosen]) - wide(self.before[chosen]) for after in (self.frozen, self.real))
        return frozen.item(), real.item()

    def to_pandas(self, top: int = 10) -> pd.DataFrame:
        """A row for each token that is among the `top` best before, frozen or real: logits and probabilities."""
        every = (self.before, self.frozen, self.real)
        best = dict.fromkeys(i for logits in every for i in logits.topk(min(top, len(logits))).indices.tolist())
        likely = [torch.softmax(logits, 0) for logits in every]
        rows = [
            (self.run.lm.text(i), i, *(x[i].item() for pair in zip(every, likely, strict=True) for x in pair))
            for i in best
        ]
        return ABLATION.frame(rows)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tokens that are among the best before, frozen or real."""
        return {"ablation": self.to_pandas()}

    def about(self) -> dict[str, Any]:
        """The model, the prompt's tokens, what was taken out, and where."""
        where = {"what": self.what, "by": self.by, "positions": self.positions}
        return {"model": self.run.lm.name, "tokens": self.run.tokens, **where}

    def view(self) -> View:
        """How the predicted token's logit changes, and the best tokens before and after."""
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
        title = f"{self.by.capitalize()} ablation of {self.what}" if self.by in BY else other
        return View(title, facts, [grid], [SIDES])


@dataclass(frozen=True, eq=False)
class Ablations(Result):
    """How much the target's logit changes as each token, part and head is taken out by itself.

    Attributes:
        target: The token whose logit changes.
        by: What stands there instead: zero or mean.
        table: A row for each, with kind (token, layer, head), name, position, layer, head, and the change in the
            frozen network (`frozen`) and in the model itself (`real`).

    """

    schema = (ABLATIONS,)

    target: str
    by: str
    table: pd.DataFrame = field(repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its table."""
        return {"ablations": self.table}

    def about(self) -> dict[str, Any]:
        """The target, and what stands where something was taken out."""
        return {"target": self.target, "by": self.by}

    def view(self) -> View:
        """Tokens and parts in their order, and the heads that matter most to the model itself."""
        grids = []
        for kind, title in (("token", "tokens"), ("layer", "parts"), ("head", "heads")):
            rows = self.table[self.table["kind"] == kind]
            if kind == "head" and len(rows) > HEADS:
                title = f"heads that matter most to the model itself, of {len(rows)}"
                rows = rows.loc[rows["real"].abs().sort_values(ascending=False, kind="stable").index[:HEADS]]
            names = ("position", "name", "frozen", "real|bar") if kind == "token" else ("name", "frozen", "real|bar")
            grids.append(Grid.of(ABLATIONS, rows, names, title=title))
        title = f"Change of the logit of {visible(self.target)} by {self.by} ablation of one after the other"
        return View(title, grids=[grid for grid in grids if grid.rows], notes=[SIDES])


@checked
def ablate(
    run: Run,
    what: str | SupportsIndex,
    by: str | SupportsIndex = "zero",
    *,
    position: SupportsIndex | Sequence[SupportsIndex] | slice | None = None,
    reference: Run | Sequence[Run] = (),
) -> Ablation:
    """Take something out of a run.

    A token's embedding is what changes; another token also changes what else the model makes of ids.

    Args:
        run: The run.
        what: A token (its position), or a part or head by the name of its point.
        by: "zero"; "mean", over the positions of the runs in `reference`; for a token also another token's text or id,
            which then stands there.
        position: Where a part or head is taken out, by default everywhere.
        reference: The runs that means are taken over, by default this one.

    Raises:
        NoPoint: Nothing has this name.
        BadArgument: An argument is none of those.
        BadPrompt: Another token is none of the vocabulary's.
        ReplayMismatch: The model was changed since.

    """
    run.unchanged()
    reference = [reference] if isinstance(reference, Run) else list(reference)
    if any(other.lm.model is not run.lm.model for other in reference):
        raise BadArgument(
            "Means are of runs of the same model", "a run of another", "Freeze its prompts with this one."
        )
    if not isinstance(what, str):
        if position is not None:
            raise BadArgument("A token is where it is", f"position = {position!r}", "Leave it out, or name a part.")
        return _token(
            run, integer(what, -len(run.ids), len(run.ids) - 1, "A token is one of the prompt's"), by, reference
        )
    inside, rows = run.inside, run.rows(position)
    point = inside[what]
    if what in ("embed", "norm", "logits") or (point.columns is None and what.rpartition(".")[2] not in PARTS):
        raise NoPoint(
            "What is taken out is a token by its position, or a part or head of a layer", repr(what),
            "Give, for instance, 3, 'layers.0.mlp' or 'layers.0.attn.heads.1'.",
        )  # fmt: skip
    if by not in BY:
        raise BadArgument("A part or head is ablated by zero or mean", repr(by), "Choose one of them.")
    whole = inside[f"{point.stem}.attn.heads"] if point.columns else point
    given = {
        step: _replaced(inside, point, step, rows, _mean(by, reference or [run], whole, step)) for step in whole.steps
    }
    token_axes = {step: inside.token_axes[step] for step in given}
    network = run.network
    frozen, _ = replayed(run.lm, network.recording, network.input, network.precision, token_axes, patches=given)
    real = patched_logits(run.lm, network.recording, token_axes, given)
    return _beside(run, what, str(by), rows, frozen["logits"][-1], real[-1])


def _beside(run: Run, what: str, by: str, rows: list[int], frozen: Tensor, real: Tensor) -> Ablation:
    """The ablation; the frozen network's change is the difference of its own logits, so that no change is 0."""
    change = wide(frozen) - wide(run.network.points["logits"][-1])
    before = run.logits[-1]
    return Ablation(run, what, by, rows, before, (wide(before) + change).to(frozen), real)


def _mean(by: str | SupportsIndex, reference: Sequence[Run], whole: Point, step: int) -> Tensor | None:
    """The mean of one step's rows over all positions of some runs; None for zero."""
    if by == "zero":
        return None
    place = whole.steps.index(step)
    rows = []
    for run in reference:
        point = run.inside[whole.name]
        rows.append(run.inside.own(point.steps[place]))
    return torch.cat(rows).mean(0)


def _replaced(inside: ActivationGraph, point: Point, step: int, rows: Sequence[int], mean: Tensor | None) -> Tensor:
    """The model's own rows of a step with some of them, or a head's columns of these, at zero or at a mean."""
    with torch.inference_mode(False):
        own, columns = inside.own(step).detach().clone(), point.columns or slice(None)
        block = own[list(rows)]
        block[:, columns] = 0 if mean is None else mean[columns].to(block)
        own[list(rows)] = block
        return own.requires_grad_()  # or what is made of it would be no part of the recorded course


def _token(run: Run, position: int, by: str | SupportsIndex, reference: Sequence[Run]) -> Ablation:
    """A token's embedding taken out, or another token put in its place."""
    lm, network, t = run.lm, run.network, position % len(run.ids)
    ids, x = list(run.ids), run.input.clone()
    if by in BY:
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
    return _beside(run, f"token {t}", lm.text(ids[t]) if by not in BY else str(by), [t], frozen, real)


@checked
def ablations(
    run: Run,
    by: str = "zero",
    *,
    kinds: Sequence[str] = ("token", "layer", "head"),
    target: str | SupportsIndex | None = None,
    reference: Run | Sequence[Run] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Ablations:
    """Take every token, part and head out by itself, as `ablate` does.

    Args:
        run: The run.
        by: "zero" or "mean".
        kinds: Which of token, layer and head.
        target: The token whose logit is looked at, by default the predicted one.
        reference: The runs that means are taken over, by default this one.
        progress: Called as `progress(what, done, all)` while the work goes on.

    Raises:
        SecantError: What `ablate` raises.

    """
    if not kinds or not set(kinds) <= {"token", "layer", "head"}:
        raise BadArgument("Kinds are token, layer and head", repr(kinds), "Choose from them.")
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
