"""The workbench in a browser: answers arrive in stages; it works by keyboard, at all widths, in both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hostile import HOSTILE, hostile_model
from playwright.sync_api import Browser, Page, Route, expect
from uvicorn import Server

import secant as sc
from secant.text import visible
from secant.workbench.serving import serving

PROMPT = "The bridge out of Marin is the"


@contextmanager
def served(*models: sc.LM) -> Iterator[str]:
    """The address of a workbench that runs in this process."""
    servers: list[Server] = []
    plain = Server.__init__

    def noting(self: Server, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "__init__", noting)
        with serving(models, max_tokens=40) as (address, wait):
            thread = Thread(target=wait, daemon=True)
            thread.start()
            yield address
            servers[0].should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(four_layers: sc.LM, lm: sc.LM) -> Iterator[str]:
    with served(four_layers, lm) as address:
        yield address


@contextmanager
def opened(
    browser: Browser, address: str, fragment: str = "", logs: tuple[str, ...] = (), **how: Any
) -> Iterator[Page]:
    """The workbench in a browser: as long as it is open, it asks nobody else, raises nothing, and logs only `logs`."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | how)
    tab, trouble = context.new_page(), list[str]()
    tab.set_default_timeout(60_000)
    origin = address.partition("?")[0]
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: trouble.append(dialog.message) or dialog.dismiss())
    tab.on("request", lambda request: trouble.append(request.url) if outside(request.url, origin) else None)
    tab.goto(address + fragment, wait_until="load")
    try:
        yield tab
    finally:
        context.close()
    assert trouble == [*logs]


def outside(url: str, origin: str) -> bool:
    return not url.startswith((origin, "data:", "blob:"))


def settled(tab: Page, pane: int = 0) -> None:
    """All stages are computed and drawn."""
    expect(tab.locator(".result").nth(pane)).not_to_have_attribute("aria-busy", "true", timeout=60_000)
    expect(tab.locator(".now").nth(pane)).to_have_text("Everything is computed.", timeout=120_000)


def ask(tab: Page, prompt: str, pane: int = 0) -> None:
    tab.locator("[name=prompt]").nth(pane).fill(prompt)
    tab.locator("[name=prompt]").nth(pane).press("Enter")


def test_a_new_user(browser: Browser, address: str, four_layers: sc.LM) -> None:
    """What did it predict, why, how sure, what does it depend on? It says so without a click."""
    run = sc.freeze(four_layers, PROMPT)
    first, second = run.prediction[:2]
    with opened(browser, address) as tab:
        expect(tab.locator("#said")).to_contain_text(f"{visible(first.token)} is predicted with ")
        expect(tab.locator("#said")).to_contain_text(f"before {visible(second.token)}")
        expect(tab.locator("#why")).to_contain_text(f"The logit of {visible(first.token)} is ")
        expect(tab.locator(".badge.good").first).to_contain_text("Exact to")
        expect(tab.locator("#badges")).to_contain_text("onvention", timeout=60_000)  # once others are computed
        assert "token=" not in tab.url  # the address of the session is gone
        for name in ("#said", "#why", "#badges", ".tok >> nth=0"):
            expect(tab.locator(name)).to_be_in_viewport(ratio=0.99)  # all of it in the first screen
        settled(tab)


def test_what_is_asked_is_answered(browser: Browser, address: str, four_layers: sc.LM) -> None:
    """A prompt, a target, a convention; sections come as they are ready; and nothing that is chosen is lost."""
    with opened(browser, address) as tab:
        settled(tab)
        ask(tab, "In London people cross the")
        said = visible(sc.freeze(four_layers, "In London people cross the").prediction[0].token)
        expect(tab.locator("#said")).to_contain_text(f"{said} is predicted")
        tab.locator("[name=target]").fill("Charles")
        tab.locator("[name=convention]").select_option("up")
        tab.get_by_role("button", name="Explain", exact=True).click()
        expect(tab.locator("#why")).to_contain_text("The logit of Charles is")
        expect(tab.locator("#sum")).to_contain_text("Convention: up.")
        tab.locator(".tok").nth(2).click()
        tab.locator(".tok").nth(2).focus()
        expect(tab.locator("#lens-table tbody tr")).to_have_count(4)
        expect(tab.locator("#components-table tbody tr")).to_have_count(4)
        settled(tab)
        assert tab.locator('.tok[aria-pressed="true"]').inner_text().strip() == "London"
        assert tab.evaluate("document.activeElement.shadowRoot.activeElement.classList.contains('tok')")
        expect(tab.locator("#cells button")).to_have_count(4)
        tab.go_back()  # nothing chosen yet
        tab.go_back()  # before the target
        expect(tab.locator("#why")).to_contain_text(f"The logit of {said} is")
        tab.locator("[name=prompt]").fill("the " * 50)
        tab.get_by_role("button", name="Explain", exact=True).click()
        expect(tab.locator(".failed")).to_contain_text("A prompt has at most 40 tokens here; got 51.")


