"""A model's greedy continuation, with each generated token decomposed by its own certified linear system.

Each step freezes the prompt with all tokens generated so far. The logit of every generated token is therefore an exact
sum over all tokens before it, logit = Σ_t g_t·x_t + Σ_m b_m. `follow` returns these attributions, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from secant.analyses.attribution import CONTRIBUTIONS, Attribution, attribute
from secant.arguments import counted
from secant.errors import BadArgument, checked
from secant.linearize.certificate import Certificate
from secant.linearize.run import Prediction, Run
from secant.memory import Progress
from secant.results.columns import ITS_LOGIT, PROBABILITY, RECONSTRUCTION, TOKEN
from secant.results.result import Result
from secant.results.schema import Column
from secant.results.view import Cell, Grid, Shown, Tokens, View, missing
from secant.steering.generate import added
from secant.text import count, excerpt

STEPS = CONTRIBUTIONS.but(
    "steps",
    "a contribution to the logit of a generated token",
    before=(
        Column("step", int, "which generated token, from 0"),
        TOKEN.but(name="generated", meaning="its text"),
        PROBABILITY,
        ITS_LOGIT.but(meaning="its logit, the sum of the contributions of tokens and constants"),
        RECONSTRUCTION.but(meaning="‖J x + b - y‖ / ‖y‖ of the linear system at this step"),
    ),
)


@dataclass(frozen=True, eq=False)
class Step:
    """A generated token.

    Attributes:
        prediction: Its text, id, probability and logit.
        certificate: The certificate of the run that predicts it.
        attribution: The contributions to its logit.

    """

    prediction: Prediction
    certificate: Certificate
    attribution: Attribution = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Steps(Result):
    """A continuation, with a step for each generated token.

    Attributes:
        tokens: The tokens of the prompt, followed by the generated ones.
        prompt: How many of these tokens belong to the prompt.
        steps: The steps.
        text: What the generated tokens add to the prompt's text, without special tokens.
        ended: Why it ended: "steps" (their number was reached), "end of text", "token without an embedding", or
            "context" (the model's longest prompt was reached).

    """

    schema = (STEPS,)

    tokens: list[str]
    prompt: int
    steps: list[Step]
    text: str
    ended: str

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        own = f"{excerpt(''.join(self.tokens[: self.prompt]))} continued by {excerpt(self.text)}"
        return [own, count(len(self.steps), "step"), f"ended by {self.ended}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `steps`: the attribution tables of all steps, with the generated token in each row."""
        tables = [
            step.attribution.table.assign(
                step=number, generated=step.prediction.token, probability=step.prediction.probability,
                logit=step.attribution.logit, reconstruction=step.certificate.reconstruction,
            )
            for number, step in enumerate(self.steps)
        ]  # fmt: skip
        return {"steps": STEPS.frame(pd.concat(tables, ignore_index=True))}

    def about(self) -> dict[str, Any]:
        """Returns the tokens, how many of them belong to the prompt, the text, and why it ended."""
        return {"tokens": self.tokens, "prompt": self.prompt, "text": self.text, "ended": self.ended}

    def view(self) -> View:
        """Shows the shares of the logit, as generated token x token before it."""
        columns = [Shown("", "integer"), Shown("generated", "token", most=12), Shown("p", "percent")]
        columns += [Shown("exact to", "error")]
        columns += [Shown(token, "share", most=9, token=True) for token in self.tokens[:-1]]
        rows = []
        for number, (step, shares) in enumerate(zip(self.steps, self.shares().to_numpy().tolist(), strict=True)):
            largest = max((abs(share) for share in shares if not missing(share)), default=0.0)
            own = [Cell(share, "strong" if abs(share) == largest else "") for share in shares]
            p = step.prediction
            rows.append([number, p.token, p.probability, step.certificate.reconstruction, *own])
        facts = {"prompt": Tokens(self.tokens[: self.prompt]), "continuation": self.text}
        ended = "" if self.ended == "steps" else f" The continuation ended at the {self.ended}."
        notes = [f"Each row: the share of the generated token's logit that each earlier token contributes.{ended}"]
        return View("The model's own continuation, token by token", facts, [Grid(columns, rows, keep=4)], notes)

    def shares(self) -> pd.DataFrame:
        """Returns each token's share of the generated token's logit, as step x token; NaN for later tokens."""
        rows = [
            dict(enumerate(map(step.attribution.share, step.attribution.of("token")["contribution"])))
            for step in self.steps
        ]
        return pd.DataFrame(rows, columns=range(len(self.tokens) - 1))


@checked
def follow(
    run: Run,
    steps: int,
    *,
    parts: bool = False,
    origin: str | Tensor | None = None,
    baseline: str = "vocabulary",
    progress: Progress | None = None,
) -> Steps:
    """Returns the model's greedy continuation of a run, with each of its tokens decomposed.

    The first step is the run itself. The continuation ends early at an end-of-text token, at a token that the head has
    but the embedding lacks, or at the end of the model's context; the result says which.

    Args:
        run: The run that is continued.
        steps: The most tokens to generate.
        parts: Whether attributions have layers and heads too, as in `attribute`.
        origin: What contributions are measured from, as in `attribute`; embeddings are `[d]`, because the prompt grows.
        baseline: What logits are measured from, likewise.
        progress: Called as `progress("steps", done, all)` after each token.

    Raises:
        BadArgument: `steps` is less than 1, or the origin has a row for each token.
        SecantError: Any error of `freeze` and `attribute`.

    """
    steps = counted("steps", steps)
    if isinstance(origin, Tensor) and origin.ndim != 1:
        raise BadArgument(
            "The origin of a continuation is one embedding, used for all tokens",
            f"{origin.ndim} dimensions",
            "Give a tensor of shape [d].",
        )
    prompt, found, ended = len(run.ids), list[Step](), "steps"
    while True:
        attribution = attribute(run, baseline=baseline, parts=parts, origin=origin)
        found.append(Step(run.prediction[0], run.certificate, attribution))
        if progress:
            progress("steps", len(found), steps)
        if run.prediction[0].id in run.lm.ends:
            ended = "end of text"
        elif run.prediction[0].id >= run.lm.size:
            ended = "token without an embedding"
        elif len(found) < steps:
            if run.lm.context is None or len(run.ids) < run.lm.context:
                run = run.next()
                continue
            ended = "context"
        ids = [step.prediction.id for step in found]
        text = added(run.lm, run.ids[:prompt], ids)
        return Steps([*run.tokens, run.prediction[0].token], prompt, found, text, ended)
