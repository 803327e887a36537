"""The lens: what the model would predict at every depth, and what each token of the prompt contributes to that.

The residual stream after a layer, and what each part of a layer adds to it, are read out as logits by the final norm,
at the activation's own statistics, and the head (logit lens: nostalgebraist, 2020). Each readout is affine once its
norm is frozen, and the activation is affine in the embeddings, so the logit of a token at any depth is an exact sum of
what the tokens of the prompt contribute there, and of constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.analyses.origins import origin_of
from secant.analyses.sinks import Selective
from secant.analyses.targets import target_of
from secant.analyses.terms import functional
from secant.errors import BadArgument, NoPoint, NotExact, checked, integer
from secant.linearize.certificate import HIDDEN_OPERATION
from secant.linearize.run import Run
from secant.memory import Progress, limited
from secant.numeric import wide
from secant.operators.operator import Graph
from secant.results.columns import LOGIT, POSITION, PROBABILITY, TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, Style, View
from secant.stream.depths import LAYER, PART
from secant.stream.sweep import STREAM, depths, part_of
from secant.stream.words import RANK, WORD, WORD_ID
from secant.text import count, excerpt, visible

LENS = Table(
    "lens",
    "a layer, a part, and a position, read out as logits",
    (
        LAYER,
        PART,
        POSITION,
        TOKEN,
        PROBABILITY.but(meaning="the probability of the target"),
        Column("rank", int, "how many tokens have a higher logit than the target"),
        Column("logit", float, "the target's logit, measured from the baseline", LOGIT, show="logit"),
        Column("top", str, "the token of the highest logit", heading="top token", show="token"),
        PROBABILITY.but(name="top_probability", meaning="its probability"),
    ),
)
AT = Column("at", int, "the position that is read out, from 0")
LENS_WORDS = Table(
    "lens_words",
    "a likely token at a layer and part, at a position that is read out",
    (LAYER, PART, AT, RANK.but(meaning="rank among the tokens, from 0"), WORD, WORD_ID, PROBABILITY),
)
LENS_TERMS = Table(
    "lens_terms",
    "what a token contributes to the target's logit at a layer and part, at a position that is read out",
    (
        LAYER,
        PART,
        AT,
        POSITION.but(meaning="place of the token in the prompt, from 0; missing: the constants", missing=True),
        Column("token", str, "the token's text; missing: the constants", missing=True, show="token"),
        Column("contribution", float, "what it contributes; all of a layer, part and `at` sum to the logit", LOGIT,
               show="logit"),
    ),
)  # fmt: skip

PLACE = "A lens is of the prompt's tokens"

DEPTHS = 8
"""The number of depths in one batched pass, which costs as much for each depth as for the deepest of them."""

ELEMENTS = 2**26
"""The approximate maximum of logits in a batch."""


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Selective, Result):
    """What the model would predict at every depth.

    Attributes:
        target: The text of the token that is followed.
        positions: The positions whose readouts are split into contributions. Views show the first one.
        tokens: The prompt's tokens.
        convention: The label of the convention of the contributions.
        baseline: What logits are measured from.
        table: A row for each layer, part and position: probability, rank and logit of the target, and the top token.
        words: The likely tokens of each layer and part at each of these positions.
        terms: What each token, and the constants, contribute to the target's logit at each layer, part and position.
        left_out: The positions of tokens that views leave out.

    """

    schema = (LENS, LENS_WORDS, LENS_TERMS)

    target: str
    positions: tuple[int, ...]
    tokens: list[str]
    convention: str
    baseline: str
    table: pd.DataFrame
    words: pd.DataFrame
    terms: pd.DataFrame
    left_out: tuple[int, ...] = ()

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        depths = count(int(self.table["layer"].nunique()), "layer")
        return [visible(self.target), excerpt("".join(self.tokens)), depths, f"convention {self.convention}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `lens`, `lens_words` and `lens_terms`."""
        return {"lens": self.table, "lens_words": self.words, "lens_terms": self.terms}

    def about(self) -> dict[str, Any]:
        """Returns the target, the positions, the convention and the baseline."""
        return {
            "target": self.target,
            "positions": list(self.positions),
            "convention": self.convention,
            "baseline": self.baseline,
        }

    def at(self, part: str = STREAM, position: SupportsIndex | None = None) -> pd.DataFrame:
        """Returns the rows of the lens at a position, layer by layer.

        Args:
            part: The part of the layers; by default the residual stream.
            position: The position, of any token; by default the first that is split into contributions.

        Raises:
            BadArgument: The prompt does not have the position.

        """
        return self.table[(self.table["part"] == part) & (self.table["position"] == self._place(position))]

    def contributions(self, part: str = STREAM, position: SupportsIndex | None = None) -> pd.DataFrame:
        """Returns contributions to the target's logit as layer x token; the last column has the constants.

        Args:
            part: The part of the layers; by default the residual stream.
            position: The position that is read out; by default the first that is split into contributions.

        Raises:
            BadArgument: The lens is not split at the position.

        """
        at = self._place(position)
        if at not in self.positions:
            known = ", ".join(map(str, self.positions))
            raise BadArgument(
                f"This lens has contributions at positions {known}", str(at), f"Use sc.lens(run, position={at})."
            )
        own = self.terms[(self.terms["part"] == part) & (self.terms["at"] == at)]
        own = own.fillna({"position": len(self.tokens)})
        return own.pivot_table("contribution", "layer", "position", sort=True)

    def _place(self, position: SupportsIndex | None) -> int:
        """A position from 0; by default the first that is split. Raises BadArgument if the prompt lacks it."""
        T = len(self.tokens)
        return self.positions[0] if position is None else integer(position, -T, T - 1, PLACE) % T

    def view(self) -> View:
        """Shows the stream layer by layer: the top token, the target's probability and rank, and who contributes."""
        terms = self.contributions().drop(columns=list(self.left_out))
        tokens = [token for t, token in enumerate(self.tokens) if t not in self.left_out]
        columns = [Shown("layer", "integer"), Shown("top token", "token", most=14), Shown("p", "percent")]
        columns += [Shown(f"p {visible(self.target)}", "percent"), Shown("rank", "integer"), Shown("logit", "logit")]
        columns += [Shown(token, "logit", most=9, token=True) for token in tokens]
        if constant := bool(terms.iloc[:, -1].any()):
            columns.append(Shown("constants", "logit"))
        rows = []
        for row, own in zip(self.at().itertuples(index=False), terms.to_numpy().tolist(), strict=True):
            own = own if constant else own[:-1]
            most = max(map(abs, own), default=0.0)
            styles: list[Style] = ["strong" if abs(v) == most else "" if abs(v) > most / 10 else "dim" for v in own]
            cells = map(Cell, own, styles)
            strong: Style = "strong" if row.rank == 0 else ""
            rows.append(
                [row.layer, row.top, row.top_probability, Cell(row.probability, strong), row.rank, row.logit, *cells]
            )
        facts = {"target": f"{visible(self.target)} at position {self.positions[0]}", "convention": self.convention}
        notes = [
            "Each row: the residual stream after a layer, read out as logits by the final norm, at its own statistics. "
            "The contributions of the tokens and constants in a row sum to its logit.",
            *([self.note] if self.note else []),
        ]
        return View("The lens", facts, [Grid(columns, rows, keep=6)], notes)


