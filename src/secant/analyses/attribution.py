"""Exact attribution: a logit as a sum of contributions of tokens, layers, heads and the model's constants.

The frozen network is affine, so a logit, or any other linear functional e of the logits, is a sum without a remainder,
in two ways.

    logit = Σ_t g_t·(x_t - x₀_t) + g·x₀ + Σ_m b_m attribution to the input: g = Jᵀ e, and b_m for the constants of
                                                  module m, both along all paths
    logit = g'·x + Σ_P g'_P·P + Σ_m b'_m          direct logit attribution: P is what a part of a layer adds to the
                                                  residual stream, b'_m are the constants of modules outside parts

g' is the derivative with the output of every part frozen, so that no path passes through a later part ("direct"). g_P,
the derivative along all paths, gives a second contribution of each part. g' and g_P take one backward pass each. What a
part adds is itself a sum over tokens, P = Σ_t P_t + b_P, which combines the two sums: token x part and token x head.

By default a logit is measured from the vocabulary's mean logit, because adding a constant to all logits does not change
the softmax. Contributions of tokens are measured from an origin x₀; unless x₀ is zero, g·x₀ is one more constant.

A direction, or an activation inside the network, has only the first sum, with b as one constant.

`attribute` returns both sums as one table, and the combined contributions as another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import pandas as pd
import torch
from torch import Tensor

from secant.analyses.origins import Origin, origin_line, origin_of
from secant.analyses.sinks import Selective
from secant.analyses.targets import BASELINES, Target, target_of
from secant.analyses.terms import ORIGIN, Parts, dot, entry, input_rows, slopes_by_input, token_rows
from secant.errors import BadArgument, NotExact, checked, integer
from secant.linearize.certificate import HIDDEN_OPERATION
from secant.linearize.conventions import Named, convention_named
from secant.linearize.run import Run
from secant.memory import limited
from secant.numeric import wide
from secant.results.columns import CONVENTION, LOGIT, POSITION, TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Cell, Grid, Shown, View
from secant.text import count, visible

KIND = Column(
    "kind",
    str,
    "token, constant (these two sum to the logit); embed, layer, outside (so do these three); head (of its layer)",
    heading="",
)
NAME = Column(
    "name", str,
    "the token's text, the part's name, or the module that has the constant; origin: the constant J x₀ of the "
    "embeddings x₀ that contributions are measured from", heading="", show="token",
)  # fmt: skip
PLACE = Column("position", int, "place of the token in the prompt, from 0; missing for all else", missing=True,
               heading="")  # fmt: skip
LAYER_OF = Column("layer", int, "the layer, from 0; missing where there is none", missing=True)
HEAD = Column("head", int, "the attention head, from 0; missing for all else", missing=True)
CONTRIBUTION = Column(
    "contribution", float, "what it adds to the logit: tokens and constants along all paths, parts directly", LOGIT,
    heading="logit", show="logit",
)  # fmt: skip
ALL_PATHS = Column(
    "all_paths", float, "what it adds to the logit along all paths, also through later parts; these overlap", LOGIT,
    heading="all paths", show="logit",
)  # fmt: skip

CONTRIBUTIONS = Table(
    "contributions",
    "something that contributes to the logit",
    (KIND, NAME, PLACE, LAYER_OF, HEAD, CONTRIBUTION, ALL_PATHS),
)
FLOW = Table(
    "flow",
    "the contribution of a token, or of the constants, through a part or head, along one kind of path",
    (
        NAME.but(meaning="the part or head; outside: constants outside parts"),
        Column("path", str, "direct (straight to the logit) or all (also through later parts)"),
        PLACE.but(meaning="place of the token in the prompt, from 0; missing: the constants, J x₀ + b"),
        Column("token", str, "the token's text; missing: the constants", missing=True, show="token"),
        LAYER_OF,
        HEAD,
        Column("contribution", float, "what it adds to the logit along this kind of path", LOGIT, show="logit"),
    ),
)

EFFECT = Column(
    "effect", float, "how much the model's own logit drops if the token is deleted; missing if it was not", LOGIT,
    heading="deleted", show="logit", missing=True,
)  # fmt: skip

BESIDE = Table(
    "by_convention",
    "a token's contribution under a convention",
    (CONVENTION, POSITION, TOKEN, Column("contribution", float, "what the token contributes", LOGIT, show="logit")),
)
DELETION = Table("deletion", "a token that was deleted", (POSITION, TOKEN, EFFECT))

SMALL = 0.1
"""Contributions have shares if their sum exceeds this fraction of the sum of their absolute values."""

REFERENCES = 4
"""The number of random references over which contributions are averaged by default."""

HEADS_SHOWN = 8
"""The number of heads that views show; the tables have all."""


def by_convention(tokens: Sequence[str], every: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Returns the table of contributions under several conventions.

    Args:
        tokens: The prompt's tokens.
        every: The contribution of each token, by the convention's label.

    """
    rows = [(label, t, tokens[t], value) for label, own in every.items() for t, value in enumerate(own)]
    return BESIDE.frame(rows)


