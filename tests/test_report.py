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
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import secant as sc
from secant import memory as resources
from secant.analyses import case, explain as explaining
from secant.analyses.origins import origin_line
from secant.cli import app
from secant.numeric import relative
from secant.results import page as pages
from secant.results.page import columnar
from secant.results.schema import Column, Table
from secant.text import visible

PROMPT = "The bridge out of Marin is the"
HOSTILE = [
    "</script><img src=x onerror=window.ran=1>", "<!--", "<b>bold</b>", "&lt;i&gt;", "{{ 7 * 7 }}", "${window.ran=1}",
    "javascript:1", "\N{LINE SEPARATOR}", "\n", " ", "\t\x00", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "שלום", "مرحبا",
    "中文字",    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "\N{COMBINING ACUTE ACCENT}", "'\"",
    "<a href='https://example.org'>x</a>", "a" * 60,
]  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A page: where it is, its text, and its data, with tables as frames."""

    path: Path
    text: str
    about: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    explanation: sc.Explanation

    def rows(self, name: str, **where: Any) -> pd.DataFrame:
        """The rows of a table that have such values."""
        rows = self.tables[name]
        for column, value in where.items():
            rows = rows[rows[column].isna() if value is None else rows[column] == value]
        return rows

    def words(self, name: str, **where: Any) -> list[str]:
        return self.rows(name, **where)["word"].tolist()


def written(e: sc.Explanation, folder: Path, evidence: sc.Evidence | None = None) -> Written:
    path = folder / "report.html"
    e.report(path, evidence)
    return read(path, e)


def read(path: Path, e: sc.Explanation) -> Written:
    text = path.read_text("utf-8")
    about, tables = data(text)
    return Written(path, text, about, tables, e)


def data(page: str) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """What a page has in it: what is said of the whole, and its tables, read by other code than its own."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    contents = json.loads(found)

    def unpacked(own: Any) -> list[Any]:
        if isinstance(own, list):
            return own
        if "texts" in own:
            return [None if code is None else own["texts"][code] for code in unpacked(own["codes"])]
        pairs = zip(own["values"], own["times"], strict=True)
        return [value for value, times in pairs for _ in range(times)]

    tables = {
        name: pd.DataFrame({column: pd.Series(unpacked(own), dtype=object) for column, own in columns.items()})
        for name, columns in contents["tables"].items()
    }
    return contents["about"], tables


