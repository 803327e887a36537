"""The page: its data are the tables, nothing of a prompt runs, and a real browser finds its way in it, both themes."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import model_of
from helpers import chromium
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from secant.report import document
from secant.report import page as report_page
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import secant as sc
from secant import memory as resources
from secant.analyses import case as cases
from secant.cli import app
from secant.results import page as document

PROMPT = "The bridge out of Marin is the"
HOSTILE = [
    "</script><img src=x onerror=window.ran=1>", "<!--", "<b>bold</b>", "&lt;i&gt;", "{{ 7 * 7 }}", "${window.ran=1}",
    "javascript:1", "\N{LINE SEPARATOR}", "\n", " ", "\t\x00", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "שלום", "مرحبا",
    "中文字",    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "\N{COMBINING ACUTE ACCENT}", "'\"",
    "<a href='https://example.org'>x</a>", "a" * 60,
]  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A page: where it is, its text, and the data in it."""

    path: Path
    text: str
    data: dict[str, Any]
    explanation: sc.Explanation

    def words(self, entries: list[list[Any]]) -> list[str]:
        return [self.data["texts"][place] for place, *_ in entries]


def written(e: sc.Explanation, folder: Path) -> Written:
    path = folder / "report.html"
    e.report(path)
    return read(path, e)


def read(path: Path, e: sc.Explanation) -> Written:
    text = path.read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return Written(path, text, json.loads(data), e)


@pytest.fixture(scope="module")
def made(lm: sc.LM, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(sc.explain(lm, PROMPT, layers=True, steps=2), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A model with a hostile tokenizer and name, at a prompt of all of its tokens."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(HOSTILE)}, unk_token=HOSTILE[0]))
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(HOSTILE), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    lm = sc.LM(
        LlamaForCausalLM(config).eval(),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False),
        "</title><script>window.ran=1</script>",
    )
    return written(sc.explain(lm, list(range(len(HOSTILE))), layers=True, steps=2), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, page: Written, fragment: str = "", **how: Any) -> Iterator[Page]:
    """A page in the browser: it must ask for nothing, log nothing, and raise nothing, as long as it is open."""
    context = browser.new_context(**how)
    tab, trouble = context.new_page(), list[str]()
    tab.set_default_timeout(10_000)
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: trouble.append(dialog.message) or dialog.dismiss())
    tab.on("request", lambda request: trouble.append(request.url) if _outside(request.url) else None)
    tab.goto(page.path.as_uri() + fragment, wait_until="load")
    yield tab
    context.close()
    assert trouble == []


