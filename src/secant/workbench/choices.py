"""What a browser can choose from: models, conventions, baselines, forms of steering."""

from __future__ import annotations

from typing import Any

from secant.analyses.live import forms
from secant.analyses.sensitivity import OTHERS
from secant.analyses.targets import BASELINES
from secant.linearize.conventions import NAMES
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
    return {
        "models": models,
        "conventions": list(NAMES),
        "others": [str(each) for each in OTHERS],
        "baselines": dict(BASELINES),
        "forms": forms(),
        "characters": CHARACTERS,
    }