def test_a_slow_response_loses_nothing(browser: Browser, address: str) -> None:
    """Events overtake the response to a request, and a request can fail once another one has replaced it."""
    refused = "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    with opened(browser, address, logs=(refused,)) as tab:

        def late(route: Route) -> None:
            response = route.fetch()
            tab.wait_for_timeout(1500)  # meanwhile it is answered, and so the events say
            route.fulfill(response=response)

        tab.route("**/api/explain", late)
        ask(tab, "In Vienna people cross the")
        expect(tab.locator(".failed")).to_contain_text("Vienna")
        ask(tab, "In Prague people cross the")
        expect(tab.locator(".tok").nth(2)).to_have_text("Prague")
        tab.unroute("**/api/explain")

        def broken(route: Route) -> None:
            tab.wait_for_timeout(1500)
            route.fulfill(status=400, json={"error": "It failed late."})

        tab.route("**/api/explain", broken, times=1)
        ask(tab, "From Lisbon people cross the")
        with tab.expect_response(lambda response: not response.ok):
            ask(tab, "In London people cross the")
        expect(tab.locator(".tok").nth(2)).to_have_text("London")
        settled(tab)
        expect(tab.locator(".failed")).to_be_hidden()
        assert "London" in tab.url


def test_both_networks_answer(browser: Browser, address: str, four_layers: sc.LM) -> None:
    run = sc.freeze(four_layers, PROMPT)
    with opened(browser, address) as tab:
        settled(tab)
        tab.locator(".tok").nth(6).click()
        tab.locator("#ablate").click()
        frozen, real = sc.ablate(run, 6).change()
        expect(tab.locator("#ablation p")).to_contain_text(f"changes by {signed(frozen)} in the frozen network (gate)")
        expect(tab.locator("#ablation p")).to_contain_text(f"and by {signed(real)} in the model itself")
        tab.locator("#components-table tbody tr").nth(1).locator("td.cell").nth(3).click()
        expect(tab.locator("#ablate-what")).to_have_text("Without head 1 of layer 1")
        assert tab.locator("#ablation p").count() == 0  # of another part
        tab.locator("#ablate-where").select_option("last")
        tab.locator("#ablate").click()
        frozen, real = sc.ablate(run, "layers.1.attn.heads.1", position=-1).change()
        expect(tab.locator("#ablation p")).to_contain_text(f"{signed(real)} in the model itself")
        tab.locator(".tok").nth(6).click()
        tab.locator("#layer").select_option("")
        expect(tab.locator("#ablation p")).to_contain_text("in the model itself")  # it is remembered
        tab.locator("#ablate-by").select_option("token")
        tab.locator("#ablate-token").fill("London")
        tab.locator("#ablate-token").press("Enter")
        expect(tab.locator("#answers tbody tr").first).to_be_visible()
        tab.locator("#ablate-token").fill("nonsense")
        tab.locator("#ablate").click()
        expect(tab.locator("#ablation .notice")).to_contain_text("nonsense")
        tab.locator("#versus-any").fill("Venice")
        tab.locator("#versus-any").press("Enter")
        expect(tab.locator("#sum")).to_contain_text("over Venice")


def signed(x: float) -> str:
    """As the page writes it."""
    size = abs(x)
    text = f"{float(f'{size:.2g}'):g}" if size < 0.095 else f"{size:.2f}" if size < 9.95 else f"{size:.1f}"
    return ("−" if x < 0 else "+") + text


def test_steering_beside_the_unsteered(browser: Browser, address: str) -> None:
    with opened(browser, address) as tab:
        settled(tab)
        tab.locator(".steer summary").click()
        tab.locator("[name=concept]").fill("In Venice people cross the")
        tab.locator(".steer [name=tokens]").fill("4")
        tab.locator(".steer [name=strength]").fill("0")
        tab.get_by_role("button", name="Steer", exact=True).click()
        expect(tab.locator(".both")).to_be_visible()
        assert tab.locator(".plain bdi").inner_text() == tab.locator(".steered bdi").inner_text()
        tab.locator(".steer [name=strength]").fill("1")
        expect(tab.locator(".steer .says")).to_contain_text("strength 1.")
        assert tab.locator(".plain bdi").inner_text() != tab.locator(".steered bdi").inner_text()


