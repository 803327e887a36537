"""The page as a document: one HTML file with all that it needs inside, and leave to fetch nothing.

What comes from a prompt or a tokenizer goes in as JSON, in which nothing can end a script, and its policy lets the two
scripts that are in this package run, by their hashes, and no others.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from secant.errors import SecantError

UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"})
"""Characters that could end a script, or a line of one, and how JSON writes them otherwise."""


def library() -> str:
    """The text of plotly.js. Raises SecantError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SecantError(
            "The page draws with plotly", "an installation without it", "pip install 'secant[report]'"
        ) from error
    return str(get_plotlyjs())


def embedded(contents: Any) -> str:
    r"""Contents as JSON in which no character means anything to HTML.

    >>> embedded(["</script>", "&amp;"])
    '["\\u003c/script\\u003e","\\u0026amp;"]'
    """
    return json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


EXPLANATION, SUMMARY = ("template.html.j2", "page.js"), ("summary.html.j2", "summary.js")
"""The pages that there are: a template, and the script that draws it."""


def html(contents: dict[str, Any], plotly: str, page: tuple[str, str] = EXPLANATION) -> str:
    """The document of a page's contents, drawn by the text of plotly.js."""
    template, script, css = (_own(name) for name in (*page, "page.css"))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{_digest(text)}'" for text in (script, plotly)),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        page=contents,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        css=Markup(css),  # these four are this package's own, plotly's, or JSON without signs of HTML
        script=Markup(script),
        plotly=Markup(plotly),
        data=Markup(embedded(contents)),
    )


def _own(name: str) -> str:
    return files("secant.report").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
