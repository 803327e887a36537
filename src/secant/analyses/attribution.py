"""Exact additive attribution: a logit as the sum of what tokens, layers, heads and the model's constants contribute.

The held network is affine, so that a logit, or the difference of two, is a sum with no remainder, in two ways:

    logit = Σ_t g_t·x_t + Σ_m b_m                by where it comes from: g = Jᵀ e for the target's unit vector e, and
                                                 what each module's constants make of it, by all paths
    logit = g'·x + Σ_P g'_P·P + Σ_m b'_m          by what writes it: every part P of every layer, with what it adds to
                                                 the stream, taken straight to the logit; and constants outside parts

g' is the derivative with all parts held at what they add, so that no path goes through a later part ("direct"); g_P is
that by all paths. Both come from one backward pass. A part is the sum of what each token makes of it, P = Σ_t P_t +
b_P, which crosses the two: token x part, token x head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NotExact, checked
from secant.linearize.points import ActivationGraph, Point
from secant.linearize.replay import InjectedConstant
from secant.linearize.run import HIDDEN_OPERATION, LOGIT, Run
from secant.memory import limited
from secant.numeric import wide
from secant.operators.batched import Blocks
from secant.operators.operator import Graph
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View
from secant.text import visible

KIND = Column(
    "kind",
    str,
    "token, constant (these two sum to the logit); embed, layer, outside (these three too); head (of its layer)",
    heading="",
)
NAME = Column("name", str, "the token's text, the part's name, or the module that the constant is of", heading="",
              show="token")  # fmt: skip
PLACE = Column("position", int, "place of the token in the prompt, from 0; missing where it is no token", missing=True,
               heading="")  # fmt: skip
LAYER_OF = Column("layer", int, "the layer, from 0; missing where it is of none", missing=True)
HEAD = Column("head", int, "the attention head, from 0; missing where it is none", missing=True)
CONTRIBUTION = Column(
    "contribution", float, "what it adds to the logit: of tokens and constants by all paths, of parts straight", LOGIT,
    heading="logit", show="logit",
)  # fmt: skip
ALL_PATHS = Column(
    "all_paths", float, "what it adds to the logit by all paths, through later parts too; these overlap", LOGIT,
    heading="all paths", show="logit",
)  # fmt: skip

CONTRIBUTIONS = Table(
    "contributions",
    "something that contributes to the logit",
    (KIND, NAME, PLACE, LAYER_OF, HEAD, CONTRIBUTION, ALL_PATHS),
)
FLOW = Table(
    "flow",
    "what a token, or the constants, make of a part or head, by a path",
    (
        NAME.but(meaning="the part or head; or outside: constants that are in no part"),
        Column("path", str, "direct (straight to the logit) or all (through later parts too)"),
        PLACE.but(meaning="place of the token in the prompt, from 0; missing: the constants"),
        Column("token", str, "the token's text; missing: the constants", missing=True, show="token"),
        LAYER_OF,
        HEAD,
        Column("contribution", float, "what it adds to the logit by the path", LOGIT, show="logit"),
    ),
)

HEADS = 8
"""Heads that are shown first; all are in the tables."""


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """Contributions to the logit of `target`, or to its difference to that of `versus`, at a position.

    `table` has the columns kind, name, position, layer, head, contribution, all_paths. Its kinds are two sums of the
    logit: *token* and *constant* (by module); and *embed*, *layer* (what a part adds to the stream, straight to the
    logit) and *outside* (constants outside parts, by module). Those of kind *head* add up to their layer's attention.
    `all_paths`: the same by all paths, through later parts too, and through what the part itself adds later (RWKV's).
    `total` is the first sum, `direct` the second; both are `logit`, the model's own, to within rounding. `flow` crosses
    them: a row for each part or head, path (direct, all) and token, the constants' share with position missing; the
    rows of path direct that are no heads add up to the logit, constants outside parts (*outside*) among them.
    """

    schema = (CONTRIBUTIONS, FLOW)

    target: str
    versus: str | None
    logit: float
    total: float
    direct: float | None
    table: pd.DataFrame = field(repr=False)
    flow: pd.DataFrame | None = field(default=None, repr=False)
    position: int = -1

    @property
    def constant(self) -> float:
        """What the model's constants contribute, by all paths."""
        return float(self.of("constant")["contribution"].sum())

    def of(self, kind: str) -> pd.DataFrame:
        """The rows of one kind."""
        return self.table[self.table["kind"] == kind]

    def share(self, contribution: float) -> float:
        """A contribution as a share of the logit; NaN where that is 0."""
        return contribution / self.logit if self.logit else float("nan")

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its tables by name: contributions, and flow if there is one."""
        return {"contributions": self.table} | ({} if self.flow is None else {"flow": self.flow})

    def about(self) -> dict[str, Any]:
        """The target, where its logit is read, the logit, and both sums."""
        names = ("target", "versus", "position", "logit", "total", "direct")
        return {name: getattr(self, name) for name in names}

    def view(self) -> View:
        """Both sums of the logit, and the heads that contribute most to it."""
        versus = "" if self.versus is None else f" over {visible(self.versus)}"
        where = "" if self.position in (-1, len(self.of("token")) - 1) else f"   at position {self.position}"
        facts = {"logit": f"{visible(self.target)}{versus}   {self.logit:.4f}{where}"}
        origin = self.table[self.table["kind"].isin(["token", "constant"])]
        grids = [self._grid(origin, "where it comes from, by all paths")]
        if self.direct is None:
            return View("", facts, grids)
        writers = self.table[self.table["kind"].isin(["embed", "layer", "outside"])]
        grids.append(self._grid(writers, "what writes it, straight to the logit", direct=True))
        heads = self.of("head")
        if len(heads):
            order = heads["contribution"].abs().sort_values(ascending=False, kind="stable").index
            rest = f" that matter most, of {heads['head'].notna().sum()}" if len(heads) > HEADS else ""
            title = f"heads{rest}, straight to the logit"
            grids.append(self._grid(heads.reindex(order)[:HEADS], title, direct=True))
        remainder = max(abs(self.total - self.logit), abs(self.direct - self.logit))
        notes = [
            f"Both sums are the logit to {remainder:.0e}; heads add up to their layer's attention.",
            "All paths: what the part adds, taken through later parts too (of embed: everything); those overlap, and "
            "do not add up. Constants (biases, positions) are taken by all paths in the first sum; in the second those "
            "inside parts count with them.",
        ]
        if self.flow is not None:
            grids.append(self._crossed(self.flow))
            notes.append(
                "Rows of the last table add up to the part's share, columns to the token's. Dim: less than a twentieth "
                "of the logit. outside: constants that are in no part, such as positions and the final norm's bias."
            )
        return View("", facts, grids, notes)

    def _grid(self, rows: pd.DataFrame, title: str, direct: bool = False) -> Grid:
        """A line for each row: its contribution, its share, and a bar; constants of many modules are one line."""
        constants = rows[rows["kind"].isin(["constant", "outside"])]
        lines: list[list[Any]] = [
            [row.position, Cell(row.name, show="token"), row.contribution, row.all_paths]
            for row in rows.drop(constants.index).itertuples(index=False)
        ]
        if len(constants):
            of = f"{len(constants)} modules" if len(constants) > 1 else visible(constants["name"].iloc[0])
            lines.append([None, f"constants of {of}", *constants[["contribution", "all_paths"]].sum()])
        columns = [Shown("", "integer"), Shown("", most=28), Shown("logit", "logit"), Shown("share", "share")]
        columns += [Shown("all paths", "logit")] if direct else []
        shown = [
            [place, name, c, self.share(c), *([through] if direct else []), c] for place, name, c, through in lines
        ]
        return Grid([*columns, Shown("", "bar", spare=1)], shown, title)

    def _crossed(self, flow: pd.DataFrame) -> Grid:
        """Part x token: what each token, and the constants, make of each part, straight to the logit, with all sums."""
        rows = flow[(flow["path"] == "direct") & flow["head"].isna()]
        tokens = rows[rows["position"].notna()].drop_duplicates("position").sort_values("position")["token"].tolist()
        rows = rows.fillna({"position": len(tokens)})
        cells = rows.pivot_table("contribution", "name", "position", aggfunc="sum", sort=False).fillna(0.0)
        cells = cells[sorted(cells.columns)]
        cells.loc["sum"] = cells.sum()
        cells["sum"] = cells.sum(axis=1)
        headings = [Shown(token, "logit", most=9, token=True) for token in tokens]
        headings += [Shown("constants", "logit"), Shown("sum", "logit")]
        small = 0.05 * abs(self.logit)
        lines = [
            [name, *(Cell(v, "" if abs(v) >= small else "dim") for v in own)]
            for name, own in zip(cells.index, cells.to_numpy().tolist(), strict=True)
        ]
        title = "what each token makes of each part, straight to the logit"
        return Grid([Shown("part"), *headings], lines, title, keep=1)


@checked
def attribute(
    run: Run,
    target: str | SupportsIndex | None = None,
    versus: str | SupportsIndex | None = None,
    *,
    position: SupportsIndex = -1,
    parts: bool = True,
    flow: bool = False,
    max_memory: float | str | None = None,
) -> Attribution:
    """What every token, part, head and constant contributes to a next token's logit.

    Args:
        run: a prompt, frozen.
        target: a token by text or id, by default the one predicted at the position.
        versus: a token whose logit is taken off.
        position: where the logit is read, by default at the last token of the prompt.
        parts: also by layer and head, which takes more replays. A model whose layers can't be found has tokens and
            constants alone.
        flow: also token x part and token x head, which takes a product for each token.
        max_memory: bytes to work in, or such as "4GiB", by default half of what is free.

    Returns:
        Two exact sums of the logit, and with `flow` what crosses them.

    Raises:
        BadPrompt: a target is no token of the vocabulary.
        BadArgument: the prompt has no such position, or both tokens are the same.
        NotExact: a sum is not the logit.
    """
    at = run.rows(position)[0]
    chosen = _predicted(run, at) if target is None else run.lm.token(target)
    other = None if versus is None else run.lm.token(versus)
    if chosen == other:
        raise BadArgument("A token's logit is set against another's", f"{run.lm.text(chosen)!r} twice", "Choose two.")
    run.unchanged()
    with torch.inference_mode(False), torch.enable_grad(), limited(max_memory):
        return _attributed(run, at, chosen, other, parts or flow, flow)


def _predicted(run: Run, at: int) -> int:
    """The token predicted at a position; of equal ones the first, as in `run.prediction`."""
    return int(torch.sort(wide(run.logits[at]), descending=True, stable=True).indices[0])


def _attributed(run: Run, at: int, chosen: int, other: int | None, parts: bool, flow: bool) -> Attribution:
    """The attribution to one token's logit at a position, less another's."""
    e = torch.zeros_like(run.network.points["logits"][at]).detach()
    e[chosen] = 1
    if other is not None:
        e[other] -= 1
    logit = (wide(run.logits[at]) @ wide(e)).item()
    rows = _by_origin(run, at, e)
    total = sum(row["contribution"] for row in rows)
    direct, flows = None, None
    if parts:
        writers = _Writers.of(run.inside, at, e)
        written = writers.rows()
        direct = sum(row["contribution"] for row in written if row["kind"] != "head")
        rows += written
        flows = writers.flow(run.tokens) if flow else None
    _certify(run, logit, [sum_ for sum_ in (total, direct) if sum_ is not None], [row["contribution"] for row in rows])
    table = CONTRIBUTIONS.frame(pd.DataFrame(rows, columns=CONTRIBUTIONS.names))
    name = None if other is None else run.lm.text(other)
    return Attribution(run.lm.text(chosen), name, logit, total, direct, table, flows, at)


def _certify(run: Run, logit: float, sums: Sequence[float], terms: Sequence[float]) -> None:
    """Raises NotExact where a sum is off by more than the tolerance, of the sizes of its terms."""
    most = run.certificate.tolerance * (abs(logit) + sum(map(abs, terms)))
    for found in sums:
        if not abs(found - logit) <= most:
            raise NotExact("Contributions must add up to the logit", f"{found:.6g} for {logit:.6g}", HIDDEN_OPERATION)


def _row(kind: str, name: str, contribution: float, **where: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "contribution": contribution, "all_paths": contribution, **where}


def _dot(g: Tensor | None, x: Tensor) -> float:
    """g·x in float64; 0 where nothing of x gets there."""
    return 0.0 if g is None else (wide(g).flatten() @ wide(x).flatten()).item()


def _slopes(y: Tensor, inputs: Sequence[Any]) -> list[Tensor | None]:
    """The derivative of a number by tensors or edges of its graph."""
    return list(torch.autograd.grad(y, inputs, retain_graph=True, allow_unused=True)) if inputs else []


def _by_origin(run: Run, at: int, e: Float[Tensor, " vocabulary"]) -> list[dict[str, Any]]:
    """By tokens, and by the modules whose constants take part, by all paths."""
    network = run.network
    (gradient,) = _slopes(network.points["logits"][at] @ e, [network.input])
    x = network.input.detach()
    tokens = [0.0] * len(x) if gradient is None else (wide(gradient) * wide(x)).sum(1).tolist()
    rows = [_row("token", name, c, position=t) for t, (name, c) in enumerate(zip(run.tokens, tokens, strict=True))]
    zero, constants = network.at_zero
    return rows + _by_module("constant", zero["logits"][at], e, constants)


def _by_module(kind: str, logits: Tensor, e: Tensor, constants: Sequence[InjectedConstant]) -> list[dict[str, Any]]:
    """What the constants of each module contribute; those that do not reach the logit are left out."""
    found: dict[str, float] = defaultdict(float)
    for constant, slope in zip(constants, _slopes(logits @ e, [c.edge for c in constants]), strict=True):
        found[constant.module] += _dot(slope, constant.value)
    return [_row(kind, module, c) for module, c in found.items() if c]


_Key = tuple[str, int | None, int | None, str]


@dataclass(frozen=True)
class _Term:
    """What a name adds to the logit on a path: the derivative by some columns of one of the tensors that write."""

    name: str
    path: str
    layer: int | None
    head: int | None
    tensor: int
    slope: Tensor | None
    columns: slice | None = None

    @property
    def key(self) -> _Key:
        """What its contribution is counted under."""
        return self.name, self.layer, self.head, self.path

    def of(self, made: Float[Tensor, "T n c"]) -> list[float]:
        """Its contribution, where the tensor is each of c others."""
        if self.slope is None:
            return [0.0] * made.shape[2]
        chosen = self.columns or slice(None)
        return torch.einsum("tn,tnc->c", wide(self.slope[:, chosen]), wide(made[:, chosen])).tolist()


@dataclass(frozen=True, eq=False)
class _Writers:
    """What writes to the stream: the embeddings, the parts of each layer, and the heads of attentions.

    `tensors`: of the graph, `[T, n]`; `zeros`: the same of the network at zero. `terms` weigh them.
    """

    inside: ActivationGraph
    tensors: list[Tensor]
    zeros: list[Tensor]
    terms: list[_Term]
    outside: list[dict[str, Any]]

    @classmethod
    def of(cls, inside: ActivationGraph, at: int, e: Float[Tensor, " vocabulary"]) -> _Writers:
        """All slopes at once: a backward pass through the whole network, and one with its parts cut apart."""
        given, cut, (zero, constants) = inside.cut_at_parts()
        names = ["embed", *given]
        owners = [name for name in names for _ in inside.rows(name)]
        tensors = [rows for name in names for rows in inside.rows(name)]
        mixed = [name for name in names if f"{name}.heads" in inside.points]
        heads = [inside.graph[f"{name}.heads"] for name in mixed]
        whole, straight = inside.graph["logits"][at] @ e, cut["logits"][at] @ e
        every = _slopes(whole, [*tensors, *heads])
        direct = _slopes(straight, [inside.graph["embed"], *(leaf for leaves in given.values() for leaf in leaves)])
        direct += [_pulled(inside, name, direct[owners.index(name)]) for name in mixed]
        terms = [
            _Term(name, path, inside[name].layer, None, i, slopes[i])
            for i, name in enumerate(owners)
            for path, slopes in (("direct", direct), ("all", every))
        ] + [
            _Term(point.name, path, point.layer, head, i, slopes[i], point.columns)
            for i, name in enumerate(mixed, len(owners))
            for head, point in enumerate(_heads(inside, name))
            for path, slopes in (("direct", direct), ("all", every))
        ]
        zeros = [torch.zeros_like(tensors[0]), *(inside.zeros[s] for name in given for s in inside[name].steps)]
        zeros += [inside.biases[f"{name}.heads"] for name in mixed]
        outside = _by_module("outside", zero["logits"][at], e, constants)
        return cls(inside, [*tensors, *heads], zeros, terms, outside)

    def weighed(self, made: Sequence[Float[Tensor, "T _ c"]]) -> dict[_Key, list[float]]:
        """The contributions of all names by path, where the tensors are each of c others."""
        found: dict[_Key, list[float]] = {}
        for term in self.terms:
            key, own = term.key, term.of(made[term.tensor])
            found[key] = [a + b for a, b in zip(found[key], own, strict=True)] if key in found else own
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row for the embeddings' own way, each part, each head, what the heads of a layer share, and constants."""
        found = self.weighed([t.detach()[:, :, None] for t in self.tensors])
        rows = []
        for (name, layer, head, path), (contribution,) in found.items():
            if path == "direct":
                (through,) = found[name, layer, head, "all"]
                kind = "embed" if name == "embed" else "layer" if head is None else "head"
                rows.append(_row(kind, name, contribution, layer=layer, head=head, all_paths=through))
        return rows + self._shared() + self.outside

    def _shared(self) -> list[dict[str, Any]]:
        """What an attention adds whatever its heads make: the constant of its output, from the network at zero."""
        inside, rows = self.inside, []
        for name in dict.fromkeys(term.name for term in self.terms):
            if f"{name}.heads" in inside.points:
                heads = Graph(inside.graph[f"{name}.heads"], inside.graph[name].flatten())
                zero = inside.biases[name]
                alone = zero - heads.forward(inside.biases[f"{name}.heads"].reshape(-1, 1)).view(zero.shape)
                direct, through = (term.of(alone[:, :, None])[0] for term in self.terms if term.name == name)
                if direct or through:
                    rows.append(_row("head", f"{name} constant", direct, layer=inside[name].layer, all_paths=through))
        return rows

    def flow(self, tokens: Sequence[str]) -> pd.DataFrame:
        """What each token, and the constants, make of each part and head, taken to the logit by each path."""
        x = self.inside.network.input
        T, names = len(x), {term.key for term in self.terms}
        graph = self.inside.network.graph(x, torch.cat([t.flatten() for t in self.tensors]))
        found = self._pulled_back(graph) if len(names) < T else self._pushed(graph)
        constants = self.weighed([zero[:, :, None] for zero in self.zeros])
        rows = [
            (name, path, t, token, layer, head, value)
            for (name, layer, head, path), values in found.items()
            for t, token, value in zip(
                [*range(T), None], [*tokens, None], values + constants[name, layer, head, path], strict=True
            )
        ]
        beside = sum(row["contribution"] for row in self.outside)
        rows.append(("outside", "direct", None, None, None, None, beside))
        return FLOW.frame(rows)

    def _pushed(self, graph: Graph) -> dict[_Key, list[float]]:
        """What each token makes of each name, from a product with J for each token."""
        x = self.inside.network.input.detach()
        T, shape = len(x), (graph.y.numel(), x.numel())
        found: dict[_Key, list[float]] = defaultdict(list)
        for start in range(0, T, graph.batch_size):
            places = range(start, min(start + graph.batch_size, T))
            columns = Blocks(graph, shape, T, places, x).forward(x[start : places.stop, :, None])[:, :, 0].T
            made = columns.split([t.numel() for t in self.tensors])
            shaped = [part.reshape(*t.shape, -1) for part, t in zip(made, self.tensors, strict=True)]
            for key, values in self.weighed(shaped).items():
                found[key] += values
        return found

    def _pulled_back(self, graph: Graph) -> dict[_Key, list[float]]:
        """The same from a product with Jᵀ for each name, of which a long prompt has fewer than tokens."""
        x = self.inside.network.input
        keys = list(dict.fromkeys(term.key for term in self.terms))
        found: dict[_Key, list[float]] = {}
        for start in range(0, len(keys), graph.batch_size):
            some = {key: i for i, key in enumerate(keys[start : start + graph.batch_size])}
            slopes = [t.new_zeros(*t.shape, len(some)) for t in self.tensors]
            for term in self.terms:
                if term.key in some and term.slope is not None:
                    chosen = term.columns or slice(None)
                    slopes[term.tensor][:, chosen, some[term.key]] += term.slope[:, chosen]
            pulled = graph.adjoint(torch.cat([s.flatten(0, 1) for s in slopes])).view(*x.shape, -1)
            values = torch.einsum("td,tdk->kt", wide(x), wide(pulled))
            found |= dict(zip(some, values.tolist(), strict=True))
        return found


def _heads(inside: ActivationGraph, name: str) -> list[Point]:
    """The heads of an attention."""
    return [point for n, point in inside.points.items() if point.columns and n.startswith(f"{name}.heads.")]


def _pulled(inside: ActivationGraph, name: str, slope: Tensor | None) -> Tensor | None:
    """A derivative by what an attention adds, as one by what its heads make of the values."""
    if slope is None:
        return None
    heads = inside.graph[f"{name}.heads"]
    return Graph(heads, inside.graph[name].flatten()).adjoint(slope.reshape(-1, 1)).view(heads.shape)
