"""The data dictionary: what each column of each table that secant writes holds.

One table of data. `secant.results.files` writes by it, with each column's type, unit and meaning beside the
numbers, and `python tools/tables.py` makes docs/tables.md of it. A `{i}` in a name stands for 0, 1, 2, …
"""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """A column: its type (integer, number, text or truth), its unit, and what it means."""

    type: str
    unit: str
    meaning: str


class Table(NamedTuple):
    """A table: what writes it, what a row is, and its columns."""

    of: str
    row: str
    columns: dict[str, Column]


def _integer(meaning: str, unit: str = "") -> Column:
    return Column("integer", unit, meaning)


def _number(meaning: str, unit: str = "") -> Column:
    return Column("number", unit, meaning)


def _text(meaning: str) -> Column:
    return Column("text", "", meaning)


LOGIT, SIGMA, RELATIVE = "logit", "output / input", "share of a norm"

POSITION = _integer("place of the token in the prompt, from 0")
TOGETHER = _integer("place of the token whose block it is, from 0; missing: all tokens together")
TOKEN = _text("the token's text")
LAYER = _integer("the layer, from 0")
PART = _text("residual (the stream after the layer), or what adds to it: attn, mlp or mixer")
SPAN = _text("cumulative (from the embeddings) or layerwise (from the stream before the layer)")
VECTOR = _integer("which singular vector, from 0, largest σ first")
BLOCK = _integer("which group of near-equal singular values the vector is in; a vector of several means nothing alone")
SIDE = _text("output (a left vector, what is written) or input (a right vector, what is read)")
RANK = _integer("place among the decoded words, from 0")
WORD = _text("the decoded token's text")
WORD_ID = _integer("the decoded token's id in the vocabulary")
SCORE = _number(
    "how well the word fits the unit vector: at the output a logit, at the input a cosine", "logit or cosine"
)
KIND = _text(
    "token, constant (these two sum to the logit); embed, layer, outside (these three too); head (of its layer)"
)
NAME = _text("the token's text, the part's name, or the module that the constant is of")
PLACE = _integer("place of the token in the prompt, from 0; missing where it is no token")
OF_LAYER = _integer("the layer, from 0; missing where it is of none")
HEAD = _integer("the attention head, from 0; missing where it is none")
CONTRIBUTION = _number("what it adds to the logit: of tokens and constants by all paths, of parts straight", LOGIT)
ALL_PATHS = _number("what it adds to the logit by all paths, through later parts too; these overlap", LOGIT)
PROMPT = _text("the prompt")

MODEL = _text("the model's name")
CONVENTION = _text("what a gated product holds: gate, up or half")
OTHER = _text("the other model's name")
OTHER_CONVENTION = _text("the other one's convention")
JACCARD = _number("words of both, of the words of either (Jaccard's index); missing where there are none", "share")
DEPTH = _number(
    "the layer as a share of the model's depth: 1 is the last; missing where the layer is", "share of depth"
)
SEEN = _integer("first layer at which the prediction is the first word of U₀ of the stream; missing: never")
AMONG = _integer("first layer at which it is among the decoded words; missing: never")

CONTRIBUTIONS = {
    "kind": KIND,
    "name": NAME,
    "position": PLACE,
    "layer": OF_LAYER,
    "head": HEAD,
    "contribution": CONTRIBUTION,
    "all_paths": ALL_PATHS,
}
"""Columns of what contributes to a logit."""

CATEGORY = _text("the prompts' category; missing: all prompts, also those without one")
MEAN_OF = _text("what the words or the numbers are of: together (all tokens), last (the last token), tokens (each one)")


def _statistics(unit: str) -> dict[str, Column]:
    """The columns of a number's statistics over prompts."""
    return {
        "n": _integer("how many prompts have such a number", "prompts"),
        "mean": _number("the mean over them", unit),
        "low": _number("lower end of its 95 % bootstrap interval over prompts; missing where there is none", unit),
        "high": _number("upper end of it", unit),
        "interval": _text("how it was found: BCa or percentile; or why there is none"),
        "q05": _number("5th percentile over the prompts", unit),
        "q25": _number("first quartile", unit),
        "median": _number("median", unit),
        "q75": _number("third quartile", unit),
        "q95": _number("95th percentile", unit),
    }


def _averaged(row: str, keys: dict[str, Column], unit: str, more: dict[str, Column] | None = None) -> Table:
    """A table of statistics over prompts."""
    first = {"model": MODEL, "convention": CONVENTION, "category": CATEGORY}
    about = f"model x convention x category x {row}"
    return Table("Summary", about, {**first, **keys, **_statistics(unit), **(more or {})})


