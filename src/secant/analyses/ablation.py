"""Ablation: take a token, head, attention or MLP out, in the held network and in the model itself, side by side.

In the held network everything else stays as it was, so that the answer is exactly what the linear system says, y + J Δ.
In the model itself patterns, gates and norms answer to the change. Where the two agree, the linear system predicts; how
often they do is a question of measurement, not of definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, BadPrompt, NoPoint, checked, integer
from secant.files import write_json
from secant.linearize.network import altered, replayed, running
from secant.linearize.points import PARTS, Inside, Point
from secant.linearize.run import Run
from secant.numeric import wide
from secant.results.files import saving

BY = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class Ablation:
    """The last position's logits: the model's own before, what the linear system says of them after, `before` + J Δ,
    and what the model itself then gives. `what` was taken out at `positions`, or another token put there.
    """

    run: Run = field(repr=False)
    what: str
    by: str
    positions: list[int]
    before: Float[Tensor, " vocabulary"] = field(repr=False)
    held: Float[Tensor, " vocabulary"] = field(repr=False)
    real: Float[Tensor, " vocabulary"] = field(repr=False)

    def change(self, target: str | SupportsIndex | None = None) -> tuple[float, float]:
        """How much a token's logit changes, by default the predicted one's: in the held network, and in the model."""
        chosen = self.run.prediction[0].id if target is None else self.run.lm.token(target)
        held, real = (wide(after[chosen]) - wide(self.before[chosen]) for after in (self.held, self.real))
        return held.item(), real.item()

    def to_pandas(self, top: int = 10) -> pd.DataFrame:
        """A row for each token that is among the `top` best before, held or real: logits and probabilities of each."""
        every = {"before": self.before, "held": self.held, "real": self.real}
        best = dict.fromkeys(
            i for logits in every.values() for i in logits.topk(min(top, len(logits))).indices.tolist()
        )
        rows: dict[str, list[object]] = {"token": [self.run.lm.text(i) for i in best], "id": list(best)}
        for name, logits in every.items():
            rows[name] = [logits[i].item() for i in best]
            rows[f"{name}_probability"] = [torch.softmax(logits, 0)[i].item() for i in best]
        return pd.DataFrame(rows)

    def save(self, folder: str | Path) -> None:
        """Write ablation (.parquet and .csv), columns.csv, and ablation.json with what was taken out and where.

        Raises OutputFailed.
        """
        with saving(folder, {"ablation": self.to_pandas()}) as new:
            said = {"what": self.what, "by": self.by, "positions": self.positions}
            write_json(new / "ablation.json", said)


@dataclass(frozen=True, eq=False)
class Ablations:
    """How much the target's logit changes as each token, part and head is taken out by itself, in the same way (`by`).

    `table` has a row for each, with kind (token, layer, head), name, position, layer, head, and the change in the held
    network (`held`) and in the model (`real`).
    """

    target: str
    by: str
    table: pd.DataFrame = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def _repr_html_(self) -> str:
        from secant.results.html import ablations

        return ablations(self)

    def save(self, folder: str | Path) -> None:
        """Write ablations (.parquet and .csv), columns.csv, ablations.json (target, by). Raises OutputFailed."""
        with saving(folder, {"ablations": self.table}) as new:
            said = {"target": self.target, "by": self.by}
            write_json(new / "ablations.json", said)


@checked
def ablate(
    run: Run,
    what: str | SupportsIndex,
    by: str | SupportsIndex = "zero",
    *,
    position: SupportsIndex | Sequence[SupportsIndex] | slice | None = None,
    reference: Run | Sequence[Run] = (),
) -> Ablation:
    """Take something out of a run: a token (its position), or a part or head by the name of its point.

    `by`: "zero"; "mean", over the positions of the runs in `reference`, by default this one's; for a token also another
    token's text or id, which then stands there. `position`: where a part or head is taken out, by default everywhere.
    A token's embedding is what changes; another token also changes what else the model makes of ids.
    Raises NoPoint, BadArgument, BadPrompt, and ReplayMismatch where the model was changed since.
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
    threads = {step: inside.threads[step] for step in given}
    network = run.network
    held, _ = replayed(run.lm, network.recording, network.input, network.precision, threads, given=given)
    real = altered(run.lm, network.recording, threads, given)
    return _beside(run, what, str(by), rows, held["logits"][-1], real[-1])


def _beside(run: Run, what: str, by: str, rows: list[int], held: Tensor, real: Tensor) -> Ablation:
    """The ablation; what the held network changes is taken from its own numbers, in which nothing changed is 0."""
    change = wide(held) - wide(run.network.points["logits"][-1])
    before = run.logits[-1]
    return Ablation(run, what, by, rows, before, (wide(before) + change).to(held), real)


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


def _replaced(inside: Inside, point: Point, step: int, rows: Sequence[int], mean: Tensor | None) -> Tensor:
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
    held = network.replay(x)["logits"][-1]
    return _beside(run, f"token {t}", lm.text(ids[t]) if by not in BY else str(by), [t], held, real)


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
    """Every token, part and head taken out by itself, as `ablate` does. `target`: by default the predicted token;
    `progress(what, done, all)` is called as the work goes on. Raises what `ablate` raises.
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
        held, real = ablate(run, what, by, reference=reference).change(chosen)
        head = int(point.name.rpartition(".")[2]) if point is not None and point.columns else None
        name = run.tokens[what] if isinstance(what, int) else what
        position = what if isinstance(what, int) else None
        rows.append((kind, name, position, point.layer if point else None, head, held, real))
        if progress:
            progress("ablations", number + 1, len(found))
    table = pd.DataFrame(rows, columns=["kind", "name", "position", "layer", "head", "held", "real"])
    table = table.astype(dict.fromkeys(("position", "layer", "head"), "Int64"))
    return Ablations(run.lm.text(chosen), by, table)
