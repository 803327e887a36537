"""The continuations of a prompt with and without steering, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import pandas as pd

from secant.errors import checked
from secant.linearize.run import Run
from secant.model.lm import LM, Prompt
from secant.results.columns import TOKEN, TOKEN_ID
from secant.results.formats import number
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View
from secant.steering.generate import (
    CONTINUATION,
    PERPLEXITY,
    TOKENS,
    Continuation,
    continued,
    encoded,
    text_of,
    weighed,
)
from secant.steering.steer import FORM, LAYER, PLAIN, STRENGTH, concept_of, steer
from secant.text import excerpt, named

STEERED = Table(
    "steered", "a continuation, unsteered or steered", (FORM, LAYER, STRENGTH, CONTINUATION, PERPLEXITY, TOKENS)
)
STEERED_TOKENS = Table(
    "steered_tokens",
    "a generated token of a continuation",
    (FORM, Column("place", int, "the token's place among the generated ones, from 0"), TOKEN, TOKEN_ID),
)


@dataclass(frozen=True, eq=False, repr=False)
class Steered(Result):
    """Two continuations of a prompt, unsteered and steered.

    Attributes:
        lm: The model.
        prompt: The prompt's text.
        concept: The concept's text.
        form: The form of steering.
        layer: The layer after which the residual stream was steered.
        strength: The strength of steering.
        sample: Whether tokens were sampled.
        seed: The seed of the samples.
        unsteered: The continuation without steering.
        steered: The continuation with steering. Both perplexities are under the unsteered model.

    """

    schema = (STEERED, STEERED_TOKENS)

    lm: LM
    prompt: str
    concept: str
    form: str
    layer: int
    strength: float
    sample: bool
    seed: int
    unsteered: Continuation
    steered: Continuation

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        how = f"{self.form} {self.strength:g} after layer {self.layer}"
        texts = f"{excerpt(self.steered.text)} instead of {excerpt(self.unsteered.text)}"
        return [named(self.lm.name), excerpt(self.prompt), f"towards {excerpt(self.concept)}", how, texts]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both continuations and their tokens."""
        plain, other = self.unsteered, self.steered
        rows = [
            (PLAIN, None, 0.0, plain.text, plain.perplexity, len(plain.ids)),
            (self.form, self.layer, self.strength, other.text, other.perplexity, len(other.ids)),
        ]
        tokens = [
            (form, place, self.lm.text(i), i)
            for form, one in ((PLAIN, plain), (self.form, other))
            for place, i in enumerate(one.ids)
        ]
        return {"steered": STEERED.frame(rows), "steered_tokens": STEERED_TOKENS.frame(tokens)}

    def about(self) -> dict[str, Any]:
        """The model, the prompt, the concept and the settings."""
        names = ("prompt", "concept", "form", "layer", "strength", "sample", "seed")
        return {"model": self.lm.name, **{name: getattr(self, name) for name in names}}

    def view(self) -> View:
        """The view: both continuations side by side, with their perplexities."""
        both = (self.unsteered, self.steered)
        headings = (PLAIN, f"{self.form}, layer {self.layer}, strength {self.strength:g}")
        rows: list[list[Any]] = [
            [c.text.strip(" ") for c in both],
            [Cell(f"perplexity {number(c.perplexity)}", "dim") for c in both],
        ]
        facts = {"prompt": self.prompt.strip(" "), "concept": self.concept.strip(" ")}
        notes = ["Both perplexities are computed under the unsteered model."]
        grid = Grid([Shown(heading, wrap=True) for heading in headings], rows)
        return View(f"Steering {self.lm.name}", facts, [grid], notes)


@checked
def side_by_side(
    lm: LM,
    prompt: Prompt,
    concept: Prompt | Run,
    *,
    layer: SupportsIndex,
    strength: SupportsFloat,
    form: str = "mixture",
    tokens: int = 20,
    sample: bool = False,
    seed: int = 0,
) -> Steered:
    """Continue a prompt while steering towards a concept, and without steering.

    Args:
        lm: The model.
        prompt: The prompt.
        concept: A prompt, or its Run.
        layer: The layer to steer after, as in `steer`.
        strength: The strength, as in `steer`.
        form: The form, as in `steer`.
        tokens: The maximum length of a continuation.
        sample: Sample tokens by the model's own settings, instead of taking the likeliest.
        seed: The seed of the samples, the same for both.

    Raises:
        BadArgument: An argument is not valid.
        BadPrompt: The prompt is not valid, or leaves no room for its continuation.
        SecantError: As `steer` and `freeze` do.

    """
    run, rows = concept_of(lm, concept), encoded(lm, [prompt], tokens)
    steering = steer(lm, run, layer=layer, strength=strength, form=form)
    plain = continued(lm, rows, tokens, sample=sample, seed=seed)
    with steering:
        other = continued(lm, rows, tokens, sample=sample, seed=seed)
    unsteered, steered = weighed(lm, rows * 2, plain + other)
    text = prompt if isinstance(prompt, str) else text_of(lm, rows[0])
    about = concept if isinstance(concept, str) else text_of(lm, run.ids)
    return Steered(lm, text, about, form, layer.__index__(), float(strength), sample, seed, unsteered, steered)
