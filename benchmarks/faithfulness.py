"""Which exact system predicts interventions? Correlations of contributions with what the model itself does.

The target is the centred logit of the predicted token: its logit minus the mean over the vocabulary. Contributions of
token t are J_t x_t (x), J_t (x_t - m) with the mean embedding m of the vocabulary (d), or J_t (x_t - r_t) with the
convention's random reference r (r), the mean over four of them. The model itself runs with

- mean: x_t replaced by m; random: by a random token; plausible: by the most likely other token after the tokens before
  it (not for the first one); delete: token t deleted. The contribution of a swap is J_t (x_t - swapped).
- the best 20 % or 50 % of tokens replaced by m (comprehensiveness), or all others (sufficiency).
- parts: what an attention or MLP adds replaced by its mean over 56 prompts, at the first position over first ones.
  Contributions are along all paths, of the output (x), or of its difference from the mean (d).

Conventions are compared with gradient x input, integrated gradients from zero and from m (16 steps), the rules of
AttnLRP (R. Achtibat et al., ICML 2024), attention rollout and a random order. One half of the prompts ranks the
conventions by the mean of six Spearman correlations, and the other half gives all tables, with means and 95 % bootstrap
intervals.

SmolLM2 and Gemma 3 run on prompts.txt, Atlas on its held-out questions, craftgpt on chat lines. With --out, rows are
added to a Parquet file, and rows that it has are not measured again.

    python benchmarks/faithfulness.py [--models MODEL ...] [--prompts N] [--seed S] [--out FILE]
        [--methods METHOD ...] [--no-parts] [--no-removals]
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from prompts import OWN_PROMPTS, SETS, written
from torch import Tensor
from trained_models import models

import secant as sc
from secant.analyses.attribution import REFERENCES
from secant.errors import BadPrompt
from secant.linearize.conventions import convention_named
from secant.linearize.forms import Attended, Call, Constant
from secant.linearize.network import Recording, record, reference, references, replayed, running
from secant.linearize.replay import Rerun, by_token
from secant.linearize.tape import Tape
from secant.linearize.untouched import State
from secant.results.paths import replacing

KINDS = ("facts", "prose", "agreement", "names", "chat", "code", "language")
"""The kinds of prompts in prompts.txt that real models run on: all but chat templates and phrases of three tokens."""

SHARED = {"gate": 1.0, "up": 0.0, "half": 0.5}
"""Conventions that differ only in the share of gates, so that one recording serves all of them."""

CONVENTIONS = (
    *SHARED, "halves", "secant", "secant+secant+frozen+random", "half+secant+secant+random",
    "secant+secant+secant+zero",
)  # fmt: skip
GRADIENT, LRP, FROM_ZERO, FROM_MEAN = "gradient x input", "AttnLRP's rules", "integrated, zero", "integrated, mean"
ROLLOUT, RANDOM = "attention rollout", "random order"
OTHERS = (GRADIENT, LRP, FROM_ZERO, FROM_MEAN, ROLLOUT, RANDOM)
METHODS = (*CONVENTIONS, *OTHERS)
INTEGRATION_STEPS, BATCH = 16, 64
FRACTIONS = (20, 50)
MEANS = 56
"""The number of prompts over which the outputs of parts are averaged, however many are measured."""

SAVED = 4
"""Rows are written each time this many prompts are done."""

Columns = ("model", "kind", "prompt", "half", "method", "start", "effect", "tokens", "measure", "value")
OVERALL = (
    ("mean", "all"), ("mean", "rest"), ("random", "all"), ("random", "rest"), ("plausible", "rest"), ("delete", "rest"),
)  # fmt: skip
"""The correlations whose mean ranks the conventions. rest: without the first token."""


# ------------------------------------------------------------------------------------------------ prompts


@dataclass(frozen=True)
class Item:
    """A prompt, and which half of the prompts it is in."""

    kind: str
    text: str
    half: str


def by_kind() -> dict[str, list[str]]:
    """The prompts in prompts.txt by kind, for the kinds in KINDS."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, text in written():
        if kind in found:
            found[kind].append(text)
    return found


