"""Several steps: each token that a model generates, decomposed with its own certified operator.

The model's greedy continuation is followed one token at a time; each step freezes the longer prompt anew, so that every
token's logit is an exact sum over all tokens before it, those generated on the way among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from secant.analyses.attribution import Attribution, attribute
from secant.errors import checked, integer
from secant.linearize.run import Certificate, Prediction, Run
from secant.results.files import saving
from secant.steering.generate import added


@dataclass(frozen=True, eq=False)
class Step:
    """A generated token: its prediction, the certificate of the pass that made it, and what its logit is made of."""

    prediction: Prediction
    certificate: Certificate
    attribution: Attribution = field(repr=False)


@dataclass(frozen=True, eq=False)
class Steps:
    """A continuation, a step each token. `tokens` are those of the prompt and then the generated ones; `text`: what the
    generated ones add to the prompt's text, without special tokens.

    `ended`: why there are no more steps: their number, the end of text, a token without an embedding, or the model's
    context.
    """

    tokens: list[str]
    prompt: int
    steps: list[Step] = field(repr=False)
    text: str
    ended: str

    def to_pandas(self) -> pd.DataFrame:
        """One table of all steps' attributions: step, generated token, its probability, reconstruction error, and the
        columns of each attribution's table.
        """
        tables = []
        for number, step in enumerate(self.steps):
            table = step.attribution.to_pandas()
            for place, (name, value) in enumerate(
                {
                    "step": number,
                    "generated": step.prediction.token,
                    "probability": step.prediction.probability,
                    "logit": step.attribution.logit,
                    "reconstruction": step.certificate.reconstruction,
                }.items()
            ):
                table.insert(place, name, value)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def shares(self) -> pd.DataFrame:
        """Step x token: each token's share of the generated token's logit; missing where it had not come yet."""
        rows = [
            dict(enumerate(map(step.attribution.share, step.attribution.of("token")["contribution"])))
            for step in self.steps
        ]
        return pd.DataFrame(rows, columns=range(len(self.tokens) - 1))

    def save(self, folder: str | Path) -> None:
        """Write steps (.parquet and .csv) and columns.csv. Raises OutputFailed."""
        with saving(folder, {"steps": self.to_pandas()}):
            pass


@checked
def follow(
    run: Run, steps: int, *, parts: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Steps:
    """The model's own continuation of a run, and what each of its tokens is made of; the first step is the run itself.

    `parts`: attributions by layer and head too. It ends before `steps` tokens at the model's end of text, at a token
    that its head has and its embedding has not, or at the end of its context, and says so.
    Raises BadArgument, and what `freeze` and `attribute` raise.
    """
    steps = integer(steps, 1, 10**6, "A continuation has at least one step", "steps = ")
    prompt, found, ended = len(run.ids), list[Step](), "steps"
    while True:
        found.append(Step(run.prediction[0], run.certificate, attribute(run, parts=parts)))
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
