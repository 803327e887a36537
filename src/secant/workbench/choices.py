"""What a browser can choose from: models, conventions, baselines, forms of steering."""

from __future__ import annotations

import math
from typing import Any

from secant.analyses.sensitivity import OTHERS
from secant.analyses.targets import BASELINES
from secant.linearize.conventions import NAMES
from secant.steering.forms import FORMS
from secant.text import named
from secant.workbench.asked import CHARACTERS
from secant.workbench.session import Session


def choices(session: Session) -> dict[str, Any]:
    """Returns what can be chosen, and within which limits, ready for JSON.

    Args:
        session: The session.

    """
    models = [
        {
            "name": name,
            "label": named(model.lm.name),
            "longest": model.longest,
            "chat": bool(getattr(model.lm.tokenizer, "chat_template", None)),
        }
        for name, model in session.models.items()
    ]
    forms = [
        {"name": name, "least": max(form.least, -4.0), "most": min(form.most, 4.0), "grid": list(form.grid),
         "bounded": math.isfinite(form.most)}
        for name, form in FORMS.items()
    ]  # fmt: skip
    return {
        "models": models,
        "conventions": list(NAMES),
        "others": [str(each) for each in OTHERS],
        "baselines": dict(BASELINES),
        "forms": forms,
        "characters": CHARACTERS,
    }
