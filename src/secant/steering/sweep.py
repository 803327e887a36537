"""What steering gains and what it costs: how often the concept's words appear, and how much the perplexity rises.

Every form x layer x strength continues the same prompts. The perplexity is that of the continuation, given the prompt,
under the unsteered model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, SupportsFloat, SupportsIndex

import pandas as pd
import scipy

from secant.errors import BadArgument, checked, seeded, several
from secant.linearize.run import Run
from secant.model.lm import LM, Prompt
from secant.results.result import Result
from secant.results.schema import Column, Table, records
from secant.results.view import Cell, Grid, Shown, View, cells
from secant.steering.forms import FORMS, strength_of
from secant.steering.generate import (
    CONTINUATION,
    PERPLEXITY,
    TOKENS,
    Continuation,
    batches,
    continued,
    encoded,
    perplexity,
    text_of,
    weighed,
)
from secant.steering.steer import FORM, LAYER, PLAIN, STRENGTH, Aim, aimed, concept_of, steered
from secant.text import count, excerpt, named

Row = dict[str, Any]

OF_PROMPTS = "share of prompts"

SWEEP = Table(
    "sweep",
    "a form x layer x strength; the first row is unsteered",
    (
        FORM,
        LAYER,
        STRENGTH,
        Column("rate", float, "share of the prompts whose continuation has one of the concept's words", OF_PROMPTS,
               show="percent"),
        Column("low", float, "lower end of the rate's 95 % interval, exact (Clopper and Pearson)", OF_PROMPTS),
        Column("high", float, "upper end of it", OF_PROMPTS),
        PERPLEXITY.but(meaning="perplexity of all continuations together, under the unsteered model"),
        Column("prompts", int, "how many prompts", "prompts"),
    ),
)  # fmt: skip
TEXTS = Table(
    "texts",
    "a continuation: form x layer x strength x prompt",
    (
        FORM,
        LAYER,
        STRENGTH,
        Column("prompt", int, "the prompt's number, from 0"),
        Column("text", str, "the prompt"),
        CONTINUATION,
        Column("found", bool, "whether the continuation has one of the concept's words"),
        PERPLEXITY,
        TOKENS,
    ),
)

MOST = 2.0
"""The perplexity that the best setting may have, as a multiple of the unsteered one."""


@dataclass(frozen=True)
class Settings:
    """The settings of a sweep.

    Attributes:
        model: The model's name.
        concept: The concept's text.
        words: The words that count as the concept's.
        tokens: The maximum length of a continuation.
        sample: Whether tokens were sampled.
        seed: The seed of the samples.

    """

    model: str
    concept: str
    words: tuple[str, ...]
    tokens: int
    sample: bool
    seed: int


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """Steering with several forms, layers and strengths.

    Attributes:
        settings: The settings of the sweep.
        table: A row for each form x layer x strength; the first row is unsteered. `rate` is the share of the prompts
            whose continuation has one of the words, `low` and `high` its exact 95 % interval. `perplexity` is that of
            all continuations together, under the unsteered model.
        texts: A row for each continuation.

    """

    schema = (SWEEP, TEXTS)

    settings: Settings
    table: pd.DataFrame
    texts: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        own = self.settings
        return [
            named(own.model), f"towards {excerpt(own.concept)}", count(len(self.table) - 1, "setting"),
            count(len(self.texts), "continuation"), f"words {', '.join(own.words[:4])}",
        ]  # fmt: skip

    @property
    def plain(self) -> pd.Series:
        """The unsteered row."""
        return self.table.iloc[0]

    def best(self, most: float = MOST) -> pd.Series | None:
        """The setting with the highest rate at an acceptable perplexity.

        Args:
            most: The highest acceptable perplexity, as a multiple of the unsteered one.

        Returns:
            The row with the highest rate; among equal rates, the one with the lowest perplexity. None if no row has a
            higher rate than the unsteered one.

        """
        table, plain = self.table, self.plain
        cheap = table[(table["perplexity"] <= most * plain["perplexity"]) & (table["rate"] > plain["rate"])]
        if cheap.empty:
            return None
        return cheap.sort_values(["rate", "perplexity"], ascending=[False, True], kind="stable").iloc[0]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The rates and perplexities of all settings, and each continuation."""
        return {"sweep": self.table, "texts": self.texts}

    def about(self) -> dict[str, Any]:
        """The settings of the sweep, and the row of the best setting."""
        best = self.best()
        row = None if best is None else records(self.table.loc[[best.name]])[0]
        return {**asdict(self.settings), "words": list(self.settings.words), "best": row}

    def view(self) -> View:
        """The view: a line for each setting, and the best one with an example."""
        settings, best, plain = self.settings, self.best(), self.plain
        columns = [
            Shown("form"), Shown("layer", "integer"), Shown("strength", "number"), Shown("rate", "percent"),
            Shown("95 %", spare=1), Shown("perplexity", "number"),
        ]  # fmt: skip
        rows = []
        for i, row in self.table.iterrows():
            between = f"{row['low']:.0%} to {row['high']:.0%}"
            values = [*cells(row[["form", "layer", "strength", "rate"]]), between, row["perplexity"]]
            rows.append([Cell(v, "strong" if best is not None and i == best.name else "") for v in values])
        facts: dict[str, Any] = {"concept": settings.concept.strip(), "words": ", ".join(settings.words)}
        if best is None:
            facts["best"] = (
                f"no setting produces the words more often than the unsteered model ({plain['rate']:.0%}) at a "
                f"perplexity of at most {MOST:g} times its own"
            )
        else:
            texts = self.texts
            for key in ("form", "layer", "strength"):
                texts = texts[texts[key] == best[key]]
            said = texts[texts["found"]].iloc[0]
            facts["best"] = [
                f"{best['form']}, layer {best['layer']}, strength {best['strength']:g}: {best['rate']:.0%} instead of "
                f"{plain['rate']:.0%}, at {best['perplexity'] / plain['perplexity']:.2f} times the perplexity",
                f"example: {(said['text'] + said['continuation']).strip()}",
            ]
        notes = [
            f"{plain['prompts']} prompt{'' if plain['prompts'] == 1 else 's'}, at most {settings.tokens} tokens each. "
            "rate: the share of continuations with one of the words, and its exact 95 % interval. perplexity: that of "
            f"the continuations under the unsteered model. The best setting has at most {MOST:g} times the unsteered "
            "perplexity."
        ]
        return View(f"Steering {settings.model}", facts, [Grid(columns, rows)], notes)