def items(name: str, count: int, seed: int) -> list[Item]:
    """The first prompts of each kind, one kind after the other. Of each two of a kind, a random one is for choosing."""
    kind = OWN_PROMPTS.get(name)
    texts_of = by_kind() if kind is None else {kind: SETS[kind](count)}
    each, found = math.ceil(count / len(texts_of)), []
    for number in range(each):
        for own, texts in texts_of.items():
            if number < len(texts):
                halves = Random(f"{seed} {own} {number // 2}").sample(("choose", "report"), 2)
                found.append(Item(own, texts[number], halves[number % 2]))
    return found[:count]


# ------------------------------------------------------------------------------------------------ the model itself


@torch.no_grad()
def centred(lm: sc.LM, batch: Tensor, target: int) -> Tensor:
    """The centred logit of the target after each prompt of embeddings, (prompts, T, d)."""
    found = []
    for some in batch.split(BATCH):
        logits = lm.model(inputs_embeds=some, use_cache=False, logits_to_keep=1).logits[:, -1].double()
        found.append(logits[:, target] - logits.mean(-1))
    return torch.cat(found)


@cache
def mean_embedding(lm: sc.LM) -> Tensor:
    """The mean of the embeddings of all tokens."""
    sums = (lm.embed(range(lo, min(lo + 8192, lm.size))).double().sum(0) for lo in range(0, lm.size, 8192))
    return (reduce(torch.add, sums) / lm.size).to(lm.dtype)


