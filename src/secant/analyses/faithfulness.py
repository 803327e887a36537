"""Is an attribution true? It is if it tells what happens to the logit when tokens are taken away.

Tokens leave the prompt, most important first (their absence shows what they did: comprehensiveness), or all but the
most important ones do (what is left carries the answer: sufficiency), as of J. DeYoung et al., "ERASER" (ACL 2020,
arXiv 1911.03429); beside them the area under the first curve, and the rank correlation of scores with what each token's
own absence does (leave-one-out). The model is run on the shorter prompts as they are. Beside secant's contributions
stand gradient x input (M. Denil et al., arXiv 1412.6815), integrated gradients (M. Sundararajan et al., ICML 2017; from
captum), attention rollout (S. Abnar and W. Zuidema, ACL 2020, arXiv 2005.00928) and random order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pandas as pd
import scipy.integrate
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import attribute
from secant.errors import BadArgument, SecantError, checked, integer, seeded
from secant.files import write_json
from secant.linearize.network import running
from secant.linearize.run import Run
from secant.numeric import wide
from secant.results.files import saving

DELETE = "delete"


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How well each method's scores tell what happens. `value` is the target's logit or its log-probability.

    `table`: a row for each method and value: `comprehensiveness` (how much is lost on average over the prompts that
    lack the 1, 2, … best tokens: more is better), `sufficiency` (on average over those that have only these: less is
    better), `area` under the curve of removal (less is better), `correlation` (Spearman's, with leave-one-out).
    `curves`: method, value, order (remove, keep), tokens, result. `scores`: method, position, token, score, and
    `left_out`, what its absence takes from the logit.
    """

    target: str
    table: pd.DataFrame = field(repr=False)
    curves: pd.DataFrame = field(repr=False)
    scores: pd.DataFrame = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def save(self, folder: str | Path) -> None:
        """Write faithfulness, curves, scores (.parquet and .csv), columns.csv, target.json. Raises OutputFailed."""
        tables = {"faithfulness": self.table, "curves": self.curves, "scores": self.scores}
        with saving(folder, tables) as new:
            write_json(new / "target.json", {"target": self.target})


@checked
def faithfulness(
    run: Run,
    target: str | SupportsIndex | None = None,
    *,
    methods: Sequence[str] = ("secant", "gradient x input", "random"),
    replace: str | SupportsIndex = DELETE,
    keep: Sequence[int] | None = None,
    scores: Mapping[str, Sequence[float | int]] | None = None,
    seed: int = 0,
) -> Faithfulness:
    """Take tokens away as attributions say, and see what the model does.

    `methods`: some of METHODS; "integrated gradients" needs captum, "attention rollout" a model loaded with eager
    attention. `scores`: of further methods, a number for each token. `replace`: "delete", or a token that stands in.
    `keep`: positions that always stay, by default a first token that begins every text. `seed`: of the random order.
    Raises BadArgument, BadPrompt where a token is none of the vocabulary's, and what `attribute` raises.
    """
    for method in methods:
        if method not in METHODS:
            raise BadArgument(f"Methods are {', '.join(METHODS)}", repr(method), "Choose from them, or give scores.")
    run.unchanged()
    T, lm = len(run.ids), run.lm
    chosen = run.prediction[0].id if target is None else lm.token(target)
    stays = _first(run) if keep is None else [integer(t, -T, T - 1, "A position is one of the prompt's") for t in keep]
    kept, seed = sorted({t % T for t in stays}), seeded(seed)
    free = [t for t in range(T) if t not in kept]
    if len(free) < 2:
        raise BadArgument("At least two tokens can be taken away", f"{len(free)} of {T}", "Give a longer prompt.")
    found = {method: METHODS[method](run, chosen, seed) for method in methods}
    for method, given in (scores or {}).items():
        if len(given) != T or not all(math.isfinite(score) for score in given):
            got = "numbers that are not finite" if len(given) == T else f"{len(given)}"
            raise BadArgument(f"A method has a score for each of the {T} tokens", got, "Give one for each.")
        if method in found:
            raise BadArgument("Methods have names of their own", f"{method!r} twice", "Give your scores another.")
        found[method] = torch.as_tensor(given, dtype=torch.float64)
    stand_in = None if replace == DELETE else lm.token(replace, "input")
    orders = {m: [free[i] for i in np.argsort([-s[t].item() for t in free], kind="stable")] for m, s in found.items()}
    wanted = {_less(T, [t]) for t in free} | {frozenset(range(T))}
    for order in orders.values():
        for j in range(1, len(order) + 1):
            wanted |= {_less(T, order[:j]), frozenset([*kept, *order[:j]])}
    wanted.discard(frozenset())
    results = _results(run, chosen, wanted, stand_in)
    return _judged(run, lm.text(chosen), found, orders, kept, results)


def _first(run: Run) -> list[int]:
    """The position of a token that the tokenizer puts before every text."""
    begins = getattr(run.lm.tokenizer, "bos_token_id", None)
    return [0] if begins is not None and run.ids[0] == begins else []


def _less(T: int, gone: Sequence[int]) -> frozenset[int]:
    """The positions that are left."""
    return frozenset(range(T)) - set(gone)


