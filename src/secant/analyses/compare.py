"""Several models, or conventions of one model, next to each other at one prompt.

Models differ in tokenizer, width and depth, so nothing is matched by index. Top tokens are compared as text, with
Jaccard's index |A ∩ B| / |A ∪ B|. Layers are compared by relative depth. Tokens are aligned by the characters of the
prompt: it is cut wherever no token of any model crosses, and each model has its own tokens for each stretch between two
cuts. `compare` returns the predictions, certificates, spectra, top tokens and contributions of each model, the
stretches, and the overlaps of their top tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from typing import Any

import pandas as pd
import torch

from secant.analyses.case import Case
from secant.analyses.comparison import (
    BY_CHARACTERS,
    COMPARED,
    COMPARED_PREDICTIONS,
    COMPARED_SPECTRA,
    COMPARED_TOKENS,
    COMPARED_WORDS,
    OVERLAPS,
    SAME_TOKENS,
    STRETCHES,
    UNALIGNED,
    Comparison,
)
from secant.analyses.explain import explained
from secant.analyses.explanation import Explanation
from secant.errors import BadArgument, NoPoint, checked, quoted
from secant.linearize.conventions import FOR_OPERATORS, Named, conventions_named
from secant.memory import Progress
from secant.model.lm import LM, Prompt
from secant.numeric import relative
from secant.stream.depths import Layers
from secant.stream.sweep import STREAM
from secant.stream.words import Null, Side, ranked
from secant.text import named

Row = dict[str, Any]
Span = tuple[int, int]


@checked
def compare(
    prompt: Prompt,
    lms: Iterable[LM] | Mapping[str, LM],
    *,
    conventions: Sequence[Named] = (FOR_OPERATORS,),
    k: int = 4,
    top: int = 8,
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Returns a comparison of several models, each under one convention or several, at one prompt.

    Args:
        prompt: A text, token ids or chat messages.
        lms: The models, or models by name. They are used one after the other, so that a generator that loads them
            requires memory for one at a time.
        conventions: Which exact affine maps replace operations: conventions as in `freeze`, each once.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each singular vector.
        precision: The type in which frozen networks are evaluated; by default each model's own.
        seed: The seed of all random numbers.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress(what, done, all)` during the work.

    Raises:
        BadArgument: There is only one model and convention, two models have one name, or another argument is out of
            range.
        SecantError: Any error of `explain` and `layers`.

    """
    if isinstance(conventions, str):
        raise BadArgument("Conventions are a list", quoted(conventions), "Give, for example, ['gate', 'half'].")
    labels = [convention.label for convention in conventions_named(conventions)]
    given = lms.items() if isinstance(lms, Mapping) else ((None, lm) for lm in lms)
    subjects: list[_Subject] = []
    for name, lm in given:
        if not isinstance(lm, LM):
            raise BadArgument("compare takes LMs", type(lm).__name__, "Make them with sc.load or sc.LM.")
        label = name or named(lm.name)
        if any(s.model == label for s in subjects):
            raise BadArgument("Models must have different names", f"{label!r} twice", "Name them with a dict.")
        nulls: dict[Side, Null] = {}  # conventions of one model share them
        for convention in labels:
            e = explained(
                lm, prompt, k=k, top=top, convention=convention, precision=precision, seed=seed,
                max_memory=max_memory, progress=progress, nulls=nulls, beside=False,
            )  # fmt: skip
            with e.case.working(max_memory, progress):
                subjects.append(_subject(label, convention, e, prompt, top))
        del lm, e  # so that the next model is not loaded while this one is in memory
    if len(subjects) < 2:
        raise BadArgument("A comparison takes two models or more, or one in several conventions",
                          f"{len(subjects)}", "Add another.")  # fmt: skip
    return _compared(prompt if isinstance(prompt, str) else None, subjects, top)


@dataclass(frozen=True)
class _Subject:
    """One model under one convention: its rows, and the characters of each token if they are known."""

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
        """The top tokens of the first vector, in the form that `compared` returns."""
        return {
            compared(w["word"]) for w in self.words if (w["side"], w["position"], w["vector"]) == (side, position, 0)
        }


def compared(word: str) -> str:
    """Returns the form in which a token's text is compared between vocabularies: stripped of spaces, and case-folded.

    Args:
        word: The text. A text of spaces only is returned as it is.

    >>> compared(" Golden") == compared("golden")
    True
    """
    return word.strip().casefold() or word


def jaccard(one: set[str], other: set[str]) -> float | None:
    """Returns Jaccard's index |A ∩ B| / |A ∪ B|; None if both sets are empty.

    Args:
        one: A set of texts.
        other: Another.

    >>> jaccard({"a", "b"}, {"b", "c"})
    0.3333333333333333
    """
    return len(one & other) / len(one | other) if one | other else None