TABLES: dict[str, Table] = {
    "tokens": Table(
        "Explanation",
        "a token of the prompt",
        {
            "position": POSITION,
            "token": TOKEN,
            "id": _integer("its id in the vocabulary"),
            "contribution": _number("what the token adds to the predicted token's logit, by all paths", LOGIT),
            "share": _number("contribution as a share of the logit; missing where that is 0", "share of the logit"),
            "norm": _number("‖J_t x_t‖: what the token writes to the final hidden state", "hidden state"),
            "sigma": _number("σ₁, the largest singular value of the token's block J_t", SIGMA),
            "stable_rank": _number("‖J_t‖_F² / σ₁²: how many directions matter", "directions"),
            "output": _text("words of the first left singular vector, best first"),
            "input": _text("words of the first right singular vector, best first"),
        },
    ),
    "words": Table(
        "Explanation",
        "a decoded word of a singular vector of a token's block",
        {
            "position": POSITION,
            "token": TOKEN,
            "vector": VECTOR,
            "block": BLOCK,
            "sigma": _number("the vector's singular value", SIGMA),
            "side": SIDE,
            "rank": RANK,
            "word": WORD,
            "id": WORD_ID,
            "score": SCORE,
            "z": _number(
                "how far the score is above the same rank in what random directions decode to", "its deviations"
            ),
        },
    ),
    "layers": Table(
        "Explanation with layers",
        "an operator: layer x part x span x token, and of all tokens together",
        {
            "layer": LAYER,
            "part": PART,
            "span": SPAN,
            "position": TOGETHER,
            "token": TOKEN,
            "stable_rank": _number("‖J‖_F² / σ₀²: how many directions matter", "directions"),
            "frobenius": _number("‖J‖_F", SIGMA),
            "sigma_{i}": _number("the singular value σ_i", SIGMA),
            "reconstruction": _number("‖J x + b - y‖ / ‖y‖ of the whole operator at this depth", RELATIVE),
        },
    ),
    "spectra": Table(
        "Explanation with layers",
        "a singular value of such an operator",
        {
            "layer": LAYER,
            "part": PART,
            "span": SPAN,
            "position": TOGETHER,
            "vector": VECTOR,
            "sigma": _number("the singular value σ_i", SIGMA),
            "normalized": _number("σ_i / σ₀", "ratio"),
        },
    ),
    "layer_words": Table(
        "Explanation with layers",
        "a decoded word of a singular vector of such an operator",
        {
            "layer": LAYER,
            "part": PART,
            "span": SPAN,
            "position": TOGETHER,
            "vector": VECTOR,
            "side": SIDE,
            "rank": RANK,
            "word": WORD,
            "id": WORD_ID,
            "score": SCORE,
        },
    ),
    "first_seen": Table(
        "Explanation with layers",
        "part x span x token, and all tokens together",
        {
            "part": PART,
            "span": SPAN,
            "position": TOGETHER,
            "layer": _integer("the first layer at which the predicted token is the first word of U₀; missing: never"),
        },
    ),
    "path": Table(
        "Explanation with layers",
        "one of the top two left vectors of the stream, cumulative, all tokens together",
        {
            "layer": LAYER,
            "vector": VECTOR,
            "x": _number("its product with the last layer's first left vector", "cosine"),
            "y": _number("its product with the last layer's second left vector", "cosine"),
        },
    ),
    "coupling": Table(
        "Explanation with layers",
        "a layer and the next",
        {
            "layer": LAYER,
            "next": _integer("the layer after it"),
            "mismatch": _number(
                "‖U'ᵀ J V' - S‖ / ‖S‖ with the next layer's vectors: 0 the same, about 1 unrelated", "ratio"
            ),
        },
    ),
    "contributions": Table(
        "Attribution",
        "something that contributes to the logit",
        CONTRIBUTIONS,
    ),
    "flow": Table(
        "Attribution with flow",
        "what a token, or the constants, make of a part or head, by a path",
        {
            "name": _text("the part or head; or outside: constants that are in no part"),
            "path": _text("direct (straight to the logit) or all (through later parts too)"),
            "position": _integer("place of the token in the prompt, from 0; missing: the constants"),
            "token": _text("the token's text; missing: the constants"),
            "layer": OF_LAYER,
            "head": HEAD,
            "contribution": _number("what it adds to the logit by the path", LOGIT),
        },
    ),
    "versus": Table(
        "Evidence",
        "a contribution to the predicted token's logit over that of another prediction",
        {
            "prediction": _integer("which prediction it is set against, from 1, likeliest first"),
            "versus": _text("its text"),
            "difference": _number("the difference of the two logits, which the contributions sum to", LOGIT),
            **CONTRIBUTIONS,
        },
    ),
    "rebuilt": Table(
        "Evidence",
        "a unit of the final hidden state",
        {
            "unit": _integer("the unit, from 0"),
            "output": _number("y, the model's own", "hidden state"),
            "rebuilt": _number("J x + b", "hidden state"),
            "ordinary": _number("J' x with the ordinary Jacobian J'", "hidden state"),
        },
    ),
    "image": Table(
        "Evidence",
        "a rectangle of a token's block of J, which ends where the next one begins",
        {
            "unit": _integer("its first unit of the final hidden state, from 0"),
            "position": POSITION,
            "column": _integer("its first number of the token's embedding, from 0"),
            "size": _number("root mean square of the entries of J in it", SIGMA),
        },
    ),
    "chance": Table(
        "Evidence",
        "a place among the words that a random unit direction decodes to",
        {
            "side": _text("output or input: what directions are compared with"),
            "rank": RANK,
            "mean": _number("mean of the word's score over random directions", "logit or cosine"),
            "std": _number("its standard deviation", "logit or cosine"),
            "samples": _integer("how many directions were drawn", "directions"),
        },
    ),
    "svd": Table(
        "SVD",
        "a singular triplet",
        {
            "vector": VECTOR,
            "block": BLOCK,
            "sigma": _number("the singular value", SIGMA),
            "energy": _number("share of ‖J‖_F² in the triplets up to this one", "share"),
            "residual": _number("the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖", SIGMA),
        },
    ),
    "compared": Table(
        "Comparison",
        "a model in a convention",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "tokens": _integer("how many tokens the prompt has", "tokens"),
            "layers": _integer("how many layers the model has; missing where there are none to be found", "layers"),
            "width": _integer("numbers in a token's embedding", "numbers"),
            "vocabulary": _integer("tokens in its vocabulary", "tokens"),
            "prediction": _text("the predicted token"),
            "prediction_id": _integer("its id in the model's vocabulary"),
            "probability": _number("its probability", "probability"),
            "logit": _number("its logit", LOGIT),
            "dtype": _text("the type the model computes in"),
            "precision": _text("the type the linear system is evaluated in"),
            "forward_equal": Column("truth", "", "whether the recorded pass is the plain one, bit for bit"),
            "reconstruction": _number("‖J x + b - y‖ / ‖y‖", RELATIVE),
            "affinity": _number("how far the held network is from affine, at a random input", RELATIVE),
            "ordinary": _number("‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'", RELATIVE),
            "bias": _number("‖b‖ / ‖y‖", RELATIVE),
            "constants": _number("the constants' share of the logit; missing where that is 0", "share of the logit"),
            "stable_rank": _number("‖J‖_F² / σ₀² of all tokens together", "directions"),
            "sigma": _number("σ₀ of all tokens together", SIGMA),
            "first_seen": SEEN,
            "depth": DEPTH,
            "among": AMONG,
            "depth_among": _number("that layer as a share of the depth", "share of depth"),
            "no_layers": _text("why there are no layers; missing where there are"),
        },
    ),
    "compared_predictions": Table(
        "Comparison",
        "a likely next token of a model in a convention",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "rank": _integer("place among the predictions, from 0"),
            "token": TOKEN,
            "id": _integer("its id in the model's vocabulary"),
            "probability": _number("its probability", "probability"),
            "logit": _number("its logit", LOGIT),
        },
    ),
    "compared_tokens": Table(
        "Comparison",
        "a token of the prompt, of a model in a convention",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "position": POSITION,
            "token": TOKEN,
            "id": _integer("its id in the model's vocabulary"),
            "contribution": _number("what the token adds to the predicted token's logit, by all paths", LOGIT),
            "share": _number("contribution as a share of the logit; missing where that is 0", "share of the logit"),
            "norm": _number("‖J_t x_t‖: what the token writes to the final hidden state", "hidden state"),
            "sigma": _number("σ₀ of the token's block J_t", SIGMA),
            "stable_rank": _number("‖J_t‖_F² / σ₀²: how many directions matter", "directions"),
            "first_seen": SEEN,
            "depth": DEPTH,
            "among": AMONG,
            "depth_among": _number("that layer as a share of the depth", "share of depth"),
            "start": _integer("first character of the prompt that it is of, from 0; missing where that is not known"),
            "end": _integer("the character after the last; the same where it is of none"),
            "stretch": _integer("which stretch of the prompt it is in; missing: it is aligned with none"),
        },
    ),
    "compared_spectra": Table(
        "Comparison",
        "a singular value, of a model in a convention",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "position": TOGETHER,
            "vector": VECTOR,
            "block": BLOCK,
            "sigma": _number("the singular value σ_i", SIGMA),
            "normalized": _number("σ_i / σ₀", "ratio"),
            "residual": _number("the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖", SIGMA),
        },
    ),
    "compared_words": Table(
        "Comparison",
        "a decoded word, of a model in a convention",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "position": TOGETHER,
            "token": TOKEN,
            "vector": VECTOR,
            "side": SIDE,
            "rank": RANK,
            "word": WORD,
            "id": WORD_ID,
            "score": SCORE,
            "z": _number(
                "how far the score is above the same rank in what random directions decode to", "its deviations"
            ),
        },
    ),
    "stretches": Table(
        "Comparison",
        "a stretch of the prompt that every model has tokens of its own for, and a model in a convention",
        {
            "stretch": _integer("which stretch, from 0"),
            "text": _text("its text"),
            "model": MODEL,
            "convention": CONVENTION,
            "tokens": _integer("how many tokens it is", "tokens"),
            "first": _integer("place of the first of them; missing where it is none"),
            "last": _integer("place of the last of them"),
            "contribution": _number("what they add to the predicted token's logit together", LOGIT),
            "share": _number("the same as a share of the logit", "share of the logit"),
        },
    ),
    "overlaps": Table(
        "Comparison",
        "two models or conventions, a side, and a stretch of the prompt or all tokens together",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "other": OTHER,
            "other_convention": OTHER_CONVENTION,
            "side": SIDE,
            "stretch": _integer("which stretch, from 0; missing: all tokens together"),
            "words": _integer("how many words the first vectors of the one decode to", "words"),
            "other_words": _integer("the same of the other", "words"),
            "shared": _integer("words of both, as text, without space around them, in one case", "words"),
            "jaccard": JACCARD,
            "elsewhere": _number("mean of the same with the other's words at all other stretches: chance", "share"),
        },
    ),
    "coverage": Table(
        "Summary",
        "model x convention x precision x category",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "precision": _text("the type the linear system was evaluated in"),
            "category": _text("the prompts' category; missing: all prompts, with one or without"),
            "prompts": _integer("how many prompts were studied", "prompts"),
            "failed": _integer("how many of them failed; these are in no average", "prompts"),
            "least": _integer("fewest tokens of a prompt", "tokens"),
            "most": _integer("most tokens of a prompt", "tokens"),
            "forward_equal": _integer("runs whose recorded pass is the plain one, bit for bit", "prompts"),
            "reconstruction": _number("the largest ‖J x + b - y‖ / ‖y‖ of a run", RELATIVE),
            "affinity": _number("the largest distance of a held network from affine", RELATIVE),
        },
    ),
    "failures": Table(
        "Summary",
        "a reason why prompts failed: model x convention x category x error",
        {
            "model": MODEL,
            "convention": CONVENTION,
            "category": _text("the prompts' category; missing: they have none"),
            "error": _text("the kind of error"),
            "reason": _text("what it says"),
            "prompts": _integer("how many prompts", "prompts"),
            "example": _text("the first of them"),
        },
    ),
    "summary_measures": _averaged(
        "measure",
        {
            "measure": _text(
                "reconstruction, ordinary, bias: ‖J x + b - y‖, ‖J' x - y‖ with the ordinary Jacobian, ‖b‖, over ‖y‖; "
                "seen: whether the prediction is the first word of U₀ of all tokens at some layer; seen_depth: the "
                "first such layer as a share of depth, where it is; writes_together, writes_last, writes_any: whether "
                "it is among the words of U₀ of all tokens, the last token, any token; reads_own: the share of tokens "
                "whose own word is among those of their V₀"
            )
        },
        "the measure's own",
    ),
    "summary_ranks": _averaged("position", {"position": TOGETHER}, "directions"),
    "summary_spectra": _averaged("position x singular value", {"position": TOGETHER, "vector": VECTOR}, "σ_i / σ₀"),
    "summary_depths": _averaged(
        "part x span x layer: stable rank of all tokens together",
        {"part": PART, "span": SPAN, "layer": LAYER, "depth": DEPTH},
        "directions",
    ),
    "summary_emergence": _averaged(
        "part x span x layer: whether the prediction was the first word of U₀ of all tokens by then",
        {"part": PART, "span": SPAN, "layer": LAYER, "depth": DEPTH},
        "share of prompts",
    ),
    "summary_shares": _averaged(
        "kind of contribution: its share of the predicted token's logit",
        {"kind": KIND, "part": _text("of layers: their attn, mlp or mixer; missing: all of the kind")},
        "share of the logit",
    ),
    "summary_overlaps": _averaged(
        "another model or convention: words of first vectors that they share on the same prompt",
        {"other": OTHER, "other_convention": OTHER_CONVENTION, "of": MEAN_OF, "side": SIDE},
        "words of both, of the words of either",
        {"chance": _number("mean of the same with the other's words on another prompt", "words of both, of either")},
    ),
    "summary_conventions": _averaged(
        "another convention of the model",
        {
            "other": _text("the other convention"),
            "of": _text("together (all tokens), or tokens (the mean over each token's block)"),
            "measure": _text("distance, ‖J - J'‖_F / ‖J‖_F, or cosine, ⟨J, J'⟩ / (‖J‖_F ‖J'‖_F)"),
        },
        "the measure's own",
    ),
}
"""Every table by the name of its file."""


