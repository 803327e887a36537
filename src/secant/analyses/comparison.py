"""Explanations compared: the result of `compare`, with its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from secant.analyses.frames import CONTRIBUTED, NORM, SHARE
from secant.linearize.run import PREDICTIONS
from secant.operators.spectrum import SPECTRUM, STABLE_RANK, VALUE, VECTOR
from secant.results.columns import (
    BLOCK_POSITION,
    CONVENTION,
    ITS_LOGIT,
    MODEL,
    POSITION,
    PROBABILITY,
    RECONSTRUCTION,
    RELATIVE,
    TOKEN,
    TOKEN_ID,
)
from secant.results.formats import shown
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View, missing
from secant.stream.depths import LAYER
from secant.stream.words import RANK, SCORE, SIDE, WORD, WORD_ID, Z
from secant.text import excerpt, named

SAME_TOKENS, BY_CHARACTERS, UNALIGNED = "tokens", "characters", "not"
"""How tokens are aligned: all models have the same; by characters of the prompt; not at all."""

ALIGNMENT = {SAME_TOKENS: "the same in all", BY_CHARACTERS: "aligned by characters", UNALIGNED: "not aligned"}
"""How views describe the alignment."""

SUBJECT = (MODEL, CONVENTION)
"""The columns that say which model and convention a row belongs to."""

OTHER_SUBJECT = (
    MODEL.but(name="other", meaning="the other model's name"),
    CONVENTION.but(name="other_convention", meaning="the other model's convention"),
)
FIRST_LAYER = LAYER.but(
    name="first_seen",
    meaning="first layer at which the prediction is the top token of U₀ of the residual stream; missing: never",
    missing=True,
)
DEPTH = Column("depth", float, "the layer as a share of the model's depth: 1 is the last; missing where the layer is",
               "share of depth")  # fmt: skip
AMONG = FIRST_LAYER.but(
    name="among", meaning="first layer at which the prediction is among the decoded top tokens; missing: never"
)
DEPTHS = (FIRST_LAYER, DEPTH, AMONG, DEPTH.but(name="depth_among", meaning="that layer as a share of the depth"))

COMPARED = Table(
    "compared",
    "a model in a convention",
    (
        *SUBJECT,
        Column("tokens", int, "how many tokens the prompt has", "tokens"),
        Column(
            "layers", int, "how many layers the model has; missing where they can't be found", "layers", missing=True
        ),
        Column("width", int, "elements of a token's embedding", "elements"),
        Column("vocabulary", int, "tokens in its vocabulary", "tokens"),
        Column("prediction", str, "the predicted token", show="token"),
        Column("prediction_id", int, "its id in the model's vocabulary"),
        PROBABILITY,
        ITS_LOGIT,
        Column("dtype", str, "the type the model computes in"),
        Column("precision", str, "the type the linear system is evaluated in"),
        Column("forward_equal", bool, "whether the recorded pass equals the plain one, bit for bit"),
        RECONSTRUCTION,
        Column(
            "affinity", float, "error of the frozen network as an affine map, at a random input", RELATIVE, show="error"
        ),
        Column("ordinary", float, "‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'", RELATIVE),
        Column("bias", float, "‖b‖ / ‖y‖", RELATIVE),
        SHARE.but(name="constants", meaning="the constants' share of the logit; missing where that is 0"),
        STABLE_RANK.but(meaning="‖J‖_F² / σ₀², all tokens together"),
        VALUE.but(meaning="σ₀ of J, all tokens together", heading="σ₀"),
        *DEPTHS,
        Column("no_layers", str, "why there are no layers; missing where there are", missing=True),
    ),
)
COMPARED_PREDICTIONS = PREDICTIONS.but(
    "compared_predictions", "a likely next token of a model in a convention", before=SUBJECT
)
COMPARED_TOKENS = Table(
    "compared_tokens",
    "a token of the prompt, of a model in a convention",
    (
        *SUBJECT,
        POSITION,
        TOKEN,
        TOKEN_ID,
        CONTRIBUTED.but(meaning="what the token contributes to the predicted token's logit, along all paths"),
        SHARE,
        NORM,
        VALUE.but(meaning="σ₀ of the token's block J_t"),
        STABLE_RANK.but(meaning="‖J_t‖_F² / σ₀²: how many directions matter"),
        *DEPTHS,
        Column(
            "start",
            int,
            "its first character in the prompt, from 0; missing where that is unknown",
            missing=True,
        ),
        Column(
            "end", int, "the character after its last; the same as start for a token without characters", missing=True
        ),
        Column("stretch", int, "which stretch of the prompt it is in; missing where it is not aligned", missing=True),
    ),
)
COMPARED_SPECTRA = Table(
    "compared_spectra", "a singular value, of a model in a convention", (*SUBJECT, BLOCK_POSITION, *SPECTRUM)
)
COMPARED_WORDS = Table(
    "compared_words",
    "a top token, of a model in a convention",
    (*SUBJECT, BLOCK_POSITION, TOKEN.but(missing=True), VECTOR, SIDE, RANK, WORD, WORD_ID, SCORE, Z),
)
STRETCHES = Table(
    "stretches",
    "a stretch of the prompt, for a model in a convention; every model has tokens of its own for it",
    (
        Column("stretch", int, "which stretch, from 0"),
        Column("text", str, "its text"),
        *SUBJECT,
        Column("tokens", int, "how many tokens the model has for it", "tokens"),
        Column("first", int, "position of the first of them; missing where there are none", missing=True),
        Column("last", int, "position of the last of them", missing=True),
        CONTRIBUTED.but(meaning="what these tokens contribute to the predicted token's logit together"),
        SHARE.but(meaning="the same as a share of the logit"),
    ),
)
OVERLAPS = Table(
    "overlaps",
    "two models or conventions, a side, and a stretch of the prompt or all tokens together",
    (
        *SUBJECT,
        *OTHER_SUBJECT,
        SIDE,
        Column("stretch", int, "which stretch, from 0; missing: all tokens together", missing=True),
        Column("words", int, "how many different top tokens the first vectors of the model have", "tokens"),
        Column("other_words", int, "the same for the other model", "tokens"),
        Column(
            "shared",
            int,
            "how many top tokens are in both, compared without regard to surrounding spaces and case",
            "tokens",
        ),
        Column(
            "jaccard",
            float,
            "Jaccard's index: top tokens in both, as a share of those in either; missing where there are none",
            "share",
        ),
        Column(
            "elsewhere",
            float,
            "mean of Jaccard's index with the other's top tokens at all other stretches: chance",
            "share",
        ),
    ),
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Several models, or conventions of one, at one prompt.

    Attributes:
        prompt: The prompt.
        aligned: How tokens are aligned: "tokens" (all models have the same), "characters", or "not".
        why: Sentences that say what could not be aligned, and why.
        models: A row for each model and convention: prediction, certificate, spectrum, depth of the prediction.
        predictions: A row for each of their likely next tokens.
        tokens: A row for each of their tokens: contribution, share, ‖J_t x_t‖, σ₀, stable rank, characters.
        stretches: A row for each stretch of the prompt, model and convention: its tokens and their contribution.
        spectra: A row for each singular value.
        words: A row for each top token of a singular vector.
        overlaps: A row for each pair of models, side and stretch: Jaccard's index of their top tokens.

    """

    schema = (COMPARED, COMPARED_PREDICTIONS, COMPARED_TOKENS, COMPARED_SPECTRA, COMPARED_WORDS, STRETCHES, OVERLAPS)

    prompt: str
    aligned: str
    why: list[str]
    models: pd.DataFrame
    predictions: pd.DataFrame
    tokens: pd.DataFrame
    stretches: pd.DataFrame
    spectra: pd.DataFrame
    words: pd.DataFrame
    overlaps: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        pairs = self.models[["model", "convention"]].itertuples(index=False)
        return [excerpt(self.prompt), *(f"{named(model)} under {label}" for model, label in pairs)]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `compared`, `compared_…` for predictions, tokens, spectra and words, `stretches` and `overlaps`."""
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
        """Returns the prompt, how tokens are aligned, and what could not be aligned."""
        return {"prompt": self.prompt, "aligned": self.aligned, "why": self.why}

    def view(self) -> View:
        """Shows each model's prediction, spectrum and top tokens, and the contribution of each stretch by model."""
        names = self._names()
        grids = [
            self._by_model(names),
            self._written(names),
            *([self._by_stretch(names)] if len(self.stretches) else []),
        ]
        same = self.overlaps[self.overlaps["stretch"].isna()]
        pairs = [f"{self._pair(row, names)}: {_index(row['jaccard'])}" for row in same.to_dict("records")]
        notes = [
            "exact to: ‖J x + b - y‖ / ‖y‖. σ₀ and R: largest singular value and stable rank of J, all tokens together."
            " first in U₀: the first layer at which the prediction is the top token of the first left singular vector, "
            "and the layer's share of the depth; among: it is one of the decoded tokens.",
            f"Overlap of top tokens (Jaccard), all tokens together: {'; '.join(pairs)}.",
        ]
        placed = self.overlaps[self.overlaps["stretch"].notna()]
        if len(placed):
            means = placed.groupby("side", sort=False)[["jaccard", "elsewhere"]].mean()
            sides = [
                f"{'written' if side == 'output' else 'read'} {_index(row.jaccard)}, at other stretches "
                f"{_index(row.elsewhere)}"
                for side, row in means.iterrows()
            ]
            notes.append(f"Overlap at each stretch, on average: {'; '.join(sides)}.")
        facts = {"prompt": self.prompt, "tokens": ALIGNMENT[self.aligned]}
        return View("", facts, grids, [*notes, *self.why])

    def _names(self) -> dict[tuple[str, str], str]:
        """The name of each subject: its model, and its convention if there are several."""
        several = self.models["convention"].nunique() > 1
        keys = zip(self.models["model"], self.models["convention"], strict=True)
        return {(model, how): f"{model}, {how}" if several else model for model, how in keys}

    def _pair(self, row: dict[Any, Any], names: dict[tuple[str, str], str]) -> str:
        return f"{names[row['model'], row['convention']]} and {names[row['other'], row['other_convention']]}"

    def _by_model(self, names: dict[tuple[str, str], str]) -> Grid:
        """Each model's prediction, exactness and spectrum, and the first layer that has it as the top token."""
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
        """The leading singular values of each model's J, and the top tokens of its first left singular vector."""
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
        """Stretch x model: its share of the logit, and its number of tokens if it has several; and the constants'."""
        rows = []
        for _, own in self.stretches.groupby("stretch"):
            cells = [
                None if missing(share) else shown(share, "share") + (f" in {tokens}" if tokens > 1 else "")
                for share, tokens in zip(own["share"], own["tokens"], strict=True)
            ]
            rows.append((Cell(own["text"].iloc[0], show="token"), *cells))
        rest = [None if missing(share) else shown(share, "share") for share in self.models["constants"]]
        rows.append(("constants, or reference", *rest))
        columns = [Shown("share of the logit", most=28), *(Shown(name, "share", most=16) for name in names.values())]
        return Grid(columns, rows, keep=1)


def _index(jaccard: float | None) -> str:
    return "none to compare" if missing(jaccard) else f"{jaccard:.2f}"