def _outside(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


def token(tab: Page, t: int) -> Locator:
    return tab.locator(".tok").nth(t)


def arrived(tab: Page, address: str) -> None:
    """The address ends like this, now or soon."""
    tab.wait_for_function("end => location.hash.endsWith(end)", arg=address)


def scrolled_through(tab: Page) -> None:
    """Every plot has been near the window, and is drawn."""
    for i in range(tab.locator(".plot").count()):
        tab.locator(".plot").nth(i).scroll_into_view_if_needed()
        tab.locator(".plot").nth(i).locator(".main-svg").first.wait_for()


# ------------------------------------------------------------------------------------------- data


def test_contributions_are_those_of_the_tables(made: Written) -> None:
    e, sums = made.explanation, made.data["sums"]
    assert sums[0]["tokens"] == e.to_pandas()["contribution"].tolist()
    assert len(sums) == 5
    for i, own in enumerate(sums):
        assert sum(own["tokens"]) + own["constant"] == pytest.approx(own["logit"], abs=1e-12)
        other = e.run.prediction[i].logit if i else 0
        assert own["logit"] == pytest.approx(e.run.prediction[0].logit - other, abs=1e-12)
    by_layer = torch.tensor([way["tokens"] for way in made.data["flow"]]).sum(0)
    assert by_layer.tolist() == pytest.approx(sums[0]["tokens"], abs=1e-5)
    assert [way["layer"] for way in made.data["flow"]] == [None, 0, 1, 2, 3]
    parts = [p["direct"] for p in made.data["parts"] if p["kind"] != "head"]
    assert sum(parts) == pytest.approx(sums[0]["logit"], abs=1e-12)
    attention = {p["layer"]: p["direct"] for p in made.data["parts"] if made.data["texts"][p["name"]].endswith("attn")}
    for layer, contribution in attention.items():
        heads = [p["direct"] for p in made.data["parts"] if (p["kind"], p["layer"]) == ("head", layer)]
        assert sum(heads) == pytest.approx(contribution, abs=1e-12)


def test_words_and_spectra_are_those_of_the_tables(made: Written) -> None:
    e = made.explanation
    for t, block in enumerate(made.data["blocks"]):
        assert block["S"] == pytest.approx(e.svds[t].S.tolist(), rel=1e-5)
        for side, words in (("writes", e.outputs[t]), ("reads", e.inputs[t])):
            assert [made.words(vector) for vector in block[side]] == [[w.token for w in own] for own in words]
            for vector, own in zip(block[side], words, strict=True):
                assert [entry[1] for entry in vector] == pytest.approx([w.score for w in own], rel=1e-3)
                assert [entry[2] for entry in vector] == pytest.approx([w.z for w in own], rel=1e-3)
    depths, table = made.data["depths"], e.layers.words(top=8, vectors=2)
    rows = table[(table["part"] == "residual") & (table["span"] == "cumulative") & (table["layer"] == 2)]
    for side, name in (("writes", "output"), ("reads", "input")):
        own = rows[(rows["position"] == 5) & (rows["vector"] == 1) & (rows["side"] == name)]
        assert made.words(depths["blocks"][2][5][side][1]) == own["word"].tolist()
    whole, last = (torch.tensor(b["writes"][0]) for b in (made.data["blocks"][5], depths["blocks"][-1][5]))
    torch.testing.assert_close(last, whole, rtol=1e-3, atol=1e-3)  # the last depth is the whole network
    for view in depths["map"]:
        for own in view["rows"]:
            rows = table[(table["part"] == view["part"]) & (table["span"] == view["span"]) & (table["vector"] == 0)]
            rows = rows[(rows["layer"] == own["layer"]) & (rows["side"] == "output") & (rows["rank"] == 0)]
            first = rows[rows["position"].notna()]["word"].tolist()
            assert [made.data["texts"][cell[0]] for cell in own["cells"]] == first
    ranks = {(r["layer"], r["part"], r["span"]): r["rank"] for r in depths["ranks"]}
    together = e.layers.depth(1, "mlp", "layerwise").whole
    assert together is not None
    assert ranks[1, "mlp", "layerwise"] == pytest.approx(together.stable_rank, rel=1e-3)


def test_the_image_is_of_j(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every rectangle of J on its own, where they are not of one size."""
    monkeypatch.setattr(cases, "CELLS", 7)
    monkeypatch.setattr(cases, "COLUMNS", 5 * 8)
    op = sc.freeze(lm, PROMPT).operator()
    J, image = op.dense(), cases.imaged(op)
    assert image.shape == (7, 8, 5)
    for r in range(7):
        rows = [i for i in range(64) if i * 7 // 64 == r]
        for c in range(5):
            columns = [i for i in range(64) if i * 5 // 64 == c]
            own = J[rows][:, :, columns].square().mean((0, 2)).sqrt()
            torch.testing.assert_close(image[r, :, c], own)


def test_what_is_rebuilt(made: Written) -> None:
    own, run = made.data["rebuilt"], made.explanation.run
    y, rebuilt, ordinary = (torch.tensor(own[name], dtype=torch.float64) for name in ("output", "rebuilt", "ordinary"))
    torch.testing.assert_close(y, run.hidden[-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(rebuilt, y, rtol=1e-5, atol=0)
    assert ((ordinary - y).norm() / y.norm()).item() == pytest.approx(run.certificate.ordinary, rel=1e-4)


def test_only_some_units_of_a_wide_model(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "POINTS", 5)
    e = sc.explain(lm, PROMPT, k=1)
    found = report_page.contents(e, e.evidence(image=False))["rebuilt"]
    assert found["units"] == [0, 12, 25, 38, 51]
    assert found["output"] == pytest.approx(e.run.hidden[-1][found["units"]].tolist(), rel=1e-5)


def test_the_image_is_announced_and_can_be_left_out(
    browser: Browser, explanation: sc.Explanation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(resources, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "secant"):
        without = explanation.evidence(image=False)
        assert not caplog.records
        replace(explanation, case=cases.Case(explanation.run)).evidence()  # J is not there
    (record,) = caplog.records
    assert "All 64 rows of J, for its image: about" in record.message
    path = tmp_path / "report.html"
    explanation.report(path, without)
    page = read(path, explanation)
    assert page.data["image"] is None
    with opened(browser, page) as tab:
        says = "its image was left out of this page, since it takes every row of J."
        assert tab.locator("#image-says").inner_text() == f"J, 64 x 8 tokens x 64: {says}"
        assert tab.locator("#plot-image").count() == 0
        token(tab, 2).click()
        scrolled_through(tab)


def test_long_prompts_get_fewer_words_of_each_depth(made: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "WORDS", 400)
    e = made.explanation
    depths = report_page.contents(e, e.evidence(image=False))["depths"]
    assert (depths["vectors"], depths["top"]) == (1, 6)
    assert sum(len(w) for row in depths["blocks"] for b in row for s in ("writes", "reads") for w in b[s]) <= 400


# ------------------------------------------------------------------------------------------- the document


def test_nothing_is_fetched_and_only_its_scripts_run(made: Written) -> None:
    own = made.text.replace(document.library(), "")
    assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", re.sub(r"^\s*//.*", "", own, flags=re.M))
    assert {link[0] for link in re.findall(r'(?:src|href)="([^"]*)"', own)} <= {"#", "d"}
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made.text)
    allowed = dict(part.split(" ", 1) for part in policy.replace("&#39;", "'").split("; "))
    assert allowed["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-\S{44}' 'sha256-\S{44}'", allowed["script-src"])
    assert set(allowed) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert allowed["img-src"] == "data: blob:"


@pytest.mark.slow
def test_ten_tokens_and_many_layers_are_under_six_megabytes(tmp_path: Path) -> None:
    lm = model_of("llama", "sdpa", num_hidden_layers=18)
    page = written(sc.explain(lm, list(range(1, 11)), k=8, layers=True), tmp_path)  # as many words as 36 and k = 4
    depths = page.data["depths"]
    assert page.path.stat().st_size < 5.8e6
    assert len(depths["blocks"]) == 18
    assert 0.7 * report_page.WORDS < 2 * 10 * 18 * depths["vectors"] * depths["top"] <= report_page.WORDS


def test_hostile_texts_are_data(hostile: Written) -> None:
    """None of them is in the page as it stands; in the data they are all there."""
    for text in ("</script><img", "<b>bold", "<!--", "&lt;i", "</title><script>", "<a href='https"):
        assert text not in hostile.text.replace(document.library(), "")
    texts = hostile.data["texts"]
    shown = [texts[t["text"]] for t in hostile.data["tokens"]]
    assert shown[:3] == ["</script><img·src=x·onerror=window.ran=1>", "<!--", "<b>bold</b>"]
    assert hostile.data["model"] == hostile.explanation.run.lm.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "·a"),
        ("\n", "⏎"),
        ("\t\x00", "⇥\\x00"),
        ("\u202eabc", "\\x202eabc"),
        ("\u0301", "◌\u0301"),
        ("\u2028", "\\x2028"),
        ("中文", "中文"),
    ],
)
def test_odd_tokens_are_legible(text: str, shown: str) -> None:
    assert report_page.shown(text) == shown


def test_without_plotly(made: Written, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(sc.SecantError, match=r"got an installation without it\. pip install 'secant\[report\]'"):
        made.explanation.report(tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()
    monkeypatch.setattr(sys.modules["secant.cli.output"], "find_spec", lambda name: None)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--out", str(out), "--json"])
    assert result.exit_code == 0
    (line,) = result.stderr.strip().splitlines()
    assert line == "There is no page: it needs plotly. pip install 'secant[report]'"
    assert (out / "tokens.csv").exists()
    assert not (out / "report.html").exists()


def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--out", str(out), "--no-image"])
    assert result.exit_code == 0, result.output
    assert not (out / "image.csv").exists()
    assert len(pd.read_csv(out / "rebuilt.csv")) == 64
    assert {"contributions.csv", "flow.csv", "versus.csv", "chance.csv"} <= {file.name for file in out.iterdir()}
    assert result.stderr.strip() == f"Tables and tensors are in {out}; the page is {out / 'report.html'}"
    text = (out / "report.html").read_text("utf-8")
    assert "<!doctype html>" in text
    assert str(folder.parent) not in text  # where the model is on this machine is nobody's business


# ------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_and_layers_are_chosen_by_clicks(browser: Browser, made: Written, theme: str) -> None:
    with opened(browser, made, color_scheme=theme) as tab:
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        assert dark == (theme == "dark")
        assert tab.locator("#said").inner_text() == "Golden"
        token(tab, 2).click()
        arrived(tab, "#token=2")
        assert token(tab, 2).get_attribute("aria-pressed") == "true"
        assert tab.locator("#block-token").inner_text() == "bridge"
        words = made.words(made.data["blocks"][2]["writes"][0])
        assert tab.locator(".vector").first.locator("table").first.locator("bdi").all_inner_texts() == words
        tab.locator("#map tbody tr").nth(1).locator("td").nth(5).click()
        arrived(tab, "#token=5&layer=1")
        assert tab.locator("#block-token").inner_text() == "Marin after layer 1"
        words = made.words(made.data["depths"]["blocks"][1][5]["writes"][0])
        assert tab.locator(".vector").first.locator("table").first.locator("bdi").all_inner_texts() == words
        assert tab.locator("#depth-name").inner_text() == "after layer 1"
        tab.locator("#depth").fill("3")
        arrived(tab, "#token=5&layer=3")
        assert tab.locator('#map [aria-selected="true"]').count() == 1
        tab.locator("#depth").fill("4")
        assert tab.locator("#depth-name").inner_text() == "whole network"
        scrolled_through(tab)


def test_what_colours_the_tokens(browser: Browser, made: Written) -> None:
    with opened(browser, made) as tab:

        def shown() -> list[float]:
            return [float(n.replace("−", "-")) for n in tab.locator(".tok small").all_inner_texts()]

        sums, flow = made.data["sums"], made.data["flow"]
        assert shown() == pytest.approx(sums[0]["tokens"], abs=0.05)
        tab.locator("#versus").select_option("2")
        arrived(tab, "view=versus&versus=2")
        assert shown() == pytest.approx(sums[2]["tokens"], abs=0.05)
        tab.locator('.switch[data-view="layer"]').click()
        assert shown() == pytest.approx(flow[-1]["tokens"], abs=0.05)
        tab.locator("#depth").fill("0")
        assert shown() == pytest.approx(flow[1]["tokens"], abs=0.05)
        own = ["minus" if x < 0 else "plus" for x in flow[1]["tokens"]]
        classes = [c.get_attribute("class") for c in tab.locator(".tok").all()]
        assert [str(c).split()[1] for c in classes] == own


def test_a_deep_link_restores_everything(browser: Browser, made: Written) -> None:
    link = "#token=5&layer=2&view=layer&map=1&find=gold&theme=dark"
    with opened(browser, made, link, color_scheme="light") as tab:
        assert token(tab, 5).get_attribute("aria-pressed") == "true"
        assert tab.locator("#block-token").inner_text() == "Marin after layer 2"
        assert tab.locator('.switch[data-view="layer"]').get_attribute("aria-pressed") == "true"
        assert tab.locator("#view").input_value() == "1"
        assert tab.locator("#find").input_value() == "gold"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        token(tab, 1).click()
        token(tab, 3).click()
        tab.go_back()
        tab.wait_for_function("document.querySelectorAll('.tok')[1].getAttribute('aria-pressed') === 'true'")
        assert tab.locator("#block-token").inner_text() == "The after layer 2"


def test_a_link_that_makes_no_sense(browser: Browser, made: Written) -> None:
    with opened(browser, made, "#token=999&layer=-1&view=x&versus=77&map=9&theme=pink&token=<b>") as tab:
        assert tab.locator('.tok[aria-pressed="true"]').count() == 1
        assert tab.locator("#block-token").inner_text() == "Marin"  # the largest contribution


def test_keyboard(browser: Browser, made: Written) -> None:
    with opened(browser, made, "#token=0") as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "To the prompt"
        tab.keyboard.press("Enter")
        for _ in range(9):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.classList.contains('tok')"):
                break
        assert tab.evaluate("document.activeElement.textContent").startswith("0: ")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
        arrived(tab, "#token=2")
        tab.keyboard.press("End")
        tab.keyboard.press(" ")
        arrived(tab, "#token=7")
        tab.locator('#map td[tabindex="0"]').focus()
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("Enter")
        arrived(tab, "#token=6&layer=2")
        assert tab.locator('#map td[tabindex="0"]').count() == 1


def test_search(browser: Browser, made: Written) -> None:
    with opened(browser, made) as tab:
        tab.locator("#find").fill("gold")
        first = made.data["depths"]["map"][0]["rows"]
        wanted = sum(any("gold" in made.data["texts"][w].lower() for w in c) for r in first for c in r["cells"])
        assert wanted > 0
        assert tab.locator("#map .hit").count() == wanted
        assert f"{wanted} in the map" in tab.locator("#found").inner_text()
        assert all("gold" in text.lower() for text in tab.locator("#map .hit").all_inner_texts())
        assert "find=gold" in tab.url
        token(tab, 5).click()
        assert "Golden" in tab.locator("#vectors .hit").all_inner_texts()
        tab.locator("#find").fill("no such word")
        assert tab.locator("#found").inner_text() == "0 found"
        tab.locator("#find").fill("")
        assert tab.locator(".hit").count() == 0
        texts = made.data["texts"]
        assert tab.locator("#map tbody tr").nth(0).locator("td").all_inner_texts() == [
            texts[c[0]] for c in first[0]["cells"]
        ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(browser: Browser, made: Written, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 900}
    with opened(browser, made, "#token=5&layer=2&find=gold", color_scheme=theme, viewport=size) as tab:
        scrolled_through(tab)
        for details in tab.locator("summary").all():
            details.click()
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:120]) for v in found] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # what is wide scrolls by itself


def test_nothing_of_a_hostile_tokenizer_runs(browser: Browser, hostile: Written) -> None:
    with opened(browser, hostile, "#token=0&layer=1&find=<b>", viewport={"width": 390, "height": 800}) as tab:
        for t in range(0, len(HOSTILE), 3):
            token(tab, t).click()
        scrolled_through(tab)
        tab.wait_for_timeout(200)
        assert tab.evaluate("window.ran") is None
        assert tab.locator("img, b, i, [onerror], svg a, a[href*='example']").count() == 0
        assert "<b>bold</b>" in tab.locator("#plot-image text").all_text_contents()
        texts = hostile.data["texts"]
        shown = tab.locator(".tok bdi").all_text_contents()
        assert shown == [texts[t["text"]] for t in hostile.data["tokens"]]
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_layers(browser: Browser, explanation: sc.Explanation, tmp_path: Path) -> None:
    page = written(explanation, tmp_path)
    assert page.data["depths"] is None
    with opened(browser, page, "#token=5&layer=2") as tab:
        assert tab.locator("#depths, #depth, #steps").count() == 0
        assert tab.locator("#block-token").inner_text() == "Marin"
        scrolled_through(tab)


def test_one_token(browser: Browser, lm: sc.LM, tmp_path: Path) -> None:
    page = written(sc.explain(lm, [5], layers=True), tmp_path)
    with opened(browser, page) as tab:
        assert tab.locator(".tok").count() == 1
        assert tab.locator("#before").is_disabled()
        assert tab.locator("#after").is_disabled()
        scrolled_through(tab)


def test_a_long_prompt_shows_what_is_chosen(browser: Browser, lm: sc.LM, tmp_path: Path) -> None:
    page = written(sc.explain(lm, [2 + i % 30 for i in range(60)], k=1), tmp_path)
    with opened(browser, page, "#token=59", viewport={"width": 300, "height": 800}) as tab:
        strip, own = tab.locator("#tokens").bounding_box(), token(tab, 59).bounding_box()
        assert strip is not None
        assert own is not None
        assert strip["y"] <= own["y"] <= strip["y"] + strip["height"] - own["height"] + 1
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_logit_of_zero(browser: Browser, tmp_path: Path) -> None:
    lm = model_of("llama", "sdpa", torch.float64)
    with torch.no_grad():
        lm.head.weight.zero_()
    page = written(sc.explain(lm, [3, 1, 2], layers=True), tmp_path)
    assert page.data["sums"][0]["logit"] == 0
    with opened(browser, page) as tab:
        assert set(tab.locator(".tok small").all_inner_texts()) == {"+0.00"}
        assert "NaN" not in tab.locator("body").inner_text()
        scrolled_through(tab)


def test_a_network_without_parts(
    browser: Browser, made: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model whose layers can't be found."""
    bare = replace(sc.attribute(made.explanation.run, parts=False))
    whole = cases.attribute
    monkeypatch.setattr(cases, "attribute", lambda run, *a, **k: bare if k.get("flow") else whole(run, *a, **k))
    case = cases.Case(made.explanation.run)
    page = written(replace(made.explanation, layers=None, steps=None, case=case), tmp_path)
    assert page.data["parts"] is None
    with opened(browser, page) as tab:
        assert tab.locator("#parts, [data-view='layer']").count() == 0
        scrolled_through(tab)