STAMP = {
    "model": _text("the model's name in the study"),
    "convention": _text("what gated products hold: gate, up or half"),
    "prompt": _integer("the prompt's number in the study, from 0"),
    "category": _text("the prompt's category; missing where it has none"),
    "precision": _text("the type in which the linear system was evaluated"),
    "run_forward_equal": Column(
        "truth", "", "certificate: whether the recorded pass is the plain model's, bit for bit; missing if it failed"
    ),
    "run_reconstruction": _number("certificate: ‖J x + b - y‖ / ‖y‖", RELATIVE),
    "run_affinity": _number("certificate: how far the held network is from affine at a random input", RELATIVE),
}
"""What every row of a study starts with: what it is of, and its certificate."""


def _of_study(row: str, columns: dict[str, Column]) -> Table:
    return Table("Study", row, {**STAMP, **columns})


def _also(name: str, more: dict[str, Column]) -> Table:
    """A table that single prompts have too, with more columns."""
    return _of_study(TABLES[name].row, {**TABLES[name].columns, **more})


STUDY: dict[str, Table] = {
    "prompts": _of_study(
        "a prompt, with one model and convention",
        {
            "text": PROMPT,
            "tokens": _integer("how many tokens it has; missing if it failed", "tokens"),
            "prediction": _text("the predicted token's text"),
            "prediction_id": _integer("its id in the vocabulary"),
            "probability": _number("its probability", "probability"),
            "logit": _number("its logit", LOGIT),
            "error": _text("the kind of error, if it failed"),
            "reason": _text("what the error says; missing if it went well"),
        },
    ),
    "reconstructions": _of_study(
        "a prompt (analysis reconstruction)",
        {
            "reconstruction": _number("‖J x + b - y‖ / ‖y‖", RELATIVE),
            "ordinary": _number("‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'", RELATIVE),
            "bias": _number("‖b‖ / ‖y‖: what the model's own constants make of y", RELATIVE),
        },
    ),
    "singular_values": _of_study(
        "a singular value of a token's block, or of all together (analysis spectra)",
        {
            "position": TOGETHER,
            "token": TOKEN,
            "vector": VECTOR,
            "block": BLOCK,
            "sigma": _number("the singular value σ_i", SIGMA),
            "normalized": _number("σ_i / σ₀", "ratio"),
            "residual": _number("the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖", SIGMA),
        },
    ),
    "stable_ranks": _of_study(
        "a token's block, or all together (analysis stable_rank)",
        {
            "position": TOGETHER,
            "token": TOKEN,
            "stable_rank": _number("‖J‖_F² / σ₀²: how many directions matter", "directions"),
            "frobenius": _number("‖J‖_F", SIGMA),
            "spread": _number("standard error of the stable rank; 0 where J was formed", "directions"),
        },
    ),
    "layers": _also("layers", {}),
    "first_seen": _also("first_seen", {"layer_count": _integer("how many layers the model has", "layers")}),
    "contributions": _also("contributions", {}),
    "words": _also(
        "words",
        {
            "position": TOGETHER,
            "predicted": Column("truth", "", "whether the word is the predicted token"),
            "own": Column("truth", "", "whether the word is the position's own token"),
        },
    ),
    "conventions": _of_study(
        "a token's block, or all together, and another convention (analysis conventions)",
        {
            "other": _text("the other convention"),
            "position": TOGETHER,
            "distance": _number("‖J - J'‖_F / ‖J‖_F; missing where J is zero", RELATIVE),
            "cosine": _number("⟨J, J'⟩ / (‖J‖_F ‖J'‖_F); missing where one is zero", "cosine"),
        },
    ),
}
"""Every table of a study by the name of its file: analyses layers, attribution or parts, and words have those of a
single prompt."""
