"""How far an attribution depends on the convention, and whether it predicts what the model does.

Every convention gives contributions that sum to the logit exactly, but they differ. `sensitivity` returns them next to
each other, and measures how far they agree with each other and with the effect of deletions: how much the model's own
logit drops when each token is deleted from the prompt. The effect does not depend on a convention.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from secant.analyses.attribution import BESIDE, DELETION, Attribution, attribute, by_convention, by_deletion
from secant.analyses.sinks import Selective
from secant.analyses.targets import target_of
from secant.errors import checked
from secant.linearize.conventions import Named, convention_named
from secant.linearize.network import running
from secant.linearize.run import Run
from secant.memory import Progress, limited, stopping_point
from secant.numeric import wide
from secant.results.columns import CONVENTION, LOGIT
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, View

OTHERS = ("gate", "up", "half")
"""The conventions that an attribution is compared with by default: the paper's, and other ways to split a gate."""

DELETED = 64
"""The most tokens of a prompt for which each is deleted by default; longer prompts take long."""

BATCH_SIZE, ELEMENTS = 64, 2**27
"""The most prompts of one length in a batch, and the approximate maximum of elements that a batch computes."""

CORRELATION = "correlation"

AGREEMENT = Table(
    "agreement",
    "a convention",
    (
        CONVENTION,
        Column("signs", float, "tokens whose contribution has the same sign as under the first convention",
               "share of the tokens", heading="same sign", show="percent"),
        Column("ranks", float, "Spearman's correlation with contributions under the first convention", CORRELATION,
               missing=True),
        Column("largest", float, "the largest difference between a contribution and that under the first convention",
               LOGIT, heading="largest difference", show="logit"),
        Column("deletion", float, "Spearman's correlation of contributions with the effect of deleting each token",
               CORRELATION, missing=True),
        Column("deletion_rest", float, "the same without the first token, which is often an attention sink",
               CORRELATION, heading="without the first", missing=True),
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity(Selective, Result):
    """Contributions of tokens under several conventions, and what deleting each token does.

    Attributes:
        attributions: The attribution under each convention, by label. The others are compared with the first.
        effects: How much the model's own logit drops without each token; None if it was not measured.
        left_out: The positions of tokens that views leave out.

    """

    schema = (BESIDE, AGREEMENT, DELETION)

    attributions: dict[str, Attribution]
    effects: list[float] | None
    left_out: tuple[int, ...] = ()

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        first, *others = self.attributions.values()
        measured = "without deletions" if self.effects is None else "with deletions"
        return [*first.brief(), f"compared with {', '.join(a.convention for a in others)}", measured]

    @property
    def first(self) -> Attribution:
        """The attribution that the others are compared with."""
        return next(iter(self.attributions.values()))

    @property
    def tokens(self) -> list[str]:
        """The prompt's tokens."""
        return self.first.tokens

    def contributions(self, convention: str) -> list[float]:
        """Returns the contribution of each token under one convention.

        Args:
            convention: Its label.

        """
        return list(self.attributions[convention].of("token")["contribution"])

    def agreement(self) -> pd.DataFrame:
        """Returns a row for each convention: how far its contributions agree with the first's, and with deletions."""
        own, rows = np.array(self.contributions(next(iter(self.attributions)))), []
        for label in self.attributions:
            other = np.array(self.contributions(label))
            signs, largest = float((np.sign(own) == np.sign(other)).mean()), float(np.abs(own - other).max())
            gone = [correlation(other[k:], self.effects[k:]) if self.effects else math.nan for k in (0, 1)]
            rows.append((label, signs, correlation(own, other), largest, *gone))
        return AGREEMENT.frame(rows)

    @property
    def line(self) -> str:
        """How far the answer depends on the convention, in one line."""
        table = self.agreement().set_index("convention")
        own, others = table.index[0], table.iloc[1:]
        said = []
        if len(others):
            said.append(
                f"signs agree for {_range(others['signs'], '.0%')} of the tokens, rank correlation "
                f"{_range(others['ranks'], '.2f')}, largest difference {others['largest'].max():.3g}"
            )
        if self.effects is not None and not math.isnan(table["deletion"].iloc[0]):
            each = ", ".join(f"{label} {table.loc[label, 'deletion']:.2f}" for label in table.index)
            said.append(f"rank correlation with the effect of deleting each token: {each}")
        return f"{own} compared with {', '.join(others.index)}: {'; '.join(said)}" if said else ""

    @property
    def attribution(self) -> Attribution:
        """The first attribution, whose views then show the other conventions and the deletions next to it."""
        others = {label: self.contributions(label) for label in [*self.attributions][1:]}
        return replace(self.first, others=others, effects=self.effects, dependence=self.line, left_out=self.left_out)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `by_convention`, `agreement`, and `deletion` if it was measured."""
        every = {label: self.contributions(label) for label in self.attributions}
        found = {"by_convention": by_convention(self.tokens, every), "agreement": self.agreement()}
        return found if self.effects is None else found | {"deletion": by_deletion(self.tokens, self.effects)}

    def about(self) -> dict[str, Any]:
        """Returns what is attributed, and how far the conventions agree in one line."""
        a = self.first
        return {"target": a.target, "versus": a.versus, "baseline": a.baseline, "logit": a.logit, "line": self.line}

    def view(self) -> View:
        """Shows each token's contribution under every convention, next to the effect of deleting it."""
        labels = list(self.attributions)
        columns = [Shown("", "integer"), Shown("token", "token", most=16), *(Shown(name, "logit") for name in labels)]
        columns += [] if self.effects is None else [Shown("deleted", "logit")]
        rows = [
            [
                t,
                token,
                *(self.contributions(label)[t] for label in labels),
                *([self.effects[t]] if self.effects else []),
            ]
            for t, token in enumerate(self.tokens)
            if t not in self.left_out
        ]
        judged = Grid.of(
            AGREEMENT, self.agreement(), AGREEMENT.names, title="agreement with the first, and with deletion"
        )
        notes = [
            "Contributions under each convention sum to the logit. deleted: how much the model's own logit drops "
            "without the token.",
            *([self.note] if self.note else []),
        ]
        return View("", {"logit": self.first.line}, [Grid(columns, rows), judged], notes)


def _range(values: pd.Series, form: str) -> str:
    """The range of some values, from the smallest to the largest, as text."""
    low, high = (format(v, form) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Returns Spearman's rank correlation; NaN if either is constant, or there are fewer than three pairs.

    Args:
        one: Values.
        other: The other value of each pair; pairs in which one is NaN are left out.

    """
    pairs = np.array([one, other], dtype=float)
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return math.nan
    return float(np.corrcoef(pd.DataFrame(pairs.T).rank(), rowvar=False)[0, 1])


@checked
def sensitivity(
    run: Run,
    target: Any = None,
    versus: str | SupportsIndex | None = None,
    *,
    position: SupportsIndex = -1,
    baseline: str = "vocabulary",
    point: str | None = None,
    origin: str | Tensor | None = None,
    convention: Named | None = None,
    conventions: Sequence[Named] = OTHERS,
    deletion: bool | None = None,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Returns how far an attribution depends on the convention, and how well it predicts deletions.

    Args:
        run: The run.
        target: What is attributed. This and the next six arguments are those of `attribute`.
        versus: A token whose logit is subtracted.
        position: The position.
        baseline: What logits are measured from.
        point: The activation that is attributed. Deletions are of the model's own logits only.
        origin: What contributions are measured from; the reference only under conventions that have one.
        convention: The convention that others are compared with.
        conventions: The others, each of which freezes the prompt once.
        deletion: Whether to run the model on the prompt without each token in turn. By default this is done for prompts
            of at most 64 tokens.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress("conventions", done, all)` and `progress("deletions", done, all)`, in tokens.

    Raises:
        SecantError: Any error of `attribute` and `freeze`.

    """
    at = run.rows(position)[0]
    how: dict[str, Any] = {"position": at, "baseline": baseline, "point": point, "max_memory": max_memory}
    first = attribute(run, target, versus, convention=convention, origin=origin, parts=False, **how)
    return beside(
        run, first, target, versus, origin=origin, conventions=conventions, deletion=deletion, progress=progress, **how
    )


def beside(
    run: Run,
    first: Attribution,
    target: Any = None,
    versus: str | SupportsIndex | None = None,
    *,
    position: int = -1,
    baseline: str = "vocabulary",
    point: str | None = None,
    origin: str | Tensor | None = None,
    conventions: Sequence[Named] = OTHERS,
    deletion: bool | None = None,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Returns what `sensitivity` does, for an attribution that has been computed.

    Args:
        run: The run.
        first: The attribution that others are compared with.
        target: Its target; the other arguments are those of `sensitivity`.
        versus: The token whose logit is subtracted.
        position: The position.
        baseline: What logits are measured from.
        point: The activation that is attributed.
        origin: What contributions are measured from.
        conventions: The other conventions.
        deletion: Whether each token is deleted.
        max_memory: Bytes to work in, or a size.
        progress: Called as in `sensitivity`.

    """
    how: dict[str, Any] = {"position": position, "baseline": baseline, "point": point, "max_memory": max_memory}
    how["origin"] = None if isinstance(origin, str) and origin == "reference" else origin
    found = {first.convention: first}
    labels = list(dict.fromkeys([first.convention, *(convention_named(each).label for each in conventions)]))
    for label, other in zip(labels[1:], run.recorded(labels[1:]), strict=True):
        found[label] = attribute(other, target, versus, convention=label, parts=False, **how)
        if progress:
            progress("conventions", len(found), len(labels))
    effects = None
    if first.point == "logits" and (deletion or (deletion is None and len(run.ids) <= DELETED)):
        at = run.rows(position)[0]
        with limited(max_memory):
            effects = deleted(run, at, target_of(run, at, target, versus, baseline, None).weights, progress)
    return Sensitivity(found, effects)


def deleted(
    run: Run, position: int, weights: Float[Tensor, " vocabulary"], progress: Progress | None = None
) -> list[float]:
    """Returns how much a functional of the model's own logits drops without each token.

    Args:
        run: The run.
        position: The position of the logits. If a token at or before it is deleted, they are one position to the left.
        weights: The functional.
        progress: Called as `progress("deletions", done, all)`.

    """
    T, e = len(run.ids), wide(weights)
    whole = float(wide(run.logits[position]) @ e)
    prompts = [(*run.ids[:t], *run.ids[t + 1 :]) for t in range(T)]
    places = [position - (t <= position) for t in range(T)]
    effects = [math.nan] * T
    if T > 1:
        for t, logits in enumerate(logits_of(run, prompts, places)):
            effects[t] = whole - float(wide(logits) @ e) if places[t] >= 0 else math.nan
            if progress:
                progress("deletions", t + 1, T)
    return effects


def logits_of(
    run: Run, prompts: Sequence[Sequence[int]], places: Sequence[int]
) -> Iterator[Float[Tensor, " vocabulary"]]:
    """Yields the model's own logits at one place of each of some prompts of one length, which run in batches.

    Args:
        run: The run of a prompt; the model starts in its state.
        prompts: The prompts' ids.
        places: The place in each; -1 is the last one.

    """
    lm, length = run.lm, len(prompts[0])
    last = length - 1
    keep = {"logits_to_keep": 1} if _keeps(lm.model) and all(place % length == last for place in places) else {}
    each = run.logits.shape[-1] * (1 if keep else length) + length * run.input.shape[1] * 16
    size = max(1, min(BATCH_SIZE, ELEMENTS // each))
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        stopping_point()
        with running(lm, lm.dtype, state=run.network.recording.state), torch.no_grad():
            batch = torch.tensor([list(ids) for ids in some], device=lm.device)
            logits = lm.model(input_ids=batch, use_cache=False, **keep).logits
        for row, place in zip(logits, places[start : start + size], strict=True):
            yield row[-1] if keep else row[place]


def _keeps(model: torch.nn.Module) -> bool:
    """Whether a model can return only the last logits."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
