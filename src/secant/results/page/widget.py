"""The page of an explanation in a notebook, drawn by the same modules as the page itself (extra `secant[widget]`).

It is drawn in a shadow root, so that its style and the names of its elements do not clash with the notebook's. Requests
to the kernel, such as an ablation, and the answers go through messages. An answer's `part` is added to the contents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import anywidget
import traitlets

from secant.errors import SecantError
from secant.results.page import EXPLANATION, own, view

Answers = Mapping[str, Callable[[Mapping[str, Any]], Any]]
"""The function that answers each kind of request from its fields; its result is ready for JSON."""


@cache
def module() -> str:
    """Returns the widget's script, with the body of the page and its style in it."""
    texts = {"BODY": own(EXPLANATION.body), "STYLE": own("page.css"), "STEERING": own("steering.html")}
    constants = "".join(f"const {name} = {json.dumps(text)};\n" for name, text in texts.items())
    return f"{constants}{view(EXPLANATION, own('js/live.js'), own('js/steer.js'))}{own('js/widget.js')}"


class PageWidget(anywidget.AnyWidget):
    """A page in a notebook.

    Args:
        contents: The page's contents.
        answers: The function that answers each kind of request.
        choices: What the page can choose from: the number of layers, and forms of steering.

    Attributes:
        contents: The page's contents.
        choices: What the page can choose from.
        address: What is chosen now, in the form of the page's address.

    """

    _esm = module()
    contents = traitlets.Dict().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    address = traitlets.Unicode("").tag(sync=True)

    def __init__(self, contents: Mapping[str, Any], answers: Answers, choices: Mapping[str, Any]) -> None:
        super().__init__(contents=dict(contents), choices=dict(choices))
        self._answers = answers
        self.on_msg(self._asked)

    def _asked(self, widget: Any, message: Any, buffers: Any) -> None:
        """Answers a request; an error is answered with its one line."""
        if not isinstance(message, dict) or message.get("kind") not in self._answers:
            return
        try:
            result = self._answers[message["kind"]](message.get("given") or {})
        except (SecantError, KeyError) as error:
            self.send({"id": message.get("id"), "error": str(error)})
            return
        if part := result.pop("part", None):
            self.contents = {name: {**own, **part[name]} for name, own in self.contents.items()}
        self.send({"id": message.get("id"), "result": result})
