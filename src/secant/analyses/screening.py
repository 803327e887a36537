"""Screening: does what the network writes, at any depth, stand for words of a list? With chance beside it.

The left singular vectors of each token's cumulative operator, and of all tokens', are directions of the vocabulary:
what they decode to shows what is on its way before it is said, which may be words that should not be (a use that
J. Golden, TMLR 2025, arXiv 2505.24293, names). A list of words is found somewhere by chance, the more easily the longer
it is. So every vector is a test against random directions, and all tests of a call are corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control
from torch import Tensor

from secant.analyses.case import Case
from secant.errors import BadArgument, BadPrompt, SecantError, checked, integer, seeded, several, share
from secant.linearize.rules import CONVENTIONS
from secant.linearize.run import BLOCK_POSITION, TOKEN, Run, freeze
from secant.model.encoding import listed
from secant.model.lm import LM, Prompt
from secant.model.tokens import as_id
from secant.operators.decomposition import BLOCK, SVD, VALUE, VECTOR, Progress
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, Tokens, View
from secant.stream.decode import AT_ONCE, WORD_ID, Scores, best
from secant.stream.layers import Depth
from secant.stream.sweep import STREAM

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
        TOKEN.but(meaning="the token's text; missing: all tokens together", missing=True),
        VECTOR,
        BLOCK,
        Column("alone", bool, "whether it is alone in its block; if not, it means nothing by itself"),
        VALUE.but(meaning="the vector's singular value"),
        Column("word", str, "the listed word that ranks first"),
        Column("rank", int, "how many tokens score higher than it", "tokens"),
        Column("second", int, "the same of the next listed word; missing where the list has one word", "tokens", True),
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
    (NUMBER, PROMPT, Column("error", str, "the kind of error"), Column("reason", str, "what it says")),
)
LEXICON = Table(
    "lexicon",
    "a word of the list and a token that it stands for",
    (
        Column("word", str, "the word"),
        WORD_ID.but(meaning="the token's id in the vocabulary; missing: the word is no token", missing=True),
    ),
)

LONG = 200
"""Characters of a prompt that are shown first."""

SHOWN = 12
"""Flagged vectors of one prompt that are shown first; all are in the tables."""


@dataclass(frozen=True, eq=False)
class Screening(Result):
    """What a list of words was found in.

    Attributes:
        table: A row for each test: the prompt and its number, the layer, the token whose block it is (position and
            token missing: all together), the vector, its block of near-equal singular values, whether it is `alone` in
            it (if not, it means nothing by itself), and σ; the listed word that ranks first, how many tokens score
            higher (`rank`, from 0), and the same of the next listed word (`second`); how many listed words are among
            the `top` tokens (`hits`), and those `top` tokens (`decoded`); p, q (p corrected for all tests), and whether
            q is at most `level`.
        refused: A row for each prompt that could not be screened, with the reason.
        lexicon: Each word and its tokens.
        unknown: Words that are no token.
        top: How many tokens of each vector were looked at.
        samples: How many random directions the vectors were compared with.
        level: The false discovery rate.
        chance: The share of random directions with a listed word among the `top`.

    """

    schema = (SCREENING, REFUSED, LEXICON)

    table: pd.DataFrame = field(repr=False)
    refused: pd.DataFrame = field(repr=False)
    lexicon: dict[str, list[int]]
    unknown: list[str]
    top: int
    samples: int
    level: float
    chance: float

    @property
    def flagged(self) -> pd.DataFrame:
        """The rows with q at most `level`."""
        return self.table[self.table["flagged"]]

    @property
    def found(self) -> float:
        """The share of all tests with a listed word among the `top`, to be compared with `chance`."""
        return float((self.table["hits"] > 0).mean())

    @property
    def needed(self) -> int:
        """How many tests must be beyond every random direction for any to be flagged; more samples make it fewer."""
        return max(1, math.ceil(round(len(self.table) / (self.level * (1 + self.samples)), 9)))

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tests, the prompts that were refused, and the list with its tokens."""
        known = [(word, i) for word, ids in self.lexicon.items() for i in ids]
        lexicon = LEXICON.frame([*known, *((word, None) for word in self.unknown)])
        return {"screening": self.table, "refused": self.refused, "lexicon": lexicon}

    def about(self) -> dict[str, Any]:
        """How many tests there were, how they were made, and what chance gives."""
        names = ("level", "samples", "needed", "top", "found", "chance", "unknown")
        return {"tests": len(self.table), **{name: getattr(self, name) for name in names}}

    def view(self) -> View:
        """The flagged vectors of each prompt, those of smallest q first; how many there are, and what chance gives."""
        grids, tests, flagged = [], len(self.table), len(self.flagged)
        for (_, prompt), rows in self.table.groupby(["number", "prompt"], sort=False):
            own = rows[rows["flagged"]].sort_values(["q", "rank", "second"], kind="stable")
            grids.append(_grid(own, f"{_clipped(prompt)}: {len(own)} of {len(rows)} vectors flagged"))
        warnings = [f"{_clipped(row.prompt)}: refused. {row.reason}" for row in self.refused.itertuples()]
        notes = [
            f"{flagged} of {tests} vectors flagged at a false discovery rate of {self.level:g}, by the rank of the "
            f"best listed word, compared with random directions. A listed word is among the top {self.top} tokens of "
            f"{self.found:.1%} of the vectors, and of {self.chance:.2%} of {self.samples} random directions, which is "
            f"{self.chance * tests:.1f} of {tests}."
        ]
        if self.needed > 1:
            notes.append(
                f"{self.samples} random directions are few for {tests} tests: none is flagged unless {self.needed} of "
                f"them rank above all of these. {math.ceil(tests / self.level)} samples have no such bound."
            )
        if self.unknown:
            some = ", ".join(self.unknown[:SHOWN]) + (" …" if len(self.unknown) > SHOWN else "")
            notes.append(f"Of the list, {len(self.unknown)} are not one token of this model: {some}.")
        if flagged:
            notes.append(
                "rank: how many tokens score higher. token: whose block it is; all: of all tokens together. "
                "≈: the next singular value is near-equal, and one vector alone means nothing."
            )
        return View("Screening for a list of words", grids=grids, notes=notes, warnings=warnings)


