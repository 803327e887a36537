"""What is on the page, as plain data: numbers, names, and words by their place in a list of texts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
from torch import Tensor

from secant.analyses.attribution import Attribution
from secant.analyses.continuation import Steps
from secant.analyses.explain import Evidence, Explanation
from secant.operators.decomposition import SVD
from secant.stream.decode import Null, Word
from secant.stream.layers import Layers
from secant.text import named, visible

POINTS = 512
"""Units of y that are shown beside what rebuilds them, evenly spaced."""

WORDS = 20_000
"""Decoded words of all depths that a page has room for; long prompts get fewer of each vector."""

Entry = list[float | int | None]  # a word's place among the texts, its score, and its z


@dataclass
class Texts:
    """Texts as they are shown, each once, in order of first use."""

    all: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, token: str) -> int:
        """Where a token's text is in the list."""
        text = shown(token)
        if text not in self.places:
            self.places[text] = len(self.all)
            self.all.append(text)
        return self.places[text]

    def words(self, words: Sequence[Word]) -> list[Entry]:
        """Decoded words."""
        return [[self.place(w.token), brief(w.score), brief(w.z)] for w in words]


def shown(token: str) -> str:
    """A token so that all of it can be seen; an accent that comes alone gets something to stand on."""
    text = visible(token)
    return f"\N{DOTTED CIRCLE}{text}" if text and unicodedata.category(text[0]).startswith("M") else text