def _subject(model: str, convention: str, e: Explanation, prompt: Prompt, top: int) -> _Subject:
    """The rows of one model. They do not refer to the model, so that it can be freed."""
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
        "ordinary": relative(run.ordinary, run.hidden[-1]),
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
    contributions = e.attribution.of("token")["contribution"].tolist()
    rows: list[Row] = []
    for t, (token, contribution, f) in enumerate(zip(run.tokens, contributions, e.svds, strict=True)):
        row = {"position": t, "token": token, "id": run.ids[t], "contribution": contribution, "norm": e.norms[t]}
        row |= {"share": e.attribution.share(contribution), "sigma": f.S[0].item(), "stable_rank": f.stable_rank}
        rows.append(row)
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
    """The residual stream after each layer, or the reason why there is none."""
    try:
        return case.layers(1, spans=("cumulative",)), None
    except NoPoint as error:
        return None, str(error)


def _seen(depths: Layers | None, top: int) -> dict[int | None, int]:
    """The first layer at which the prediction is among the top tokens of U₀, by position (None: all together)."""
    if depths is None:
        return {}
    rows = depths.first_seen(top=min(top, depths.run.lm.outputs))
    rows = rows[(rows["part"] == STREAM) & rows["layer"].notna()]
    places = [None if pd.isna(t) else int(t) for t in rows["position"]]
    return dict(zip(places, map(int, rows["layer"]), strict=True))


# ------------------------------------------------------------------------------------------- side by side


def _compared(text: str | None, subjects: Sequence[_Subject], top: int) -> Comparison:
    """All tables, from the rows of the subjects."""
    tokens = [[row["token"] for row in s.tokens] for s in subjects]
    cuts: list[Span] = []
    members: list[list[list[int]]] = []  # stretch, subject, positions
    if all(own == tokens[0] for own in tokens):
        how, why = SAME_TOKENS, list[str]()
        members = [[[t]] * len(subjects) for t in range(len(tokens[0]))]
    else:
        how, why, cuts, members = _by_characters(text, subjects)
    whose = [{t: n for n, stretch in enumerate(members) for t in stretch[i]} for i in range(len(subjects))]
    stretches = []
    for n, stretch in enumerate(members):
        what = tokens[0][n] if how == SAME_TOKENS else (text or "")[slice(*cuts[n])]
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
    """Stretches of the prompt whose ends no token crosses, and the tokens of each subject in them."""
    if text is None:
        return (
            UNALIGNED,
            ["The models have different tokens, and only tokens of a text can be aligned by characters."],
            [],
            [],
        )
    unknown = sorted({s.model for s in subjects if s.spans is None})
    if unknown:
        return UNALIGNED, [f"The tokenizer of {m} gives no character offsets of its tokens." for m in unknown], [], []
    solid = [i for i, c in enumerate(text) if not c.isspace()]
    before = [0, *accumulate(not c.isspace() for c in text)]  # how many characters other than spaces
    spans = [[(before[lo], before[hi]) for lo, hi in s.spans or []] for s in subjects]
    across = {c for own in spans for lo, hi in own for c in range(lo + 1, hi)}
    cuts = [c for c in range(len(solid) + 1) if c not in across]
    members: list[list[list[int]]] = [[[] for _ in subjects] for _ in cuts[1:]]
    why = []
    for i, (s, own) in enumerate(zip(subjects, spans, strict=True)):
        for t, (lo, _) in enumerate(own):
            start, end = (s.spans or [])[t]
            if start == end or not members:
                why.append(f"Token {t} of {s.model}, {s.tokens[t]['token']!r}, has no characters in the prompt.")
                continue
            stretch = max(n for n, c in enumerate(cuts[:-1]) if c <= lo)  # a token of spaces joins what follows
            members[stretch][i].append(t)
    if len(solid) and len(members) == 1 and any(len(s.tokens) > 1 for s in subjects):
        why.append("The models' tokens have no common boundary inside the prompt, so the whole prompt is one stretch.")
    where = [(solid[lo], solid[hi - 1] + 1) for lo, hi in pairwise(cuts)]
    return BY_CHARACTERS, list(dict.fromkeys(why)), where, members


def _overlaps(subjects: Sequence[_Subject], members: Sequence[Sequence[Sequence[int]]]) -> list[Row]:
    """Jaccard's index of the first vectors' top tokens of each pair: all tokens together, and at each stretch.

    The top tokens of a stretch are those of all its tokens.
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
                others = [jaccard(a[n], b[m]) for m in range(len(members)) if m != n and members[m][j]]
                known = [v for v in others if v is not None]
                own = row(side, n, a[n], b[n])
                found.append(own | {"elsewhere": sum(known) / len(known) if known else None})
    return found
