"""The tables of an explanation and of its evidence, and their rows, for files and pages.

Every function takes only what its rows are made of, so that a table is available before the whole explanation is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from secant.analyses.attribution import CONTRIBUTIONS, EFFECT, Attribution
from secant.analyses.sinks import RECEIVED, SINK
from secant.linearize.run import Run
from secant.operators.spectrum import BLOCK, SIGMA, SPECTRUM, STABLE_RANK, SVD, VALUE, VECTOR
from secant.results.columns import HIDDEN_STATE, LOGIT, POSITION, TOKEN, TOKEN_ID
from secant.results.schema import Column, Table
from secant.stream.words import RANK, SCORE, SIDE, WORD, WORD_ID, Null, Word, Z, ranked

CONTRIBUTED = Column(
    "contribution",
    float,
    "what the token contributes to the target's logit, along all paths; the target is the predicted token, unless "
    "another was chosen",
    LOGIT,
    show="logit",
)
SHARE = Column(
    "share", float, "contribution as a share of the logit; missing where that is 0", "share of the logit", show="share"
)
NORM = Column(
    "norm",
    float,
    "‖J_t (x_t - x₀_t)‖: the norm of what the token contributes to the final hidden state, measured from x₀ (zero, "
    "unless another origin was chosen)",
    HIDDEN_STATE,
    heading="‖J x‖",
)

TOKENS = Table(
    "tokens",
    "a token of the prompt",
    (
        POSITION,
        TOKEN,
        TOKEN_ID,
        CONTRIBUTED,
        SHARE,
        EFFECT,
        RECEIVED,
        SINK,
        NORM,
        Column(
            "written",
            str,
            "top tokens of J_t (x_t - x₀_t), what the token contributes, best first",
            heading="contributes (J x)",
        ),
        Column("written_z", float, "z of the first of them", "standard deviations", heading="z", missing=True),
        VALUE.but(meaning="σ₀, the largest singular value of the token's block J_t", heading="σ₀"),
        STABLE_RANK.but(meaning="‖J_t‖_F² / σ₀²: how many directions matter"),
        Column("output", str, "top tokens of the first left singular vector, best first", heading="writes (U₀)"),
        Column("input", str, "top tokens of the first right singular vector, best first", heading="reads (V₀)"),
    ),
)
WRITTEN = Table(
    "written",
    "a top token of what a token contributes to the final hidden state",
    (POSITION, TOKEN, RANK.but(meaning="rank among the top tokens, from 0"), WORD, WORD_ID, SCORE, Z),
)
SINGULAR_VALUES = Table("singular_values", "a singular value of a token's block", (POSITION, TOKEN, *SPECTRUM))
WORDS = Table(
    "words",
    "a top token of a singular vector of a token's block",
    (
        POSITION,
        TOKEN,
        VECTOR,
        BLOCK,
        VALUE.but(meaning="the vector's singular value"),
        SIDE,
        RANK,
        WORD,
        WORD_ID,
        SCORE,
        Z,
    ),
)

VERSUS = CONTRIBUTIONS.but(
    "versus",
    "a contribution to the difference between the target's logit and that of another token",
    before=(
        Column("prediction", int, "number of the other token, from 1: likely ones first, then chosen ones"),
        Column("versus", str, "the other token's text", show="token"),
        Column(
            "difference", float, "the difference of the two logits, which the contributions sum to", LOGIT, show="logit"
        ),
    ),
)
REBUILT = Table(
    "rebuilt",
    "an element of the final hidden state",
    (
        Column("unit", int, "the element, from 0"),
        Column("output", float, "y, the model's own", HIDDEN_STATE),
        Column("rebuilt", float, "J x + b", HIDDEN_STATE),
        Column("ordinary", float, "J' x with the ordinary Jacobian J'", HIDDEN_STATE),
    ),
)
IMAGE = Table(
    "image",
    "a rectangle of a token's block of J, which extends to the next one",
    (
        Column("unit", int, "its first element of the final hidden state, from 0"),
        POSITION,
        Column("column", int, "its first element of the token's embedding, from 0"),
        Column("size", float, "root mean square of its entries of J", SIGMA),
    ),
)
CHANCE = Table(
    "chance",
    "a rank among the top tokens of random unit directions",
    (
        SIDE.but(meaning="output or input: the side on which directions are decoded"),
        RANK,
        Column("mean", float, "mean of the score at this rank over random directions", "cosine"),
        Column("std", float, "its standard deviation", "cosine"),
        Column("samples", int, "how many directions were drawn", "directions"),
    ),
)


def tokens(
    run: Run,
    attribution: Attribution,
    sinks: tuple[Sequence[float | None], Sequence[str]],
    *,
    effects: Sequence[float] | None = None,
    norms: Sequence[float] | None = None,
    written: Sequence[Sequence[Word]] | None = None,
    svds: Sequence[SVD] | None = None,
    outputs: Sequence[Sequence[Sequence[Word]]] | None = None,
    inputs: Sequence[Sequence[Sequence[Word]]] | None = None,
) -> pd.DataFrame:
    """Returns a row for each token of the prompt. A column is missing if its argument is not given.

    Args:
        run: The run.
        attribution: The contributions.
        sinks: The attention that each token receives, and why it counts as a sink, as `sink_columns` returns them.
        effects: How much the model's own logit drops without each token.
        norms: ‖J_t (x_t - x₀_t)‖ of each token.
        written: The top tokens of each J_t (x_t - x₀_t).
        svds: The triplets of each token's block.
        outputs: The top tokens of each left singular vector, as token x vector x rank.
        inputs: The top tokens of each right singular vector, likewise.

    """
    found = attribution.of("token")["contribution"].tolist()
    none = [math.nan] * len(found)
    empty: list[str] = [""] * len(found)
    first = [empty if side is None else [_joined(own[0]) for own in side] for side in (outputs, inputs)]
    return TOKENS.frame(
        zip(
            range(len(found)),
            run.tokens,
            run.ids,
            found,
            map(attribution.share, found),
            effects or none,
            *sinks,
            norms or none,
            empty if written is None else map(_joined, written),
            none if written is None else [own[0].z if own else None for own in written],
            none if svds is None else [f.S[0].item() for f in svds],
            none if svds is None else [f.stable_rank for f in svds],
            *first,
            strict=True,
        )
    )


def _joined(words: Sequence[Word]) -> str:
    return " ".join(w.token.strip() for w in words)


def written(run: Run, words: Sequence[Sequence[Word]]) -> pd.DataFrame:
    """Returns a row for each top token of what a token contributes.

    Args:
        run: The run.
        words: The top tokens of each contribution.

    """
    every = zip(run.tokens, words, strict=True)
    return WRITTEN.frame(
        [{"position": t, "token": text, **word} for t, (text, own) in enumerate(every) for word in ranked(own)]
    )


def singular_values(run: Run, svds: Sequence[SVD]) -> pd.DataFrame:
    """Returns a row for each singular value of a token's block.

    Args:
        run: The run.
        svds: The triplets of each token's block.

    """
    every = zip(run.tokens, svds, strict=True)
    return SINGULAR_VALUES.frame(
        [{"position": t, "token": text, **row} for t, (text, f) in enumerate(every) for row in f.spectrum()]
    )


def words(
    run: Run,
    svds: Sequence[SVD],
    outputs: Sequence[Sequence[Sequence[Word]]],
    inputs: Sequence[Sequence[Sequence[Word]]],
) -> pd.DataFrame:
    """Returns a row for each top token of a singular vector. Vectors, ranks and blocks count from 0.

    Args:
        run: The run.
        svds: The triplets of each token's block.
        outputs: The top tokens of each left singular vector, as token x vector x rank.
        inputs: The top tokens of each right singular vector, likewise.

    """
    rows = [
        {"position": t, "token": run.tokens[t], **vector, "side": side, **word}
        for side, decoded in (("output", outputs), ("input", inputs))
        for t, own in enumerate(decoded)
        for vector, words in zip(svds[t].vectors(), own, strict=True)
        for word in ranked(words)
    ]
    return WORDS.frame(rows)


def versus(sums: Sequence[Attribution]) -> pd.DataFrame:
    """Returns the contributions to each difference between the target's logit and another token's.

    Args:
        sums: The attributions of the differences, in order.

    """
    rows = [a.table.assign(prediction=number, versus=a.versus, difference=a.logit) for number, a in enumerate(sums, 1)]
    return VERSUS.frame(pd.concat(rows, ignore_index=True)) if rows else VERSUS.empty


def rebuilt(output: Tensor, own: Tensor, ordinary: Tensor) -> pd.DataFrame:
    """Returns a row for each element of the final hidden state.

    Args:
        output: The model's own hidden state.
        own: J x + b.
        ordinary: J' x with the ordinary Jacobian J'.

    """
    return REBUILT.frame(zip(range(len(output)), output.tolist(), own.tolist(), ordinary.tolist(), strict=True))


def chance(*nulls: Null) -> pd.DataFrame:
    """Returns a row for each side and rank among the top tokens of random directions.

    Args:
        nulls: What random directions decode to, on each side.

    """
    return CHANCE.frame(
        [
            (null.side, rank, mean, std, len(null.words))
            for null in nulls
            for rank, (mean, std) in enumerate(zip(null.mean.tolist(), null.std.tolist(), strict=True))
        ]
    )


def rectangles(image: Float[Tensor, "R T C"], shape: tuple[int, int, int]) -> pd.DataFrame:
    """Returns a row for each rectangle of an image of J, with its first row and column.

    Args:
        image: The image.
        shape: The shape of J: (d_out, T, d_in).

    """
    (R, T, C), (rows, _, width) = image.shape, shape
    places = [(-(-r * rows // R), t, -(-c * width // C)) for r in range(R) for t in range(T) for c in range(C)]
    return IMAGE.frame([(*place, size) for place, size in zip(places, image.flatten().tolist(), strict=True)])
