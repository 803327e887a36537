"""What steering gives and what it costs: how often a concept's words come, and how odd the text becomes.

Every form x layer x strength generates from the same prompts. Perplexity is that of the continuation, given the prompt,
under the model without steering.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsFloat, SupportsIndex

import pandas as pd
import scipy.stats

from secant.errors import BadArgument, checked, seeded, several
from secant.linearize.run import Run
from secant.model.lm import LM, Prompt
from secant.results.result import Result
from secant.results.schema import Column, Table, records
from secant.results.view import Cell, Grid, Shown, View, cells
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
from secant.steering.steer import FORM, FORMS, LAYER, PLAIN, STRENGTH, Aim, aimed, concept_of, steered, strength_of

Row = dict[str, Any]

OF_PROMPTS = "share of prompts"

SWEEP = Table(
    "sweep",
    "a form x layer x strength; the first one is unsteered",
    (
        FORM,
        LAYER,
        STRENGTH,
        Column("rate", float, "share of the prompts after which one of the concept's words came", OF_PROMPTS,
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
        Column("prompt", int, "number of the prompt, from 0"),
        Column("text", str, "the prompt"),
        CONTINUATION,
        Column("found", bool, "whether one of the concept's words came"),
        PERPLEXITY,
        TOKENS,
    ),
)

MOST = 2.0
"""The perplexity that the best setting may have, in times the unsteered one."""


@dataclass(frozen=True)
class Settings:
    """What a sweep was made with.

    Attributes:
        model: The model's name.
        concept: The concept's text.
        words: Those that count as the concept's.
        tokens: Most in a continuation.
        sample: Whether tokens were drawn.
        seed: The seed that they were drawn with.

    """

    model: str
    concept: str
    words: tuple[str, ...]
    tokens: int
    sample: bool
    seed: int


@dataclass(frozen=True, eq=False)
class Sweep(Result):
    """Steering at several strengths.

    Attributes:
        settings: What it was made with.
        table: A row for each form x layer x strength, the first one unsteered. `rate`: the share of the prompts after
            which one of the words came; `low`, `high`: its exact 95 % interval. `perplexity`: of all continuations
            together, under the unsteered model.
        texts: Each continuation.

    """

    schema = (SWEEP, TEXTS)

    settings: Settings
    table: pd.DataFrame = field(repr=False)
    texts: pd.DataFrame = field(repr=False)

    @property
    def plain(self) -> pd.Series:
        """The row without steering."""
        return self.table.iloc[0]

    def best(self, most: float = MOST) -> pd.Series | None:
        """The setting that gives most at a bearable cost.

        Args:
            most: The perplexity that it may have, in times the unsteered one.

        Returns:
            The row with the highest rate among these; of equal ones that of the lowest perplexity. None where no row
            has a higher rate than without steering.

        """
        table, plain = self.table, self.plain
        cheap = table[(table["perplexity"] <= most * plain["perplexity"]) & (table["rate"] > plain["rate"])]
        if cheap.empty:
            return None
        return cheap.sort_values(["rate", "perplexity"], ascending=[False, True], kind="stable").iloc[0]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The settings' rates and perplexities, and each continuation."""
        return {"sweep": self.table, "texts": self.texts}

    def about(self) -> dict[str, Any]:
        """What it was made with, and the best setting's row."""
        best = self.best()
        row = None if best is None else records(self.table.loc[[best.name]])[0]
        return {**asdict(self.settings), "words": list(self.settings.words), "best": row}

    def view(self) -> View:
        """A line for each setting, and the best trade-off, with what it says."""
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
                f"no setting says the words more often than the unsteered model ({plain['rate']:.0%}) at a perplexity "
                f"of at most {MOST:g} times its own"
            )
        else:
            texts = self.texts
            for key in ("form", "layer", "strength"):
                texts = texts[texts[key] == best[key]]
            said = texts[texts["found"]].iloc[0]
            facts["best"] = [
                f"{best['form']}, layer {best['layer']}, strength {best['strength']:g}: {best['rate']:.0%} instead of "
                f"{plain['rate']:.0%}, at {best['perplexity'] / plain['perplexity']:.2f} times the perplexity",
                f"for instance: {(said['text'] + said['continuation']).strip()}",
            ]
        notes = [
            f"{plain['prompts']} prompt{'' if plain['prompts'] == 1 else 's'}, at most {settings.tokens} tokens each. "
            "rate: continuations with one of the words, and its exact 95 % interval. perplexity: of the continuations, "
            f"under the unsteered model; the best setting has at most {MOST:g} times the unsteered one."
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
    """Continue prompts with every form x layer x strength of steering towards a concept, and without.

    Args:
        lm: The model.
        prompts: The prompts.
        concept: A prompt or its Run.
        layers: All by default.
        strengths: By default those of each form's own grid; 0 is always there.
        forms: Some of mixture, additive and activation.
        words: What counts as the concept; by default the words of its text, of three letters or more, that stand in no
            prompt.
        tokens: Most in a continuation.
        sample: Draw tokens as the model's own settings say, instead of taking the likeliest.
        seed: The seed of the samples, the same at every setting.
        progress: Called as `progress(what, done, all)` while the work goes on.

    Raises:
        BadArgument: An argument is none of those.
        BadPrompt: A prompt is none, or leaves no room.
        NoPoint: The model has no layers.
        SecantError: What `freeze` raises.

    """
    seed = seeded(seed)
    run = concept_of(lm, concept)
    prompts = several(prompts)
    rows = encoded(lm, prompts, tokens)
    about = concept if isinstance(concept, str) else text_of(lm, run.ids)
    texts = [prompt if isinstance(prompt, str) else text_of(lm, row) for prompt, row in zip(prompts, rows, strict=True)]
    found = _words(words, about, texts)
    settings = Settings(lm.name, about, found, tokens, sample, seed)
    every = range(max(1, len(run.inside.layers)))  # of none, aimed says so
    chosen = [aimed(run, layer).layer for layer in (every if layers is None else layers)]
    plans = [(form, s) for form in forms for s in _strengths(form, strengths)]
    if not plans or not chosen:
        raise BadArgument("A sweep has a layer, a form and a strength other than 0", "none", "Give one of each.")
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
    """Those of a form, each once, without 0."""
    strength_of(form, 0.0)
    given = FORMS[form].grid if strengths is None else strengths
    return [s for s in dict.fromkeys(strength_of(form, s) for s in given) if s]


def _words(words: Sequence[str] | None, concept: str, prompts: Sequence[str]) -> tuple[str, ...]:
    """What counts as the concept. Raises BadArgument where there is nothing."""
    if words is None:
        known = {word for prompt in prompts for word in _spoken(prompt)}
        words = [word for word in _spoken(concept) if word not in known]
    if isinstance(words, str) or not words or not all(word.strip() for word in words):
        raise BadArgument(
            "A concept is recognised by words that its prompts do not have", "none", "Give some, for instance --word."
        )
    return tuple(dict.fromkeys(word.strip().casefold() for word in words))


def _spoken(text: str) -> list[str]:
    """The words of a text of three letters or more, each once."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]{3,}", text.casefold())))


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, by itself."""
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)


def _rate(hits: Sequence[bool]) -> Row:
    """The share of hits with its exact interval (C. Clopper and E. Pearson, Biometrika 26, 1934)."""
    between = scipy.stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="exact")
    return {"rate": sum(hits) / len(hits), "low": float(between.low), "high": float(between.high)}


def _cost(continuations: Sequence[Continuation]) -> Row:
    return {"perplexity": perplexity(continuations), "prompts": len(continuations)}