@pytest.fixture(scope="module")
def made(four_layers: sc.LM, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(sc.explain(four_layers, PROMPT, layers=True, steps=2), tmp_path_factory.mktemp("page"))


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


def test_its_data_are_the_tables(made: Written) -> None:
    """Every column that is drawn, in all rows that are: texts as they are shown, logits in full."""
    e = made.explanation
    assert e.layers is not None
    every = e.tables() | e.evidence().tables()
    flow, spectra, words = every["flow"], every["spectra"], every["layer_words"]
    stream = (words["part"] == "residual") & (words["span"] == "cumulative")
    of_map = (words["side"] == "output") & (words["vector"] == 0) & (words["rank"] < 3)
    kept = (words["vector"] < made.about["layers"]["vectors"]) & (words["rank"] < made.about["layers"]["top"])
    every |= {
        "flow": flow[(flow["path"] == "direct") & flow["head"].isna() & flow["position"].notna()],
        "spectra": spectra[
            (spectra["part"] == "residual") & (spectra["span"] == "cumulative") & spectra["position"].notna()
        ],
        "steps": every["steps"][every["steps"]["kind"] == "token"],
        "layer_words": words[words["position"].notna() & ((stream & kept) | of_map)],
    }
    described = {table.name: table for table in (*sc.Explanation.schema, *sc.Evidence.schema)}
    assert set(made.tables) == set(every) & set(explaining.DRAWN) == set(explaining.DRAWN)
    for name, drawn in made.tables.items():
        assert list(drawn.columns) == explaining.DRAWN[name]
        own = every[name]
        if name == "layer_words":  # those of the map come after those of the stream
            order = ["layer", "part", "span", "position", "side", "vector"]
            own, drawn = (rows.sort_values(order, kind="stable") for rows in (own, drawn))
        for column, values in drawn.items():
            about, wanted = described[name][str(column)], own[column].astype(object)
            wanted = wanted.where(own[column].notna(), None).tolist()
            if about.type is str and about.format == "token":
                assert values.tolist() == [None if v is None else visible(v) for v in wanted]
            elif about.type is float and about.format != "logit":
                assert [v is None for v in values] == [v is None for v in wanted]
                found = [[v for v in given if v is not None] for given in (values.tolist(), wanted)]
                assert found[0] == pytest.approx(found[1], rel=5e-3 if name == "image" else 5e-6, abs=0)
            else:
                assert values.tolist() == wanted


def test_sums_add_up(made: Written) -> None:
    e = made.explanation
    contributions, versus = made.tables["contributions"], made.tables["versus"]
    first, mean = e.run.prediction[0].logit, e.run.logits[-1].mean().item()
    sums = [(contributions, made.about["logit"], first - mean, made.about["totals"][0])]
    sums += [
        (own, own["difference"].iloc[0], first - e.run.prediction[i].logit, made.about["totals"][i])
        for i, own in versus.groupby("prediction")
    ]
    assert len(sums) == len(made.about["totals"]) == 5
    for own, logit, predicted, total in sums:
        found = own[own["kind"].isin(["token", "constant"])]["contribution"].sum()
        assert found == pytest.approx(total, abs=1e-14)
        assert found == pytest.approx(logit, abs=1e-12)
        assert logit == pytest.approx(predicted, abs=1e-12)
    tokens = contributions[contributions["kind"] == "token"]["contribution"].tolist()
    assert tokens == e.to_pandas()["contribution"].tolist()
    flow = made.tables["flow"].astype({"contribution": float})
    assert flow.groupby("position")["contribution"].sum().tolist() == pytest.approx(tokens, abs=1e-12)
    parts = contributions[~contributions["kind"].isin(["token", "constant", "head"])]
    assert parts["contribution"].sum() == pytest.approx(made.about["logit"], abs=1e-12)
    attention = parts[parts["name"].str.endswith("attn")]
    assert len(attention) == 4
    for part in attention.itertuples():
        heads = made.rows("contributions", kind="head", layer=part.layer)
        assert heads["contribution"].sum() == pytest.approx(part.contribution, abs=1e-12)


def test_the_image_is_of_j(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every rectangle of J on its own, where they are not of one size."""
    monkeypatch.setattr(case, "CELLS", 7)
    monkeypatch.setattr(case, "IMAGE_COLUMNS", 5 * 8)
    op = sc.freeze(lm, PROMPT).operator()
    J, image = op.dense(), case.imaged(op)
    assert image.shape == (7, 8, 5)
    for r in range(7):
        rows = [i for i in range(64) if i * 7 // 64 == r]
        for c in range(5):
            columns = [i for i in range(64) if i * 5 // 64 == c]
            own = J[rows][:, :, columns].square().mean((0, 2)).sqrt()
            torch.testing.assert_close(image[r, :, c], own)


def test_what_is_rebuilt(made: Written) -> None:
    own, run = made.tables["rebuilt"], made.explanation.run
    y, rebuilt, ordinary = (
        torch.tensor(own[name].tolist(), dtype=torch.float64) for name in ("output", "rebuilt", "ordinary")
    )
    torch.testing.assert_close(y, run.hidden[-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(rebuilt, y, rtol=1e-5, atol=0)
    assert ((ordinary - y).norm() / y.norm()).item() == pytest.approx(relative(run.ordinary, run.hidden[-1]), rel=1e-4)


def test_only_some_units_of_a_wide_model(
    browser: Browser, lm: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "UNITS", 5)
    e = sc.explain(lm, PROMPT, k=1)
    page = written(e, tmp_path, e.evidence(image=False))
    assert page.tables["rebuilt"]["output"].tolist() == pytest.approx(
        e.run.hidden[-1][[0, 12, 25, 38, 51]].tolist(), rel=1e-5
    )
    with opened(browser, page) as tab:
        assert tab.locator("#rebuilt-says").inner_text().startswith("y against J x + b, 5 of 64 units: on the line to ")


def test_the_image_is_announced_and_can_be_left_out(
    browser: Browser, lm: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    explanation = sc.explain(lm, PROMPT)
    monkeypatch.setattr(resources, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "secant"):
        of = case.Case(explanation.run)  # which has not formed J
        without = explaining.gathered(of, image=False)
        assert not caplog.records
        explaining.gathered(of)
    (record,) = caplog.records
    assert "All 64 rows of J, for its image: about" in record.message
    page = written(explanation, tmp_path, without)
    assert "image" not in page.tables
    with opened(browser, page) as tab:
        says = "its image was left out of this page, since it takes every row of J."
        assert tab.locator("#image-says").inner_text() == f"J, 64 x 8 tokens x 64: {says}"
        assert tab.locator("#plot-image").count() == 0
        token(tab, 2).click()
        scrolled_through(tab)


@pytest.mark.parametrize(("room", "vectors", "top"), [(400, 1, 6), (128, 1, 2), (1200, 4, 4)])
def test_long_prompts_get_fewer_words_of_each_depth(
    made: Written, room: int, vectors: int, top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the map has three of each block, however many there are."""
    monkeypatch.setattr(explaining, "MOST", room)
    page = written(made.explanation, tmp_path)
    layers = page.about["layers"]
    assert (layers["vectors"], layers["top"]) == (vectors, top)
    words = page.rows("layer_words", part="residual", span="cumulative")
    assert len(page.rows("layer_words", part="residual", span="cumulative", side="input")) == 8 * 4 * vectors * top
    first = words[(words["side"] == "output") & (words["vector"] == 0)]
    assert len(first) == 8 * 4 * max(top, 3)
    assert len(words) - 8 * 4 * max(0, 3 - top) <= room


# ------------------------------------------------------------------------------------------- the document


def test_nothing_is_fetched_and_only_its_scripts_run(made: Written) -> None:
    own = made.text.replace(pages.library(), "")
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
    layers = page.about["layers"]
    assert page.path.stat().st_size < 5.8e6
    assert layers["count"] == 18
    assert 0.7 * explaining.MOST < 2 * 10 * 18 * layers["vectors"] * layers["top"] <= explaining.MOST


@pytest.mark.slow
def test_hostile_texts_are_data(hostile: Written) -> None:
    """None of them is in the page as it stands; in the data they are all there."""
    for text in ("</script><img", "<b>bold", "<!--", "&lt;i", "</title><script>", "<a href='https"):
        assert text not in hostile.text.replace(pages.library(), "")
    shown = hostile.tables["tokens"]["token"].tolist()
    assert shown[:3] == ["</script><img·src=x·onerror=window.ran=1>", "<!--", "<b>bold</b>"]
    assert hostile.about["model"] == hostile.explanation.run.lm.name


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
    table = Table("words", "a token", (Column("word", str, "", show="token"), Column("said", str, "")))
    found = columnar(table, table.frame([(text, text)]))
    assert found["word"] == {"texts": [shown], "codes": [0]}
    assert "◌" not in found["said"]["texts"][0]


@pytest.mark.parametrize(("text", "shown"), [("a" * 1000, "a" * 1000), ("a" * 1001, "a" * 999 + "…")])
def test_long_texts_are_cut(text: str, shown: str) -> None:
    table = Table("words", "a token", (Column("word", str, "", show="token"),))
    assert columnar(table, table.frame([(text,)]))["word"]["texts"] == [shown]


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ([], []),
        ([1], [1]),
        ([1, 1], [1, 1]),
        ([1, 1, 1], {"values": [1], "times": [3]}),
        ([None, None, None, 2, 2], {"values": [None, 2], "times": [3, 2]}),
        ([1, 2, 1, 2], [1, 2, 1, 2]),
    ],
)
def test_what_repeats_is_written_once(values: list[int | None], packed: Any) -> None:
    table = Table("places", "a place", (Column("layer", int, "", missing=True),))
    assert columnar(table, table.frame([(v,) for v in values])) == {"layer": packed}