@checked
def lens(
    run: Run,
    target: str | SupportsIndex | None = None,
    *,
    position: SupportsIndex | Sequence[SupportsIndex] | slice | None = -1,
    parts: bool = False,
    top: int = 8,
    baseline: str = "vocabulary",
    origin: str | Tensor | None = None,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Lens:
    """Returns what the model would predict at every depth, and what each token contributes to it.

    Contributions are those of the run's own convention. They take one product with Jᵀ for each layer, part and
    position.

    Args:
        run: The run.
        target: The token that is followed, by its text or id; by default the one predicted at the first position.
        position: The positions whose readouts are split into contributions; by default the last. None: all.
        parts: Whether what attentions and MLPs add is read out too.
        top: The number of likely tokens of each layer and part.
        baseline: What logits are measured from, as in `attribute`.
        origin: What contributions of tokens are measured from, as in `attribute`.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress("lens", done, all)`, in layers and parts.

    Raises:
        BadPrompt: The vocabulary does not have a token.
        BadArgument: An argument is out of range.
        NoPoint: The model's layers can't be found, or the last one is not followed by a norm and a head that act on
            each position separately.
        NotExact: A sum does not equal its logit.
        ReplayMismatch: The model has changed since the run was frozen.

    """
    positions = tuple(dict.fromkeys(run.rows(position)))
    top = integer(top, 1, 10**9, "A depth has at least one likely token", "top = ")
    run.unchanged()
    with torch.inference_mode(False), torch.enable_grad(), limited(max_memory):
        wanted = target_of(run, positions[0], target, None, baseline, None)
        token = int(wanted.weights.argmax())
        if run.lm.text(token) != wanted.name:
            raise BadArgument("The lens follows one token", wanted.label, "Name one.")
        run.found_layers("Report the model's type.")
        inside = run.inside
        names = depths(inside, parts)
        base = wide(origin_of(run, origin).embeddings)
        table, words, terms = list[Any](), list[Any](), list[Any]()
        for done, (name, logits, splits) in enumerate(_readouts(run, names, positions, wanted.weights, base), 1):
            key = inside[name].layer, part_of(name)
            scored = wide(logits)
            likely = torch.softmax(scored, 1)
            own = scored[:, token]
            measured = (scored @ wide(wanted.weights)).tolist()
            ranks = (scored > own[:, None]).sum(1).tolist()
            best = scored.argmax(1)
            for t, text in enumerate(run.tokens):
                i = int(best[t])
                table.append((*key, t, text, likely[t, token].item(), ranks[t], measured[t], run.lm.text(i),
                              likely[t, i].item()))  # fmt: skip
            for at, (values, rest) in zip(positions, splits, strict=True):
                order = torch.sort(scored[at], descending=True, stable=True).indices[: min(top, scored.shape[1])]
                words += [(*key, at, r, run.lm.text(i), i, likely[at, i].item()) for r, i in enumerate(order.tolist())]
                _certify(run, name, measured[at], [*values, rest])
                of = zip(range(len(values)), run.tokens, values, strict=True)
                terms += [(*key, at, t, text, value) for t, text, value in of]
                terms.append((*key, at, None, None, rest))
            if progress:
                progress("lens", done, len(names))
    return Lens(
        run.lm.text(token), positions, run.tokens, run.certificate.convention, wanted.baseline, LENS.frame(table),
        LENS_WORDS.frame(words), LENS_TERMS.frame(terms),
    )  # fmt: skip


def _certify(run: Run, name: str, value: float, terms: Sequence[float]) -> None:
    """Raises NotExact if contributions do not sum to a logit, relative to the sizes of the terms."""
    if not abs(sum(terms) - value) <= run.certificate.tolerance * (abs(value) + sum(map(abs, terms))):
        raise NotExact(f"Contributions at {name} must sum to its logit", f"{sum(terms):.6g}, not {value:.6g}",
                       HIDDEN_OPERATION)  # fmt: skip


def _readouts(
    run: Run,
    names: Sequence[str],
    positions: Sequence[int],
    e: Float[Tensor, " vocabulary"],
    base: Float[Tensor, "T d"],
) -> Iterator[tuple[str, Float[Tensor, "T vocabulary"], list[tuple[list[float], float]]]]:
    """Yields the logits of each activation and, for each position, what tokens and constants contribute to a functional
    of these logits, measured from base embeddings.
    """
    T, size = run.logits.shape
    splits = _splits(run, [(name, at) for name in names for at in positions], e, base, max(1, ELEMENTS // size))
    group = max(1, ELEMENTS // (T * size))
    for start in range(0, len(names), group):
        some = names[start : start + group]
        for name, values in zip(some, run.inside.read_out(some, head=True), strict=True):
            yield name, values["logits"], [splits[name, at] for at in positions]


def _splits(
    run: Run,
    where: Sequence[tuple[str, int]],
    e: Float[Tensor, " vocabulary"],
    base: Float[Tensor, "T d"],
    group: int,
) -> dict[tuple[str, int], tuple[list[float], float]]:
    """What tokens contribute to a functional of the logits of activations at positions, and what the constants do, by
    name and position. So many are read out together as are a group.
    """
    inside, found = run.inside, dict[tuple[str, int], tuple[list[float], float]]()
    moved = wide(run.network.input) - base
    for start in range(0, len(where), group):
        for some, readout, rows in inside.readouts(where[start : start + group], head=True):
            value = functional(readout.points["logits"][rows], e)
            (slopes,) = torch.autograd.grad(value.sum(), readout.input, retain_graph=True)
            if slopes.index_fill(0, torch.tensor(rows, device=slopes.device), 0).any():
                raise NoPoint(
                    "The lens requires a final norm and a head that act on each position separately",
                    "operations that mix positions", "Use run.operator(..., readout='norm').",
                )  # fmt: skip
            constants = functional(readout.biases["logits"][rows], e).tolist()
            for few in range(0, len(some), DEPTHS):
                here, own = some[few : few + DEPTHS], slopes[rows[few : few + DEPTHS]]
                for (name, at), slope, through, constant in zip(
                    here, own, wide(_adjoints(run, here, own)), constants[few : few + DEPTHS], strict=True
                ):
                    rest = constant + float(wide(inside.biases[name][at]) @ wide(slope))
                    found[name, at] = ((through * moved).sum(1).tolist(), rest + float((through * base).sum()))
    return found


def _adjoints(run: Run, where: Sequence[tuple[str, int]], slopes: Float[Tensor, "n width"]) -> Float[Tensor, "n T d"]:
    """Jᵀ u for each activation, with its Jacobian J and one vector u, all in one batched pass."""
    x = run.network.input
    y = torch.stack([run.inside.graph[name][at] for name, at in where])
    vectors = torch.zeros(len(where), *y.shape, dtype=y.dtype, device=y.device)
    vectors[range(len(where)), range(len(where))] = slopes.to(vectors)
    return Graph(x, y).adjoint(vectors.flatten(1).T).T.view(len(where), *x.shape)