def brief(number: float | None, digits: int = 4) -> float | None:
    """A number to so many digits; None where there is none."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.{digits}g}")


def contents(e: Explanation, evidence: Evidence) -> dict[str, Any]:
    """All that the page shows. What an explanation does not have is None."""
    texts, run = Texts(), e.run
    page = {
        "model": named(run.lm.name),
        "tokens": [{"text": texts.place(token), "id": i} for token, i in zip(run.tokens, run.ids, strict=True)],
        "prediction": [{**asdict(p), "token": texts.place(p.token)} for p in run.prediction],
        "certificate": asdict(run.certificate),
        "sums": [_sum(a, texts) for a in (evidence.attribution, *evidence.versus)],
        "parts": _parts(evidence.attribution, texts),
        "flow": _flow(evidence.attribution),
        "blocks": [
            {
                **_spectrum(f),
                "norm": norm,
                "writes": [texts.words(words) for words in out],
                "reads": [texts.words(words) for words in into],
            }
            for f, norm, out, into in zip(e.svds, e.norms, e.outputs, e.inputs, strict=True)
        ],
        "chance": {"writes": _chance(evidence.writes), "reads": _chance(evidence.reads)},
        "depths": None if e.layers is None else _depths(e.layers, evidence, texts),
        "shape": list(evidence.shape),
        "image": None if evidence.image is None else _image(evidence.image),
        "rebuilt": _rebuilt(evidence),
        "steps": None if e.steps is None else _steps(e.steps, texts),
        "how": {
            "device": str(run.lm.device),
            "seconds": {what: brief(seconds, 3) for what, seconds in e.seconds.items()},
            "memory": e.memory,
            "solvers": sorted({f.solver for f in e.svds}),
            "seed": run.seed,
        },
    }
    return {**page, "texts": texts.all}


def _sum(a: Attribution, texts: Texts) -> dict[str, Any]:
    """A logit, or a difference of two, and what tokens and constants contribute to it, in full precision."""
    return {
        "target": texts.place(a.target),
        "versus": None if a.versus is None else texts.place(a.versus),
        "logit": a.logit,
        "total": a.total,
        "tokens": a.of("token")["contribution"].tolist(),
        "constant": a.constant,
    }


def _parts(a: Attribution, texts: Texts) -> list[dict[str, Any]] | None:
    """What writes the logit: embeddings, parts of layers, constants outside them; and heads."""
    if a.direct is None:
        return None
    rows = a.table[~a.table["kind"].isin(["token", "constant"])]
    return [
        {
            "kind": row.kind,
            "name": texts.place(row.name),
            "layer": _place(row.layer),
            "head": _place(row.head),
            "direct": row.contribution,
            "through": row.all_paths,
        }
        for row in rows.itertuples(index=False)
    ]


def _flow(a: Attribution) -> list[dict[str, Any]] | None:
    """What each token contributes by way of the embeddings' own path, and of each layer's parts, straight to the
    logit. Over all rows they add up to the token's contribution.
    """
    if a.flow is None:
        return None
    rows = a.flow[(a.flow["path"] == "direct") & a.flow["head"].isna() & a.flow["position"].notna()]
    cells = rows.assign(layer=rows["layer"].fillna(-1)).pivot_table("contribution", "layer", "position", "sum")
    return [
        {"layer": None if layer < 0 else int(layer), "tokens": [brief(v, 7) for v in row]}
        for layer, row in zip(cells.index, cells.to_numpy().tolist(), strict=True)
    ]


def _spectrum(f: SVD) -> dict[str, Any]:
    return {
        "S": [brief(s, 6) for s in f.S.tolist()],
        "rank": brief(f.stable_rank),
        "frobenius": brief(f.frobenius),
        "groups": [[block.start, block.stop] for block in f.blocks],
    }


def _chance(null: Null) -> dict[str, Any]:
    return {
        "samples": len(null.words),
        "mean": [brief(m) for m in null.mean.tolist()],
        "std": [brief(s) for s in null.std.tolist()],
    }


def _image(image: Tensor) -> list[list[list[float | None]]]:
    return [[[brief(c, 3) for c in block] for block in row] for row in image.tolist()]


def _rebuilt(evidence: Evidence) -> dict[str, Any]:
    d = len(evidence.output)
    units = sorted({i * d // min(d, POINTS) for i in range(min(d, POINTS))})
    every = {"output": evidence.output, "rebuilt": evidence.rebuilt, "ordinary": evidence.ordinary}
    return {"units": units} | {name: [brief(v, 6) for v in own[units].tolist()] for name, own in every.items()}


def _depths(layers: Layers, evidence: Evidence, texts: Texts) -> dict[str, Any]:
    """The first word of each block at every depth; of the stream from the embeddings on, whole blocks."""
    stream = [d for d in layers.depths if (d.part, d.span) == ("residual", "cumulative")]
    T, count = len(layers.run.ids), len(stream)
    kept = max((len(f.S) for d in stream for f in d.tokens), default=0)
    each = WORDS // max(1, 2 * T * count)  # of both sides of a block
    vectors = max(1, min(kept, each // 4))
    top = max(1, min(len(evidence.writes.mean), each // vectors))
    words = replace(layers, depths=stream).words(top=top, vectors=vectors)
    blocks = [
        [{**_spectrum(f), **{side: [[] for _ in range(min(vectors, len(f.S)))] for side in ("writes", "reads")}}
         for f in d.tokens]
        for d in stream
    ]  # fmt: skip
    where = {d.layer: i for i, d in enumerate(stream)}
    nulls = {"output": ("writes", evidence.writes), "input": ("reads", evidence.reads)}
    together: list[list[Entry]] = [[] for _ in stream]
    for w in words.itertuples(index=False):
        side, null = nulls[w.side]
        z = (w.score - null.mean[w.rank]) / null.std[w.rank]
        entry: Entry = [texts.place(w.word), brief(w.score), brief(z.item())]
        if not pd.isna(w.position):
            blocks[where[w.layer]][w.position][side][w.vector].append(entry)
        elif w.vector == 0:
            together[where[w.layer]].append(entry)
    table = layers.to_pandas()
    whole = table[table["position"].isna()]
    return {
        "layers": [d.layer for d in stream],
        "position": layers.position,
        "method": layers.method,
        "vectors": vectors,
        "top": top,
        "blocks": blocks,
        "together": together,
        "map": [view for d in _views(layers) if (view := _map(layers, *d, texts)) is not None],
        "ranks": [
            {"layer": r.layer, "part": r.part, "span": r.span, "rank": brief(r.stable_rank), "sigma": brief(r.sigma_0)}
            for r in whole.itertuples(index=False)
        ],
        "path": _records(layers.path()) if kept > 1 and stream[0].whole is not None else None,
        "coupling": _records(layers.coupling()) if layers.couplings else None,
        "reconstruction": brief(max(d.reconstruction for d in layers.depths)),
    }


def _views(layers: Layers) -> list[tuple[str, str]]:
    """Parts and spans, the stream from the embeddings first."""
    found = dict.fromkeys((d.part, d.span) for d in layers.depths)
    return sorted(found, key=lambda view: (view[1] != "cumulative", view[0] != "residual"))


def _map(layers: Layers, part: str, span: str, texts: Texts) -> dict[str, Any] | None:
    """The words of the first left singular vector of each block: a row each layer, a cell each token."""
    own = [replace(d, whole=None) for d in layers.depths if (d.part, d.span) == (part, span)]
    if not own:
        return None
    cells: dict[tuple[int, int], list[int]] = {}
    for w in replace(layers, depths=own).words(top=3, sides=["output"]).itertuples(index=False):
        cells.setdefault((w.layer, w.position), []).append(texts.place(w.word))
    return {
        "part": part,
        "span": span,
        "rows": [{"layer": d.layer, "cells": [cells.get((d.layer, t), []) for t in range(len(d.tokens))]} for d in own],
    }


def _steps(steps: Steps, texts: Texts) -> dict[str, Any]:
    shares = steps.shares()
    return {
        "tokens": [texts.place(token) for token in steps.tokens],
        "prompt": steps.prompt,
        "ended": steps.ended,
        "rows": [
            {
                "token": texts.place(step.prediction.token),
                "probability": step.prediction.probability,
                "reconstruction": step.certificate.reconstruction,
                "shares": [brief(share) for share in shares.iloc[i].tolist()],
            }
            for i, step in enumerate(steps.steps)
        ],
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: brief(v, 5) if isinstance(v, float) else v for name, v in row.items()}
        for row in table.to_dict("records")
    ]


def _place(number: Any) -> int | None:
    return None if pd.isna(number) else int(number)