@pytest.mark.slow
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
    assert line == "The page was not written: it requires plotly. pip install 'secant[report]'"
    assert (out / "tokens.csv").exists()
    assert not (out / "report.html").exists()


@pytest.mark.slow
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
        words = made.words("words", position=2, vector=0, side="output")
        assert tab.locator(".vector").first.locator("table").first.locator("bdi").all_inner_texts() == words
        tab.locator("#map tbody tr").nth(1).locator("td").nth(5).click()
        arrived(tab, "#token=5&layer=1")
        assert tab.locator("#block-token").inner_text() == "Marin after layer 1"
        words = made.words(
            "layer_words", part="residual", span="cumulative", layer=1, position=5, vector=0, side="output"
        )
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

        tokens = made.rows("contributions", kind="token")["contribution"].tolist()
        others = made.rows("versus", prediction=2, kind="token")["contribution"].tolist()
        flow = [
            made.rows("flow", layer=layer).groupby("position")["contribution"].sum().tolist() for layer in (None, 0, 3)
        ]
        assert shown() == pytest.approx(tokens, abs=0.05)
        tab.locator("#versus").select_option("2")
        arrived(tab, "view=versus&versus=2")
        assert shown() == pytest.approx(others, abs=0.05)
        tab.locator('.switch[data-view="layer"]').click()
        assert shown() == pytest.approx(flow[2], abs=0.05)
        tab.locator("#depth").fill("0")
        assert shown() == pytest.approx(flow[1], abs=0.05)
        own = ["minus" if x < 0 else "plus" for x in flow[1]]
        classes = [c.get_attribute("class") for c in tab.locator(".tok").all()]
        assert [str(c).split()[1] for c in classes] == own


