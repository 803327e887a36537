"""The workbench's page: one script made of the offline page's modules and those that make the page live."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from secant.results.page import EXPLANATION, own, view

MODULES = ("around", "api", "mount", "stages", "pane", "workbench")
"""The modules of the workbench, in order. With the page's modules for elements and numbers, they form one function."""

STYLES = {"page": "page.css", "workbench": "workbench.css"}
"""The style sheets, by the names that browsers request."""


@cache
def script() -> str:
    """Returns the workbench's script."""
    around, *rest = (static(f"{name}.js") for name in MODULES)
    modules = "\n".join((live_view(), around, own("js/dom.js"), own("js/steer.js"), *rest))
    return f'"use strict";\n(() => {{\n{modules}}})();\n'


@cache
def live_view() -> str:
    """Returns the function `view(root, contents, host)` of a live page."""
    return view(EXPLANATION, own("js/live.js"))


def style(name: str) -> str:
    """Returns a style sheet.

    Args:
        name: Its name in `STYLES`.

    Raises:
        KeyError: There is no such style sheet.

    """
    file = STYLES[name]
    return own(file) if name == "page" else static(file)


@cache
def index() -> str:
    """Returns the document, with the body of the page as a template."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(static("index.html.j2"))
    return template.render(body=Markup(own(EXPLANATION.body)), steering=Markup(own("steering.html")))  # from here


def static(name: str) -> str:
    """Returns a file of the folder `static`.

    Args:
        name: Its name.

    """
    return files("secant.workbench").joinpath("static", name).read_text("utf-8")
