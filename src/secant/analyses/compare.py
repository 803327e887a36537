"""Models beside each other at one prompt: what they predict, how their blocks read and write, where a prediction comes.

Models differ in tokens, widths and depth, so that nothing is matched by index. Words are compared as text; layers as
shares of depth; tokens by the characters of the prompt that they are of: the prompt is cut wherever no token of any
model goes across, and what lies between two cuts is a stretch that every model has tokens of its own for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations, pairwise
from typing import Any

import pandas as pd
import torch

from secant.analyses.case import Case
from secant.analyses.explain import CONTRIBUTED, NORM, SHARE, Explanation, explained
from secant.errors import BadArgument, NoPoint, checked
from secant.linearize.rules import CONVENTIONS
from secant.linearize.run import (
    BLOCK_POSITION,
    CONVENTION,
    ITS_LOGIT,
    MODEL,
    POSITION,
    PREDICTIONS,
    PROBABILITY,
    RECONSTRUCTION,
    RELATIVE,
    TOKEN,
    TOKEN_ID,
)
from secant.model.lm import LM, Prompt
from secant.operators.decomposition import SPECTRUM, STABLE_RANK, VALUE, VECTOR
from secant.results.formats import shown
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, View, missing
from secant.stream.decode import RANK, SCORE, SIDE, WORD, WORD_ID, Null, Side, Z, ranked
from secant.stream.layers import LAYER, Layers
from secant.stream.sweep import STREAM
from secant.text import named

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
Span = tuple[int, int]

TOKENS, CHARACTERS, NOT = "tokens", "characters", "not"
"""How tokens are aligned: they are the same; by characters of the prompt; not at all."""


ALIGNMENT = {TOKENS: "the same in all", CHARACTERS: "aligned by characters", NOT: "not aligned"}
"""How tokens are aligned, as a reader is told."""

OF = (MODEL, CONVENTION)
"""What a row is of."""

OTHER = (
    MODEL.but(name="other", meaning="the other model's name"),
    CONVENTION.but(name="other_convention", meaning="the other one's convention"),
)
FIRST_LAYER = LAYER.but(
    name="first_seen",
    meaning="first layer at which the prediction is the top token of U₀ of the residual stream; missing: never",
    missing=True,
)
DEPTH = Column("depth", float, "the layer as a share of the model's depth: 1 is the last; missing where the layer is",
               "share of depth")  # fmt: skip
AMONG = FIRST_LAYER.but(
    name="among", meaning="first layer at which it is among the top tokens that are decoded; missing: never"
)
DEPTHS = (FIRST_LAYER, DEPTH, AMONG, DEPTH.but(name="depth_among", meaning="that layer as a share of the depth"))

COMPARED = Table(
    "compared",
    "a model in a convention",
    (
        *OF,
        Column("tokens", int, "how many tokens the prompt has", "tokens"),
        Column("layers", int, "how many layers the model has; missing where none can be found", "layers", missing=True),
        Column("width", int, "elements of a token's embedding", "elements"),
        Column("vocabulary", int, "tokens in its vocabulary", "tokens"),
        Column("prediction", str, "the predicted token", show="token"),
        Column("prediction_id", int, "its id in the model's vocabulary"),
        PROBABILITY,
        ITS_LOGIT,
        Column("dtype", str, "the type the model computes in"),
        Column("precision", str, "the type the linear system is evaluated in"),
        Column("forward_equal", bool, "whether the recorded pass is the plain one, bit for bit"),
        RECONSTRUCTION,
        Column(
            "affinity", float, "how far the frozen network is from affine, at a random input", RELATIVE, show="error"
        ),
        Column("ordinary", float, "‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'", RELATIVE),
        Column("bias", float, "‖b‖ / ‖y‖", RELATIVE),
        SHARE.but(name="constants", meaning="the constants' share of the logit; missing where that is 0"),
        STABLE_RANK.but(meaning="‖J‖_F² / σ₀² of all tokens together"),
        VALUE.but(meaning="σ₀ of all tokens together", heading="σ₀"),
        *DEPTHS,
        Column("no_layers", str, "why there are no layers; missing where there are", missing=True),
    ),
)
COMPARED_PREDICTIONS = PREDICTIONS.but(
    "compared_predictions", "a likely next token of a model in a convention", before=OF
)
COMPARED_TOKENS = Table(
    "compared_tokens",
    "a token of the prompt, of a model in a convention",
    (
        *OF,
        POSITION,
        TOKEN,
        TOKEN_ID,
        CONTRIBUTED,
        SHARE,
        NORM,
        VALUE.but(meaning="σ₀ of the token's block J_t"),
        STABLE_RANK.but(meaning="‖J_t‖_F² / σ₀²: how many directions matter"),
        *DEPTHS,
        Column(
            "start",
            int,
            "first character of the prompt that it is of, from 0; missing where that is not known",
            missing=True,
        ),
        Column("end", int, "the character after the last; the same where it is of none", missing=True),
        Column("stretch", int, "which stretch of the prompt it is in; missing: it is aligned with none", missing=True),
    ),
)
COMPARED_SPECTRA = Table(
    "compared_spectra", "a singular value, of a model in a convention", (*OF, BLOCK_POSITION, *SPECTRUM)
)
COMPARED_WORDS = Table(
    "compared_words",
    "a top token, of a model in a convention",
    (*OF, BLOCK_POSITION, TOKEN.but(missing=True), VECTOR, SIDE, RANK, WORD, WORD_ID, SCORE, Z),
)
STRETCHES = Table(
    "stretches",
    "a stretch of the prompt that every model has tokens of its own for, and a model in a convention",
    (
        Column("stretch", int, "which stretch, from 0"),
        Column("text", str, "its text"),
        *OF,
        Column("tokens", int, "how many tokens it is", "tokens"),
        Column("first", int, "place of the first of them; missing where it has none", missing=True),
        Column("last", int, "place of the last of them", missing=True),
        CONTRIBUTED.but(meaning="what they add to the predicted token's logit together"),
        SHARE.but(meaning="the same as a share of the logit"),
    ),
)
OVERLAPS = Table(
    "overlaps",
    "two models or conventions, a side, and a stretch of the prompt or all tokens together",
    (
        *OF,
        *OTHER,
        SIDE,
        Column("stretch", int, "which stretch, from 0; missing: all tokens together", missing=True),
        Column("words", int, "how many top tokens the first vectors of the one have", "tokens"),
        Column("other_words", int, "the same of the other", "tokens"),
        Column("shared", int, "top tokens of both, as text, without space around them, in one case", "tokens"),
        Column(
            "jaccard",
            float,
            "top tokens of both, of those of either (Jaccard's index); missing where there are none",
            "share",
        ),
        Column(
            "elsewhere", float, "mean of the same with the other's top tokens at all other stretches: chance", "share"
        ),
    ),
)


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Several models, or conventions of one, at one prompt.

    Attributes:
        prompt: The prompt.
        aligned: How tokens are aligned: tokens (they are the same), characters, or not.
        why: What could not be aligned.
        models: A row for each model and convention.
        predictions: The likeliest next tokens of each.
        tokens: Each one's tokens.
        stretches: Stretches of the prompt for which every model has tokens of its own.
        spectra: Each one's singular values.
        words: Each one's top tokens.
        overlaps: Jaccard's index of the top tokens of two models at a time.
    """

    schema = (COMPARED, COMPARED_PREDICTIONS, COMPARED_TOKENS, COMPARED_SPECTRA, COMPARED_WORDS, STRETCHES, OVERLAPS)

    prompt: str
    aligned: str
    why: list[str]
    models: pd.DataFrame = field(repr=False)
    predictions: pd.DataFrame = field(repr=False)
    tokens: pd.DataFrame = field(repr=False)
    stretches: pd.DataFrame = field(repr=False)
    spectra: pd.DataFrame = field(repr=False)
    words: pd.DataFrame = field(repr=False)
    overlaps: pd.DataFrame = field(repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by the name of their file."""
        return {
            "compared": self.models,
            "compared_predictions": self.predictions,
            "compared_tokens": self.tokens,
            "compared_spectra": self.spectra,
            "compared_words": self.words,
            "stretches": self.stretches,
            "overlaps": self.overlaps,
        }

    def about(self) -> dict[str, Any]:
        """The prompt, how tokens are aligned, and what could not be."""
        return {"prompt": self.prompt, "aligned": self.aligned, "why": self.why}

    def view(self) -> View:
        """A line for each model, its spectrum and top tokens, and what each stretch of the prompt adds, by model."""
        names = self._names()
        grids = [
            self._by_model(names),
            self._written(names),
            *([self._by_stretch(names)] if len(self.stretches) else []),
        ]
        same = self.overlaps[self.overlaps["stretch"].isna()]
        pairs = [f"{self._pair(row, names)}: {_index(row['jaccard'])}" for row in same.to_dict("records")]
        notes = [
            "exact to: ‖J x + b - y‖ / ‖y‖. σ₀ and R: largest singular value and stable rank of J, of all tokens. "
            " first in U₀: the first layer at which the prediction is the top token that they write, and its share "
            "of the depth; among: is one of those decoded.",
            f"Top tokens in common (Jaccard), of all tokens: {'; '.join(pairs)}.",
        ]
        placed = self.overlaps[self.overlaps["stretch"].notna()]
        if len(placed):
            means = placed.groupby("side", sort=False)[["jaccard", "elsewhere"]].mean()
            sides = [
                f"{'written' if side == 'output' else 'read'} {_index(row.jaccard)}, elsewhere in the prompt "
                f"{_index(row.elsewhere)}"
                for side, row in means.iterrows()
            ]
            notes.append(f"Of each stretch, on average: {'; '.join(sides)}.")
        facts = {"prompt": self.prompt, "tokens": ALIGNMENT[self.aligned]}
        return View("", facts, grids, [*notes, *self.why])

    def _names(self) -> dict[tuple[str, str], str]:
        """The name of each model, with its convention where there are several."""
        several = self.models["convention"].nunique() > 1
        keys = zip(self.models["model"], self.models["convention"], strict=True)
        return {(model, how): f"{model}, {how}" if several else model for model, how in keys}

    def _pair(self, row: dict[Any, Any], names: dict[tuple[str, str], str]) -> str:
        return f"{names[row['model'], row['convention']]} and {names[row['other'], row['other_convention']]}"

    def _by_model(self, names: dict[tuple[str, str], str]) -> Grid:
        """Each model's prediction, exactness and spectrum, and where its prediction first is the top token."""
        columns = [
            Shown("", most=24),
            Shown("next token", "token", most=18),
            Shown("p", "percent"),
            Shown("exact to", "error"),
            Shown("tokens", "integer", spare=1),
            Shown("σ₀", "number", spare=1),
            Shown("R", "rank"),
            Shown("first in U₀"),
        ]
        rows = []
        for row in self.models.to_dict("records"):
            if not missing(row["first_seen"]):
                where = f"{row['first_seen']} ({row['depth']:.0%})"
            elif not missing(row["among"]):
                where = f"among {row['among']} ({row['depth_among']:.0%})"
            else:
                where = "no layers" if missing(row["layers"]) else "never"
            keys = ("prediction", "probability", "reconstruction", "tokens", "sigma", "stable_rank")
            rows.append((names[row["model"], row["convention"]], *(row[key] for key in keys), where))
        return Grid(columns, rows)

    def _written(self, names: dict[tuple[str, str], str]) -> Grid:
        """What all tokens together write with their first vector, model by model, and the leading singular values."""
        rows = []
        for (model, convention), name in names.items():
            spectra, words = (
                table[(table["model"] == model) & (table["convention"] == convention) & table["position"].isna()]
                for table in (self.spectra, self.words)
            )
            values = " ".join(f"{value:.2f}" for value in spectra["normalized"][:4])
            rows.append((name, values, words[words["vector"] == 0]["word"].tolist()))
        return Grid([Shown("", most=24), Shown("σ / σ₀"), Shown("writes (U₀)", "tokens")], rows)

    def _by_stretch(self, names: dict[tuple[str, str], str]) -> Grid:
        """Stretch x model: its share of the logit, and in how many tokens, where it is not one."""
        rows = []
        for _, own in self.stretches.groupby("stretch"):
            cells = [
                None if missing(share) else shown(share, "share") + (f" in {tokens}" if tokens > 1 else "")
                for share, tokens in zip(own["share"], own["tokens"], strict=True)
            ]
            rows.append((own["text"].iloc[0], *cells))
        columns = [Shown("share of the logit", most=28), *(Shown(name, "share", most=16) for name in names.values())]
        return Grid(columns, rows, keep=1)


def _index(jaccard: float | None) -> str:
    return "none to compare" if missing(jaccard) else f"{jaccard:.2f}"


@checked
def compare(
    prompt: Prompt,
    lms: Iterable[LM] | Mapping[str, LM],
    *,
    conventions: Sequence[str] = ("gate",),
    k: int = 4,
    top: int = 8,
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Look at one prompt with several models, each in one convention or several, beside each other.

    `lms`: models, or models by name; one after the other is taken, so that a generator that loads them needs room for
    one at a time. `k`: singular triplets of each block; `top`: decoded words of each vector. `precision`, `seed`,
    `max_memory` as in `explain`. `progress(what, done, all)` is called as the work goes on.

    Raises BadArgument where there are not two to compare, or two of one name; and what `explain` and `layers` raise.
    """
    if not conventions or isinstance(conventions, str) or not set(conventions) <= set(CONVENTIONS):
        raise BadArgument(f"Conventions are some of {', '.join(CONVENTIONS)}", repr(conventions), "Choose from them.")
    if len(set(conventions)) < len(conventions):
        raise BadArgument("A model is taken once in each convention", repr(conventions), "Name each once.")
    given = lms.items() if isinstance(lms, Mapping) else ((None, lm) for lm in lms)
    subjects: list[_Subject] = []
    for name, lm in given:
        if not isinstance(lm, LM):
            raise BadArgument("compare takes LMs", type(lm).__name__, "Make them with sc.load or sc.LM.")
        label = name or named(lm.name)
        if any(s.model == label for s in subjects):
            raise BadArgument("Models have names of their own", f"{label!r} twice", "Give them by name, as a dict.")
        nulls: dict[Side, Null] = {}  # conventions of one model share them
        for convention in conventions:
            e = explained(
                lm, prompt, k=k, top=top, convention=convention, precision=precision, seed=seed,
                max_memory=max_memory, progress=progress, nulls=nulls,
            )  # fmt: skip
            with e.case.working(max_memory, progress):
                subjects.append(_subject(label, convention, e, prompt, top))
        del lm, e  # before the next one is made
    if len(subjects) < 2:
        raise BadArgument("A comparison is of two models or more, or of one in several conventions",
                          f"{len(subjects)}", "Name another.")  # fmt: skip
    return _compared(prompt if isinstance(prompt, str) else None, subjects, top)


@dataclass(frozen=True)
class _Subject:
    """One model in one convention: its rows, and the characters that each token is of, where they are known."""

    model: str
    convention: str
    about: Row
    predictions: list[Row]
    tokens: list[Row]
    spectra: list[Row]
    words: list[Row]
    spans: list[Span] | None

    @property
    def label(self) -> Row:
        return {"model": self.model, "convention": self.convention}

    def first(self, side: str, position: int | None) -> set[str]:
        """The words of the first vector, as they are compared."""
        return {
            compared(w["word"]) for w in self.words if (w["side"], w["position"], w["vector"]) == (side, position, 0)
        }


def compared(word: str) -> str:
    """A word as it is compared between vocabularies: without the space around it, in one case.

    >>> compared(" Golden") == compared("golden")
    True
    """
    return word.strip().casefold() or word


def jaccard(one: set[str], other: set[str]) -> float | None:
    """How many of the words of either are words of both; None of two that have none.

    >>> jaccard({"a", "b"}, {"b", "c"})
    0.3333333333333333
    """
    return len(one & other) / len(one | other) if one | other else None


def _subject(model: str, convention: str, e: Explanation, prompt: Prompt, top: int) -> _Subject:
    """What is kept of one model: numbers and words, not the model."""
    run, whole = e.run, e.case.whole
    (wrote,) = e.case.words([whole], "output")
    depths, why = _depths(e.case)
    seen, among = _seen(depths, 1), _seen(depths, top)
    count = None if depths is None else len({d.layer for d in depths.depths})

    def depth(layer: int | None) -> float | None:
        return None if layer is None or count is None else (layer + 1) / count

    best, c = run.prediction[0], run.certificate
    about = {
        "tokens": len(run.tokens),
        "layers": count,
        "width": run.input.shape[1],
        "vocabulary": run.lm.outputs,
        "prediction": best.token,
        "prediction_id": best.id,
        "probability": best.probability,
        "logit": best.logit,
        "dtype": c.dtype,
        "precision": c.precision,
        "forward_equal": c.forward_equal,
        "reconstruction": c.reconstruction,
        "affinity": c.affinity,
        "ordinary": c.ordinary,
        "bias": c.constants,
        "constants": e.attribution.share(e.attribution.constant),
        "stable_rank": whole.stable_rank,
        "sigma": whole.S[0].item(),
        "first_seen": seen.get(None),
        "depth": depth(seen.get(None)),
        "among": among.get(None),
        "depth_among": depth(among.get(None)),
        "no_layers": why,
    }
    rows = e.to_pandas().drop(columns=["output", "input"]).to_dict("records")
    for t, row in enumerate(rows):
        row |= {"first_seen": seen.get(t), "depth": depth(seen.get(t))}
        row |= {"among": among.get(t), "depth_among": depth(among.get(t))}
    predictions = [
        {"rank": i, "token": p.token, "id": p.id, "probability": p.probability, "logit": p.logit}
        for i, p in enumerate(run.prediction)
    ]
    words = [
        {"position": None, "token": None, "vector": i, "side": "output", **word}
        for i, own in enumerate(wrote)
        for word in ranked(own)
    ]
    words += e.words().drop(columns=["block", "sigma"]).to_dict("records")
    spectra = [{"position": t, **row} for t, f in [(None, whole), *enumerate(e.svds)] for row in f.spectrum()]
    spans = run.lm.spans(prompt) if isinstance(prompt, str) else None
    return _Subject(model, convention, about, predictions, rows, spectra, words, spans)


def _depths(case: Case) -> tuple[Layers | None, str | None]:
    """The streams by each depth; or why there are none."""
    try:
        return case.layers(1, spans=("cumulative",)), None
    except NoPoint as error:
        return None, str(error)


def _seen(depths: Layers | None, top: int) -> dict[int | None, int]:
    """The first layer whose stream has the prediction among the top words of U₀, by token; None: all together."""
    if depths is None:
        return {}
    rows = depths.first_seen(top=min(top, depths.run.lm.outputs))
    rows = rows[(rows["part"] == STREAM) & rows["layer"].notna()]
    places = [None if pd.isna(t) else int(t) for t in rows["position"]]
    return dict(zip(places, map(int, rows["layer"]), strict=True))


# ------------------------------------------------------------------------------------------- side by side


def _compared(text: str | None, subjects: Sequence[_Subject], top: int) -> Comparison:
    """All tables, of subjects that are as they should be."""
    tokens = [[row["token"] for row in s.tokens] for s in subjects]
    cuts: list[Span] = []
    members: list[list[list[int]]] = []  # stretch, subject, positions
    if all(own == tokens[0] for own in tokens):
        how, why = TOKENS, list[str]()
        members = [[[t]] * len(subjects) for t in range(len(tokens[0]))]
    else:
        how, why, cuts, members = _by_characters(text, subjects)
    whose = [{t: n for n, stretch in enumerate(members) for t in stretch[i]} for i in range(len(subjects))]
    stretches = []
    for n, stretch in enumerate(members):
        what = tokens[0][n] if how == TOKENS else (text or "")[slice(*cuts[n])]
        for s, own in zip(subjects, stretch, strict=True):
            mine = [s.tokens[t] for t in own]
            sums = {name: _sum(row[name] for row in mine) for name in ("contribution", "share")}
            where = {"stretch": n, "text": what, **s.label, "tokens": len(own)}
            stretches.append({**where, "first": own[0] if own else None, "last": own[-1] if own else None, **sums})

    def rows(of: Callable[[_Subject], list[Row]]) -> list[Row]:
        return [{**s.label, **row} for s in subjects for row in of(s)]

    placed = [
        [{**row, "start": None if s.spans is None else s.spans[t][0], "end": None if s.spans is None else s.spans[t][1],
          "stretch": whose[i].get(t)} for t, row in enumerate(s.tokens)]
        for i, s in enumerate(subjects)
    ]  # fmt: skip
    by_subject = {id(s): own for s, own in zip(subjects, placed, strict=True)}
    return Comparison(
        text if text is not None else "".join(tokens[0]),
        how,
        why,
        COMPARED.frame(rows(lambda s: [s.about])),
        COMPARED_PREDICTIONS.frame(rows(lambda s: s.predictions)),
        COMPARED_TOKENS.frame(rows(lambda s: by_subject[id(s)])),
        STRETCHES.frame(stretches),
        COMPARED_SPECTRA.frame(rows(lambda s: s.spectra)),
        COMPARED_WORDS.frame(rows(lambda s: s.words)),
        OVERLAPS.frame(_overlaps(subjects, members)),
    )


def _sum(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return sum(found) if found else None


def _by_characters(
    text: str | None, subjects: Sequence[_Subject]
) -> tuple[str, list[str], list[Span], list[list[list[int]]]]:
    """Stretches of the prompt that no token goes across the ends of, and the tokens of each in them."""
    if text is None:
        return NOT, ["The models have other tokens, and the prompt is no text whose characters they are of."], [], []
    unknown = sorted({s.model for s in subjects if s.spans is None})
    if unknown:
        return NOT, [f"The tokenizer of {m} does not say which characters its tokens are of." for m in unknown], [], []
    solid = [i for i, c in enumerate(text) if not c.isspace()]
    before = [0, *accumulate(not c.isspace() for c in text)]  # how many characters but spaces
    spans = [[(before[lo], before[hi]) for lo, hi in s.spans or []] for s in subjects]
    across = {c for own in spans for lo, hi in own for c in range(lo + 1, hi)}
    cuts = [c for c in range(len(solid) + 1) if c not in across]
    members: list[list[list[int]]] = [[[] for _ in subjects] for _ in cuts[1:]]
    why = []
    for i, (s, own) in enumerate(zip(subjects, spans, strict=True)):
        for t, (lo, _) in enumerate(own):
            start, end = (s.spans or [])[t]
            if start == end or not members:
                why.append(f"Token {t} of {s.model}, {s.tokens[t]['token']!r}, is of no character of the prompt.")
                continue
            stretch = max(n for n, c in enumerate(cuts[:-1]) if c <= lo)  # spaces alone join what follows them
            members[stretch][i].append(t)
    if len(solid) and len(members) == 1 and any(len(s.tokens) > 1 for s in subjects):
        why.append("No two tokens of all models begin at one character: the whole prompt is one stretch.")
    where = [(solid[lo], solid[hi - 1] + 1) for lo, hi in pairwise(cuts)]
    return CHARACTERS, list(dict.fromkeys(why)), where, members


def _overlaps(subjects: Sequence[_Subject], members: Sequence[Sequence[Sequence[int]]]) -> list[Row]:
    """Jaccard's index of the first vectors' words of each two: all tokens together, and in each stretch.

    A stretch with several tokens has the words of all of them.
    """
    found: list[Row] = []
    for (i, one), (j, other) in combinations(enumerate(subjects), 2):
        names = {**one.label, "other": other.model, "other_convention": other.convention}

        def row(side: str, n: int | None, a: set[str], b: set[str], names: Row = names) -> Row:
            sizes = {"words": len(a), "other_words": len(b), "shared": len(a & b), "jaccard": jaccard(a, b)}
            return {**names, "side": side, "stretch": n, **sizes, "elsewhere": None}

        found.append(row("output", None, one.first("output", None), other.first("output", None)))
        for side in ("output", "input"):
            a = [set().union(*(one.first(side, t) for t in stretch[i])) for stretch in members]
            b = [set().union(*(other.first(side, t) for t in stretch[j])) for stretch in members]
            for n in range(len(members)):
                if not members[n][i] or not members[n][j]:
                    continue
                apart = [jaccard(a[n], b[m]) for m in range(len(members)) if m != n and members[m][j]]
                known = [v for v in apart if v is not None]
                own = row(side, n, a[n], b[n])
                found.append(own | {"elsewhere": sum(known) / len(known) if known else None})
    return found
