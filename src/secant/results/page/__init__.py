"""A page: one HTML file with all that it needs inside, which fetches nothing.

A page receives facts and tables with their descriptions, and scripts of this package draw them. Everything that comes
from a prompt or a tokenizer is embedded as JSON in which nothing can end a script. The page's content security policy
allows its one script, by its hash, and no other. The script consists of modules in `js`; `SHARED` are in every page.
Together they are the body of one function, `view(root, contents, host)`, which draws the contents below a root element
and asks the host for everything outside it. A page calls the function once, for the document.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from secant.results.files import plain
from secant.results.formats import shown
from secant.results.paths import check_file, replacing, write_text
from secant.results.schema import Column, Format, Table


class Template(NamedTuple):
    """A kind of page: its HTML template, which gets the contents as `page`; the modules that draw it; and its body, if
    that is the same for all contents.
    """

    html: str
    modules: tuple[str, ...]
    body: str = ""


SHARED = ("tables", "dom", "charts")
"""The modules of every page."""

EXPLANATION = Template(
    "explanation.html.j2",
    ("grid", "model", "state", "answer", "contributions", "lens", "components", "panel", "trust", "search",
     "explanation"),
    "explanation.body.html",
)  # fmt: skip
SUMMARY = Template("summary.html.j2", ("summary",))

DIGITS = 6
"""Digits of numbers on a page. Numbers that are shown as logits keep all digits, so that they sum exactly."""

LONGEST = 1000
"""The most characters of a text on a page."""

UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"})
"""Characters that could end a script, or a line of one, and their escapes in JSON."""


def write(path: str | Path, template: Template, contents: Mapping[str, Any]) -> None:
    """Writes a page.

    Args:
        path: The file.
        template: Which page.
        contents: Its contents, as `contents` returns them.

    Raises:
        OutputFailed: The file can't be written.

    """
    check_file(path)
    with replacing(path) as new:
        write_text(new, html(template, contents))


def contents(about: Mapping[str, Any], tables: Iterable[tuple[Table, pd.DataFrame]]) -> dict[str, Any]:
    """Returns the content of a page, or of a part of it, ready for JSON.

    Args:
        about: Facts about the whole result.
        tables: Tables and their rows.

    """
    every = list(tables)
    return {
        "about": plain(about),
        "tables": {table.name: columnar(table, frame) for table, frame in every},
        "described": {table.name: {str(c): table[str(c)].meaning for c in frame} for table, frame in every},
    }


def columnar(table: Table, frame: pd.DataFrame) -> dict[str, Any]:
    """Returns a table as its columns, each a list of values.

    In a column of texts, `texts` has each text once, and `codes` the index in `texts` for each row. Where it is
    shorter, runs of equal values are written as `values` and their lengths, `times`. Missing values are None, numbers
    are rounded to DIGITS, and texts show every character.

    Args:
        table: The description.
        frame: The rows, with all columns or some.

    Returns:
        Each column by name, ready for JSON.

    >>> rows = pd.DataFrame({"word": ["a b", None, "a b"], "score": [0.12345678, 1.0, float("nan")], "layer": 7})
    >>> columns = Column("word", str, ""), Column("score", float, ""), Column("layer", int, "")
    >>> columnar(Table("words", "a word", columns), rows)  # doctest: +NORMALIZE_WHITESPACE
    {'word': {'texts': ['a b'], 'codes': [0, None, 0]}, 'score': [0.123457, 1.0, None],
     'layer': {'values': [7], 'times': [3]}}
    """
    return {str(name): _values(table[str(name)], own) for name, own in frame.items()}


def _values(column: Column, own: pd.Series) -> Any:
    values = own.astype(object).where(own.notna(), None).tolist()
    if column.type is float:
        return _packed([_brief(v, column) for v in values])
    if column.type is not str:
        return _packed(values)
    places: dict[str, int] = {}
    codes = [None if v is None else places.setdefault(v, len(places)) for v in values]
    return {"texts": [shown_text(text, column.format) for text in places], "codes": _packed(codes)}


def _packed(values: Sequence[Any]) -> Any:
    """The values, or runs of equal values with their lengths, whichever is shorter."""
    runs = [(value, len(list(own))) for value, own in groupby(values)]
    if 2 * len(runs) >= len(values):
        return values
    return {"values": [value for value, _ in runs], "times": [times for _, times in runs]}


def _brief(number: float | None, column: Column) -> float | None:
    if number is None or not math.isfinite(number):
        return None
    return number if column.format == "logit" else float(f"{number:.{DIGITS}g}")


def shown_text(text: str, form: Format = "token") -> str:
    """Returns a text as a page shows it. A text that begins with an accent gets a dotted circle, because a browser
    would put the accent on the character before.

    Args:
        text: The text.
        form: The format in which it is shown.

    """
    found = shown(text, form)
    if form == "token" and unicodedata.category(found[:1] or " ").startswith("M"):
        found = f"\N{DOTTED CIRCLE}{found}"
    return found if len(found) <= LONGEST else found[: LONGEST - 1] + "…"


def embedded(contents: Any) -> str:
    r"""Contents as JSON without any character that has a meaning in HTML.

    >>> embedded(["</script>", "&amp;"])
    '["\\u003c/script\\u003e","\\u0026amp;"]'
    """
    return json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


def html(template: Template, contents: Mapping[str, Any]) -> str:
    """Returns the document of a page.

    Args:
        template: Which page.
        contents: Its contents, as `contents` returns them.

    """
    css = own("page.css")
    script = f'"use strict";\n(() => {{\n{view(template)}{own("js/page.js")}}})();\n'
    policy = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_digest(script)}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(own(template.html)).render(
        page=contents,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        css=Markup(css),  # these four come from this package, or are JSON without HTML's characters
        body=Markup(own(template.body) if template.body else ""),
        script=Markup(script),
        data=Markup(embedded(contents)),
    )


def view(template: Template, *more: str) -> str:
    """Returns the function `view(root, contents, host)` of a template, as a script.

    Args:
        template: The template.
        more: The text of other modules, inserted before the template's last module, which draws.

    """
    *first, last = (own(f"js/{name}.js") for name in (*SHARED, *template.modules))
    modules = "\n".join((*first, *more, last))
    return f"function view(root, contents, host) {{\n{modules}}}\n"


def own(name: str) -> str:
    """Returns a file of this package: a style sheet, a template or a module.

    Args:
        name: Its name.

    """
    return files("secant.results.page").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
