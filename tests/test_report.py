"""The page: its data are the tables, no text of a prompt runs as code, and it works in a browser, in both themes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import model_of
from hostile import HOSTILE, hostile_model
from playwright.sync_api import Browser, Locator, Page
from typer.testing import CliRunner

import secant as sc
from secant import memory as resources
from secant.analyses import case, explanation as explaining, page_tables
from secant.cli import app
from secant.numeric import relative
from secant.results.page import columnar
from secant.results.schema import Column, Table
from secant.text import visible

PROMPT = "The bridge out of Marin is the"


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
    lm, _ = hostile_model()
    return written(sc.explain(lm, list(range(len(HOSTILE))), layers=True, steps=2), tmp_path_factory.mktemp("hostile"))


@contextmanager
def opened(browser: Browser, page: Written, fragment: str = "", **how: Any) -> Iterator[Page]:
    """A page in the browser: it must ask for nothing, log nothing, and raise nothing, as long as it is open."""
    context = browser.new_context(**how)
    tab, trouble = context.new_page(), list[str]()
    tab.set_default_timeout(60_000)
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


def opened_up(tab: Page) -> None:
    """All that is folded is open, and every chart is drawn."""
    tab.evaluate("document.querySelectorAll('details:not(.menu)').forEach(fold => { fold.open = true })")
    for plot in tab.locator(".plot").all():
        plot.locator("svg[role=img]").first.wait_for()


def table(tab: Page, selector: str) -> list[list[str]]:
    """The texts of the cells of a table's body."""
    rows = tab.locator(f"{selector} tbody tr")
    return rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")