def test_sums_on_the_page_are_the_results(browser: Browser, made: Written) -> None:
    """The sentence of each sum: the logit, what tokens and constants add, and by how much the sum is off."""
    e = made.explanation
    with opened(browser, made) as tab:
        sums = [e.evidence().attribution, *e.evidence().versus]
        for i, a in enumerate(sums):
            if i:
                tab.locator("#versus").select_option(str(i))
                arrived(tab, f"versus={i}" if i > 1 else "view=versus")
            over = "" if a.versus is None else f" over {visible(a.versus)}"
            tokens = a.of("token")["contribution"].sum()
            base = "" if a.versus else ", measured from the vocabulary's mean logit,"
            said = f"{a.logit:.4f}{base} = tokens {tokens:.4f} + constants {a.constant:.4f}".replace("-", "−")
            origin = f"Contributions are measured from x₀, {origin_line(a.origin)}; the constants include J x₀."
            off = re.sub(r"e([+-])0?", r"e\1", f"{abs(a.total - a.logit):.1e}").replace("-", "−")
            assert (
                tab.locator("#sum").inner_text()
                == f"Logit of {visible(a.target)}{over} {said}, to {off}. {origin} Convention: {a.under}."
            )


def _number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix(" %"))


def test_numbers_on_the_page_are_the_results(browser: Browser, made: Written) -> None:
    """Each table that is drawn, against the result."""
    e = made.explanation
    assert e.layers is not None
    assert e.steps is not None
    with opened(browser, made, "#token=0") as tab:

        def cells(table: str) -> list[list[str]]:
            rows = tab.locator(f"{table} tbody tr")
            return rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")

        tokens = e.to_pandas()
        for row, own in zip(cells("#numbers"), tokens.itertuples(), strict=False):
            assert row[:3] == [str(own.position), visible(own.token), str(own.id)]
            assert _number(row[3]) == pytest.approx(own.contribution, abs=0.05)
            assert _number(row[4]) == pytest.approx(100 * own.share, abs=0.06)
            assert [_number(n) for n in row[5:]] == pytest.approx([own.norm, own.sigma, own.stable_rank], rel=1e-3)
        assert [row[0] for row in cells("#predictions")] == [visible(p.token) for p in e.run.prediction]
        attribution = e.evidence().attribution
        parts = attribution.table[~attribution.table["kind"].isin(["token", "constant"])]
        for row, part in zip(cells("#part-numbers"), parts.itertuples(), strict=True):
            assert row[0] == part.name
            assert _number(row[1]) == pytest.approx(part.contribution, abs=0.05)
            assert _number(row[3]) == pytest.approx(part.all_paths, abs=0.05)
        layers = e.layers.to_pandas()
        for row, depth in zip(cells("#ranks"), layers[layers["position"].isna()].itertuples(), strict=True):
            assert row[0] == str(depth.layer)
            assert row[1].endswith(f", {depth.span}")
            assert [_number(n) for n in row[2:]] == pytest.approx([depth.stable_rank, depth.sigma_0], rel=1e-3)
        shares = e.steps.shares()
        for row, step, own in zip(cells("#step-table"), e.steps.steps, shares.to_numpy().tolist(), strict=True):
            assert row[0] == visible(step.prediction.token)
            assert [_number(n) if n else None for n in row[3:]] == [
                pytest.approx(100 * x, abs=0.06) if x == x else None for x in own
            ]
        assert len(e.steps.tokens) - 1 == tab.locator("#step-table thead th").count() - 3
        words = e.layers.words(top=8, vectors=4)
        views = [(part, span) for span in ("cumulative", "layerwise") for part in ("residual", "attn", "mlp")]
        for i, (part, span) in enumerate(views):
            tab.locator("#view").select_option(str(i))
            own = words[(words["part"] == part) & (words["span"] == span) & (words["side"] == "output")]
            own = own[(own["vector"] == 0) & (own["rank"] == 0) & own["position"].notna()]
            named = {"residual": "the stream", "attn": "attention", "mlp": "MLP"}[part]
            assert tab.locator("#view option").nth(i).inner_text().startswith(f"{named}, ")
            for layer, row in enumerate(cells("#map")):
                assert row == [str(layer), *map(visible, own[own["layer"] == layer]["word"])]
        null = {"output": e.evidence().writes, "input": e.evidence().reads}
        for address, layer in (("#token=3", None), ("#token=3&layer=2", 2)):
            tab.evaluate("hash => { location.hash = hash }", address)
            after = "" if layer is None else f" after layer {layer}"
            wanted = visible(e.run.tokens[3]) + after
            tab.wait_for_function("said => document.getElementById('block-token').textContent === said", arg=wanted)
            f = e.svds[3] if layer is None else e.layers.depth(layer).tokens[3]
            assert tab.locator(".vector").count() == len(f.S)
            for v in range(len(f.S)):
                for s, side in enumerate(("output", "input")):
                    if layer is None:
                        decoded = (e.outputs if side == "output" else e.inputs)[3][v]
                        wanted = [(w.token, w.score, w.z) for w in decoded]
                    else:
                        rows = words[(words["part"] == "residual") & (words["span"] == "cumulative")]
                        rows = rows[(rows["layer"] == layer) & (rows["position"] == 3) & (rows["vector"] == v)]
                        rows = rows[rows["side"] == side]
                        z = (torch.tensor(rows["score"].to_numpy()) - null[side].mean) / null[side].std
                        wanted = list(zip(rows["word"], rows["score"], z.tolist(), strict=True))
                    found = tab.locator(f".vector:nth-child({v + 1}) table").nth(s).locator("tbody tr").evaluate_all(
                        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
                    )  # fmt: skip
                    assert [row[0] for row in found] == [visible(token) for token, _, _ in wanted]
                    assert [_number(row[1]) for row in found] == pytest.approx([x for _, x, _ in wanted], abs=0.006)
                    assert [_number(row[2]) for row in found] == pytest.approx([x for *_, x in wanted], abs=0.06)


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
        largest = made.explanation.to_pandas()["contribution"].abs().idxmax()
        assert tab.locator("#block-token").inner_text() == made.explanation.run.tokens[largest]


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
        words = made.rows("layer_words", part="residual", span="cumulative", vector=0, side="output")
        cells = words.groupby(["layer", "position"], sort=False)["word"].apply(lambda own: own.tolist()[:3])
        wanted = sum(any("gold" in word.lower() for word in cell) for cell in cells)
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
        first = [cell[0] for cell in cells[0]]
        assert tab.locator("#map tbody tr").nth(0).locator("td").all_inner_texts() == first


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
        shown = tab.locator(".tok bdi").all_text_contents()
        assert shown == hostile.tables["tokens"]["token"].tolist()
        assert shown[HOSTILE.index("\N{COMBINING ACUTE ACCENT}")] == "◌\u0301"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_layers(browser: Browser, explanation: sc.Explanation, tmp_path: Path) -> None:
    page = written(explanation, tmp_path)
    assert "layers" not in page.tables
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
    page = written(sc.explain(lm, [2 + i % 30 for i in range(60)], k=1, layers=True), tmp_path)
    assert "path" not in page.tables
    with opened(browser, page, "#token=59", viewport={"width": 300, "height": 800}) as tab:
        strip, own = tab.locator("#tokens").bounding_box(), token(tab, 59).bounding_box()
        assert strip is not None
        assert own is not None
        assert tab.locator("#plot-path").count() == 0
        assert strip["y"] <= own["y"] <= strip["y"] + strip["height"] - own["height"] + 1
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_logit_of_zero(browser: Browser, tmp_path: Path) -> None:
    lm = model_of("llama", "sdpa", torch.float64)
    with torch.no_grad():
        lm.head.weight.zero_()
    page = written(sc.explain(lm, [3, 1, 2], layers=True, steps=2), tmp_path)
    assert page.about["logit"] == 0
    with opened(browser, page) as tab:
        assert set(tab.locator(".tok small").all_inner_texts()) == {"+0.00"}
        assert set(tab.locator("#step-table tbody tr").first.locator("td").all_inner_texts()[3:]) == {""}
        assert "NaN" not in tab.locator("body").inner_text()
        scrolled_through(tab)