class Ablated(Rerun):
    """A pass of a batch of equal prompts. In each, a different step's output is replaced by its mean."""

    def __init__(self, tape: Tape, axes: Mapping[int, int], means: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__(tape, (), axes, {step: first for step, (first, _) in means.items()})
        self.patches, self.rows, self.means = {}, {step: row for row, step in enumerate(means)}, means

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call, and replace its output in the prompt that it belongs to."""
        number = self.count
        out = super().step(func, args, kwargs, into, plain)
        if number not in self.rows or number > self.last:
            return out
        assert into is None, "what is added to the stream is not written in place"
        first, rest = self.means[number]
        out = out.clone()
        out[self.rows[number], :1], out[self.rows[number], 1:] = first, rest
        self.known[out] = None
        return out


def without_parts(lm: sc.LM, recording: Recording, target: int, means: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
    """The centred logit of the target with each part at its mean."""
    steps, found = list(means), []
    for start in range(0, len(steps), BATCH // 4):
        some = {step: means[step] for step in steps[start : start + BATCH // 4]}
        mode = Ablated(recording.tape, {}, some)
        with running(lm, lm.dtype, state=recording.state):
            moving = mode.enter(lm.embed(recording.ids).repeat_interleave(len(some), 1))
            with mode:
                logits = lm.forward(recording.ids, moving, len(some))[:, -1].detach().double()
        found.append(logits[:, target] - logits.mean(-1))
    return torch.cat(found)


def parts_of(recording: Recording) -> dict[int, int]:
    """The steps that add to the stream, each with the dimension of its output that counts tokens."""
    return {part.output.step: part.output.axis for layer in recording.layers for part in layer.parts}


# ------------------------------------------------------------------------------------------------ networks


class Ordinary:
    """The function itself: a replay's derivative is the ordinary one."""

    def __call__(self, call: Call) -> Any:
        """Returns the function's value."""
        return call.run()


@dataclass(frozen=True)
class LRPAttention:
    """Attention as it is. Each product passes on half of its relevance to each factor."""

    def __call__(self, call: Call) -> Any:
        """Returns the function's value, whose derivatives are halved."""
        shares = {("query", 0): 1 / 4, ("key", 1): 1 / 4, ("value", 2): 1 / 2}
        return call.substitute({call.key(w): _share(call[w], s) for w, s in shares.items()}).run()


def _share(x: Tensor, share: float) -> Tensor:
    """The same tensor, whose derivative is multiplied by `share`."""
    return share * x + (1 - share) * x.detach()


def retaped(recording: Recording, form: Callable[[int], Any]) -> Recording:
    """The same recording with other forms."""
    tape = recording.tape.copy()
    for i, step in enumerate(tape.steps):
        step.form = form(i)
    return replace(recording, tape=tape)


def shared(half: Recording, share: float) -> Recording:
    """The recording of a convention with a different share of gates, from that of `half`."""
    return replace(half, tape=half.tape.with_share(share))


def networks(
    lm: sc.LM, half: Recording, x: Tensor, seed: int, wanted: Sequence[str]
) -> Iterator[tuple[str, Recording | None]]:
    """The wanted conventions and rules that give a derivative, as recordings with as many references as fit in a batch;
    None if a rule does not apply.
    """
    for name in wanted:
        if name in SHARED:
            yield name, shared(half, SHARED[name])
        elif name not in OTHERS and convention_named(name).varies:
            seeds = range(seed, seed + REFERENCES)
            yield from ((name, found) for found in references(lm, half, x, name, lm.dtype, seeds))
        elif name not in OTHERS:
            yield name, record(lm, half.ids, x, name, lm.dtype, state=half.state, seeds=[seed])
    forms = [step.form for step in half.tape.steps]
    if GRADIENT in wanted:
        live = record(lm, half.ids, x, "secant+secant+secant+zero", lm.dtype, state=half.state, secants=False)
        own = [step.form for step in live.tape.steps]
        kept = [f is None or (isinstance(f, Constant) and not _floating(f.value)) for f in own]
        yield GRADIENT, retaped(live, lambda i: own[i] if kept[i] else Ordinary())
    if LRP in wanted:
        attended = [isinstance(form, Attended) for form in forms]
        yield LRP, retaped(half, lambda i: LRPAttention() if attended[i] else forms[i]) if any(attended) else None


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def derivatives(
    lm: sc.LM, recording: Recording, x: Tensor, target: int, axes: Mapping[int, int]
) -> tuple[float, Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """The centred logit, as the mean over references; its derivative with respect to the embeddings of each; and each
    part with the derivative with respect to it.
    """
    leaf = x.repeat_interleave(recording.copies, 1).detach().requires_grad_()
    points, by_step = replayed(lm, recording, leaf, lm.dtype, axes)
    y = points["logits"][-1].view(-1, recording.copies)
    y = (y[target] - y.mean(0)).mean()
    g, *others = torch.autograd.grad(y, [leaf, *by_step.values()], allow_unused=True)
    others = [torch.zeros_like(p) if o is None else o for o, p in zip(others, by_step.values(), strict=True)]
    return y.item(), g, {s: (p.detach(), o) for (s, p), o in zip(by_step.items(), others, strict=True)}


# ------------------------------------------------------------------------------------------------ other methods


def integrated(lm: sc.LM, x: Tensor, start: Tensor, target: int) -> Tensor:
    """Integrated gradients from a start, by the midpoint rule."""
    a = (torch.arange(INTEGRATION_STEPS) + 0.5) / INTEGRATION_STEPS
    batch = (start + a[:, None, None].to(x) * (x - start)).requires_grad_()
    with torch.enable_grad():
        logits = lm.model(inputs_embeds=batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        (g,) = torch.autograd.grad((logits[:, target] - logits.mean(-1)).sum(), batch)
    return (g.mean(0) * (x - start)).sum(-1)


def rollout(recording: Recording) -> Tensor | None:
    """The last row of the product over layers of (A + 1)/2, with A the mean of all heads' patterns."""
    T = len(recording.ids)
    mixed_ = one = torch.eye(T, dtype=torch.float64)
    patterns = [step.form for step in recording.tape.steps if isinstance(step.form, Attended)]
    for form in patterns:
        A = form.pattern(0, T).double().flatten(0, -3).mean(0).cpu()
        mixed_ = (A + one) / 2 @ mixed_
    return mixed_[-1] if patterns else None


# ------------------------------------------------------------------------------------------------ measures


def correlations(score: np.ndarray, effect: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation; NaN if either is constant or there are fewer than three."""
    if len(score) < 3 or np.ptp(score) == 0 or np.ptp(effect) == 0:
        return {"spearman": math.nan, "pearson": math.nan}
    return {
        "spearman": scipy.stats.spearmanr(score, effect).statistic,
        "pearson": scipy.stats.pearsonr(score, effect).statistic,
    }


Scores = dict[str, dict[str, np.ndarray]]
"""Scores of tokens by method and start: x, d, or swaps."""


def scored(rows: Tensor, x: Tensor) -> np.ndarray:
    """The product of each token's derivative and a difference of embeddings."""
    return (rows.double() * x.double()).sum(-1).cpu().numpy()


def measured(
    lm: sc.LM,
    item: Item,
    means: Mapping[int, tuple[Tensor, Tensor]],
    seed: int,
    wanted: Sequence[str],
    removals: bool,
) -> list[tuple[Any, ...]]:
    """All measures of the wanted methods at one prompt: method, start, effect, tokens, measure, value."""
    ids = lm.encode(item.text)
    x, T, m = lm.embed(ids), len(ids), mean_embedding(lm)
    random = Random(f"{seed} {item.text}")
    logits = lm.logits(ids)
    target = int(logits[-1].argmax())
    base = centred(lm, x[None], target).item()
    swapped = {
        "mean": m.expand_as(x),
        "random": lm.embed([random.randrange(lm.size) for _ in ids]),
        "plausible": torch.cat([x[:1], lm.embed(_plausible(ids, logits, lm.size))]),
    }
    diagonal, effects = range(T), {}
    for name, other in swapped.items():
        batch = x.repeat(T, 1, 1)
        batch[diagonal, diagonal] = other
        effects[name] = (base - centred(lm, batch, target)).cpu().numpy()
    shorter = torch.stack([torch.cat([x[:t], x[t + 1 :]]) for t in range(T)])
    effects["delete"] = (base - centred(lm, shorter, target)).cpu().numpy()

    rows: list[tuple[Any, ...]] = []
    scores: Scores = {}
    state = State(lm.model)
    half = record(lm, ids, x, "half", lm.dtype, state=state)
    axes = {step: axis for step, axis in parts_of(half).items() if step in means}
    ablated = (base - without_parts(lm, half, target, means)).cpu().numpy() if axes else None
    for method, recordings in groupby(networks(lm, half, x, seed, wanted), key=itemgetter(0)):
        found: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
        weights: list[int] = []
        for _, recording in recordings:
            if recording is None:
                rows.append((method, "", "value", "", "error", math.nan))
                continue
            y, g, parts = derivatives(lm, recording, x, target, axes)
            rows.append((method, "", "value", "", "error", abs(y - base) / abs(base)))
            copies = recording.copies

            def every(rows: Tensor, copies: int = copies) -> Tensor:
                return rows.repeat_interleave(copies, 1)

            own = {"x": scored(g, every(x)), **{n: scored(g, every(x - other)) for n, other in swapped.items()}}
            if method not in OTHERS and convention_named(method).varies:
                r = reference(lm, x, convention_named(method), half.state, recording.seeds)
                own["r"] = scored(g, every(x) - r)
            value: dict[str, list[float]] = {"x": [], "d": []}
            for step, (p, slope) in parts.items():
                first, rest = (every(mean[None]) for mean in means[step])
                away = torch.cat([p[:1] - first, p[1:] - rest])
                value["x"].append(scored(slope, p).sum())
                value["d"].append(scored(slope, away).sum())
            found.append((own, {start: np.array(v) for start, v in value.items()}))
            weights.append(copies)
        if found:
            scores[method], of_parts = (
                {k: np.average([f[i][k] for f in found], 0, weights) for k in found[0][i]} for i in (0, 1)
            )
            if ablated is not None:
                for start, mean in of_parts.items():
                    both = correlations(mean, ablated).items()
                    rows += [(method, start, "parts", "all", name, v) for name, v in both]
    if FROM_ZERO in wanted:
        scores[FROM_ZERO] = {"x": integrated(lm, x, torch.zeros_like(x), target).cpu().numpy()}
    if FROM_MEAN in wanted:
        scores[FROM_MEAN] = {"mean": integrated(lm, x, m.expand_as(x), target).cpu().numpy()}
    if ROLLOUT in wanted and (attention := rollout(half)) is not None:
        scores[ROLLOUT] = {"x": attention.numpy()}
    elif ROLLOUT in wanted:
        rows.append((ROLLOUT, "", "value", "", "error", math.nan))
    if RANDOM in wanted:
        scores[RANDOM] = {"x": np.array([random.random() for _ in ids])}
    rows += list(_token_rows(scores, effects))
    return rows + (_removals(lm, x, m, target, base, scores) if removals else [])


def _plausible(ids: Sequence[int], logits: Tensor, size: int) -> list[int]:
    """For each token but the first, the most likely other token after those before it."""
    best = logits[:-1, :size].topk(2).indices.tolist()
    return [second if first == own else first for own, (first, second) in zip(ids[1:], best, strict=True)]


START = {"x": "x", "mean": "d", "r": "r"}
"""The scores that are compared with every effect, and their names in the tables."""


def _token_rows(scores: Scores, effects: Mapping[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """Correlations of scores with the effects of single tokens. A swap is compared with its own contribution."""
    for method, own in scores.items():
        for start, score in own.items():
            for effect, value in effects.items():
                if start not in START and start != effect:
                    continue
                label = "swap" if start in ("random", "plausible") else START[start]
                for tokens, first in (("all", 0), ("rest", 1)):
                    if (effect, tokens) != ("plausible", "all"):
                        found = correlations(score[first:], value[first:])
                        yield from ((method, label, effect, tokens, name, v) for name, v in found.items())


def _removals(lm: sc.LM, x: Tensor, m: Tensor, target: int, base: float, scores: Scores) -> list[tuple[Any, ...]]:
    """What the target loses without the best tokens, or with only them."""
    T, cells = len(x), []
    wanted: dict[frozenset[int], int] = {}
    for method, own in scores.items():
        for start in START:
            if start in own:
                order = np.argsort(-own[start], kind="stable")
                for percent in FRACTIONS:
                    best = frozenset(order[: max(1, round(T * percent / 100))].tolist())
                    for name, gone in (("comprehensiveness", best), ("sufficiency", frozenset(range(T)) - best)):
                        wanted.setdefault(gone, len(wanted))
                        cells.append((method, START[start], name, f"{percent} %", "loss", gone))
    batch = x.repeat(len(wanted), 1, 1)
    for gone, row in wanted.items():
        batch[row, sorted(gone)] = m
    loss = (base - centred(lm, batch, target)).tolist()
    return [(*cell, loss[wanted[gone]]) for *cell, gone in cells]


def means_of_parts(lm: sc.LM, every: Iterable[Item]) -> dict[int, tuple[Tensor, Tensor]]:
    """The mean output of each part over some prompts, at the first position and at all others."""
    total: dict[int, list[Tensor]] = {}
    axes: dict[int, int] | None = None
    counts = [0, 0]
    for item in every:
        ids = lm.encode(item.text)
        x = lm.embed(ids)
        if axes is None:
            axes = parts_of(record(lm, ids, x, "half", lm.dtype))
        if not axes:
            return {}
        captured = record(lm, ids, x, "half", lm.dtype, axes).captured
        counts = [counts[0] + 1, counts[1] + len(ids) - 1]
        for step, axis in axes.items():
            rows = by_token(captured[step], axis).double()
            own = [rows[0], rows[1:].sum(0)]
            total[step] = [a + b for a, b in zip(total[step], own, strict=True)] if step in total else own
    return {
        step: ((first / counts[0]).to(lm.dtype), (rest / counts[1]).to(lm.dtype))
        for step, (first, rest) in total.items()
    }


# ------------------------------------------------------------------------------------------------ tables


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval; NaN are left out."""
    x = values[~np.isnan(values)]
    if not len(x):
        return math.nan, math.nan, math.nan
    means = np.random.default_rng(seed).choice(x, (2000, len(x))).mean(1)
    return x.mean(), *np.quantile(means, [0.025, 0.975])


def per_prompt(rows: pd.DataFrame, method: str, start: str, effect: str, tokens: str, measure: str) -> pd.Series:
    """One measure of one method at each prompt. Scores of swaps are the same for both starts."""
    own = rows[(rows["method"] == method) & (rows["effect"] == effect) & (rows["tokens"] == tokens)]
    own = own[own["measure"] == measure]
    if effect in ("random", "plausible") and (own["start"] == "swap").any():
        start = "swap"
    return own[own["start"] == start].set_index("prompt")["value"]


def overall(rows: pd.DataFrame, method: str, start: str) -> pd.Series:
    """The mean of six correlations at each prompt."""
    return pd.DataFrame({e: per_prompt(rows, method, start, *e, "spearman") for e in OVERALL}).mean(axis=1)


def cell(values: pd.Series, digits: int = 2) -> str:
    """A mean and half of its interval's length, in 10 characters."""
    mean, low, high = interval(values.to_numpy(dtype=float))
    if math.isnan(mean):
        return f"{'-':>10}"
    shown = (
        f"{v:.{digits}f}".replace("0.", ".", 1) if abs(v) < 1 else f"{v:.{digits}f}" for v in (mean, (high - low) / 2)
    )
    return f"{' ±'.join(shown):>10}"


def ranked(rows: pd.DataFrame) -> pd.Series:
    """The overall correlation of each convention and start, best first."""
    pairs = [(m, s) for m in dict.fromkeys(rows["method"]) if m not in OTHERS for s in START.values()]
    index = pd.MultiIndex.from_tuples(pairs, names=["method", "start"])
    return pd.Series([overall(rows, *pair).mean() for pair in pairs], index).sort_values(ascending=False)


def printed(name: str, rows: pd.DataFrame) -> None:
    """All tables of one model."""
    report, choose = rows[rows["half"] == "report"], rows[rows["half"] == "choose"]
    methods = list(dict.fromkeys(rows["method"]))
    starts = [(m, s) for m in methods for s in START.values() if len(per_prompt(rows, m, s, "mean", "all", "spearman"))]
    print(f"\n{name}: {choose['prompt'].nunique()} prompts choose, {report['prompt'].nunique()} report")
    ranks = ranked(choose)
    print("chosen: " + "; ".join(f"{m} {s} {value:.3f}" for (m, s), value in ranks.head(3).items()))
    errors = rows[(rows["measure"] == "error") & ~rows["method"].isin(OTHERS)]
    worst = errors.sort_values("value").iloc[-1]
    print(f"largest error of the value of a convention: {worst['value']:.0e}, {worst['method']}, {worst['prompt']!r}")

    def table(title: str, head: Sequence[str], line: Callable[[str, str], list[str]]) -> None:
        print(f"\n{title}\n{'':29}" + "".join(f"{h:>10}" for h in head))
        for method, start in starts:
            cells = line(method, start)
            if any(c.strip() != "-" for c in cells):
                print(f"{method:28}{start}" + "".join(cells))

    table(
        "Spearman. rest: without the first token. overall: mean of mean, random (all, rest), plausible, delete (rest)",
        ("overall", "mean all", "rest", "random", "rest", "plausible", "delete", "rest"),
        lambda m, s: (
            [cell(overall(report, m, s))]
            + [cell(per_prompt(report, m, s, *e, "spearman")) for e in (*OVERALL[:5], ("delete", "all"), OVERALL[5])]
        ),
    )
    table(
        "Pearson; last: attentions and MLPs with mean ablation, Spearman and Pearson",
        ("mean all", "rest", "random", "rest", "plausible", "delete", "parts, S", "parts, P"),
        lambda m, s: (
            [cell(per_prompt(report, m, s, *e, "pearson")) for e in (*OVERALL[:5], ("delete", "all"))]
            + [cell(per_prompt(report, m, s, "parts", "all", measure)) for measure in ("spearman", "pearson")]
        ),
    )
    table(
        "Loss of the centred logit without the best tokens (more is better), and with only them (less is better)",
        [f"{what} {percent} %" for what in ("less", "only") for percent in FRACTIONS],
        lambda m, s: [
            cell(per_prompt(report, m, s, what, f"{percent} %", "loss"), 1)
            for what in ("comprehensiveness", "sufficiency") for percent in FRACTIONS
        ],
    )  # fmt: skip
    kinds = list(dict.fromkeys(rows["kind"]))
    if len(kinds) > 1:
        print("\noverall, by kind\n" + " " * 29 + "".join(f"{k[:10]:>11}" for k in kinds))
        for method, start in starts:
            found = [overall(report[report["kind"] == k], method, start).mean() for k in kinds]
            print(f"{method:28}{start}" + "".join(f"{v:11.2f}" for v in found))
    missing = report[report["value"].isna()].groupby("effect")["prompt"].nunique()
    if len(missing):
        print("\nprompts with a correlation that is not defined: " + ", ".join(f"{e} {n}" for e, n in missing.items()))


# ------------------------------------------------------------------------------------------------ the run


def read(lm: sc.LM, item: Item) -> bool:
    """Whether a model's tokenizer can encode a prompt. Prints a line if not."""
    try:
        lm.encode(item.text)
    except BadPrompt as error:
        print(f"{lm.name} can't encode {item.text!r}: {error}", file=sys.stderr)
        return False
    return True


def kept(rows: pd.DataFrame, path: Path) -> None:
    """Write rows to a Parquet file, completely or not at all."""
    small = rows.astype({c: "category" for c in Columns if c != "value"}).astype({"value": "float32"})
    with replacing(path) as new:
        small.to_parquet(new, compression="zstd", index=False)


def study(lm: sc.LM, name: str, args: argparse.Namespace) -> pd.DataFrame:
    """All rows of one model. Prompts that the file has are not measured again."""
    given = items(name, args.prompts, args.seed)
    every = [item for item in given if read(lm, item)]
    known = pd.DataFrame(columns=Columns)
    if args.out and args.out.exists():
        known = pd.read_parquet(args.out).astype(dict.fromkeys(Columns[:-1], object))
    before, others = known[known["model"] == name], known[known["model"] != name]
    before = before[before["prompt"].isin([item.text for item in every]) & before["method"].isin(args.methods)]
    done = set(zip(before["prompt"], before["method"], strict=True))
    left = [(item, own) for item in every if (own := [m for m in args.methods if (item.text, m) not in done])]
    said = f"{name}: {len(every)} prompts, {len(given) - len(every)} not encoded, {len(every) - len(left)} measured"
    print(said, file=sys.stderr)
    tables, began = [before] if len(before) else [], time.time()
    averaged = (item for item in items(name, MEANS, args.seed) if read(lm, item))
    means = means_of_parts(lm, averaged) if left and not args.no_parts else {}
    if means:
        print(f"{name}: means of {len(means)} parts took {time.time() - began:.0f} s", file=sys.stderr)
    began = time.time()
    for number, (item, wanted) in enumerate(left):
        rows = measured(lm, item, means, args.seed, wanted, not args.no_removals)
        table = pd.DataFrame([(name, item.kind, item.text, item.half, *row) for row in rows], columns=Columns)
        tables.append(table)
        if args.out and ((number + 1) % SAVED == 0 or number + 1 == len(left)):
            kept(pd.concat([others, *tables], ignore_index=True), args.out)
        each = (time.time() - began) / (number + 1)
        if number == 0 or (number + 1) % 10 == 0:
            rest = f"about {each * (len(left) - number - 1) / 60:.0f} min left"
            print(f"{name}: {number + 1} of {len(left)}, {each:.1f} s each, {rest}", file=sys.stderr)
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=308)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--methods", nargs="*", default=list(METHODS), metavar="METHOD",
        help=f"conventions, and {', '.join(OTHERS)}; by default those and {', '.join(CONVENTIONS)}",
    )  # fmt: skip
    parser.add_argument("--no-parts", action="store_true")
    parser.add_argument("--no-removals", action="store_true")
    args = parser.parse_args()
    for method in args.methods:
        _ = method in OTHERS or convention_named(method)
    chosen = {}
    for name, place in models(args.models):
        lm = sc.load(place, dtype="float32")
        for parameter in lm.model.parameters():
            parameter.requires_grad_(False)
        rows = study(lm, name, args)
        printed(name, rows)
        chosen[name] = ranked(rows[rows["half"] == "choose"])
    if len(chosen) > 1:
        mean = pd.DataFrame(chosen).mean(axis=1).sort_values(ascending=False)
        print(
            "\nchosen by the mean over models: " + "; ".join(f"{m} {s} {v:.3f}" for (m, s), v in mean.head(3).items())
        )


if __name__ == "__main__":
    main()
