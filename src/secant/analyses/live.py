"""What a live page can request, in the workbench and in notebooks: ablations, other tokens, and steering.

Each function takes the fields of a request, and returns what the page shows, ready for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from secant.analyses import frames
from secant.analyses.ablation import ablate
from secant.analyses.case import Case
from secant.analyses.page_tables import drawn
from secant.linearize.run import Run
from secant.model.lm import LM, Prompt
from secant.results.page import contents
from secant.steering.forms import FORMS
from secant.steering.generate import Continuation
from secant.steering.steered import side_by_side
from secant.text import readable


def ablated(case: Case, given: Mapping[str, Any]) -> dict[str, Any]:
    """Ablates a token, part or head, in the frozen network and in the model itself.

    Args:
        case: The case.
        given: `what`, `by` and `position`, as in `ablate`.

    Raises:
        SecantError: As `ablate` does.

    """
    return ablate(case.run, given["what"], given["by"], position=given.get("position")).answers(case.aim)


def compared(case: Case, given: Mapping[str, Any]) -> int:
    """Compares the target with another token, and returns the number of the comparison, from 1.

    Args:
        case: The case, to whose alternatives the token is added.
        given: `token`, its text or, like "#12", its id.

    Raises:
        BadPrompt: The vocabulary does not have the token.
        BadArgument: It is the target itself.

    """
    token = case.run.lm.token(given["token"])
    case.attribution(token)  # refuses the target itself
    if token not in case.alternatives:
        case.alternatives.append(token)
    return case.alternatives.index(token) + 1


def versus(case: Case) -> dict[str, Any]:
    """Returns the part of a page's contents that compares the target with its alternatives.

    Args:
        case: The case.

    """
    found = drawn({"versus": frames.versus(case.versus)}, len(case.run.operator().bias), case.chosen)
    totals = [case.attribution().total, *(own.total for own in case.versus)]
    return contents({"totals": totals}, [(frames.VERSUS, frame) for frame in found.values()])


def steered(lm: LM, prompt: Prompt, concept: Prompt | Run, given: Mapping[str, Any]) -> dict[str, Any]:
    """Continues a prompt with the model steered and unsteered.

    Args:
        lm: The model.
        prompt: The prompt.
        concept: The concept, or its run.
        given: `layer`, `strength`, `form` and `tokens`, as in `secant steer`.

    Raises:
        SecantError: As `secant steer` does.

    """
    how = {name: given[name] for name in ("layer", "strength", "form", "tokens")}
    found = side_by_side(lm, prompt, concept, **how)
    return {"given": dict(given), "unsteered": _said(found.unsteered), "steered": _said(found.steered)}


def _said(found: Continuation) -> dict[str, Any]:
    perplexity = found.perplexity
    return {"text": readable(found.text), "perplexity": perplexity if perplexity < math.inf else None}


def answers(case: Case) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """Returns the function that answers each kind of request about a case, from the request's fields.

    If an answer adds to the page's contents, its `part` is what it adds.

    Args:
        case: The case.

    """
    run = case.run

    def other(given: Mapping[str, Any]) -> dict[str, Any]:
        with case.working():
            number = compared(case, given)
            return {"number": number, "part": versus(case)}

    return {
        "ablation": lambda given: ablated(case, given),
        "versus": other,
        "steering": lambda given: steered(run.lm, run.ids, given["concept"], given),
    }


def choices(case: Case) -> dict[str, Any]:
    """Returns what a page of a case can choose from: the number of layers, and forms of steering.

    Args:
        case: The case.

    """
    return {"layers": case.depth, "forms": forms()}


def forms() -> list[dict[str, Any]]:
    """Returns the forms of steering that a page offers, with the bounds of their strengths."""
    return [
        {"name": name, "least": max(form.least, -4.0), "most": min(form.most, 4.0), "grid": list(form.grid),
         "bounded": math.isfinite(form.most)}
        for name, form in FORMS.items()
    ]  # fmt: skip