def fits(tab: Page) -> bool:
    """What is wide scrolls by itself, not with the page."""
    return bool(tab.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ------------------------------------------------------------------------------------------- data


def test_its_data_are_the_tables(made: Written) -> None:
    """Every column that is drawn, in all rows that are: texts as they are shown, logits in full."""
    e = made.explanation
    assert e.layers is not None
    every = e.tables() | e.evidence().tables()
    spectra, words = every["spectra"], every["layer_words"]
    stream = (words["part"] == "residual") & (words["span"] == "cumulative")
    of_map = (words["side"] == "output") & (words["vector"] == 0) & (words["rank"] < 3)
    kept = (words["vector"] < made.about["layers"]["vectors"]) & (words["rank"] < made.about["layers"]["top"])
    every |= {
        "spectra": spectra[
            (spectra["part"] == "residual") & (spectra["span"] == "cumulative") & spectra["position"].notna()
        ],
        "steps": every["steps"][every["steps"]["kind"] == "token"],
        "layer_words": words[words["position"].notna() & ((stream & kept) | of_map)],
        "head_words": every["head_words"][every["head_words"]["rank"] < 2],
    }
    described = {table.name: table for table in (*sc.Explanation.schema, *sc.Evidence.schema)}
    assert set(made.tables) == set(every) & set(page_tables.DRAWN) == set(page_tables.DRAWN)
    for name, shown in made.tables.items():
        assert list(shown.columns) == page_tables.DRAWN[name]
        own = every[name]
        if name == "layer_words":  # those of the map come after those of the stream
            order = ["layer", "part", "span", "position", "side", "vector"]
            own, shown = (rows.sort_values(order, kind="stable") for rows in (own, shown))
        for column, values in shown.items():
            about, wanted = described[name][str(column)], own[column].astype(object)
            wanted = wanted.where(own[column].notna(), None).tolist()
            if about.type is str and about.format == "token":
                assert values.tolist() == [None if v is None else visible(v) for v in wanted]
            elif about.type is float and about.format != "logit":
                assert [v is None for v in values] == [v is None for v in wanted]
                found = [[v for v in given if v is not None] for given in (values.tolist(), wanted)]
                digits = page_tables.DIGITS.get(name, {}).get(str(column), 6)
                assert found[0] == pytest.approx(found[1], rel=0.6 * 10 ** (1 - digits), abs=0)
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
    flow = flow[(flow["path"] == "direct") & flow["head"].isna() & flow["position"].notna()]
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
    monkeypatch.setattr(page_tables, "UNITS", 5)
    e = sc.explain(lm, PROMPT, k=1)
    page = written(e, tmp_path, e.evidence(image=False))
    y, own = e.run.hidden[-1][[0, 12, 25, 38, 51]], e.run.ordinary[[0, 12, 25, 38, 51]]
    assert page.tables["rebuilt"]["output"].tolist() == pytest.approx(y.tolist(), rel=1e-5)
    with opened(browser, page) as tab:
        said = tab.locator("#tangent").inner_text()
        assert f"‖J′ x − y‖ is {100 * relative(own, y):.0f} % of ‖y‖ (over 5 of 64 elements of y)" in said
        assert "This leaves out the tangent's intercept" in said


def test_the_image_is_announced_and_can_be_left_out(
    browser: Browser, lm: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    explanation = sc.explain(lm, PROMPT)
    monkeypatch.setattr(resources, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "secant"):
        of = case.Case(explanation.run)  # which has not formed J
        of.__dict__["sensitivity"] = explanation.sensitivity
        without = explaining.gathered(of, image=False)
        assert not caplog.records
        explaining.gathered(of)
    (record,) = caplog.records
    assert "All 64 rows of J, for its image: about" in record.message
    page = written(explanation, tmp_path, without)
    assert "image" not in page.tables
    with opened(browser, page) as tab:
        token(tab, 2).click()
        opened_up(tab)
        says = "its image was left out of this page, since it requires every row of J."
        assert tab.locator("#image-says").text_content() == f"J, 64 x 8 tokens x 64: {says}"
        assert tab.locator("#image").count() == 0


@pytest.mark.parametrize(("room", "vectors", "top"), [(400, 1, 6), (128, 1, 2), (1200, 4, 4)])
def test_long_prompts_get_fewer_words_of_each_depth(
    made: Written, room: int, vectors: int, top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the map has three of each block, however many there are."""
    monkeypatch.setattr(page_tables, "MOST", room)
    page = written(made.explanation, tmp_path)
    layers = page.about["layers"]
    assert (layers["vectors"], layers["top"]) == (vectors, top)
    words = page.rows("layer_words", part="residual", span="cumulative")
    assert len(page.rows("layer_words", part="residual", span="cumulative", side="input")) == 8 * 4 * vectors * top
    first = words[(words["side"] == "output") & (words["vector"] == 0)]
    assert len(first) == 8 * 4 * max(top, 3)
    assert len(words) - 8 * 4 * max(0, 3 - top) <= room


# ------------------------------------------------------------------------------------------- the document


def test_nothing_is_fetched_and_only_its_script_runs(made: Written) -> None:
    code = re.sub(r"^\s*//.*", "", made.text, flags=re.M).replace('"http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", code)
    assert "plotly" not in made.text.lower()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", made.text)
    assert {link[0] for link in re.findall(r'(?:src|href)="([^"]*)"', made.text)} <= {"#", "d"}
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made.text)
    allowed = dict(part.split(" ", 1) for part in policy.replace("&#39;", "'").split("; "))
    assert allowed["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-\S{44}'", allowed["script-src"])
    assert set(allowed) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert allowed["img-src"] == "data:"


@pytest.mark.slow
def test_ten_tokens_and_many_layers_are_under_a_megabyte(tmp_path: Path) -> None:
    lm = model_of("llama", "sdpa", num_hidden_layers=18)
    e = sc.explain(lm, list(range(1, 11)), k=8, layers=True)  # as many words as 36 and k = 4
    page = written(e, tmp_path, e.evidence(image=False))
    layers = page.about["layers"]
    assert page.path.stat().st_size < 1e6
    assert layers["count"] == 18
    assert 0.7 * page_tables.MOST < 2 * 10 * 18 * layers["vectors"] * layers["top"] <= page_tables.MOST


@pytest.mark.slow
def test_hostile_texts_are_data(hostile: Written) -> None:
    """None of them is in the page as it stands; in the data they are all there."""
    for text in ("</script><img", "<b>bold", "<!--", "&lt;i", "</title><script>", "<a href='https"):
        assert text not in hostile.text
    shown = hostile.tables["tokens"]["token"].tolist()
    assert shown[:3] == ["</script><img·src=x·onerror=window.ran=1>", "<!--", "<b>bold</b>"]
    assert hostile.about["model"] == hostile.explanation.run.lm.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "·a"),
        ("\n", "⏎"),
        ("\t\x00", "⇥\\x00"),
        ("\u202eabc", "‹RLO›abc"),
        ("a\u200db", "a‹ZWJ›b"),
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
def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--out", str(out), "--no-image"])
    assert result.exit_code == 0, result.output
    assert not (out / "image.csv").exists()
    assert len(pd.read_csv(out / "rebuilt.csv")) == 64
    assert {"contributions.csv", "flow.csv", "versus.csv", "chance.csv", "depth_words.csv", "patterns.csv"} <= {
        file.name for file in out.iterdir()
    }
    assert result.stderr == f"Tables and tensors are in {out}; the page is {out / 'report.html'}\n"
    text = (out / "report.html").read_text("utf-8")
    assert "<!doctype html>" in text
    assert str(folder.parent) not in text  # where the model is on this machine is nobody's business


# ------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_layers_and_parts_are_chosen_by_clicks(browser: Browser, made: Written, theme: str) -> None:
    """The panel is always of what is chosen."""
    with opened(browser, made, color_scheme=theme) as tab:
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        assert dark == (theme == "dark")
        token(tab, 2).click()
        arrived(tab, "#token=2")
        assert token(tab, 2).get_attribute("aria-pressed") == "true"
        assert tab.locator("#chosen").inner_text() == "bridge"
        assert column(tab, "#panel-words table", 0) == made.words("written", position=2)
        opened_up(tab)
        words = made.words("words", position=2, vector=0, side="output")
        assert column(tab, ".vector table", 0) == words
        tab.locator("#lens-table tbody tr").nth(1).locator("td.cell").nth(5).click()
        arrived(tab, "#token=5&layer=1")
        assert tab.locator("#chosen").inner_text() == "Marin after layer 1"
        words = made.words("depth_words", part="residual", layer=1, position=5, sign="suppressed")
        assert column(tab, "#panel-words table:nth-child(2)", 0) == words
        words = made.words(
            "layer_words", part="residual", span="cumulative", layer=1, position=5, vector=0, side="output"
        )
        assert column(tab, ".vector table", 0) == words
        tab.locator("#layer").select_option("3")
        arrived(tab, "#token=5&layer=3")
        assert tab.locator("#lens-table .chosen").count() == 1
        tab.locator("#components-table tbody tr").nth(2).locator("td.cell").nth(1).click()
        arrived(tab, "#token=5&layer=2&part=mlp")
        assert tab.locator("#chosen").inner_text() == "Marin in layer 2, MLP"
        words = made.words("depth_words", part="mlp", layer=2, position=5, sign="promoted")
        assert column(tab, "#panel-words table", 0) == words
        tab.locator("#components-table tbody tr").nth(1).locator("td.cell").nth(3).click()
        arrived(tab, "#token=5&layer=1&part=h1")
        for i, sign in enumerate(("promoted", "suppressed")):
            words = made.words("head_words", layer=1, head=1, sign=sign)
            assert column(tab, f"#panel-words table:nth-child({i + 1})", 0) == words
        tab.locator("#cells button", has_text="direction").click()
        tab.locator("#map").select_option("2")  # of the MLPs: a click there chooses the MLP, not the stream
        tab.locator("#lens-table tbody tr").nth(0).locator("td.cell").nth(4).click()
        assert tab.locator("#chosen").inner_text() == "of in layer 0, MLP"
        tab.locator("#layer").select_option("")
        assert tab.locator("#chosen").inner_text() == "of"


def column(tab: Page, selector: str, n: int) -> list[str]:
    """The texts of a column of the first such table."""
    rows = tab.locator(selector).first.locator("tbody tr")
    return rows.evaluate_all("(rows, n) => rows.map(row => row.cells[n].textContent)", n)


def test_the_answer(browser: Browser, made: Written) -> None:
    """What is predicted, how near the next is, what contributes, how exact it is, and what it depends on."""
    e = made.explanation
    first, second = e.run.prediction[:2]
    with opened(browser, made) as tab:
        said = tab.locator("#said").inner_text()
        assert said.startswith(f"{visible(first.token)} is predicted with {100 * first.probability:.1f} %, before ")
        assert f"{visible(second.token)} with " in said
        assert said.endswith(f", {first.logit - second.logit:.2f} behind in logits.")
        assert tab.locator("#prompt").inner_text().split() == [*e.run.tokens, "→", "Golden"]
        why = tab.locator("#why").inner_text()
        tokens = e.to_pandas()
        largest = tokens["contribution"].abs().idxmax()
        assert why.startswith(f"The logit of {visible(first.token)} is {_signed(e.attribution.logit)}, measured from ")
        assert f"{visible(e.run.tokens[largest])} ({_signed(tokens['contribution'][largest])})" in why
        assert f"give {_signed(e.attribution.constant)}." in why
        badges = tab.locator(".badge").all_inner_texts()
        assert badges[0] == f"Exact to {_error(e.run.certificate.reconstruction)}"
        agreement = e.sensitivity.agreement()["signs"][1:]
        found = [int(n) for n in re.findall(r"\d+", badges[1])]
        assert [found[0], found[-1]] == pytest.approx([100 * agreement.min(), 100 * agreement.max()], abs=0.51)
        assert badges[1].startswith("Conventions agree" if agreement.min() >= 0.9 else "Depends on the convention")
        sinks = [visible(t) for t, why in zip(e.run.tokens, e.sinks, strict=True) if "received" in why]
        assert [b.split()[2] for b in badges if b.startswith("Attention sink")] == sinks
        tab.locator(".badge").first.click()
        assert tab.evaluate("document.activeElement.id") == "trust"
        assert "#token=" in tab.url or "#" not in tab.url  # the address keeps its state


def _error(x: float) -> str:
    """As the page writes an error."""
    return re.sub(r"e([+-])0?", r"e\1", f"{x:.1e}").replace("-", "−")


def _signed(x: float) -> str:
    """As the page writes what is 0.1 or more."""
    return f"{x:+.2f}".replace("-", "−") if abs(x) < 9.95 else f"{x:+.1f}".replace("-", "−")


def test_what_colours_the_tokens(browser: Browser, made: Written) -> None:
    with opened(browser, made) as tab:

        def shown() -> list[float]:
            return [_number(row[2]) for row in table(tab, "#contributions")]

        tokens = made.rows("contributions", kind="token")["contribution"].tolist()
        others = made.rows("versus", prediction=2, kind="token")["contribution"].tolist()
        gate = made.rows("by_convention", convention="gate")["contribution"].tolist()
        assert shown() == pytest.approx(tokens, abs=0.05)
        tab.locator("#versus").select_option("2")
        arrived(tab, "view=versus&versus=2")
        assert shown() == pytest.approx(others, abs=0.05)
        tab.locator("#under").select_option("gate")
        arrived(tab, "versus=2&under=gate")
        assert shown() == pytest.approx(gate, abs=0.05)
        own = ["minus" if x < 0 else "plus" for x in gate]
        classes = [str(c.get_attribute("class")).split() for c in tab.locator(".tok").all()]
        assert [next(c for c in own if c in ("plus", "minus")) for own in classes] == own
        tab.locator("#without").check()
        arrived(tab, "without=sinks")
        kept = [x for x, why in zip(gate, made.explanation.sinks, strict=True) if not why]
        assert len(kept) < len(gate)
        assert shown() == pytest.approx(kept, abs=0.05)
        assert "left" in str(token(tab, 0).get_attribute("class"))


def test_sums_on_the_page_are_the_results(browser: Browser, made: Written) -> None:
    """The sentence of each sum: the logit, what tokens and constants add, and by how much the sum is off."""
    e = made.explanation
    with opened(browser, made) as tab:
        for i, a in enumerate([e.evidence().attribution, *e.evidence().versus]):
            if i:
                tab.locator("#versus").select_option(str(i))
                arrived(tab, f"versus={i}" if i > 1 else "view=versus")
            over = "" if a.versus is None else f" over {visible(a.versus)}"
            tokens = a.of("token")["contribution"].sum()
            base = "" if a.versus else ", measured from the vocabulary's mean logit,"
            said = f"{a.logit:.4f}{base} = tokens {tokens:.4f} + reference {a.constant:.4f}".replace("-", "−")
            off = _error(abs(a.total - a.logit))
            text = tab.locator("#sum").inner_text()
            assert text.startswith(f"Logit of {visible(a.target)}{over} {said}, to {off}.")
            assert text.endswith(f"Convention: {a.under}.")


def _number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix(" %"))


def test_numbers_on_the_page_are_the_results(browser: Browser, made: Written) -> None:
    """Each table that is drawn, against the result."""
    e, evidence = made.explanation, made.explanation.evidence()
    assert e.layers is not None
    assert e.steps is not None
    assert e.lens is not None
    with opened(browser, made, "#token=0") as tab:
        opened_up(tab)
        others = ["gate", "up", "half"]
        for row, own in zip(table(tab, "#contributions"), e.to_pandas().itertuples(), strict=True):
            assert row[0].startswith(f"{own.position}{visible(own.token)}")
            contributions = [own.contribution, *(e.sensitivity.contributions(label)[own.position] for label in others)]
            assert [_number(x) for x in row[2:6]] == pytest.approx(contributions, abs=0.05)
            assert _number(row[6]) == pytest.approx(own.effect, abs=0.05)
            assert row[7].split(" ") == [visible(w.token) for w in e.written[own.position][:5]]
            assert _number(row[8]) == pytest.approx(own.written_z, abs=0.06)
        assert [row[0] for row in table(tab, "#predictions")] == [visible(p.token) for p in e.run.prediction]
        terms, at = e.lens.contributions(), e.lens.at()
        for row, line, own in zip(table(tab, "#lens-table"), at.itertuples(), terms.to_numpy().tolist(), strict=True):
            assert row[:2] == [str(line.layer), visible(line.top)]
            assert _number(row[2]) == pytest.approx(100 * line.probability, abs=0.06)
            assert row[3] == str(line.rank)
            assert [_number(x) for x in row[4:12]] == pytest.approx(own[:8], abs=0.05)
        tab.locator("#cells button", has_text="logit lens").click()
        stream = e.lens.table[e.lens.table["part"] == "residual"]
        for layer, row in enumerate(table(tab, "#lens-table")):
            assert row[4:] == [visible(word) for word in stream[stream["layer"] == layer]["top"]]
        tab.locator("#cells button", has_text="writes").click()
        words = evidence.depths.query("part == 'residual' and sign == 'promoted' and rank == 0")
        for layer, row in enumerate(table(tab, "#lens-table")):
            assert row[4:] == [visible(word) for word in words[words["layer"] == layer]["word"]]
        parts = evidence.attribution.table.set_index("name")
        for paths, values in (("direct", parts["contribution"]), ("all", parts["all_paths"])):
            tab.locator(f'#paths [data-value="{paths}"]').click()
            for layer, row in enumerate(table(tab, "#components-table")):
                names = ["attn", "mlp", *(f"attn.heads.{h}" for h in range(len(row) - 3))]
                wanted = [values[f"layers.{layer}.{name}"] for name in names]
                assert [_number(x) for x in row[1:]] == pytest.approx(wanted, abs=0.05)
        tab.locator("#components-table tbody tr").nth(1).locator("td.cell").nth(2).click()
        flow = evidence.attribution.flow
        assert flow is not None
        moved = [flow[(flow["name"] == "layers.1.attn.heads.0") & (flow["path"] == path)] for path in ("direct", "all")]
        pattern = evidence.patterns.query("layer == 1 and head == 0")["attention"].tolist()
        rows = table(tab, "#component")
        for i, path in enumerate(moved, 1):
            assert [_number(row[i]) for row in rows[:9]] == pytest.approx(path["contribution"].tolist(), abs=0.05)
        assert [_number(row[4]) for row in rows[:8]] == pytest.approx([100 * x for x in pattern], abs=0.51)
        agreement = e.sensitivity.agreement()
        for row, own in zip(table(tab, "#agreement"), agreement.itertuples(), strict=True):
            assert row[0].removesuffix("shown") == own.convention
            assert [_number(x) for x in row[2:]] == pytest.approx(
                [own.ranks, own.largest, own.deletion, own.deletion_rest], abs=0.05
            )
        assert evidence.faithfulness is not None
        judged = evidence.faithfulness.table.query("value == 'logit'").set_index("method")
        methods = table(tab, "#faithfulness")
        assert [row[0] for row in methods] == ["secant", *others, "gradient x input", "random"]
        for row in methods:
            own = judged.loc[row[0]]
            assert [_number(x) for x in row[1:]] == pytest.approx(
                [own.comprehensiveness, own.sufficiency, own.correlation], abs=0.05
            )
        layers = e.layers.to_pandas()
        for row, depth in zip(table(tab, "#ranks"), layers[layers["position"].isna()].itertuples(), strict=True):
            assert row[0] == str(depth.layer)
            assert row[1].endswith(f", {depth.span}")
            assert [_number(n) for n in row[2:]] == pytest.approx([depth.stable_rank, depth.sigma_0], rel=1e-3)
        for own in evidence.largest:
            groups = own.table.groupby("rank")
            for row, (_, rows) in zip(table(tab, f"#largest-{own.of}"), groups, strict=True):
                assert row[:2] == [visible(rows["token"].iloc[0]), str(rows["unit"].iloc[0])]
                assert row[3].split(" ") == [visible(word) for word in rows["word"]]
        shares = e.steps.shares()
        for row, step, own in zip(table(tab, "#step-table"), e.steps.steps, shares.to_numpy().tolist(), strict=True):
            assert row[0] == visible(step.prediction.token)
            assert [_number(n) if n else None for n in row[3:]] == [
                pytest.approx(100 * x, abs=0.51) if x == x else None for x in own
            ]
        words = e.layers.words(top=8, vectors=4)
        tab.locator("#cells button", has_text="direction").click()
        views = [(part, span) for span in ("cumulative", "layerwise") for part in ("residual", "attn", "mlp")]
        for i, (part, span) in enumerate(views):
            tab.locator("#map").select_option(str(i))
            own = words[(words["part"] == part) & (words["span"] == span) & (words["side"] == "output")]
            own = own[(own["vector"] == 0) & (own["rank"] == 0) & own["position"].notna()]
            named = {"residual": "residual stream", "attn": "attention", "mlp": "MLP"}[part]
            assert tab.locator("#map option").nth(i).inner_text().startswith(f"{named}, ")
            for layer, row in enumerate(table(tab, "#lens-table")):
                assert row[4:] == [visible(word) for word in own[own["layer"] == layer]["word"]]


def test_vectors_on_the_page_are_the_results(browser: Browser, made: Written) -> None:
    """U and V of the whole network, and after a layer: top tokens, cosines and z."""
    e, words = made.explanation, made.tables["layer_words"]
    assert e.layers is not None
    null = {"output": e.evidence().writes, "input": e.evidence().reads}
    with opened(browser, made) as tab:
        opened_up(tab)
        for address, layer in (("#token=3", None), ("#token=3&layer=2", 2)):
            tab.evaluate("hash => { location.hash = hash }", address)
            wanted = visible(e.run.tokens[3]) + ("" if layer is None else f" after layer {layer}")
            tab.wait_for_function("said => document.getElementById('chosen').textContent === said", arg=wanted)
            f = e.svds[3] if layer is None else e.layers.depth(layer).tokens[3]
            assert tab.locator(".vector").count() == len(f.S)
            for v in range(len(f.S)):
                for s, side in enumerate(("output", "input")):
                    if layer is None:
                        decoded = (e.outputs if side == "output" else e.inputs)[3][v]
                        wanted = [(visible(w.token), w.score, w.z) for w in decoded]
                    else:
                        rows = words[(words["part"] == "residual") & (words["span"] == "cumulative")]
                        rows = rows[(rows["layer"] == layer) & (rows["position"] == 3) & (rows["vector"] == v)]
                        rows = rows[rows["side"] == side]
                        scores = torch.tensor(rows["score"].astype(float).to_numpy())
                        z = (scores - null[side].mean) / null[side].std
                        wanted = list(zip(rows["word"], rows["score"], z.tolist(), strict=True))
                    found = table(tab, f".vector:nth-child({v + 1}) table:nth-child({s + 1})")
                    assert [row[0] for row in found] == [word for word, _, _ in wanted]
                    assert [_number(row[1]) for row in found] == pytest.approx([x for _, x, _ in wanted], abs=0.006)
                    assert [_number(row[2]) for row in found] == pytest.approx([x for *_, x in wanted], abs=0.06)


def test_every_table_can_be_downloaded(browser: Browser, made: Written, tmp_path: Path) -> None:
    with opened(browser, made) as tab:
        tab.locator("summary", has_text="Download").click()
        names = tab.locator("#files button").all_inner_texts()
        assert names == ["secant.json", *(f"{name}.csv" for name in made.tables)]
        for name in ("secant.json", "tokens.csv"):
            with tab.expect_download() as got:
                tab.locator(f'#files [data-file="{name}"]').click()
            got.value.save_as(tmp_path / name)
    own = json.loads((tmp_path / "secant.json").read_text("utf-8"))
    assert own["about"] == made.about
    assert own["columns"]["tokens"]["effect"].startswith("how much the model's own logit drops")
    assert {name: len(rows) for name, rows in own["tables"].items()} == {n: len(t) for n, t in made.tables.items()}
    for row, wanted in zip(own["tables"]["lens_terms"], made.tables["lens_terms"].to_dict("records"), strict=True):
        assert row == wanted
    csv = pd.read_csv(tmp_path / "tokens.csv", keep_default_na=False)
    assert csv["token"].tolist() == made.tables["tokens"]["token"].tolist()
    assert csv["contribution"].tolist() == made.tables["tokens"]["contribution"].tolist()


def test_a_deep_link_restores_everything(browser: Browser, made: Written) -> None:
    link = "#token=5&layer=2&part=h1&under=up&cells=direction&map=1&paths=all&find=gold&theme=dark"
    with opened(browser, made, link, color_scheme="light") as tab:
        assert token(tab, 5).get_attribute("aria-pressed") == "true"
        assert tab.locator("#chosen").inner_text() == "Marin in layer 2, head 1"
        assert tab.locator("#under").input_value() == "up"
        assert tab.locator('#cells [data-value="direction"]').get_attribute("aria-pressed") == "true"
        assert tab.locator('#paths [data-value="all"]').get_attribute("aria-pressed") == "true"
        assert tab.locator("#map").input_value() == "1"
        assert tab.locator("#find").input_value() == "gold"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        token(tab, 1).click()
        token(tab, 3).click()
        tab.go_back()
        tab.wait_for_function("document.querySelectorAll('.tok')[1].getAttribute('aria-pressed') === 'true'")
        assert tab.locator("#chosen").inner_text() == "The in layer 2, head 1"


def test_a_link_that_makes_no_sense(browser: Browser, made: Written) -> None:
    link = "#token=999&layer=-1&part=h99&view=x&versus=77&under=<b>&cells=__proto__&map=9&theme=pink&token=<b>"
    with opened(browser, made, link) as tab:
        assert tab.locator('.tok[aria-pressed="true"]').count() == 1
        largest = made.explanation.to_pandas()["contribution"].abs().idxmax()
        assert tab.locator("#chosen").inner_text() == visible(made.explanation.run.tokens[largest])


def test_keyboard(browser: Browser, made: Written) -> None:
    with opened(browser, made, "#token=0") as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the prompt"
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        assert str(tab.evaluate("document.activeElement.getAttribute('aria-label')")).startswith("0: ")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
        arrived(tab, "#token=2")
        tab.keyboard.press("End")
        tab.keyboard.press(" ")
        arrived(tab, "#token=7")
        tab.locator('#contributions tr[tabindex="0"]').focus()
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press("Enter")
        arrived(tab, "#token=6")
        tab.locator('#lens-table [tabindex="0"]').focus()
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press("ArrowLeft")
        assert "after layer 2" in tab.locator("#tip").inner_text()
        tab.keyboard.press("Escape")
        assert tab.locator("#tip").is_hidden()
        tab.keyboard.press("Enter")
        arrived(tab, "#token=5&layer=2")
        assert tab.locator('#lens-table [tabindex="0"]').count() == 1
        tab.locator('#components-table [tabindex="0"]').focus()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
        arrived(tab, "#token=5&layer=1&part=mlp")


def test_search(browser: Browser, made: Written) -> None:
    """What is found is marked and counted, the predicted token too, and gone through; folds open on the way."""
    with opened(browser, made, "#cells=direction") as tab:
        tab.locator("#find").fill("gold")
        words = made.rows("layer_words", part="residual", span="cumulative", vector=0, side="output")
        cells = words.groupby(["layer", "position"], sort=False)["word"].apply(lambda own: own.tolist()[:3])
        wanted = sum(any("gold" in word.lower() for word in cell) for cell in cells)
        assert wanted > 0
        assert tab.locator("#lens-table td.cell .hit").count() == wanted
        assert tab.locator(".predicted .hit, #predictions .hit").count() >= 2
        count = tab.locator(".hit").count()
        assert tab.locator("#found").inner_text() == f"{count} found"
        assert "find=gold" in tab.url
        tab.locator("#find").press("Enter")
        assert tab.locator("#found").inner_text() == f"1 of {count}"
        assert tab.locator(".at-hit").count() == 1
        for _ in range(count - 1):
            tab.locator("#find-next").click()
        assert tab.locator("#found").inner_text() == f"{count} of {count}"
        tab.locator("#find-next").click()
        tab.locator("#find").press("Shift+Enter")
        assert tab.locator("#found").inner_text() == f"{count} of {count}"
        assert tab.locator(".at-hit").is_visible()
        tab.locator("#find").fill("no such word")
        assert tab.locator("#found").inner_text() == "0 found"
        assert tab.locator("#find-next").is_disabled()
        tab.locator("#find").fill("")
        assert tab.locator(".hit").count() == 0


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (800, "dark"), (400, "dark")])
def test_axe_finds_nothing(browser: Browser, made: Written, theme: str, width: int) -> None:
    """Colours depend on the theme, and where things are on the width."""
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 900}
    with opened(browser, made, "#token=5&layer=2&find=gold", color_scheme=theme, viewport=size) as tab:
        opened_up(tab)
        if width < 1150:
            assert not tab.locator("#panel-body").is_visible()
            tab.locator("#sheet").click()
        assert tab.locator("#panel-body").is_visible()
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:120]) for v in found] == []
        assert fits(tab)
        panel = tab.locator("#panel").bounding_box()
        tab.evaluate("scrollTo(0, 1500)")
        assert panel is not None
        assert panel["y"] + panel["height"] <= 901  # it stays in view
        assert tab.locator("#panel").bounding_box()["y"] == pytest.approx(panel["y"], abs=45)  # type: ignore[index]


@pytest.mark.parametrize("width", [800, 1200, 1440])
def test_tables_are_whole(browser: Browser, made: Written, width: int) -> None:
    """Next to the panel, too."""
    with opened(browser, made, viewport={"width": width, "height": 900}) as tab:
        assert "z" in tab.locator("#contributions thead").inner_text().split()
        for table in ("contributions", "agreement", "components-table"):
            frame = tab.locator(f".scroll:has(> #{table})")
            assert frame.evaluate("node => node.scrollWidth <= node.clientWidth"), table


@pytest.mark.parametrize("width", [400, 800, 1440])
def test_the_table_of_a_head_is_whole(browser: Browser, made: Written, width: int) -> None:
    """However wide the map of a model with many heads is: the map scrolls."""
    with opened(browser, made, viewport={"width": width, "height": 900}) as tab:
        assert "attends" in tab.locator("#component thead").inner_text()
        tab.evaluate("document.getElementById('components-table').style.minWidth = '1600px'")
        assert tab.locator("#component").evaluate("node => node.scrollWidth <= node.clientWidth")
        assert fits(tab)


def test_nothing_of_a_hostile_tokenizer_runs(browser: Browser, hostile: Written) -> None:
    with opened(browser, hostile, "#token=0&layer=1&find=<b>", viewport={"width": 390, "height": 800}) as tab:
        for t in range(0, len(HOSTILE), 3):
            token(tab, t).focus()
            token(tab, t).press("Enter")
        opened_up(tab)
        for name in ("written", "direction", "lens"):
            tab.locator(f'#cells [data-value="{name}"]').click()
        tab.wait_for_timeout(200)
        assert tab.evaluate("window.ran") is None
        assert tab.locator("img, b, i, [onerror], svg a, a[href*='example']").count() == 0
        assert tab.locator("#contributions th bdi").all_text_contents()[2] == "<b>bold</b>"
        shown = tab.locator("#contributions th bdi").all_text_contents()
        wanted = hostile.tables["tokens"]["token"].tolist()
        assert shown == [{"·": "␣"}.get(text, text) for text in wanted]
        assert shown[HOSTILE.index("\N{COMBINING ACUTE ACCENT}")] == "◌\u0301"
        assert shown[HOSTILE.index("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}")] == "\N{WOMAN}‹ZWJ›\N{ROCKET}"
        assert fits(tab)


def test_without_layers(browser: Browser, explanation: sc.Explanation, tmp_path: Path) -> None:
    """The lens and the components do without; there is no map of directions."""
    page = written(explanation, tmp_path)
    assert "layers" not in page.tables
    with opened(browser, page, "#token=5&layer=1&cells=direction") as tab:
        assert tab.locator("#map, #plot-ranks, #steps").count() == 0
        assert tab.locator("#cells button").all_inner_texts() == ["contribution", "writes (J x)", "logit lens"]
        assert tab.locator("#chosen").inner_text() == "Marin after layer 1"
        opened_up(tab)


def test_one_token(browser: Browser, lm: sc.LM, tmp_path: Path) -> None:
    page = written(sc.explain(lm, [5], layers=True), tmp_path)
    with opened(browser, page) as tab:
        assert tab.locator(".tok").count() == 1
        assert tab.locator("#before").is_disabled()
        assert tab.locator("#after").is_disabled()
        assert tab.locator("#without").count() == 0
        assert "NaN" not in tab.locator("body").inner_text()
        opened_up(tab)


@pytest.mark.slow
def test_a_difference_of_logits(browser: Browser, lm: sc.LM, tmp_path: Path) -> None:
    """Wherever the page says what is explained, it names both tokens."""
    page = written(sc.explain(lm, "The bridge in London is called the", target="Golden", versus="Tower"), tmp_path)
    with opened(browser, page) as tab:
        both = "Golden over Tower"
        for name in ("#why", "#sum", "#components-says"):
            assert both in re.sub("[\u2066-\u2069]", "", tab.locator(name).inner_text()), name
        tab.locator('#paths [data-value="all"]').click()
        assert both in re.sub("[\u2066-\u2069]", "", tab.locator("#components-says").inner_text())


@pytest.mark.slow
def test_a_long_prompt_shows_what_is_chosen(browser: Browser, lm: sc.LM, tmp_path: Path) -> None:
    """As text, with rows and columns for the largest contributors; the others together add up."""
    e = sc.explain(lm, [2 + i % 30 for i in range(60)], k=1, layers=True)
    page = written(e, tmp_path)
    assert "path" not in page.tables
    assert len(page.about["shown"]) == 12
    with opened(browser, page, "#token=59", viewport={"width": 300, "height": 800}) as tab:
        text, own = tab.locator("#prompt").bounding_box(), token(tab, 59).bounding_box()
        assert text is not None
        assert own is not None
        assert tab.locator("#plot-path").count() == 0
        assert text["y"] <= own["y"] <= text["y"] + text["height"] - own["height"] + 1
        assert tab.locator("#contributions tbody tr").count() == 12
        assert tab.locator("#lens-table tbody tr").first.locator("td.cell").count() == 12
        others = tab.locator("#contributions tfoot tr").first
        left = e.to_pandas()["contribution"].drop(page.about["shown"]).sum()
        assert others.locator("th").inner_text() == "48 other tokens"
        assert _number(others.locator("td.number").first.inner_text()) == pytest.approx(left, abs=0.05)
        token(tab, 30).press("Enter")
        assert tab.locator("#peek").inner_text() == visible(e.run.tokens[30])
        assert fits(tab)


def test_a_logit_of_zero(browser: Browser, tmp_path: Path) -> None:
    """A head of zeros tells no tokens apart: there is no chance to compare with, and nothing is decoded."""
    lm = model_of("llama", "sdpa", torch.float64)
    with torch.no_grad():
        lm.head.weight.zero_()
    page = written(sc.explain(lm, [3, 1, 2], layers=True, steps=2), tmp_path)
    assert page.about["logit"] == 0
    with opened(browser, page) as tab:
        opened_up(tab)
        assert {row[2] for row in table(tab, "#contributions")} == {"+0.00"}
        assert {text for row in table(tab, "#step-table") for text in row[3:]} == {""}
        assert "No token contributes to it." in tab.locator("#why").inner_text()
        assert tab.locator(".vector .sides").first.inner_text().startswith("writes (U): nothing can be decoded")
        assert "NaN" not in tab.locator("body").inner_text()


@pytest.mark.slow
def test_zero_blocks_and_equal_tokens(browser: Browser, tmp_path: Path) -> None:
    """Where attention adds nothing, only the last token has a block that is not zero."""
    lm = model_of("llama", "sdpa", torch.float64)
    with torch.no_grad():
        for layer in lm.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    page = written(sc.explain(lm, [5] * 6, layers=True), tmp_path)
    with opened(browser, page, "#token=2&layer=1&cells=direction") as tab:
        opened_up(tab)
        assert tab.locator("#at").inner_text() == "token 2 of 6"
        for layer in ("1", ""):
            tab.locator("#layer").select_option(layer)
            assert tab.locator("#vector-words").inner_text() == "This block is zero: it has no directions."
        assert set(tab.locator("#lens-table tbody tr").first.locator("td.cell").all_inner_texts()[:5]) == {"–"}
        token(tab, 5).click()
        assert tab.locator(".vector").count() == 4
        assert "NaN" not in tab.locator("body").inner_text()


def test_a_network_without_parts(browser: Browser, made: Written, tmp_path: Path) -> None:
    """As of a model whose layers can't be found."""
    e = made.explanation
    own = e.evidence()
    empty = {"depths": own.depths[:0], "heads": own.heads[:0], "patterns": own.patterns[:0], "faithfulness": None}
    bare = replace(e.evidence(), attribution=sc.attribute(e.run, parts=False), **empty)
    case_ = replace(e.case)
    case_.__dict__ |= {"sensitivity": replace(e.sensitivity, effects=None), "lens": None, "chosen": e.case.chosen}
    page = written(replace(e, layers=None, steps=None, case=case_), tmp_path, bare)
    assert page.about["direct"] is None
    with opened(browser, page, "#layer=1&part=mlp") as tab:
        assert tab.locator("#components, #lens, #layer, #steps, #faithfulness").count() == 0
        assert "deleted" not in tab.locator("#contributions").inner_text()
        largest = e.to_pandas()["contribution"].abs().idxmax()
        assert tab.locator("#chosen").inner_text() == visible(e.run.tokens[largest])
        opened_up(tab)