def _results(
    run: Run, target: int, wanted: set[frozenset[int]], stand_in: int | None
) -> dict[frozenset[int], tuple[float, float]]:
    """The target's logit and log-probability for each set of positions that are left; equal lengths run together."""
    lm, prompts, by_length = run.lm, {}, defaultdict(list)
    for left in sorted(wanted, key=sorted):
        ids = tuple(
            run.ids[t] if t in left else stand_in for t in range(len(run.ids)) if t in left or stand_in is not None
        )
        prompts[left] = ids
    for ids in dict.fromkeys(prompts.values()):  # where tokens repeat, prompts do
        by_length[len(ids)].append(ids)
    found: dict[tuple[int | None, ...], tuple[float, float]] = {}
    for same in by_length.values():
        for start in range(0, len(same), BATCH):
            some = same[start : start + BATCH]
            with running(lm, lm.dtype, state=run.network.recording.state), torch.no_grad():
                batch = torch.tensor(some, device=lm.device)
                logits = wide(lm.model(input_ids=batch, use_cache=False).logits[:, -1])
            likely = torch.log_softmax(logits, -1)
            found.update(
                zip(some, zip(logits[:, target].tolist(), likely[:, target].tolist(), strict=True), strict=True)
            )
    return {left: found[ids] for left, ids in prompts.items()}


BATCH = 64
"""Prompts of one length that run together."""


def _judged(
    run: Run,
    target: str,
    scores: dict[str, Float[Tensor, " T"]],
    orders: dict[str, list[int]],
    kept: Sequence[int],
    results: dict[frozenset[int], tuple[float, float]],
) -> Faithfulness:
    """The measures, from the results."""
    T = len(run.ids)
    whole, rows, curves, each = results[frozenset(range(T))], [], [], []
    for method, order in orders.items():
        alone = {t: tuple(w - r for w, r in zip(whole, results[_less(T, [t])], strict=True)) for t in order}
        each += [(method, t, run.tokens[t], scores[method][t].item(), alone[t][0]) for t in sorted(order)]
        for i, value in enumerate(("logit", "log-probability")):
            gone = [results[left][i] for j in range(1, len(order)) if (left := _less(T, order[:j]))]
            only = [results[frozenset([*kept, *order[:j]])][i] for j in range(1, len(order))]
            removal = [whole[i], *gone]
            for name, line in (("remove", removal), ("keep", only)):
                curves += [(method, value, name, j + (name == "keep"), result) for j, result in enumerate(line)]
            correlation = _correlation([scores[method][t].item() for t in order], [alone[t][i] for t in order])
            lost, missing = whole[i] - np.mean(gone), whole[i] - np.mean(only)
            area = scipy.integrate.trapezoid(removal) / (len(removal) - 1)
            rows.append((method, value, lost, missing, area, correlation))
    names = ["method", "value", "comprehensiveness", "sufficiency", "area", "correlation"]
    return Faithfulness(
        target,
        pd.DataFrame(rows, columns=names),
        pd.DataFrame(curves, columns=["method", "value", "order", "tokens", "result"]),
        pd.DataFrame(each, columns=["method", "position", "token", "score", "left_out"]),
    )


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one of them is the same for all."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return float("nan")
    return float(scipy.stats.spearmanr(one, other).statistic)


# ------------------------------------------------------------------------------------------------ methods


def _contributions(run: Run, target: int, seed: int) -> Float[Tensor, " T"]:
    """The exact contributions, under the run's own convention."""
    return torch.tensor(attribute(run, target, parts=False).of("token")["contribution"].tolist(), dtype=torch.float64)


def _gradient(run: Run, target: int, seed: int) -> Float[Tensor, " T"]:
    """The ordinary gradient of the logit times the input."""
    x = run.input.detach().clone().requires_grad_()
    with running(run.lm, run.lm.dtype, state=run.network.recording.state):
        (g,) = torch.autograd.grad(run.lm.forward(run.ids, x)[0, -1, target], x)
    return (wide(g) * wide(run.input)).sum(1)


def _integrated(run: Run, target: int, seed: int) -> Float[Tensor, " T"]:
    """Integrated gradients from zero embeddings, by captum."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise SecantError(
            "Integrated gradients are captum's", "no captum", "Install it: pip install 'secant[captum]'."
        ) from error

    def logit(x: Tensor) -> Tensor:
        return run.lm.forward(run.ids, x[0])[0, -1, target][None]

    with running(run.lm, run.lm.dtype, state=run.network.recording.state):
        x = run.input.detach().clone()[None]
        found = IntegratedGradients(logit).attribute(x, n_steps=32, internal_batch_size=1)
    return wide(found[0]).sum(1)


def _rollout(run: Run, target: int, seed: int) -> Float[Tensor, " T"]:
    """Attention rollout: (A + 1)/2 of every layer, heads averaged, multiplied; the last position's row."""
    if run.lm.attention != "eager":
        raise BadArgument(
            "Attention rollout needs the patterns, which only eager attention gives", run.lm.attention,
            "Load the model with attention='eager'.",
        )  # fmt: skip
    with running(run.lm, run.lm.dtype, state=run.network.recording.state), torch.no_grad():
        ids = torch.tensor([run.ids], device=run.lm.device)
        layers = run.lm.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    if not layers or any(A is None or A.shape[-2:] != (len(run.ids),) * 2 for A in layers):
        raise BadArgument("Attention rollout needs a pattern of each layer", "none", "Choose another method.")
    mixed = torch.eye(len(run.ids), dtype=torch.float64)
    for A in layers:
        mixed = (wide(A[0]).mean(0) + torch.eye(len(run.ids), dtype=torch.float64)) / 2 @ mixed
    return mixed[-1]


def _random(run: Run, target: int, seed: int) -> Float[Tensor, " T"]:
    """A random order."""
    return torch.rand(len(run.ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


METHODS: dict[str, Callable[[Run, int, int], Float[Tensor, " T"]]] = {
    "secant": _contributions,
    "gradient x input": _gradient,
    "integrated gradients": _integrated,
    "attention rollout": _rollout,
    "random": _random,
}
"""Scores of each token for a target's logit, by method."""