def _clipped(prompt: str) -> str:
    """The beginning of a prompt."""
    return prompt if len(prompt) <= LONG else f"{prompt[:LONG]} …"


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
    return Grid(columns, lines, title, most=SHOWN)


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
    convention: str = "gate",
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Screening:
    """Look for words of a list in what each prompt's leading singular vectors decode to, at every layer.

    Tested are the first `k` left singular vectors of each token's block and of all tokens together, of the residual
    stream after each layer, at one position, through the final norm; with their sign y·u > 0, by their scores W u, as
    `decode` has them. The statistic is the rank among all tokens of the listed word that scores highest; where that is
    the same, the rank of the next one. A rank is not moved by how large scores are, nor by how far the first is ahead:
    a list of arbitrary words comes first as often in a vector that stands out as in any other. p is the share of random
    directions, of `samples` drawn with `seed`, in which the list comes as far up, the vector's own counted among them;
    q is p corrected by Benjamini and Hochberg (1995) over all tests of the call, and `level` the share of false ones
    among those flagged. Tests of one prompt are alike: that they depend positively, which this bears (Benjamini and
    Yekutieli, 2001), is assumed.

    What is tested is that a vector is no random direction with respect to the list: words that a model writes
    everywhere, such as frequent ones, are found everywhere. A list that is beside the point shows how often.

    A word stands for all tokens whose text, without leading spaces and in small letters, is that word. A prompt that
    can't be frozen is refused, and the others go on. `convention`, `precision`, `max_memory`: as in `layers` and
    `freeze`. `progress(what, done, all)` is called as the work goes on.
    Raises BadArgument, BadPrompt where no word of the list is a token, TrainingMode, and the first prompt's error where
    every one is refused.
    """
    prompts = several(prompts)
    _check(lm, lexicon, convention)
    rule = "A level is the share of false ones among those flagged, above 0 and below 1"
    level = share(level, rule, "level = ", "Use 0.05.")
    d = lm.unembedding.shape[1]
    k = integer(k, 1, d, f"Blocks have 1 to {d} singular triplets", "k = ")
    top = integer(top, 1, lm.outputs, "A direction has some words", "top = ")
    samples = integer(samples, 1, 10**7, "A null takes some random directions", "samples = ")
    seed = seeded(seed)
    lm.ready()
    known, unknown = looked_up(lm, lexicon)
    report = progress or (lambda what, done, of: None)
    ranks = Ranks.of(lm, known)
    null = [ranks(some) for some in _drawn(d, samples, seed, report)]
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
    table["q"] = false_discovery_control(table["p"])
    table["flagged"] = table["q"] <= level
    chance = float((first < top).double().mean())
    return Screening(SCREENING.frame(table), REFUSED.frame(refused), known, unknown, top, samples, level, chance)


