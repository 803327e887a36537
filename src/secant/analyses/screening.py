"""Screening: whether the network writes words of a list at any depth, tested against chance.

The left singular vectors of the cumulative operators, of each token and of all tokens together, decode to tokens
through the head. They can show words before the model says them, including words that it should not say (a use that
J. Golden suggests, TMLR 2025, arXiv 2505.24293). Words of a list also turn up by chance, more often in a longer list.
Every vector is therefore a test. Its p-value comes from random directions:

    p = (1 + number of random directions in which it ranks as high) / (1 + number of random directions),

and q is p corrected for all tests of a call (Y. Benjamini and Y. Hochberg, 1995). `screen` returns a table of all
tests, and those that are flagged at a false discovery rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from secant.analyses.case import Case
from secant.arguments import counted, level_of
from secant.errors import BadArgument, BadPrompt, SecantError, checked, integer, quoted, seeded, several
from secant.linearize.conventions import FOR_OPERATORS, Named, convention_named
from secant.linearize.run import Run, freeze
from secant.memory import Progress
from secant.model.encoding import listed
from secant.model.lm import LM, Prompt
from secant.model.tokens import as_id
from secant.operators.spectrum import BLOCK, SVD, VALUE, VECTOR
from secant.results.columns import BLOCK_POSITION, BLOCK_TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, Tokens, View
from secant.stream.depths import Depth
from secant.stream.scores import BATCH_SIZE, Scores, best
from secant.stream.sweep import STREAM
from secant.stream.words import WORD_ID
from secant.text import count

NUMBER = Column("number", int, "number of the prompt, from 0")
PROMPT = Column("prompt", str, "the prompt")

SCREENING = Table(
    "screening",
    "a test: a singular vector of the residual stream",
    (
        NUMBER,
        PROMPT,
        Column("layer", int, "the layer, from 0"),
        BLOCK_POSITION,
        BLOCK_TOKEN,
        VECTOR,
        BLOCK,
        Column("alone", bool, "whether it is alone in its block; if not, the vector means nothing by itself"),
        VALUE.but(meaning="the vector's singular value"),
        Column("word", str, "the listed word that ranks first"),
        Column("rank", int, "how many tokens score higher than this word", "tokens"),
        Column("second", int, "the same for the next listed word; missing if the list has one word", "tokens", True),
        Column("hits", int, "how many listed words are among the vector's top tokens", "words"),
        Column("decoded", str, "the vector's top tokens, best first", heading="writes (U)"),
        Column("p", float, "share of random directions in which the list ranks as high", "probability"),
        Column("q", float, "p corrected for all tests (Benjamini and Hochberg)", "false discovery rate"),
        Column("flagged", bool, "whether q is at most the level"),
    ),
)
REFUSED = Table(
    "refused",
    "a prompt that could not be screened",
    (NUMBER, PROMPT, Column("error", str, "the class of the error"), Column("reason", str, "its message")),
)
LEXICON = Table(
    "lexicon",
    "a word of the list and a token that has this text",
    (
        Column("word", str, "the word"),
        WORD_ID.but(meaning="the token's id in the vocabulary; missing: no token has this text", missing=True),
    ),
)

PROMPT_SHOWN = 200
"""The most characters of a prompt that views show."""

MOST_SHOWN = 12
"""The most flagged vectors of a prompt, and unknown words, that views show; the tables have all."""


@dataclass(frozen=True, eq=False, repr=False)
class Screening(Result):
    """The tests of a list of words against the singular vectors of some prompts.

    Attributes:
        table: A row for each test: the prompt and its number; the layer; the token whose block it is (position and
            token missing: all tokens together); the vector, its block of near-equal singular values, whether it is
            `alone` in the block (if not, it means nothing by itself), and σ; the listed word that ranks first, how many
            tokens score higher (`rank`, from 0), and the same for the next listed word (`second`); how many listed
            words are among the `top` tokens (`hits`), and these tokens (`decoded`); p, q (p corrected for all tests),
            and whether q is at most `level`.
        refused: A row for each prompt that could not be screened, with the reason.
        lexicon: Each word of the list, with the ids of its tokens.
        unknown: The words of the list that no token stands for.
        top: How many top tokens of each vector `hits` counts in.
        samples: How many random directions the vectors are compared with.
        level: The false discovery rate.
        chance: The share of random directions that have a listed word among their `top` tokens.

    """

    schema = (SCREENING, REFUSED, LEXICON)

    table: pd.DataFrame
    refused: pd.DataFrame
    lexicon: dict[str, list[int]]
    unknown: list[str]
    top: int
    samples: int
    level: float
    chance: float

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        return [
            count(len(self.lexicon), "word"), count(len(self.table), "test"),
            f"{int(self.table['flagged'].sum())} flagged at level {self.level:g}", f"{len(self.refused)} refused",
        ]  # fmt: skip

    @property
    def flagged(self) -> pd.DataFrame:
        """The rows with q at most `level`."""
        return self.table[self.table["flagged"]]

    @property
    def found(self) -> float:
        """The share of tests that have a listed word among the `top` tokens, to compare with `chance`."""
        return float((self.table["hits"] > 0).mean())

    @property
    def needed(self) -> int:
        """How many tests must rank above every random direction before any is flagged; more samples lower this."""
        return max(1, math.ceil(round(len(self.table) / (self.level * (1 + self.samples)), 9)))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `screening` (all tests), `refused` (prompts that could not be screened), and `lexicon`."""
        known = [(word, i) for word, ids in self.lexicon.items() for i in ids]
        lexicon = LEXICON.frame([*known, *((word, None) for word in self.unknown)])
        return {"screening": self.table, "refused": self.refused, "lexicon": lexicon}

    def about(self) -> dict[str, Any]:
        """Returns the number of tests, their settings, and what is found by chance."""
        names = ("level", "samples", "needed", "top", "found", "chance", "unknown")
        return {"tests": len(self.table), **{name: getattr(self, name) for name in names}}

    def view(self) -> View:
        """Shows the flagged vectors of each prompt, smallest q first, their number, and what is found by chance."""
        grids, tests, flagged = [], len(self.table), len(self.flagged)
        for (_, prompt), rows in self.table.groupby(["number", "prompt"], sort=False):
            own = rows[rows["flagged"]].sort_values(["q", "rank", "second"], kind="stable")
            grids.append(_grid(own, f"{_clipped(prompt)}: {len(own)} of {len(rows)} vectors flagged"))
        warnings = [f"{_clipped(row.prompt)}: refused. {row.reason}" for row in self.refused.itertuples()]
        notes = [
            f"{flagged} of {tests} vectors flagged at a false discovery rate of {self.level:g}, by the rank of the "
            f"best listed word, compared with random directions. A listed word is among the top {self.top} tokens of "
            f"{self.found:.1%} of the vectors, and of {self.chance:.2%} of {self.samples} random directions, which "
            f"corresponds to {self.chance * tests:.1f} of {tests}."
        ]
        if self.needed > 1:
            notes.append(
                f"{self.samples} random directions are few for {tests} tests: none is flagged unless {self.needed} "
                f"tests rank above all of these directions. With {math.ceil(tests / self.level)} samples, one suffices."
            )
        if self.unknown:
            some = ", ".join(self.unknown[:MOST_SHOWN]) + (" …" if len(self.unknown) > MOST_SHOWN else "")
            verb = "is" if len(self.unknown) == 1 else "are"
            notes.append(f"Of the list, {len(self.unknown)} {verb} not a single token of this model: {some}.")
        if flagged:
            notes.append(
                "rank: how many tokens score higher. token: whose block it is; all: all tokens together. "
                "≈: the next singular value is near-equal, so that the vector by itself means nothing."
            )
        return View("Screening for a list of words", grids=grids, notes=notes, warnings=warnings)