def test_two_runs_side_by_side_and_links(browser: Browser, address: str) -> None:
    """Two prompts on two models; a link restores both with what is chosen in each; history has them."""
    with opened(browser, address) as tab:
        settled(tab)
        tab.locator("#double").click()
        tab.locator("[name=model]").nth(1).select_option("tiny (2)")
        ask(tab, "The bridge in London is called the", 1)
        settled(tab, 1)
        tab.locator(".result").nth(0).locator(".tok").nth(6).click()
        tab.locator(".result").nth(1).locator(".tok").nth(4).click()
        assert tab.locator(".result").nth(0).locator("#lens-table tbody tr").count() == 4
        assert tab.locator(".result").nth(1).locator("#lens-table tbody tr").count() == 2
        link = tab.url
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        other = tab.context.new_page()
        other.goto(link)
        for i, chosen in enumerate(("is", "London")):
            expect(other.locator(".result").nth(i).locator("#chosen")).to_have_text(chosen)
        assert other.url == link
        other.close()
        tab.locator("#history summary").click()
        expect(tab.locator("#history li").first).to_contain_text("The bridge in London is called the")
        tab.locator("#history li button").nth(1).click()
        expect(tab.locator("[name=prompt]").nth(1)).to_have_value(PROMPT)
        tab.locator("#double").click()
        expect(tab.locator(".pane")).to_have_count(1)


def test_the_page_that_is_saved(browser: Browser, address: str, four_layers: sc.LM, tmp_path: Path) -> None:
    """It is the offline page: the same script, the same tables."""
    with opened(browser, address) as tab:
        ask(tab, "From Lisbon they walked over the")
        expect(tab.locator(".tok")).to_have_count(7)
        settled(tab)
        with tab.expect_download() as got:
            tab.get_by_role("button", name="Save this page").click()
        assert got.value.suggested_filename == "report.html"
        got.value.save_as(tmp_path / "saved.html")
    sc.explain(four_layers, "From Lisbon they walked over the", layers=True).report(tmp_path / "report.html")
    saved, report = ((tmp_path / name).read_text("utf-8") for name in ("saved.html", "report.html"))
    without = re.compile(r'"how":\{.*?"seed":0\}')
    assert without.sub("", saved) == without.sub("", report)


def test_keyboard(browser: Browser, address: str) -> None:
    """From the address bar to an ablation, without a mouse."""
    with opened(browser, address) as tab:
        settled(tab)
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the prompt"
        tab.keyboard.press("Enter")
        tab.keyboard.type("X")
        tab.keyboard.press("ControlOrMeta+a")
        tab.keyboard.type("In Prague people cross the")
        tab.keyboard.press("Enter")
        expect(tab.locator(".tok")).to_have_count(6)
        settled(tab)
        tab.locator('.tok[tabindex="0"]').focus()
        tab.keyboard.press("Home")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
        expect(tab.locator("#chosen")).to_have_text("Prague")
        tab.locator("#ablate").focus()
        tab.keyboard.press("Enter")
        expect(tab.locator("#ablation p")).to_contain_text("in the model itself")


@pytest.mark.parametrize(("width", "theme"), [(1440, "dark"), (800, "light"), (400, "dark")])
def test_axe_finds_nothing(browser: Browser, address: str, theme: str, width: int) -> None:
    """Colours depend on the theme, and where things are on the width."""
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 900}
    with opened(browser, address, color_scheme=theme, viewport=size, bypass_csp=True) as tab:
        settled(tab)
        if width < 1150:
            tab.locator("#sheet").click()
        tab.locator("#ablate").click()
        tab.locator("#answers").wait_for()
        for fold in (".steer summary", ".all summary"):
            tab.locator(fold).click()
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:120]) for v in found] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.locator("#double").click()
        ask(tab, PROMPT, 1)
        settled(tab, 1)
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:120]) for v in found] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_of_a_hostile_tokenizer_runs(browser: Browser) -> None:
    lm, prompt = hostile_model()
    with served(lm) as address, opened(browser, address) as tab:
        ask(tab, prompt)
        expect(tab.locator(".tok")).to_have_count(len(HOSTILE))
        settled(tab)
        for t in range(0, len(HOSTILE), 5):
            tab.locator(".tok").nth(t).press("Enter")
            tab.locator("#ablate").click()
            expect(tab.locator("#answers")).to_be_visible()
        tab.locator("#history summary").click()
        expect(tab.locator("#history li").first).to_contain_text("</script><img src=x")
        assert tab.evaluate("window.ran") is None
        assert tab.locator("img, b, i, [onerror], svg a, a[href*='example']").count() == 0
        assert tab.locator(".model").inner_text() == lm.name