@checked
def steering_sweep(
    lm: LM,
    prompts: Sequence[Prompt],
    concept: Prompt | Run,
    *,
    layers: Sequence[SupportsIndex] | None = None,
    strengths: Sequence[SupportsFloat] | None = None,
    forms: Sequence[str] = ("mixture",),
    words: Sequence[str] | None = None,
    tokens: int = 20,
    sample: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sweep:
    """Continue prompts while steering towards a concept, with every form x layer x strength, and without steering.

    Args:
        lm: The model.
        prompts: The prompts.
        concept: A prompt, or its Run.
        layers: The layers to steer after, from 0; by default all.
        strengths: The strengths; by default those of each form's own grid. 0 is always included.
        forms: Some of "mixture", "additive" and "activation".
        words: The words that count as the concept's; by default the words in its text that have three letters or more
            and are in no prompt.
        tokens: The maximum length of a continuation.
        sample: Sample tokens with the model's own settings, instead of taking the likeliest.
        seed: The seed of the samples, the same at every setting.
        progress: Called as `progress(what, done, of)` while it runs.

    Returns:
        How often the words appear at each setting, and at what perplexity.

    Raises:
        BadArgument: An argument is not valid.
        BadPrompt: A prompt is not valid, or leaves no room for its continuation.
        NoPoint: The model has no layers.
        SecantError: As `freeze` does.

    """
    seed = seeded(seed)
    run = concept_of(lm, concept)
    prompts = several(prompts)
    rows = encoded(lm, prompts, tokens)
    about = concept if isinstance(concept, str) else text_of(lm, run.ids)
    texts = [prompt if isinstance(prompt, str) else text_of(lm, row) for prompt, row in zip(prompts, rows, strict=True)]
    found = _words(words, about, texts)
    settings = Settings(lm.name, about, found, tokens, sample, seed)
    every = range(max(1, len(run.inside.layers)))  # for a model without layers, aimed raises
    chosen = [aimed(run, layer).layer for layer in (every if layers is None else layers)]
    plans = [(form, s) for form in forms for s in _strengths(form, strengths)]
    if not plans or not chosen:
        raise BadArgument("A sweep requires a layer, a form and a strength other than 0", "none", "Give one of each.")
    groups, pattern = batches(lm, rows), _pattern(found)

    def row(form: str, layer: int | None, strength: float, new: list[list[int]]) -> tuple[Row, list[Row]]:
        where: Row = {"form": form, "layer": layer, "strength": strength}
        continuations = weighed(lm, rows, new)
        hits = [bool(pattern.search(c.text)) for c in continuations]
        said = [
            {**where, "prompt": i, "text": texts[i], "continuation": c.text, "found": hit,
             "perplexity": c.perplexity, "tokens": len(c.ids)}
            for i, (c, hit) in enumerate(zip(continuations, hits, strict=True))
        ]  # fmt: skip
        return {**where, **_rate(hits), **_cost(continuations)}, said

    def each() -> Iterator[tuple[Row, list[Row]]]:
        yield row(PLAIN, None, 0.0, continued(lm, rows, tokens, sample=sample, seed=seed, groups=groups))
        for layer in chosen:
            aim = Aim(run, layer)
            for form, strength in plans:
                with steered(lm, aim, form, strength):
                    new = continued(lm, rows, tokens, sample=sample, seed=seed, groups=groups)
                yield row(form, layer, strength, new)

    report = progress or (lambda what, done, of: None)
    table: list[Row] = []
    said: list[Row] = []
    for one, own in each():
        table.append(one)
        said += own
        report("settings", len(table), 1 + len(chosen) * len(plans))
    return Sweep(settings, SWEEP.frame(table), TEXTS.frame(said))


def _strengths(form: str, strengths: Sequence[SupportsFloat] | None) -> list[float]:
    """The strengths for a form, each once, without 0."""
    strength_of(form, 0.0)
    given = FORMS[form].grid if strengths is None else strengths
    return [s for s in dict.fromkeys(strength_of(form, s) for s in given) if s]


def _words(words: Sequence[str] | None, concept: str, prompts: Sequence[str]) -> tuple[str, ...]:
    """The words that count as the concept's. Raises BadArgument if there are none."""
    if words is None:
        known = {word for prompt in prompts for word in _spoken(prompt)}
        words = [word for word in _spoken(concept) if word not in known]
    if isinstance(words, str) or not words or not all(word.strip() for word in words):
        raise BadArgument("A concept requires a word that is in no prompt", "none", "Give one with words, or --word.")
    return tuple(dict.fromkeys(word.strip().casefold() for word in words))


def _spoken(text: str) -> list[str]:
    """The words of a text that have three letters or more, each once."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]{3,}", text.casefold())))


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of the words as a whole word."""
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)


def _rate(hits: Sequence[bool]) -> Row:
    """The share of hits with its exact interval (C. Clopper and E. Pearson, Biometrika 26, 1934)."""
    between = scipy.stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="exact")
    return {"rate": sum(hits) / len(hits), "low": float(between.low), "high": float(between.high)}


def _cost(continuations: Sequence[Continuation]) -> Row:
    return {"perplexity": perplexity(continuations), "prompts": len(continuations)}
