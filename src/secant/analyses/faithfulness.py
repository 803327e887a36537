"""Faithfulness: how well attributions predict the logit when tokens are removed from the prompt.

Let v(S) be the target's logit or log-probability at a prompt that has only the tokens S, and let a method rank the T
tokens by its scores. After J. DeYoung et al., "ERASER" (ACL 2020, arXiv 1911.03429),

    comprehensiveness = mean over j of v(all) - v(all but the j best)
    sufficiency       = mean over j of v(all) - v(only the j best)

Two more measures are the area under the curve v(all but the j best), and the rank correlation between the scores and
the drop of v when each single token is removed (leave-one-out). The model itself runs on the shorter prompts.

`faithfulness` returns these measures for secant's contributions, gradient x input (M. Denil et al., arXiv 1412.6815),
integrated gradients (M. Sundararajan et al., ICML 2017; from captum), attention rollout (S. Abnar and W. Zuidema, ACL
2020, arXiv 2005.00928), the mean over random orders, and any scores that are given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import attribute
from secant.analyses.sensitivity import correlation, logits_of
from secant.analyses.targets import target_of
from secant.analyses.terms import functional
from secant.errors import BadArgument, checked, integer, quoted, seeded
from secant.foreign import required
from secant.linearize.network import running
from secant.linearize.run import Run
from secant.numeric import wide
from secant.results.columns import LOGIT, POSITION, TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, View, cells
from secant.text import count, visible

DELETE = "delete"

ORDERS = 8
"""How many random orders the method "random" is averaged over."""

METHOD = Column("method", str, f"the method that gives the scores; random: the mean over {ORDERS} random orders")
VALUE = Column("value", str, "logit or log-probability: what is measured of the target")

FAITHFULNESS = Table(
    "faithfulness",
    "a method and a value",
    (
        METHOD,
        VALUE,
        Column("comprehensiveness", float,
               "mean loss of the value when the best tokens are removed: more is better", "value"),
        Column("sufficiency", float,
               "mean loss of the value when only the best tokens are kept: less is better", "value"),
        Column("area", float, "mean of the value as the best tokens are removed: less is better", "value"),
        Column("correlation", float,
               "Spearman's, of scores with leave-one-out; missing if either is constant", "correlation",
               heading="ρ"),
    ),
)  # fmt: skip
CURVES = Table(
    "curves",
    "a method, a value, an order and a number of tokens",
    (
        METHOD,
        VALUE,
        Column("order", str, "remove (the best tokens are removed) or keep (only the best are kept)"),
        Column("tokens", int, "how many tokens were removed or kept", "tokens"),
        Column("result", float, "the value at this prompt", "value"),
    ),
)
SCORES = Table(
    "scores",
    "a method and a token that can be removed",
    (
        METHOD,
        POSITION,
        TOKEN,
        Column("score", float, "the method's score", "the method's own"),
        Column("left_out", float, "drop of the logit when only this token is removed", LOGIT, heading="left out",
               show="logit"),
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """How well each method's scores predict the target's logit when tokens are removed.

    Attributes:
        target: The token whose logit, or log-probability, is the `value`.
        table: A row for each method and value: `comprehensiveness` (mean loss of the value at the prompts without the
            1, 2, … best tokens: more is better), `sufficiency` (mean loss at the prompts with only these: less is
            better), `area` (mean of the value as the best tokens are removed: less is better), `correlation`
            (Spearman's, of scores with leave-one-out).
        curves: A row for each method, value, order (remove, keep) and number of tokens, with the value as `result`.
        scores: A row for each method and token that can be removed, with its score, and as `left_out` how much the
            logit drops when only this token is removed.

    """

    schema = (FAITHFULNESS, CURVES, SCORES)

    target: str
    table: pd.DataFrame
    curves: pd.DataFrame
    scores: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        tokens = count(int(self.scores["position"].nunique()), "token")
        return [visible(self.target), tokens, ", ".join(self.table["method"].unique())]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `faithfulness` (the measures), `curves` and `scores`."""
        return {"faithfulness": self.table, "curves": self.curves, "scores": self.scores}

    def about(self) -> dict[str, Any]:
        """Returns the target."""
        return {"target": self.target}

    def view(self) -> View:
        """Shows the measures of each method, and its scores next to the effect of removing each single token."""
        names = ("method", "comprehensiveness", "sufficiency", "correlation", "area")
        measures = [
            Grid.of(FAITHFULNESS, rows, names, spare={"area": 1}, title=f"{value} of {visible(self.target)}")
            for value, rows in self.table.groupby("value", sort=False)
        ]
        scores = self.scores.pivot_table("score", "position", "method", sort=False)
        tokens = self.scores.drop_duplicates("position").set_index("position")
        columns = [
            Shown("", "integer"), Shown("token", "token", most=16), Shown("left out", "logit"),
            Shown("", "bar", spare=1), *(Shown(method, "number") for method in scores),
        ]  # fmt: skip
        rows = [
            [t, token, left, left, *own]
            for t, token, left, own in zip(
                tokens.index, tokens["token"], tokens["left_out"], map(cells, scores.to_numpy()), strict=True
            )
        ]
        each = Grid(columns, rows, "the effect of removing each single token, and the methods' scores", keep=2)
        notes = [
            "comprehensiveness: mean loss when the best tokens are removed (more is better). sufficiency: mean loss "
            "when only the best are kept (less is better). area: mean of the value as the best are removed (less is "
            "better). ρ: Spearman's correlation of scores with the effect of removing each single token (left out: the "
            f"drop of the logit). random: the mean over {ORDERS} random orders."
        ]
        title = f"How well scores predict the logit of {visible(self.target)} when tokens are removed"
        return View(title, grids=[*measures, each], notes=notes)


@checked
def faithfulness(
    run: Run,
    target: str | SupportsIndex | None = None,
    versus: str | SupportsIndex | None = None,
    *,
    methods: Sequence[str] = ("secant", "gradient x input", "random"),
    replace: str | SupportsIndex = DELETE,
    keep: Sequence[int] | None = None,
    scores: Mapping[str, Sequence[float | int]] | None = None,
    baseline: str = "vocabulary",
    seed: int = 0,
) -> Faithfulness:
    """Returns how well attributions predict the target's logit when tokens are removed in the order of their scores.

    Args:
        run: The run.
        target: The token whose logit is measured, by its text or id; by default the predicted one.
        versus: A token whose logit is subtracted from it. Log-probabilities stay the target's.
        methods: Some of "secant", "gradient x input", "integrated gradients", "attention rollout" and "random".
            Integrated gradients require captum. Attention rollout requires a model loaded with attention="eager".
        replace: "delete" to shorten the prompt, or a token, by its text or id, that replaces the removed ones.
        keep: Positions that are never removed; by default the first, if the tokenizer puts its token before every text.
        scores: Scores of other methods by name, one for each token of the prompt. Tokens with high scores are removed
            first.
        baseline: What the logit is measured from, as in `attribute`.
        seed: The seed of the random orders, over which the method "random" is averaged.

    Raises:
        BadArgument: An argument is out of range, or a method is not available for this model.
        BadPrompt: The vocabulary does not have a token.
        ReplayMismatch: The model has changed since the run was frozen.
        SecantError: captum is not installed, or any error of `attribute`.

    """
    for method in methods:
        if method not in METHODS:
            raise BadArgument(f"Methods are {', '.join(METHODS)}", quoted(method), "Choose from them, or pass scores.")
    run.unchanged()
    T, lm = len(run.ids), run.lm
    chosen = run.prediction[0].id if target is None else lm.token(target)
    stays = _first(run) if keep is None else [integer(t, -T, T - 1, "A position is one of the prompt's") for t in keep]
    kept, seed = sorted({t % T for t in stays}), seeded(seed)
    free = [t for t in range(T) if t not in kept]
    if len(free) < 2:
        raise BadArgument(
            "Faithfulness requires at least two tokens that can be removed",
            f"{len(free)} of {T}",
            "Give a longer prompt.",
        )
    over = None if versus is None else lm.token(versus)
    aim = Aim(chosen, over, baseline, wide(target_of(run, T - 1, chosen, over, baseline, None).weights))
    found = {method: METHODS[method](run, aim, seed).reshape(-1, T) for method in methods}
    for method, given in (scores or {}).items():
        if len(given) != T or not all(math.isfinite(score) for score in given):
            got = "scores that are not finite" if len(given) == T else f"{len(given)}"
            raise BadArgument(f"A method must give a finite score to each of the {T} tokens", got, "Give one for each.")
        if method in found:
            raise BadArgument("Methods must have different names", f"{method!r} twice", "Rename your scores.")
        found[method] = torch.as_tensor(given, dtype=torch.float64)[None]
    stand_in = None if replace == DELETE else lm.token(replace, "input")
    orders = [
        (method, each.tolist(), [free[i] for i in np.argsort([-each[t].item() for t in free], kind="stable")])
        for method, scores_ in found.items()
        for each in scores_
    ]
    wanted = {_without(T, [t]) for t in free} | {frozenset(range(T))}
    for _, _, order in orders:
        for j in range(1, len(order) + 1):
            wanted |= {_without(T, order[:j]), frozenset([*kept, *order[:j]])}
    wanted.discard(frozenset())
    results = _results(run, aim, wanted, stand_in)
    about = lm.text(chosen) if over is None else f"{lm.text(chosen)} over {lm.text(over)}"
    return _judged(run, about, orders, kept, results)


def _first(run: Run) -> list[int]:
    """The position of the token that the tokenizer puts before every text, if it does."""
    begins = getattr(run.lm.tokenizer, "bos_token_id", None)
    return [0] if begins is not None and run.ids[0] == begins else []


def _without(T: int, removed: Sequence[int]) -> frozenset[int]:
    """The positions that remain."""
    return frozenset(range(T)) - set(removed)


def _results(
    run: Run, aim: Aim, wanted: set[frozenset[int]], stand_in: int | None
) -> dict[frozenset[int], tuple[float, float]]:
    """The target's logit and log-probability for each set of remaining positions; equal lengths run in batches."""
    prompts, by_length = {}, defaultdict(list)
    for left in sorted(wanted, key=sorted):
        if stand_in is None:
            ids = tuple(run.ids[t] for t in sorted(left))
        else:
            ids = tuple(own if t in left else stand_in for t, own in enumerate(run.ids))
        prompts[left] = ids
    for ids in dict.fromkeys(prompts.values()):  # prompts repeat if tokens do
        by_length[len(ids)].append(ids)
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    for same in by_length.values():
        for ids, own in zip(same, logits_of(run, same, [-1] * len(same)), strict=True):
            logits = wide(own)
            found[ids] = float(logits @ aim.weights), torch.log_softmax(logits, -1)[aim.token].item()
    return {left: found[ids] for left, ids in prompts.items()}


def _judged(
    run: Run,
    target: str,
    orders: Sequence[tuple[str, list[float], list[int]]],
    kept: Sequence[int],
    results: dict[frozenset[int], tuple[float, float]],
) -> Faithfulness:
    """The measures, computed from the values at all prompts; for a method with several orders, their means."""
    T = len(run.ids)
    whole, rows, curves, each = results[frozenset(range(T))], [], [], []
    for method, scores, order in orders:
        alone = {t: tuple(w - r for w, r in zip(whole, results[_without(T, [t])], strict=True)) for t in order}
        each += [(method, t, run.tokens[t], scores[t], alone[t][0]) for t in sorted(order)]
        for i, value in enumerate(("logit", "log-probability")):
            gone = [results[left][i] for j in range(1, len(order)) if (left := _without(T, order[:j]))]
            only = [results[frozenset([*kept, *order[:j]])][i] for j in range(1, len(order))]
            removal = [whole[i], *gone]
            for name, line in (("remove", removal), ("keep", only)):
                curves += [(method, value, name, j + (name == "keep"), result) for j, result in enumerate(line)]
            ranks = correlation([scores[t] for t in order], [alone[t][i] for t in order])
            lost, missing = whole[i] - np.mean(gone), whole[i] - np.mean(only)
            area = scipy.integrate.trapezoid(removal) / (len(removal) - 1)
            rows.append((method, value, lost, missing, area, ranks))
    return Faithfulness(
        target, FAITHFULNESS.frame(_mean(rows, 2)), CURVES.frame(_mean(curves, 4)), SCORES.frame(_mean(each, 3))
    )


def _mean(rows: Sequence[tuple[Any, ...]], keys: int) -> list[tuple[Any, ...]]:
    """Rows whose first columns agree as one row, with the means of the other columns."""
    same = defaultdict(list)
    for row in rows:
        same[row[:keys]].append(row[keys:])
    return [(*key, *(sum(column) / len(own) for column in zip(*own, strict=True))) for key, own in same.items()]


# ------------------------------------------------------------------------------------------------ methods


@dataclass(frozen=True, eq=False)
class Aim:
    """The target of all methods: a token's logit, measured from a baseline or another token's, as weights of logits."""

    token: int
    over: int | None
    baseline: str
    weights: Float[Tensor, " vocabulary"]


def _contributions(run: Run, aim: Aim, seed: int) -> Float[Tensor, " T"]:
    """The exact contributions, in the run's own convention."""
    own = attribute(run, aim.token, aim.over, baseline=aim.baseline, parts=False).of("token")
    return torch.tensor(own["contribution"].tolist(), dtype=torch.float64)


def _gradient(run: Run, aim: Aim, seed: int) -> Float[Tensor, " T"]:
    """The ordinary gradient of the logit times the input."""
    x = run.input.detach().clone().requires_grad_()
    with running(run.lm, run.lm.dtype, state=run.network.recording.state):
        (g,) = torch.autograd.grad(functional(run.lm.forward(run.ids, x)[0, -1], aim.weights), x)
    return (wide(g) * wide(run.input)).sum(1)


def _integrated(run: Run, aim: Aim, seed: int) -> Float[Tensor, " T"]:
    """Integrated gradients from zero embeddings, by captum."""
    required("The method integrated gradients", "captum", "captum")
    from captum.attr import IntegratedGradients

    def logit(x: Tensor) -> Tensor:
        return functional(run.lm.forward(run.ids, x[0])[0, -1], aim.weights)[None]

    with running(run.lm, run.lm.dtype, state=run.network.recording.state):
        x = run.input.detach().clone()[None]
        found = IntegratedGradients(logit).attribute(x, n_steps=32, internal_batch_size=1)
    return wide(found[0]).sum(1)


def _rollout(run: Run, aim: Aim, seed: int) -> Float[Tensor, " T"]:
    """Attention rollout: the last position's row of the product of (A + 1)/2 over all layers, with heads averaged."""
    if run.lm.attention != "eager":
        raise BadArgument(
            "Attention rollout requires attention patterns, which only eager attention returns", run.lm.attention,
            "Load the model with attention='eager'.",
        )  # fmt: skip
    with running(run.lm, run.lm.dtype, state=run.network.recording.state), torch.no_grad():
        ids = torch.tensor([run.ids], device=run.lm.device)
        layers = run.lm.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    if not layers or any(A is None or A.shape[-2:] != (len(run.ids),) * 2 for A in layers):
        raise BadArgument("Attention rollout requires a pattern of each layer", "none", "Choose another method.")
    mixed = torch.eye(len(run.ids), dtype=torch.float64)
    for A in layers:
        mixed = (wide(A[0]).mean(0) + torch.eye(len(run.ids), dtype=torch.float64)) / 2 @ mixed
    return mixed[-1]


def _random(run: Run, aim: Aim, seed: int) -> Float[Tensor, "n T"]:
    """Scores of ORDERS random orders."""
    return torch.rand(ORDERS, len(run.ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


METHODS: dict[str, Callable[[Run, Aim, int], Float[Tensor, "*n T"]]] = {
    "secant": _contributions,
    "gradient x input": _gradient,
    "integrated gradients": _integrated,
    "attention rollout": _rollout,
    "random": _random,
}
"""Scores of each token for a target's logit, by method."""