def looked_up(lm: LM, lexicon: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """The tokens of each word, and the words that are none. Raises BadPrompt where all are."""
    spelled: dict[str, list[int]] = {}
    for i, text in enumerate(lm.texts[: lm.outputs]):
        spelled.setdefault(text.lstrip(" ").casefold(), []).append(i)
    words = dict.fromkeys(word.strip().casefold() for word in lexicon)
    known = {word: spelled[word] for word in words if word in spelled}
    unknown = [word for word in words if word not in spelled]
    if not known:
        raise BadPrompt(
            "A list to screen for has words that are tokens of the vocabulary",
            ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            "Give words that this model writes as one token.",
        )
    return known, unknown


@dataclass(frozen=True, eq=False)
class Ranks:
    """How far up the words of a list come in directions: `words`, and their `tokens`, of which each is `whose`."""

    scores: Scores = field(repr=False)
    words: list[str]
    tokens: Int[Tensor, " n"]
    whose: Int[Tensor, " n"]

    @classmethod
    def of(cls, lm: LM, lexicon: dict[str, list[int]]) -> Ranks:
        """Of a model's head, in float32 at least, as `decode` has it."""
        scores = Scores.of(lm, "output", lm.unembedding.dtype)
        pairs = torch.tensor(
            [(i, w) for w, ids in enumerate(lexicon.values()) for i in ids], device=scores.table.device
        )
        return cls(scores, list(lexicon), *pairs.T)

    def __call__(self, directions: Float[Tensor, "d k"]) -> tuple[Tensor, Tensor, Tensor]:
        """The word that scores highest in each direction (a column), its rank, and that of the next word.

        A rank is how many tokens score higher; of a list of one word, the next one's is the number of all tokens.
        """
        found = [self.among(self.scores(some)[0]) for some in directions.split(AT_ONCE, dim=1)]
        word, first, second = torch.cat(found, dim=1)
        return word, first, second

    def among(self, scores: Float[Tensor, "k vocabulary"]) -> Int[Tensor, "3 k"]:
        """The same of the scores that all tokens have in some directions."""
        own = scores[:, self.tokens]
        most = own.max(1)
        word = self.whose[most.indices]
        others = own.masked_fill(self.whose == word[:, None], -torch.inf).amax(1)
        higher = [(scores > bound[:, None]).sum(1) for bound in (most.values, others)]
        return torch.stack([word, *higher]).cpu()


def _drawn(d: int, samples: int, seed: int, report: Progress) -> Iterator[Tensor]:
    """Random directions, some at a time. Their lengths are left as they are: ranks do not depend on them."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, AT_ONCE):
        yield torch.randn(d, min(AT_ONCE, samples - start), generator=generator, dtype=torch.float64)
        report("random directions", min(start + AT_ONCE, samples), samples)


def _code(first: Tensor, second: Tensor, size: int) -> np.ndarray:
    """Both ranks as one number, ordered by the first one and then the second."""
    return (first * (size + 1) + second).numpy()


def _tests(
    run: Run, number: int, prompt: Prompt, depths: Sequence[Depth], ranks: Ranks, top: int, drawn: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each vector of a prompt, all but q; a zero block has no vectors."""
    spectra: list[tuple[int, int | None, SVD]] = []
    for depth in depths:
        if depth.part == STREAM:
            spectra += [(depth.layer, t, f) for t, f in enumerate(depth.tokens)]
            spectra += [(depth.layer, None, depth.whole)] if depth.whole is not None else []
    places = [(layer, t, i, f) for layer, t, f in spectra for i in range(int((f.S > 0).sum()))]
    directions = torch.stack([f.U[:, i] for _, _, i, f in places], dim=1)
    found, decoded = [], []
    for some in directions.split(AT_ONCE, dim=1):
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
    """A prompt as a person reads it."""
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


def _check(lm: LM, lexicon: Sequence[str], convention: str) -> None:
    """Raises BadArgument."""
    if not isinstance(lm, LM):
        raise BadArgument("screen takes an LM", type(lm).__name__, "Make one with sc.load or sc.LM.")
    if isinstance(lexicon, str) or not isinstance(lexicon, Sequence) or not lexicon:
        raise BadArgument("A list to screen for has words", repr(lexicon)[:60], 'Give, for instance, ["bridge"].')
    if odd := [word for word in lexicon if not isinstance(word, str) or not word.strip()]:
        raise BadArgument("A list to screen for has words", repr(odd[0]), "Leave out what is none.")
    if convention not in CONVENTIONS:
        raise BadArgument(f"A convention is one of {', '.join(CONVENTIONS)}", repr(convention), "Choose one of them.")