def test_zero_blocks_and_equal_tokens(browser: Browser, tmp_path: Path) -> None:
    """Where attention adds nothing, only the last token has a block that is not zero."""
    lm = model_of("llama", "sdpa", torch.float64)
    with torch.no_grad():
        for layer in lm.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    page = written(sc.explain(lm, [5] * 6, layers=True), tmp_path)
    with opened(browser, page, "#token=2&layer=1") as tab:
        assert tab.locator("main p.muted").first.inner_text().split(" · ")[1] == "6 tokens"
        for _ in range(2):
            assert tab.locator("#vectors").inner_text() == "This block is zero: it has no directions."
            tab.locator("#depth").fill("99")  # the whole network
        token(tab, 5).click()
        assert tab.locator(".vector").count() == 4
        assert set(tab.locator("#map tbody tr").first.locator("td").all_inner_texts()[:5]) == {"–"}
        assert "NaN" not in tab.locator("body").inner_text()
        scrolled_through(tab)


def test_a_network_without_parts(browser: Browser, made: Written, tmp_path: Path) -> None:
    """As of a model whose layers can't be found."""
    e = made.explanation
    bare = replace(e.evidence(), attribution=sc.attribute(e.run, parts=False))
    page = written(replace(e, layers=None, steps=None), tmp_path, bare)
    assert page.about["direct"] is None
    with opened(browser, page) as tab:
        assert tab.locator("#parts, [data-view='layer']").count() == 0
        scrolled_through(tab)
