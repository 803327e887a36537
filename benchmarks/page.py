"""Claim: the page of a 512-token prompt has at most 3 MB without J's image, is painted within 1 s, and answers a click
within 200 ms. In the workbench, the answer to a prompt arrives within 4 s on SmolLM2, and clicks are as fast.

The page is that of a small random Llama with all layers, or a given page. Debian's chromium opens it, and the browser
itself measures the first contentful paint, the time until the tables are drawn, and the time from a click (on a token,
a row, a cell of the layers or heads, the choice of what cells show, a layer) or a key in the search to the next painted
frame, the worst of several.

With `serve`, it opens the workbench on a model (by default Atlas) instead, and measures the time from a prompt's Enter
to its answer on the page, an ablation, a steered continuation, and the same clicks.

    python benchmarks/page.py [TOKENS | PAGE | serve [MODEL]]
"""

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Page, sync_playwright
from random_models import llama

import secant as sc

CHROMIUM = Path("/usr/bin/chromium")
LAYERS, D = 6, 64
UNTIL_PAINTED = """
async ([find, act]) => {
  const all = [...document.querySelectorAll(find)];
  window.turn = (window.turn ?? 0) + 1;
  const node = all[(window.turn * 7) % all.length];
  if (act !== "click") node.value = node.value === "1" ? "2" : "1";
  const start = performance.now();
  if (act === "click") node.click(); else node.dispatchEvent(new Event(act, { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}
"""


def written(path: Path, tokens: int) -> None:
    """The page of a random model at a random prompt."""
    lm = sc.LM(llama(D, 2 * D, LAYERS, 4, kv=2, vocabulary=500, longest=1024), name="random")
    explanation = sc.explain(lm, torch.randint(0, 500, (tokens,)).tolist(), layers=True)
    start = time.perf_counter()
    evidence = explanation.evidence(image=False)
    print(f"  evidence                {time.perf_counter() - start:8.1f} s")
    start = time.perf_counter()
    explanation.report(path, evidence)
    print(f"  report                  {time.perf_counter() - start:8.1f} s")


def timed(page: Page, find: str, act: str, rounds: int = 7) -> float:
    """The longest time of several rounds, in milliseconds."""
    page.locator(find).first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    return max(page.evaluate(UNTIL_PAINTED, [find, act]) for _ in range(rounds))


WAYS = {
    "token": (".tok", "click"), "row": ("#contributions tbody tr", "click"), "layer": ("#layer", "change"),
    "layers x tokens": ("#lens-table td.cell", "click"), "what cells say": ("#cells button", "click"),
    "part or head": ("#components-table td.cell", "click"), "paths": ("#paths button", "click"),
    "search": ("#find", "input"), "theme": ("#theme", "change"),
}  # fmt: skip
"""What is clicked or changed, and the event."""


def opened(path: Path) -> None:
    """Open a page, and print its size and times."""
    print(f"  size                    {path.stat().st_size / 1e6:8.2f} MB (claim: at most 3.00 without J's image)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(path.as_uri(), wait_until="load")
        page.wait_for_timeout(500)
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        print(f"  first paint             {paint:8.0f} ms  (claim: at most 1000)")
        print(f"  all of it               {ready:8.0f} ms")
        clicked(page)
        browser.close()


def clicked(page: Page) -> None:
    """Print the longest time of each way to change the view."""
    for name, (find, act) in WAYS.items():
        if page.locator(find).count():
            print(f"  {name:<24}{timed(page, find, act):8.0f} ms  (claim: at most 200)")


def asked(page: Page, what: str, act: Callable[[], object], answer: str) -> None:
    """Print the seconds from an action to its answer."""
    start = time.perf_counter()
    act()
    page.locator(answer).first.wait_for(timeout=300_000)
    print(f"  {what:<24}{time.perf_counter() - start:8.2f} s")


def served(name: str) -> None:
    """Open the workbench on a model, and print its times."""
    from secant.workbench.serving import serving

    lm = sc.load(name)
    with serving([lm]) as (address, wait), sync_playwright() as playwright:
        threading.Thread(target=wait, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900}, bypass_csp=True)
        asked(page, "the first answer", lambda: page.goto(address), "#said")
        page.locator(".now", has_text=re.compile("All is|Can be")).wait_for(timeout=600_000)
        prompt = page.locator("[name=prompt]")
        prompt.fill("The people of the village walked to the")
        asked(page, "another (claim: 4)", lambda: prompt.press("Enter"), ".tok:nth-child(8)")
        page.locator(".now", has_text=re.compile("All is|Can be")).wait_for(timeout=600_000)
        page.locator(".tok").nth(3).click()
        asked(page, "ablation", lambda: page.locator("#ablate").click(), "#answers")
        page.locator(".steer summary").click()
        page.locator("[name=concept]").fill("I love the sea")
        asked(page, "steering, 20 tokens", lambda: page.locator(".steer form button").click(), ".both")
        page.evaluate(DEEP)
        clicked(page)
        browser.close()


DEEP = """() => {
  const plain = document.querySelectorAll.bind(document);
  const { shadowRoot } = document.querySelector(".result");
  document.querySelectorAll = (find) => [...plain(find), ...shadowRoot.querySelectorAll(find)];
}"""
"""Lets `UNTIL_PAINTED` find elements in the view's shadow root."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", nargs="?", default="512", metavar="TOKENS | PAGE | serve")
    parser.add_argument("model", nargs="?", default="atlas", help="for serve")
    args = parser.parse_args()
    of = args.of
    if not CHROMIUM.exists():
        print(f"There is no browser at {CHROMIUM}: nothing was measured.")
        return
    if of == "serve":
        served(args.model)
        return
    if not of.isdigit():
        opened(Path(of).resolve())
        return
    print(f"{of} tokens, {LAYERS} layers, d {D}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        written(path, int(of))
        opened(path)


if __name__ == "__main__":
    main()
