"""The page in notebooks: the same contents and modules; the kernel answers ablations, other tokens and steering."""

from __future__ import annotations

import json
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser

import secant as sc
from secant.results.page import EXPLANATION, view
from secant.steering.steered import side_by_side

PAGE = """<!doctype html><html lang="en"><title>t</title><body data-jp-theme-light="{light}"><div id="cell"></div>
<script type="module">
import own from "./widget.js";
const state = {{ contents: await (await fetch("./contents.json")).json(), choices: {choices}, address: "#token=2" }};
const heard = {{}};
window.sent = [];
window.model = {{
  get: (name) => state[name], set: (name, value) => {{ state[name] = value; heard[`change:${{name}}`]?.(); }},
  save_changes: () => {{}}, on: (name, how) => {{ heard[name] = how; }}, off: () => {{}},
  send: (message) => window.sent.push(message), answer: (message) => heard["msg:custom"](message),
}};
own.render({{ model: window.model, el: document.getElementById("cell") }});
</script></body></html>"""


def asked(widget: Any, **message: Any) -> list[Any]:
    """What the kernel answers to a message."""
    answers: list[Any] = []
    widget.send = answers.append
    widget._asked(widget, message, [])
    return answers


def test_its_contents_are_the_pages(explanation: sc.Explanation) -> None:
    widget = explanation.widget()
    assert widget.contents == explanation.contents()
    assert view(EXPLANATION).split("explanation.\n")[0][:500] in str(widget._esm)
    widget.close()


def test_ablations_are_answered_by_the_kernel(explanation: sc.Explanation) -> None:
    widget = explanation.widget()
    own = sc.ablate(explanation.run, "layers.0.mlp")
    given = {"what": "layers.0.mlp", "by": "zero", "position": None}
    (answer,) = asked(widget, id="a", kind="ablation", given=given)
    assert (answer["id"], answer["result"]["frozen"], answer["result"]["real"]) == ("a", *own.change())
    (wrong,) = asked(widget, id="b", kind="ablation", given=given | {"what": "layers.99.mlp"})
    assert "layers.99.mlp" in wrong["error"]
    assert asked(widget, id="c", kind="nonsense", given={}) == []
    widget.close()


@pytest.fixture
def fresh(lm: sc.LM) -> sc.Explanation:
    """An explanation whose page grows."""
    return sc.explain(lm, "The bridge out of Marin is the")


def test_any_token_is_compared_with(fresh: sc.Explanation) -> None:
    widget = fresh.widget()
    before = len(widget.contents["about"]["totals"])
    assert " people" not in [p.token for p in fresh.run.prediction[:5]]
    (answer,) = asked(widget, id="a", kind="versus", given={"token": " people"})
    assert answer == {"id": "a", "result": {"number": before}}
    assert len(widget.contents["about"]["totals"]) == before + 1
    whole = fresh.contents()  # which has it too, from now on
    assert widget.contents["tables"]["versus"] == whole["tables"]["versus"]
    assert widget.contents["about"]["totals"] == pytest.approx(whole["about"]["totals"])
    (wrong,) = asked(widget, id="b", kind="versus", given={"token": " Golden"})
    assert "Golden" in wrong["error"]
    widget.close()


def test_steering_is_answered_by_the_kernel(explanation: sc.Explanation) -> None:
    widget = explanation.widget()
    assert widget.choices["layers"] == 2
    how = {"concept": "London", "layer": 1, "form": "mixture", "tokens": 4}
    for strength in (0, 1):
        (answer,) = asked(widget, id="a", kind="steering", given=how | {"strength": strength})
        own = side_by_side(explanation.run.lm, explanation.run.ids, "London", layer=1, strength=strength, tokens=4)
        assert answer["result"]["steered"]["text"] == own.steered.text
        assert (answer["result"]["unsteered"]["text"] == own.steered.text) == (strength == 0)
    widget.close()


def test_without_the_package(explanation: sc.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(sc.SecantError, match=r"pip install 'secant\[widget\]'"):
        explanation.widget()


@pytest.mark.parametrize("light", ["true", "false"])
def test_in_a_browser(browser: Browser, fresh: sc.Explanation, tmp_path: Path, light: str) -> None:
    """It draws itself in a cell, keeps what is chosen, and asks the kernel; two cells would not see each other."""
    widget = fresh.widget()
    (tmp_path / "widget.js").write_text(str(widget._esm), "utf-8")
    (tmp_path / "contents.json").write_text(json.dumps(widget.contents), "utf-8")
    (tmp_path / "index.html").write_text(PAGE.format(light=light, choices=json.dumps(widget.choices)), "utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.new_page(viewport={"width": 900, "height": 700})
        tab.set_default_timeout(60_000)
        trouble: list[str] = []
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        tab.locator("#said").wait_for()
        paper = tab.locator("#panel").evaluate("node => getComputedStyle(node).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if light == "true" else "rgb(26, 30, 35)")
        assert tab.locator('.tok[aria-pressed="true"]').inner_text().strip() == fresh.run.tokens[2].strip()
        tab.locator(".tok").nth(4).click()
        assert tab.evaluate("window.model.get('address')").startswith("#token=4")
        tab.locator("#sheet").click()
        tab.locator("#ablate").click()
        (message,) = tab.evaluate("window.sent")
        (answer,) = asked(widget, **message)
        tab.evaluate("answer => window.model.answer(answer)", answer)
        tab.locator("#answers").wait_for()
        assert tab.locator("#answers tbody tr").count() == len(answer["result"]["rows"])
        assert tab.locator("#theme, #copy").count() == 0

        def answered(kind: str) -> None:
            tab.wait_for_function("kind => window.sent.at(-1).kind === kind", arg=kind)
            (answer,) = asked(widget, **tab.evaluate("window.sent.at(-1)"))
            tab.evaluate("contents => window.model.set('contents', contents)", widget.contents)
            tab.evaluate("answer => window.model.answer(answer)", answer)

        tab.locator("#sheet").click()  # which covers what is below
        tab.locator(".steer summary").click()
        tab.locator(".steer [name=concept]").fill("London")
        tab.locator(".steer [name=tokens]").fill("3")
        tab.locator(".steer [type=submit]").click()
        answered("steering")
        tab.locator(".steer .steered bdi").wait_for()
        tab.locator("#versus-any").fill(" people")
        tab.locator("#versus-any").press("Enter")
        answered("versus")
        tab.locator("#versus option:checked", has_text="people").wait_for(state="attached")
        assert "view=versus" in tab.evaluate("window.model.get('address')")
        assert tab.locator(".steer [name=concept]").input_value() == "London"  # drawing anew keeps it
        assert trouble == []
        server.shutdown()
    widget.close()
