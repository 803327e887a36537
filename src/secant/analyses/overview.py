"""The first view of an explanation: what each token contributes to the prediction, the lens, and spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secant.analyses.attribution import Attribution
from secant.analyses.lens import Lens
from secant.analyses.origins import origin_line
from secant.analyses.sensitivity import Sensitivity
from secant.linearize.conventions import FOR_OPERATORS
from secant.linearize.run import Run
from secant.operators.spectrum import SVD
from secant.results.view import Cell, Grid, Shown, Style
from secant.stream.words import Word
from secant.text import visible

CHANCE_Z = 2.0
"""Top tokens with a smaller z are at chance: those of random directions score as high. Views dim them."""

SHOWN, LARGEST, DEPTHS = 40, 12, 32
"""Views show all of at most SHOWN tokens, the LARGEST contributors of longer prompts, and at most DEPTHS layers."""


def chosen(a: Attribution) -> list[int]:
    """Returns the tokens that are shown: all that are not left out, or the largest contributors of a long prompt.

    Args:
        a: The attribution.

    """
    size = a.of("token")["contribution"].abs().reset_index(drop=True).drop(list(a.left_out))
    return list(size.index) if len(size) <= SHOWN else sorted(size.nlargest(LARGEST).index)


def contributions(
    run: Run, own: Attribution, sensitivity: Sensitivity, written: Sequence[Sequence[Word]], sinks: Sequence[str]
) -> Grid:
    """Returns a row for each token that is shown, one for the others together, and one for the constants.

    Args:
        run: The run.
        own: The attribution.
        sensitivity: The other conventions and the deletions, for the columns next to it.
        written: The top tokens of what each token contributes to the hidden state.
        sinks: Why each token counts as an attention sink; empty if it does not.

    """
    others, effects, shown = [*sensitivity.attributions][1:], sensitivity.effects, chosen(own)
    columns = [Shown("", "integer"), Shown("token", most=16), Shown("logit", "logit"), Shown("", "bar", spare=4)]
    columns += [Shown(label, "logit", spare=3 if label == FOR_OPERATORS else 5) for label in others]
    columns += [] if effects is None else [Shown("deleted", "logit", spare=2)]
    columns += [Shown("contributes (J x)", "tokens"), Shown("z", "number", spare=1)]
    beside = {label: sensitivity.contributions(label) for label in (own.convention, *others)}
    largest = max((abs(beside[own.convention][t]) for t in shown), default=0.0)
    rows: list[list[Any]] = []
    for t in shown:
        value, z = beside[own.convention][t], written[t][0].z if written[t] else None
        style: Style = "" if z is None or z >= CHANCE_Z else "dim"
        words = Cell([w.token for w in written[t]], style)
        token = Cell(run.tokens[t], "dim" if sinks[t] else "", show="token")
        cells = [t, token, Cell(value, "strong" if abs(value) == largest else ""), value]
        gone = [] if effects is None else [effects[t]]
        rows.append([*cells, *(beside[label][t] for label in others), *gone, words, Cell(z, style)])
    blank = [] if effects is None else [None]
    rest = [t for t in range(len(run.tokens)) if t not in shown and t not in own.left_out]
    for name, group in ((f"{len(rest)} others", rest), (f"{len(own.left_out)} left out", list(own.left_out))):
        if group:
            sums = [sum(values[t] for t in group) for values in beside.values()]
            rows.append([None, name, sums[0], None, *sums[1:], *blank, (), None])
    constants = [a.constant for a in sensitivity.attributions.values()]
    for name, value in own.constants.items():
        rows.append([None, name, value, value, *constants[1:], *blank, (), None])
    return Grid(columns, rows, "what each token contributes", note=_legend(run, own, others, effects is not None))


def _legend(run: Run, own: Attribution, others: Sequence[str], deleted: bool) -> str:
    """The legend of the columns of contributions."""
    said = [
        f"logit: contribution under the convention {own.convention}; with the last rows they sum to the logit to "
        f"{abs(own.total - own.logit):.0e}."
    ]
    if own.origin == "reference":
        said.append(
            "They are measured from random tokens after the prompt's first one, which therefore contributes 0; "
            "reference: the model's own mean logit on these random prompts."
        )
    elif own.origin != "zero":
        said.append(f"They are measured from {origin_line(own.origin)}.")
    if others:
        said.append(f"{', '.join(others)}: contributions under these conventions, which are just as exact.")
    if deleted:
        said.append("deleted: how much the model's own logit drops when the token is deleted.")
    said.append(
        f"contributes: top tokens of J x, under {run.certificate.convention}; z: how far the first one is above chance,"
        f" dim below {CHANCE_Z:.0f}."
    )
    said.append(own.note or "Dim tokens: attention sinks and the first token.")
    return " ".join(said)


def depths(lens: Lens) -> Grid:
    """Returns the lens, layer by layer: the top token, and which token contributes most to the predicted one.

    Args:
        lens: The lens.

    """
    terms, table = lens.contributions(), lens.at().reset_index(drop=True)
    kept = [t for t in range(len(lens.tokens)) if t not in lens.left_out]
    step = -(-len(table) // DEPTHS)
    rows = []
    for row, own in zip(table.itertuples(index=False), terms.to_numpy().tolist(), strict=True):
        if (len(table) - 1 - row.layer) % step:
            continue
        most = max(kept, key=lambda t: abs(own[t]), default=None)
        strong: Style = "strong" if row.rank == 0 else ""
        rows.append([
            row.layer, Cell(row.top, strong), row.top_probability, Cell(row.probability, strong), row.probability,
            row.rank, row.logit, *((None, None) if most is None else (lens.tokens[most], own[most])),
        ])  # fmt: skip
    columns = [
        Shown("layer", "integer"), Shown("top token", "token", most=14), Shown("p", "percent"),
        Shown(f"p {visible(lens.target)}", "percent"), Shown("", "bar", spare=2), Shown("rank", "integer"),
        Shown("logit", "logit"), Shown("most from", "token", most=14, spare=1), Shown("", "logit", spare=1),
    ]  # fmt: skip
    note = (
        "The residual stream after each layer, read out by the final norm at its own statistics and the head. most "
        f"from: the token that contributes most to the logit there, under {lens.convention}. {lens.note}"
    )
    return Grid(columns, rows, f"the lens: {visible(lens.target)} by layer", note=note.strip())


def spectra(
    run: Run,
    shown: Sequence[int],
    svds: Sequence[SVD],
    norms: Sequence[float],
    outputs: Sequence[Sequence[Sequence[Word]]],
    inputs: Sequence[Sequence[Sequence[Word]]],
) -> Grid:
    """Returns a row for each token that is shown: its norm, spectrum and singular vectors.

    Args:
        run: The run.
        shown: The positions of the tokens that are shown.
        svds: The leading singular triplets of each token's block.
        norms: ‖J x‖ of each token.
        outputs: The top tokens of each left singular vector.
        inputs: The top tokens of each right singular vector.

    """
    columns = [
        Shown("", "integer"), Shown("token", most=16), Shown("‖J x‖", "number", spare=2),
        Shown("σ₀", "number"), Shown("R", "rank", spare=2), Shown("writes (U₀)", "tokens"),
        Shown("reads (V₀)", "tokens"),
    ]  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for t in shown:
        f, near = svds[t], "≈" if len(svds[t].blocks[0]) > 1 else ""
        words = []
        for side in (outputs[t], inputs[t]):
            z = side[0][0].z if side[0] else None
            words.append(Cell([w.token for w in side[0]], "" if z is None or z >= CHANCE_Z else "dim"))
        token = Cell(run.tokens[t], show="token")
        rows.append((t, token, norms[t], Cell(f.S[0].item(), mark=near), f.stable_rank, *words))
    note = (
        f"Under the convention {run.certificate.convention}. σ₀: largest singular value of the token's block J, R: its "
        "stable rank. writes, reads: top tokens of its first left and right singular vectors; dim: at chance."
    )
    several = any(len(f.blocks[0]) > 1 for f in svds)
    note += " ≈: the next σ is near-equal, so that the vector by itself means nothing." if several else ""
    return Grid(columns, rows, "spectra", note=note)