def _clipped(prompt: str) -> str:
    """A prompt, cut if it is long."""
    return prompt if len(prompt) <= PROMPT_SHOWN else f"{prompt[:PROMPT_SHOWN]} …"


def _grid(rows: pd.DataFrame, title: str) -> Grid:
    """A line for each vector."""
    columns = [
        Shown("layer", "integer"), Shown("token", "token", most=16), Shown("vector", "integer", spare=2),
        Shown("word", most=16), Shown("rank", "integer"), Shown("q", "number", spare=1), Shown("writes (U)", "tokens"),
    ]  # fmt: skip
    lines = [
        [
            row["layer"],
            Cell("all", show="text") if pd.isna(row["position"]) else row["token"],
            Cell(row["vector"], mark="" if row["alone"] else "≈"),
            *(row["word"], row["rank"], row["q"], Tokens(row["decoded"].split(" "))),
        ]
        for row in rows.to_dict("records")
    ]
    return Grid(columns, lines, title, most=MOST_SHOWN)


@checked
def screen(
    lm: LM,
    prompts: Sequence[Prompt],
    lexicon: Sequence[str],
    *,
    k: int = 2,
    top: int = 8,
    position: int = -1,
    samples: int = 10_000,
    level: float | int = 0.05,
    convention: Named | None = None,
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Screening:
    """Returns where each prompt's leading singular vectors decode to words of a list, at every layer.

    The tests are the first `k` left singular vectors of each token's block, and of all tokens together, of the residual
    stream after each layer, through the final norm. Signs are such that y·u > 0, and scores are W u, as in `decode`. A
    word stands for all tokens whose text is that word, apart from leading spaces and case.

    The statistic is the rank of the listed word that scores highest, among all tokens; ties are broken by the rank of
    the next listed word. Ranks depend neither on the size of scores nor on the lead of the first token, so a list of
    arbitrary words does not rank higher in vectors that stand out. p is the share of `samples` random directions in
    which the list ranks as high, the vector itself counted among them. q is p corrected for all tests of the call
    (Benjamini and Hochberg, 1995). Tests of one prompt resemble each other. The correction is valid for tests
    that depend on each other positively (Benjamini and Yekutieli, 2001), which is assumed.

    A flag says that a vector is not a random direction with respect to the list. Words that a model writes everywhere,
    such as frequent ones, are flagged everywhere: screen for an unrelated list to see how often.

    Args:
        lm: The model.
        prompts: The prompts, each a text, token ids or chat messages. Prompts that can't be frozen are listed in
            `refused`, and the others are screened.
        lexicon: The words.
        k: The number of singular vectors of each token's block, and of all tokens together, at each layer.
        top: The number of top tokens of each vector that `hits` counts in.
        position: The position whose residual stream is decomposed; by default the last.
        samples: The number of random directions.
        level: The false discovery rate: the expected share of false positives among the flagged vectors.
        convention: Which exact affine map replaces each operation, as in `freeze`, by default "gate".
        precision: The type in which the frozen network is evaluated; by default the model's own.
        seed: The seed of random directions, and of all other random numbers.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress(what, done, all)` during the work.

    Raises:
        BadArgument: An argument is out of range.
        BadPrompt: No word of the list is a token.
        TrainingMode: The model is in training mode.
        SecantError: Every prompt is refused; this is the error of the first.

    """
    prompts = several(prompts)
    _check(lm, lexicon, convention or FOR_OPERATORS)
    level = level_of(level)
    d = lm.unembedding.shape[1]
    k = integer(k, 1, d, f"Blocks have 1 to {d} singular triplets", "k = ")
    top = integer(top, 1, lm.outputs, "A direction has at least one top token", "top = ")
    samples = counted("samples", samples)
    seed = seeded(seed)
    lm.ready()
    known, unknown = looked_up(lm, lexicon)
    report = progress or (lambda what, done, of: None)
    ranks = Ranks.of(lm, known)
    null = [ranks(some) for some in _random_directions(d, samples, seed, report)]
    first, second = (torch.cat([part[i] for part in null]) for i in (1, 2))
    drawn = np.sort(_code(first, second, lm.outputs))
    rows: list[dict[str, Any]] = []
    refused: list[tuple[int, str, str, str]] = []
    errors = []
    for number, prompt in enumerate(prompts):
        try:
            run = freeze(lm, prompt, convention=convention, precision=precision, seed=seed)
            case = Case(run, k, top, seed)
            with case.working(max_memory, None):
                depths = case.layers(position=position, spans=("cumulative",)).depths
            rows += _tests(run, number, prompt, depths, ranks, top, drawn)
        except SecantError as error:
            refused.append((number, _text(lm, prompt), type(error).__name__, str(error)))
            errors.append(error)
        report("prompts", number + 1, len(prompts))
    if len(errors) == len(prompts):
        raise errors[0]
    table = pd.DataFrame(rows)
    table["q"] = scipy.stats.false_discovery_control(table["p"])
    table["flagged"] = table["q"] <= level
    chance = float((first < top).double().mean())
    return Screening(SCREENING.frame(table), REFUSED.frame(refused), known, unknown, top, samples, level, chance)


def looked_up(lm: LM, lexicon: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """Returns the token ids of each word that some token stands for, and the words that no token stands for.

    Args:
        lm: The model.
        lexicon: The words. Case, and spaces around them, do not matter.

    Raises:
        BadPrompt: No token stands for any of the words.

    """
    spelled: dict[str, list[int]] = {}
    for i, text in enumerate(lm.texts[: lm.outputs]):
        spelled.setdefault(text.lstrip(" ").casefold(), []).append(i)
    words = dict.fromkeys(word.strip().casefold() for word in lexicon)
    known = {word: spelled[word] for word in words if word in spelled}
    unknown = [word for word in words if word not in spelled]
    if not known:
        raise BadPrompt(
            "A list to screen for must contain words that are single tokens of the vocabulary",
            ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            "Give words that are single tokens of this model.",
        )
    return known, unknown


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of a list's words in directions.

    Attributes:
        scores: Scores tokens along directions.
        words: The words.
        tokens: The ids of the tokens that stand for any of them.
        whose: The index of each token's word.

    """

    scores: Scores = field(repr=False)
    words: list[str]
    tokens: Int[Tensor, " n"]
    whose: Int[Tensor, " n"]

    @classmethod
    def of(cls, lm: LM, lexicon: dict[str, list[int]]) -> Ranks:
        """Returns the ranks of words in directions of a model's final hidden state.

        Args:
            lm: The model. Scores are computed in its type, at least in float32, as in `decode`.
            lexicon: The token ids of each word.

        """
        scores = Scores.of(lm, "output", lm.unembedding.dtype)
        pairs = torch.tensor(
            [(i, w) for w, ids in enumerate(lexicon.values()) for i in ids], device=scores.table.device
        )
        return cls(scores, list(lexicon), *pairs.T)

    def __call__(self, directions: Float[Tensor, "d k"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the index of the word that scores highest in each direction, its rank, and that of the next word.

        A rank is the number of tokens that score higher. If the list has one word, the next word's rank is the size of
        the vocabulary.

        Args:
            directions: The directions, as columns.

        """
        found = [self.among(self.scores(some)[0]) for some in directions.split(BATCH_SIZE, dim=1)]
        word, first, second = torch.cat(found, dim=1)
        return word, first, second

    def among(self, scores: Float[Tensor, "k vocabulary"]) -> Int[Tensor, "3 k"]:
        """Returns the same as one tensor, from the scores of all tokens.

        Args:
            scores: One row for each direction.

        """
        own = scores[:, self.tokens]
        most = own.max(1)
        word = self.whose[most.indices]
        others = own.masked_fill(self.whose == word[:, None], -torch.inf).amax(1)
        higher = [(scores > bound[:, None]).sum(1) for bound in (most.values, others)]
        return torch.stack([word, *higher]).cpu()


def _random_directions(d: int, samples: int, seed: int, report: Progress) -> Iterator[Tensor]:
    """Random directions, in batches. They are not normalised, because ranks do not depend on lengths."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, BATCH_SIZE):
        yield torch.randn(d, min(BATCH_SIZE, samples - start), generator=generator, dtype=torch.float64)
        report("random directions", min(start + BATCH_SIZE, samples), samples)


def _code(first: Tensor, second: Tensor, size: int) -> np.ndarray:
    """Both ranks as one number, which sorts by the first and then by the second."""
    return (first * (size + 1) + second).numpy()


def _tests(
    run: Run, number: int, prompt: Prompt, depths: Sequence[Depth], ranks: Ranks, top: int, drawn: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each vector of a prompt, without q; vectors with singular value zero are left out."""
    spectra: list[tuple[int, int | None, SVD]] = []
    for depth in depths:
        if depth.part == STREAM:
            spectra += [(depth.layer, t, f) for t, f in enumerate(depth.tokens)]
            spectra += [(depth.layer, None, depth.whole)] if depth.whole is not None else []
    places = [(layer, t, i, f) for layer, t, f in spectra for i in range(int((f.S > 0).sum()))]
    directions = torch.stack([f.U[:, i] for _, _, i, f in places], dim=1)
    found, decoded = [], []
    for some in directions.split(BATCH_SIZE, dim=1):
        scores, sizes = ranks.scores(some)
        found.append(ranks.among(scores))
        decoded += best(scores, sizes, top).words(run.lm)
    words, first, second = torch.cat(found, dim=1)
    least = np.searchsorted(drawn, _code(first, second, run.lm.outputs), side="right")
    whose = dict(zip(ranks.tokens.tolist(), ranks.whose.tolist(), strict=True))
    rows = []
    for n, ((layer, t, i, f), own) in enumerate(zip(places, decoded, strict=True)):
        block = f.block_of[i]
        rows.append(
            {
                "number": number,
                "prompt": _text(run.lm, prompt),
                "layer": layer,
                "position": t,
                "token": None if t is None else run.tokens[t],
                "vector": i,
                "block": block,
                "alone": len(f.blocks[block]) == 1 and (i + 1 < len(f.S) or f.complete),
                "sigma": f.S[i].item(),
                "word": ranks.words[int(words[n])],
                "rank": int(first[n]),
                "second": int(second[n]) if second[n] < run.lm.outputs else None,
                "hits": len({whose[w.id] for w in own if w.id in whose}),
                "decoded": " ".join(w.token.strip() or w.token for w in own),
                "p": (1 + int(least[n])) / (1 + len(drawn)),
            }
        )
    return rows


def _text(lm: LM, prompt: Prompt) -> str:
    """A prompt as text, for tables."""
    if isinstance(prompt, str):
        return prompt
    try:
        given = listed(prompt)
    except BadPrompt:
        return repr(prompt)[:60]
    ids = [i for i in map(as_id, given) if i is not None and 0 <= i < lm.size]
    if len(ids) == len(given):
        return "".join(map(lm.text, ids))
    return " ".join(str(part.get("content", part)) if isinstance(part, dict) else str(part) for part in given)


def _check(lm: LM, lexicon: Sequence[str], convention: Named) -> None:
    """Raises BadArgument."""
    if not isinstance(lm, LM):
        raise BadArgument("screen takes an LM", type(lm).__name__, "Make one with sc.load or sc.LM.")
    if isinstance(lexicon, str) or not isinstance(lexicon, Sequence) or not lexicon:
        raise BadArgument(
            "A list to screen for has at least one word", quoted(lexicon), 'Give, for example, ["bridge"].'
        )
    if odd := [word for word in lexicon if not isinstance(word, str) or not word.strip()]:
        raise BadArgument("A list to screen for has words only", quoted(odd[0]), "Leave it out.")
    convention_named(convention)