def by_deletion(tokens: Sequence[str], effects: Sequence[float]) -> pd.DataFrame:
    """Returns the table of deletions.

    Args:
        tokens: The prompt's tokens.
        effects: How much the model's own logit drops without each token.

    """
    return DELETION.frame(zip(range(len(tokens)), tokens, effects, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Selective, Result):
    """Contributions to a token's logit, or to whatever else is attributed, at one position.

    Attributes:
        target: The token's text, or what else is attributed.
        versus: The text of the token whose logit is subtracted, if there is one.
        logit: The model's own value of what is attributed: the logit less its baseline.
        total: The sum of the rows of kind token and constant; `logit` to within rounding.
        direct: The sum of the rows of kind embed, layer and outside; `logit` to within rounding. None without parts.
        table: A row for each contribution, with the columns kind, name, position, layer, head, contribution, all_paths.
            Rows of kind *token* and *constant* (by module) contribute along all paths. Unless contributions are
            measured from zero, the constant named origin is J x₀. Rows of kind *embed*, *layer* (what a part adds to
            the residual stream) and *outside* (constants outside parts, by module) contribute along the direct path.
            Rows of kind *head* sum to their layer's attention. `all_paths` is the contribution along all paths: also
            through later parts, and through what the part itself adds at later positions (RWKV).
        flow: A row for each part or head, path (direct, all) and token; position is missing for the constants. The
            direct rows other than heads, with those named *outside*, sum to the logit. None unless it was requested.
        position: The position at which the logit is read.
        origin: What contributions of tokens are measured from: "zero", "mean", "reference" or "given".
        references: The number of random references over which they are averaged; 0 if the convention has none.
        convention: The label of the convention, which says which exact affine map replaces each operation.
        baseline: What the logit is measured from: "vocabulary" (the mean logit), "expected" or "none".
        point: The activation that is attributed: "logits", "norm", or one inside the network.
        label: What is attributed, as views write it.
        left_out: The positions of tokens that views leave out.
        others: Contributions of the tokens under other conventions, by label, for views to show next to these.
        effects: How much the model's own logit drops without each token, for these views; None if not measured.
        dependence: How far the answer depends on the convention, in one line.

    """

    schema = (CONTRIBUTIONS, FLOW, BESIDE, DELETION)

    target: str
    versus: str | None
    logit: float
    total: float
    direct: float | None
    table: pd.DataFrame
    flow: pd.DataFrame | None = None
    position: int = -1
    origin: str = "zero"
    convention: str = ""
    baseline: str = "none"
    point: str = "logits"
    label: str = ""
    references: int = 0
    left_out: tuple[int, ...] = ()
    others: dict[str, list[float]] = field(default_factory=dict)
    effects: list[float] | None = None
    dependence: str = ""

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        sum_ = f"{count(int((self.table['kind'] == 'token').sum()), 'token')} and constants sum to {self.total:.4f}"
        return [f"logit of {self.label} {self.logit:.4f}", sum_, f"convention {self.convention}"]

    @property
    def tokens(self) -> list[str]:
        """The prompt's tokens."""
        return list(self.of("token")["name"])

    @property
    def line(self) -> str:
        """What is attributed, and its value."""
        inside = "" if self.point == "logits" or self.point in self.label else f" at {self.point}"
        measured = "" if self.baseline == "none" else f", measured from {BASELINES[self.baseline]}"
        where = "" if self.position in (-1, len(self.of("token")) - 1) else f"   at position {self.position}"
        return f"{self.label}{inside}   {self.logit:.4f}{measured}{where}"

    @property
    def under(self) -> str:
        """The convention, and how many references contributions are averaged over."""
        several = "s" if self.references > 1 else ""
        return self.convention + (f", mean over {self.references} random reference{several}" if self.references else "")

    @property
    def constant(self) -> float:
        """The contribution of all constants, along all paths: those of the model, b, and that of the origin, J x₀."""
        return float(self.of("constant")["contribution"].sum())

    @property
    def constants(self) -> dict[str, float]:
        """The contribution of all constants in two terms: `origin`, J x₀, unless it is zero; and `constants`, b.

        If contributions are measured from the reference, both are one term: the logit at the reference.
        """
        rows, moved = self.of("constant"), self._of_origin(self.of("constant"))
        if self.origin == "reference":
            return {"reference": self.constant}
        origin = {ORIGIN: float(rows[moved]["contribution"].sum())} if self.origin != "zero" else {}
        return origin | {"constants": float(rows[~moved]["contribution"].sum())}

    def _of_origin(self, rows: pd.DataFrame) -> pd.Series:
        """Which rows are the constant J x₀."""
        return (rows["kind"] == "constant") & (rows["name"] == ORIGIN) & (self.origin != "zero")

    def of(self, kind: str) -> pd.DataFrame:
        """Returns the rows of one kind.

        Args:
            kind: "token", "constant", "embed", "layer", "outside" or "head".

        """
        return self.table[self.table["kind"] == kind]

    def share(self, contribution: float) -> float:
        """Returns a contribution as a share of the logit; NaN if there are none, as `shareless` says.

        Args:
            contribution: In units of the logit.

        """
        return float("nan") if self.shareless else contribution / self.logit

    @property
    def shareless(self) -> str:
        """Why contributions have no shares: the logit is small compared with them. Empty if they have."""
        terms = self.table[self.table["kind"].isin(["token", "constant"])]["contribution"].abs().sum()
        if abs(self.logit) > SMALL * terms:
            return ""
        return f"no shares: the sum, {self.logit:.3g}, is small compared with the sum of absolute values, {terms:.3g}"

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its tables: `contributions`; and `flow`, `by_convention` and `deletion` if it has them."""
        found = {"contributions": self.table} | ({} if self.flow is None else {"flow": self.flow})
        if self.others:
            every = {self.convention: list(self.of("token")["contribution"]), **self.others}
            found["by_convention"] = by_convention(self.tokens, every)
        if self.effects is not None:
            found["deletion"] = by_deletion(self.tokens, self.effects)
        return found

    def about(self) -> dict[str, Any]:
        """Returns what is attributed and how it is measured, its value, and both sums."""
        names = (
            "target",
            "versus",
            "convention",
            "baseline",
            "point",
            "position",
            "origin",
            "logit",
            "total",
            "direct",
        )
        return {name: getattr(self, name) for name in names}

    def view(self) -> View:
        """Shows both sums of the logit, and the heads that contribute most."""
        facts = {"logit" if self.point == "logits" else "value": self.line}
        facts["convention"] = self.under
        if self.dependence:
            facts["conventions"] = self.dependence
        if self.shareless:
            facts["shares"] = self.shareless
        if self.origin != "zero":
            facts["origin"] = f"contributions are measured from {origin_line(self.origin)}"
        inputs = self.table[self.table["kind"].isin(["token", "constant"])]
        inputs = inputs[~((inputs["kind"] == "token") & inputs["position"].isin(self.left_out))]
        grids = [self._grid(inputs, "tokens and constants, along all paths", self._beside())]
        notes = [self.note] if self.note else []
        if self.others:
            notes.append(f"{', '.join(self.others)}: contributions under these conventions, which are just as exact.")
        if self.effects is not None:
            notes.append("deleted: how much the model's own logit drops when the token is deleted.")
        if self.direct is None:
            return View("", facts, grids, notes)
        parts = self.table[self.table["kind"].isin(["embed", "layer", "outside"])]
        grids.append(self._grid(parts, "embeddings, parts and constants, straight to the logit"))
        heads = self.of("head")
        if len(heads):
            order = heads["contribution"].abs().sort_values(ascending=False, kind="stable").index
            rest = f" that matter most, of {heads['head'].notna().sum()}" if len(heads) > HEADS_SHOWN else ""
            title = f"heads{rest}, straight to the logit"
            grids.append(self._grid(heads.reindex(order)[:HEADS_SHOWN], title))
        remainder = max(abs(self.total - self.logit), abs(self.direct - self.logit))
        notes += [
            f"Both sums equal the logit to {remainder:.0e}; heads sum to their layer's attention.",
            "All paths: the part's contribution including that through later parts (for embed, through all parts); "
            "these overlap, and do not sum to the logit. In the first sum, constants (biases, positions) contribute by "
            "all paths; in the second, constants inside a part count as the part's.",
        ]
        if self.flow is not None:
            grids.append(self._by_part_and_token(self.flow))
            notes.append(
                "Rows of the last table sum to the part's contribution, columns to the token's. Dim: less than a "
                "twentieth of the logit. outside: constants outside parts, such as positions and the final norm's bias."
            )
        return View("", facts, grids, notes)

    def _beside(self) -> dict[str, list[float]]:
        """The columns next to the contributions of tokens, by heading."""
        return self.others | ({} if self.effects is None else {"deleted": self.effects})

    def _grid(self, rows: pd.DataFrame, title: str, beside: Mapping[str, Sequence[float]] | None = None) -> Grid:
        """A line for each row: its contribution, its share, and a bar; the constants of all modules share one line.

        Next to these are the given columns of tokens, or the contributions along all paths if none are given.
        """
        moved = self._of_origin(rows) & (self.origin != "reference")
        constants = rows[rows["kind"].isin(["constant", "outside"]) & ~moved]
        more: list[Shown] = [Shown("all paths", "logit")]
        if beside is not None:
            more = [Shown(name, "logit", spare=3) for name in beside]

        def line(place: Any, name: Any, contribution: float, through: float, token: bool) -> list[Any]:
            own = [through] if beside is None else [v[place] if token else None for v in beside.values()]
            return [place, name, contribution, self.share(contribution), *own, contribution]

        lines = [
            line(row.position, Cell(row.name, show="token"), row.contribution, row.all_paths, row.kind == "token")
            for row in rows.drop(constants.index).itertuples(index=False)
        ]
        if len(constants):
            of = f"{len(constants)} modules" if len(constants) > 1 else visible(constants["name"].iloc[0])
            reference = self.origin == "reference" and beside is not None
            name = "reference" if reference else f"constants of {of}"
            lines.append(line(None, name, constants["contribution"].sum(), constants["all_paths"].sum(), False))
        columns = [Shown("", "integer"), Shown("", most=28), Shown("logit", "logit"), Shown("share", "share"), *more]
        return Grid([*columns, Shown("", "bar", spare=1)], lines, title)

    def _by_part_and_token(self, flow: pd.DataFrame) -> Grid:
        """Part x token: direct contributions of each token, and of the constants, through each part, with all sums."""
        rows = flow[(flow["path"] == "direct") & flow["head"].isna()]
        tokens = rows[rows["position"].notna()].drop_duplicates("position").sort_values("position")["token"].tolist()
        rows = rows.fillna({"position": len(tokens)})
        cells = rows.pivot_table("contribution", "name", "position", aggfunc="sum", sort=False).fillna(0.0)
        cells = cells[sorted(cells.columns)]
        cells.loc["sum"] = cells.sum()
        cells["sum"] = cells.sum(axis=1)
        cells = cells.drop(columns=list(self.left_out))
        tokens = [token for t, token in enumerate(tokens) if t not in self.left_out]
        headings = [Shown(token, "logit", most=9, token=True) for token in tokens]
        headings += [Shown("reference" if self.origin == "reference" else "constants", "logit"), Shown("sum", "logit")]
        small = 0.05 * abs(self.logit)
        lines = [
            [name, *(Cell(v, "" if abs(v) >= small else "dim") for v in own)]
            for name, own in zip(cells.index, cells.to_numpy().tolist(), strict=True)
        ]
        title = "what each token contributes through each part, straight to the logit"
        return Grid([Shown("part"), *headings], lines, title, keep=1)


@checked
def attribute(
    run: Run,
    target: str
    | SupportsIndex
    | Sequence[str | SupportsIndex]
    | Mapping[str | SupportsIndex, float]
    | Tensor
    | None = None,
    versus: str | SupportsIndex | None = None,
    *,
    position: SupportsIndex = -1,
    convention: Named | None = None,
    baseline: str = "vocabulary",
    point: str | None = None,
    parts: bool = True,
    flow: bool = False,
    origin: str | Tensor | Origin | None = None,
    references: int | None = None,
    max_memory: float | str | None = None,
) -> Attribution:
    """Returns the contribution of every token, part, head and constant to a token's logit.

    Contributions of tokens are measured from an origin x₀: token t contributes J_t (x_t - x₀_t), and the constants are
    J x₀ + b. The sums are exact for every baseline and every origin.

    Args:
        run: The run.
        target: The token whose logit is attributed, by its text or id; by default the one predicted at the position.
            Or several tokens, for the mean of their logits; a weight for each of several tokens, for the weighted sum;
            or a vector, such as a probe, for its product with an activation.
        versus: A token whose logit is subtracted, by its text or id; by default none.
        position: The position at which the logit is read; by default the last.
        convention: Which exact affine map replaces each operation, as in `freeze`. By default the one that the run
            was frozen under if that was chosen, and otherwise "secant", for which the prompt is frozen anew: of all
            exact systems that were measured, its contributions predict best what the model does without a token.
        baseline: What logits are measured from: "vocabulary", their mean over the vocabulary, because a constant
            added to all of them does not change the softmax; "expected", their mean weighted by the model's
            probabilities, so that, to first order, contributions are to the log-probability; or "none". A difference of
            logits does not depend on it.
        point: The activation that is attributed, as in `run.operator`; by default the logits, and of a vector the norm.
            The logits of an activation inside are read out by the final norm, at the activation's own statistics.
        parts: Whether the table also has layers, heads and constants outside parts, which takes more replays. Without
            them, for any point but the logits, and for a model whose layers can't be found, the table has tokens and
            constants only.
        flow: Whether token x part and token x head are computed too; implies `parts`. This takes as many products as
            there are tokens, or parts and heads if these are fewer.
        origin: What contributions of tokens are measured from: "zero"; "mean", the vocabulary's mean embedding;
            "reference", the convention's reference; or embeddings, `[T, d]` or `[d]`. By default the reference if that
            is random. It begins with the prompt's own first token, which then contributes 0 by construction.
        references: If the convention has a random reference, the number of references over which contributions are
            averaged, drawn with the run's seed and those after it; by default four.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.

    Raises:
        BadPrompt: The vocabulary does not have a token.
        BadArgument: The prompt does not have the position, both tokens are the same, the vector, the baseline or the
            origin does not fit, or the flow to a point other than the logits is requested.
        NoPoint: The model has no such activation.
        NotExact: A sum does not equal the logit.
        ReplayMismatch: The model has changed since the run was frozen.
        SecantError: Whatever else `freeze` raises.

    """
    at = run.rows(position)[0]
    run.unchanged()
    references = integer(
        REFERENCES if references is None else references,
        1,
        10**6,
        "Contributions are averaged over at least one reference",
        "references = ",
    )
    with torch.inference_mode(False), torch.enable_grad(), limited(max_memory):
        wanted = target_of(run, at, target, versus, baseline, point)
        if flow and wanted.point != "logits":
            raise BadArgument("Only logits are split by part and token", wanted.point, "Leave out flow, or the point.")
        runs = run.references(convention, references, wanted.point == "logits")
        return _averaged([_attributed(own, at, wanted, parts or flow, flow, origin) for own in runs])


def _averaged(found: Sequence[Attribution]) -> Attribution:
    """The mean of attributions of one target over all of their references."""
    if len(found) == 1:
        return found[0]
    count = sum(a.references for a in found)

    def mean(described: Table, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        values = [c.name for c in described.columns if c.type is float]
        keys = [name for name in described.names if name not in values]
        weighed = [
            f.assign(**{v: f[v] * a.references / count for v in values}) for f, a in zip(frames, found, strict=True)
        ]
        summed = pd.concat(weighed, ignore_index=True).groupby(keys, sort=False, dropna=False)[values].sum()
        return described.frame(summed.reset_index()[described.names])

    flows = [a.flow for a in found if a.flow is not None]
    direct = [a.direct * a.references for a in found if a.direct is not None]
    return replace(
        found[0], table=mean(CONTRIBUTIONS, [a.table for a in found]), flow=mean(FLOW, flows) if flows else None,
        total=sum(a.total * a.references for a in found) / count, references=count,
        direct=sum(direct) / count if direct else None,
    )  # fmt: skip


def _attributed(
    run: Run, at: int, target: Target, parts: bool, flow: bool, origin: str | Tensor | Origin | None
) -> Attribution:
    """The attribution of a target at a position."""
    origin = origin_of(run, origin)
    direct, flows, inside = None, None, None
    if target.point == "logits":
        copies = run.network.recording.copies
        e = (target.weights / copies).repeat_interleave(copies)  # the mean over all copies of the prompt
        logit = (wide(run.logits[at]) @ wide(e)).item()
        inside = Parts.of(run.inside, at, e) if parts else None
        rows = input_rows(run, slopes_by_input(run, at, e) if inside is None else inside.by_input, origin)
    else:
        logit, rows = _rows_of_point(run, at, target, origin)
    total = sum(row["contribution"] for row in rows)
    if inside is not None:
        written = inside.rows()
        direct = sum(row["contribution"] for row in written if row["kind"] != "head")
        rows += written
        flows = FLOW.frame(inside.flow(run.tokens, origin.embeddings)) if flow else None
    _certify(run, logit, [sum_ for sum_ in (total, direct) if sum_ is not None], [row["contribution"] for row in rows])
    table = CONTRIBUTIONS.frame(pd.DataFrame(rows, columns=CONTRIBUTIONS.names))
    about: dict[str, Any] = {"position": at, "origin": origin.name, "convention": run.certificate.convention}
    about["references"] = convention_named(run.certificate.convention).varies * run.network.recording.copies
    about |= {"baseline": target.baseline, "point": target.point, "label": target.label}
    return Attribution(target.name, target.versus, logit, total, direct, table, flows, **about)


def _rows_of_point(run: Run, at: int, target: Target, origin: Origin) -> tuple[float, list[dict[str, Any]]]:
    """The value of a target that is not the output's logits, and the contributions of tokens, origin and constants."""
    op = run.operator("embed", target.point, at, readout="logits" if target.readout else None)
    e = target.weights.to(op.bias)
    slope = (op.T @ e).view(op.input.shape)
    x = wide(op.input) - wide(origin.embeddings)
    rows = token_rows(run, (wide(slope) * x).sum(1).tolist())
    if origin.moved:
        rows.append(entry("constant", ORIGIN, dot(slope, origin.embeddings)))
    return dot(e, op.output), [*rows, entry("constant", "constants", dot(e, op.bias))]


def _certify(run: Run, logit: float, sums: Sequence[float], terms: Sequence[float]) -> None:
    """Raises NotExact if the error of a sum exceeds the tolerance, relative to the sizes of its terms."""
    most = run.certificate.tolerance * (abs(logit) + sum(map(abs, terms)))
    for found in sums:
        if not abs(found - logit) <= most:
            raise NotExact(
                "Contributions must add up to the logit", f"{found:.6g} instead of {logit:.6g}", HIDDEN_OPERATION
            )
