"""An explanation in stages, so that a page can show the most useful results first.

A stage is a row of `STAGES`: the tables and the facts that it adds to the page, and what it costs. All stages together
are the page of `Explanation.report`. Each takes what it needs from one `Case`, which computes nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from secant.analyses import frames
from secant.analyses.attribution import REFERENCES, Attribution
from secant.analyses.case import Case
from secant.analyses.explanation import described, heading, how
from secant.analyses.page_tables import drawn, layer_words
from secant.memory import multiplications, peak, timed
from secant.numeric import wide
from secant.operators.cost import Plan, estimated_pace, model_plan, plans, row_plan
from secant.operators.decomposition import TOLERANCE
from secant.operators.solvers import Wanted
from secant.results.page import contents
from secant.stream.layers import plan_of

Tables = Mapping[str, pd.DataFrame]


class Forecast(NamedTuple):
    """What a stage will take: seconds, and bytes."""

    seconds: float
    memory: float


@dataclass(frozen=True)
class Stage:
    """A part of an explanation's page.

    Attributes:
        name: Its name.
        label: What it adds, for people.
        tables: Returns its tables.
        about: Returns the facts that it adds to the page.
        plan: Returns what it costs.

    """

    name: str
    label: str
    tables: Callable[[Case], Tables]
    about: Callable[[Case], Mapping[str, Any]]
    plan: Callable[[Case], Plan]

    def contents(self, case: Case, seconds: dict[str, float]) -> dict[str, Any]:
        """Computes the stage, and returns what it adds to the page's contents, ready for JSON.

        Args:
            case: The case.
            seconds: The time that each stage took, to which its own is added.

        Raises:
            SecantError: Any error of the analyses.

        """
        with timed(self.label, seconds):
            about = dict(self.about(case))
            if (shown := about.get("shown")) is None:
                shown = case.chosen
            found = drawn(self.tables(case), len(case.run.operator().bias), shown)
        about["how"] = how(case.run, case.__dict__.get("blocks", ()), seconds, peak(case.run.lm.device))
        return contents(about, [(described(name), frame) for name, frame in found.items()])

    def forecast(self, case: Case) -> Forecast:
        """Returns what the stage is estimated to take.

        Args:
            case: The case.

        """
        op, plan = case.run.operator(), self.plan(case)
        speed = multiplications(op.bias.device, op.bias.dtype)
        return Forecast(plan.cost(estimated_pace(op)) / speed, plan.memory)


def tokens(case: Case, attribution: Attribution | None = None) -> pd.DataFrame:
    """Returns the table of tokens, with the columns that have been computed so far.

    Args:
        case: The case.
        attribution: The contributions; by default those of the case.

    """
    there = case.__dict__
    return frames.tokens(
        case.run, attribution or case.attribution(), case.sinks,
        effects=case.sensitivity.effects if "sensitivity" in there else None,
        norms=case.norms if "terms" in there else None, svds=there.get("blocks"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- tables


def _answer(case: Case) -> Tables:
    predictions = case.run.tables()["predictions"]
    return {"predictions": predictions, "contributions": case.first.table, "tokens": tokens(case, case.first)}


def _references(case: Case) -> Tables:
    return {"contributions": case.attribution().table, "tokens": tokens(case)}


def _written(case: Case) -> Tables:
    found = frames.written(case.run, case.written)
    return {"written": found, "tokens": tokens(case), "chance": frames.chance(case.null("output"))}


def _conventions(case: Case) -> Tables:
    return {**case.sensitivity.tables(), "tokens": tokens(case)}


def _spectra(case: Case) -> Tables:
    run, svds = case.run, case.blocks
    op = run.operator()
    return {
        "singular_values": frames.singular_values(run, svds),
        "words": frames.words(run, svds, case.words(svds, "output"), case.words(svds, "input")),
        "tokens": tokens(case),
        "chance": frames.chance(case.null("output"), case.null("input")),
        "rebuilt": frames.rebuilt(wide(op.output), op.rebuilt, wide(run.ordinary)),
        **{name: table for own in case.largest for name, table in own.tables().items()},
    }


def _image(case: Case) -> Tables:
    op = case.run.operator()
    return {"image": frames.rectangles(case.image, (len(op.bias), *op.input.shape))}


def _parts(case: Case) -> Tables:
    sums = case.attribution(parts=True, flow=True).tables()
    return {**sums, "patterns": case.patterns, "head_words": case.head_words}


def _layers(case: Case) -> Tables:
    words, _ = layer_words(case.every_layer, case.top)
    return {**case.every_layer.spectral(), "layer_words": words}


# ------------------------------------------------------------------------------------------------- what is said


def _heading(case: Case) -> Mapping[str, Any]:
    return {**heading(case, case.first), "totals": [case.first.total], "direct": None, "rectangles": None}


def _mean(case: Case) -> Mapping[str, Any]:
    own = case.attribution()
    return {**heading(case, own), "totals": [own.total]}


def _sums(case: Case) -> Mapping[str, Any]:
    return {"totals": [case.attribution().total, *(own.total for own in case.versus)]}


def _straight(case: Case) -> Mapping[str, Any]:
    return {"direct": case.attribution(parts=True, flow=True).direct}


def _kept(case: Case) -> Mapping[str, Any]:
    found = case.every_layer
    _, kept = layer_words(found, case.top)
    return {"layers": {"position": found.position, "method": found.method, **kept}}


def _nothing(case: Case) -> Mapping[str, Any]:
    return {}


# ------------------------------------------------------------------------------------------------- costs


def _passes(case: Case, vectors: float, directions: float = 0.0) -> Plan:
    """The cost of passing vectors through the network, and of decoding directions by the head."""
    own = model_plan(case.run.operator(), 1)
    scored = 2.0 * case.run.lm.unembedding.numel() * directions
    return Plan("passes", False, 1 + vectors / 64, vectors, scored, own.memory)


def _depths(case: Case) -> int:
    return max(1, case.depth)


def _of_spectra(case: Case) -> Plan:
    op = case.op
    wanted = Wanted(min(case.k, op.shape[0], op.input.shape[1]), TOLERANCE[op.bias.dtype])
    own = min(plans(op, wanted, len(case.run.ids)), key=lambda plan: plan.cost(estimated_pace(op)))
    return own


def _of_parts(case: Case) -> Plan:
    flowing = min(len(case.run.ids), 4 * _depths(case))
    heads = sum(len(case.run.inside.heads(name)) for name in case.run.inside.points)
    return _passes(case, REFERENCES * (8 + 2 * flowing + 2 * _depths(case)), 2 * heads)


def _of_conventions(case: Case) -> Plan:
    return _passes(case, 24 + 2 * len(case.run.ids))


def _of_faithfulness(case: Case) -> Plan:
    return _passes(case, 12 * len(case.run.ids))


STAGES = {
    stage.name: stage
    for stage in (
        Stage("answer", "the answer", _answer, _heading, lambda case: _passes(case, 24)),
        Stage("references", "the mean over references", _references, _mean,
              lambda case: _passes(case, 12 * REFERENCES)),
        Stage("written", "what tokens write", _written, _nothing, lambda case: _passes(case, len(case.run.ids), 300)),
        Stage("conventions", "conventions and deletions", _conventions, _nothing, _of_conventions),
        Stage("versus", "versus other tokens", lambda case: {"versus": frames.versus(case.versus)}, _sums,
              lambda case: _passes(case, 4 * REFERENCES * len(case.alternatives))),
        Stage("lens", "the lens", lambda case: {} if case.lens is None else case.lens.tables(), _nothing,
              lambda case: _passes(case, 2 * _depths(case), _depths(case) * len(case.run.ids))),
        Stage("parts", "attention, MLP and heads", _parts, _straight, _of_parts),
        Stage("faithfulness", "faithfulness",
              lambda case: {} if case.faithfulness is None else case.faithfulness.tables(), _nothing, _of_faithfulness),
        Stage("spectra", "spectra", _spectra, _nothing, _of_spectra),
        Stage("depths", "what tokens write by depth", lambda case: {"depth_words": case.depth_words}, _nothing,
              lambda case: _passes(case, len(case.chosen), 6 * _depths(case) * len(case.chosen))),
        Stage("image", "J as an image", _image, lambda case: {"rectangles": list(case.image.shape)},
              lambda case: row_plan(case.run.operator())),
        Stage("layers", "every layer", _layers, _kept, lambda case: plan_of(case.run, case.k)),
    )
}  # fmt: skip
"""All stages, in order."""
