"""How much steering gives and what it costs: how often a concept's words come, and how odd the text has become.

Every form x layer x strength is generated with on the same prompts. Perplexity is that of the continuation, given the
prompt, under the model as it is without steering.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import pandas as pd
import scipy.stats

from secant.errors import BadArgument, checked, seeded, several
from secant.files import write_json
from secant.linearize.run import Run
from secant.model.lm import LM, Prompt
from secant.results.files import saving
from secant.steering.generate import Continuation, batches, continued, encoded, perplexity, text_of, weighed
from secant.steering.steer import FORMS, Aim, aimed, concept_of, steered, strength_of

Row = dict[str, Any]

PLAIN = "unsteered"
"""The form of the row without steering."""


@dataclass(frozen=True)
class Settings:
    """What a sweep was made with; `words` are those that count as the concept's."""

    model: str
    concept: str
    words: tuple[str, ...]
    tokens: int
    sample: bool
    seed: int


@dataclass(frozen=True, eq=False)
class Sweep:
    """Steering at several strengths: a row of `table` for each form x layer x strength, the first one unsteered.

    `rate`: the share of the prompts after which one of the words came; `low`, `high`: its exact 95 % interval.
    `perplexity`: of all continuations together, under the unsteered model. `texts`: each of them.
    """

    settings: Settings
    table: pd.DataFrame = field(repr=False)
    texts: pd.DataFrame = field(repr=False)

    @property
    def plain(self) -> pd.Series:
        """The row without steering."""
        return self.table.iloc[0]

    def best(self, most: float = 2.0) -> pd.Series | None:
        """The row with the highest rate among those whose perplexity is at most so many times the unsteered, of equal
        ones that of the lowest perplexity; None where none of them has a higher rate than without steering.
        """
        table, plain = self.table, self.plain
        cheap = table[(table["perplexity"] <= most * plain["perplexity"]) & (table["rate"] > plain["rate"])]
        if cheap.empty:
            return None
        return cheap.sort_values(["rate", "perplexity"], ascending=[False, True], kind="stable").iloc[0]

    def to_pandas(self) -> pd.DataFrame:
        """The table: form, layer, strength, rate, low, high, perplexity, prompts."""
        return self.table.copy()

    def save(self, folder: str | Path) -> None:
        """Write sweep and texts (.parquet and .csv), columns.csv, and settings.json. Raises OutputFailed."""
        with saving(folder, {"sweep": self.table, "texts": self.texts}) as new:
            write_json(new / "settings.json", asdict(self.settings))


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
    """Go on from prompts with every form x layer x strength of steering towards a concept, and without.

    `layers`: all by default. `strengths`: by default those of each form's own grid; 0 is always there. `words`: what
    counts as the concept; by default the words of its text, of three letters or more, that stand in no prompt.
    `tokens`: most in a continuation. Greedy, or with `sample` drawn as the model's own settings say; `seed`: of the
    samples, the same at every setting. `progress(what, done, all)` is called as work goes on.

    Raises BadArgument, BadPrompt, NoPoint, and what `freeze` raises.
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
    whole, each_text = (pd.DataFrame(part).astype({"layer": "Int64"}) for part in (table, said))
    return Sweep(settings, whole, each_text)


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
