"""Summaries: every statistic recomputed from the rows; intervals cover the truth; nothing is dropped; the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from helpers import chromium
from scipy.stats import t as student
from studies import study
from test_report import _outside, data
from typer.testing import CliRunner

import secant as sc
from secant import figures
from secant.cli import app
from secant.errors import BadArgument, DamagedFile
from secant.studies import reading
from secant.studies.folder import write_manifest
from secant.studies.measures import shares
from secant.studies.statistics import ALIKE, JACKKNIFE, ONE, interval
from secant.studies.summary import AVERAGES

HOSTILE = "</script><img src=x onerror=window.ran=1>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies") / "facts"


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, pd.DataFrame]:
    return study(folder)


@pytest.fixture(scope="module")
def summary(folder: Path, rows: dict[str, pd.DataFrame]) -> sc.Summary:
    return sc.summarize(folder, resamples=300)


def one(table: pd.DataFrame, **keys: Any) -> Any:
    """The only row with these values; None is missing."""
    for name, value in keys.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    (found,) = table.itertuples(index=False)
    return found


SMALL = {"model": "small", "convention": "gate"}

# ------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("draw", ["normal", "exponential", "binary"])
def test_intervals_cover_the_mean(draw: str) -> None:
    """Of 400 samples of 40, so often that 95 % is within three standard errors, or close for what is skewed."""
    rng = np.random.default_rng(5)
    draws = {
        "normal": (lambda: rng.normal(3, 2, 40), 3.0),
        "exponential": (lambda: rng.exponential(2, 40), 2.0),
        "binary": (lambda: (rng.random(40) < 0.3).astype(float), 0.3),
    }
    sample, mean = draws[draw]
    inside = 0
    for seed in range(400):
        low, high, how = interval(sample(), seed, 500)
        assert how == "BCa"
        inside += low <= mean <= high
    assert 0.95 - 0.035 <= inside / 400 <= 0.95 + 0.033


def test_an_interval_is_near_students() -> None:
    values = np.random.default_rng(1).normal(0, 1, 900)
    low, high, _ = interval(values, 0, 4000)
    half = student.ppf(0.975, 899) * values.std(ddof=1) / 30
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    many = np.random.default_rng(1).normal(0, 1, JACKKNIFE + 1)
    assert interval(many, 0, 200)[2] == "percentile"
    assert interval(values, 3, 200) == interval(values, 3, 200) != interval(values, 4, 200)


def test_no_interval_is_invented() -> None:
    for values, why in (([2.0], ONE), ([1.0, 1.0, 1.0], ALIKE)):
        low, high, how = interval(np.array(values), 0, 200)
        assert np.isnan([low, high]).all()
        assert how == why


def test_of_one_prompt(tmp_path: Path) -> None:
    study(tmp_path / "one", prompts=1, failing=(), categories=())
    found = sc.summarize(tmp_path / "one", resamples=200)
    for name, table in found.tables().items():
        if "interval" in table:
            assert set(table["interval"]) == {ONE}, name
            assert table["low"].isna().all()
            assert set(table["n"]) == {1}
    assert found.overlaps["chance"].isna().all()  # there is no other prompt


# ------------------------------------------------------------------------------------------- by hand


def test_measures_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    for category in (None, "facts", "counts"):
        for name, value in (("reconstruction", "reconstruction"), ("ordinary", "ordinary"), ("bias", "bias")):
            own = rows["reconstructions"].query("model == 'small' and convention == 'gate'")
            own = own if category is None else own[own["category"] == category]
            found = one(summary.measures, **SMALL, category=category, measure=name)
            assert found.n == len(own) == {None: 11, "facts": 6, "counts": 5}[category]
            assert found.mean == pytest.approx(own[value].mean())
            assert found.low < found.mean < found.high
            assert (found.q05, found.median) == pytest.approx(tuple(np.quantile(own[value], [0.05, 0.5])))


def test_words_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    found: dict[str, list[float]] = {"writes_together": [], "writes_last": [], "writes_any": [], "reads_own": []}
    for number in sorted(set(rows["words"]["prompt"])):
        own = rows["words"].query("model == 'small' and convention == 'gate' and vector == 0")
        own = own[own["prompt"] == number].to_dict("records")

        def any_(which: str, own: list[Any] = own, **keys: Any) -> bool:
            return any(
                r[which] for r in own
                if all(pd.isna(r[k]) if v is None else not pd.isna(r[k]) and r[k] == v for k, v in keys.items())
            )  # fmt: skip

        found["writes_together"].append(any_("predicted", side="output", position=None))
        found["writes_last"].append(any_("predicted", side="output", position=3))
        found["writes_any"].append(any(any_("predicted", side="output", position=t) for t in range(4)))
        found["reads_own"].append(sum(any_("own", side="input", position=t) for t in range(4)) / 4)
    for measure, values in found.items():
        row = one(summary.measures, **SMALL, category=None, measure=measure)
        assert row.n == 11
        assert row.mean == pytest.approx(np.mean(values))


@pytest.mark.parametrize("position", [0, 2, None])
def test_ranks_and_spectra_by_hand(position: int | None, summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    def own(name: str) -> pd.DataFrame:
        table = rows[name].query("model == 'large'")
        return table[table["position"].isna() if position is None else table["position"] == position]

    row = one(summary.ranks, model="large", category=None, position=position)
    values = own("stable_ranks")["stable_rank"]
    assert (row.n, row.mean, row.q75) == (11, pytest.approx(values.mean()), pytest.approx(values.quantile(0.75)))
    assert (row.interval == ALIKE) == (position == 0)
    for i in range(3):
        values = own("singular_values").query("vector == @i")["normalized"]
        assert one(summary.spectra, model="large", category=None, position=position, vector=i).mean == pytest.approx(
            values.mean()
        )


def test_depths_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    for model, count in (("small", 3), ("large", 5)):
        where = {"model": model, "convention": "gate", "category": None, "part": "attn", "span": "layerwise"}
        for layer in range(count):
            own = rows["layers"].query(
                "model == @model and convention == 'gate' and part == 'attn' and span == 'layerwise'"
            )
            own = own[own["position"].isna() & (own["layer"] == layer)]
            row = one(summary.depths, **where, layer=layer)
            assert row.depth == (layer + 1) / count
            assert (row.n, row.mean) == (11, pytest.approx(own["stable_rank"].mean()))
            first = rows["first_seen"].query(
                "model == @model and convention == 'gate' and part == 'attn' and span == 'layerwise'"
            )
            first = first[first["position"].isna()]["layer"]
            row = one(summary.emergence, **where, layer=layer)
            assert row.mean == pytest.approx(sum(f <= layer for f in first.dropna()) / 11)
    first = rows["first_seen"].query("model == 'large' and part == 'residual' and span == 'cumulative'")
    first = first[first["position"].isna()]["layer"]
    seen = first.dropna()
    assert one(summary.measures, model="large", category=None, measure="seen").mean == pytest.approx(len(seen) / 11)
    row = one(summary.measures, model="large", category=None, measure="seen_depth")
    assert (row.n, row.mean) == (len(seen), pytest.approx(((seen.astype(float) + 1) / 5).mean()))
    row = one(summary.measures, model="large", category=None, measure="coupling")
    assert (row.n, row.mean) == (11, pytest.approx(1 - (1 + 2 + 3 + 4) / 4 / 5))  # of five layers


def test_shares_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    table = rows["contributions"].query("model == 'large'")
    found: dict[tuple[str, str | None], list[float]] = {}
    for _, own in table.groupby("prompt"):
        total = own[own["kind"].isin(["token", "constant"])]["contribution"].sum()
        for kind in ("token", "constant", "embed", "layer", "head"):
            found.setdefault((kind, None), []).append(own[own["kind"] == kind]["contribution"].sum() / total)
        for part in ("attn", "mlp"):
            mine = own[own["name"].str.fullmatch(rf"layers\.\d\.{part}")]
            found.setdefault(("layer", part), []).append(mine["contribution"].sum() / total)
    for (kind, part), values in found.items():
        row = one(summary.shares, model="large", category=None, kind=kind, part=part)
        assert (row.n, row.mean) == (11, pytest.approx(np.mean(values)))
    for model in ("small", "large"):  # a model without constants has a share of 0, which is counted
        where = {"model": model, "convention": "gate", "category": None, "part": None}
        both = [one(summary.shares, **where, kind=kind) for kind in ("token", "constant")]
        assert sum(row.mean for row in both) == pytest.approx(1)
        assert {row.n for row in both} == {11}
        assert one(summary.shares, **where, kind="outside").mean == 0


def test_shares_without_parts(rows: dict[str, pd.DataFrame]) -> None:
    """Of tokens and constants alone, as the analysis attribution has them: they are the same."""
    both = rows["contributions"]
    some = shares(both[both["kind"].isin(["token", "constant"])])
    every = shares(both)
    keys = ["model", "convention", "prompt", "kind"]
    one, other = (t[t["kind"].isin(["token", "constant"])].set_index(keys)["value"].sort_index() for t in (some, every))
    pd.testing.assert_series_equal(one, other)


def test_overlaps_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    words = rows["words"].query("vector == 0")

    def of(model: str, convention: str, prompt: int, position: int | None, side: str) -> set[str]:
        own = words.query("model == @model and convention == @convention and prompt == @prompt and side == @side")
        own = own[own["position"].isna() if position is None else own["position"] == position]
        return {word.strip() for word in own["word"]}

    def mean(position: list[int | None], side: str, away: int = 0) -> float:
        prompts = sorted(set(words["prompt"]))
        found = []
        for n, prompt in enumerate(prompts):
            other = prompts[(n + away) % len(prompts)]
            pairs = [(of("small", "gate", prompt, t, side), of("large", "gate", other, t, side)) for t in position]
            found.append(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
        return float(np.mean(found))

    where = {**SMALL, "other": "large", "other_convention": "gate", "category": None}
    places: dict[str, list[int | None]] = {"together": [None], "last": [3], "tokens": [0, 1, 2, 3]}
    for name, side in (("together", "output"), ("last", "output"), ("last", "input"), ("tokens", "input")):
        row = one(summary.overlaps, **where, of=name, side=side)
        assert (row.n, row.mean) == (11, pytest.approx(mean(places[name], side)))
        assert row.chance == pytest.approx(mean(places[name], side, 1))


def test_conventions_by_hand(summary: sc.Summary, rows: dict[str, pd.DataFrame]) -> None:
    table = rows["conventions"]
    whole, single = table[table["position"].isna()], table[table["position"].notna()]
    where = {"model": "small", "convention": "half", "other": "gate", "category": None}
    for measure in ("distance", "cosine"):
        row = one(summary.conventions, **where, of="together", measure=measure)
        assert row.mean == pytest.approx(whole[measure].mean())
        row = one(summary.conventions, **where, of="tokens", measure=measure)
        assert row.mean == pytest.approx(single.groupby("prompt")[measure].mean().mean())


def test_failures_are_counted(summary: sc.Summary) -> None:
    assert (summary.runs["prompts"].sum(), summary.runs["failed"].sum()) == (36, 3)
    named = summary.coverage[summary.coverage["category"].notna()]
    assert (named["prompts"].sum(), named["failed"].sum()) == (36, 3)
    row = one(summary.failures, **SMALL)
    assert (row.category, row.error, row.prompts, row.example) == ("counts", "BadPrompt", 1, "prompt 3")
    assert "Every word must be known" in row.reason
    assert one(summary.coverage, **SMALL, category="counts").forward_equal == 5


def test_positions_that_few_prompts_reach_are_not_drawn(summary: sc.Summary) -> None:
    counts = {None: 200, 0: 200, 1: 200, 2: 90, 3: 10, 4: 9}
    ranks = pd.DataFrame(
        [{**SMALL, "category": c, "position": p, "n": n} for c, part in ((None, 1), ("facts", 10))
         for p, n in ((p, -(-n // part)) for p, n in counts.items())]
    ).astype({"position": "Int64"})  # fmt: skip
    found = replace(summary, ranks=ranks)
    assert found.common_positions() == [0, 1, 2, 3]
    assert found.common_positions("facts") == [0, 1, 2, 3, 4]  # 20 prompts at most, and one of them is one in twenty


def test_all_prompts_failed(tmp_path: Path) -> None:
    study(tmp_path / "all", prompts=2, failing=(0, 1))
    found = sc.summarize(tmp_path / "all")
    assert found.runs["failed"].sum() == found.runs["prompts"].sum() == 6
    assert set(found.tables()) == {"summary_measures", "coverage", "failures"}
    found.save(tmp_path / "out")
    found.report(tmp_path / "page.html")


# ------------------------------------------------------------------------------------------- reading


def test_some_prompts_at_a_time(summary: sc.Summary, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and never more rows than are of so many prompts; chance is of the next prompt at hand."""
    monkeypatch.setattr(reading, "BATCH", 5)
    read, most = reading._rows, 0

    def counted(*args: Any) -> pd.DataFrame:
        nonlocal most
        found = read(*args)
        if args[1] != "prompts":
            most = max(most, found["prompt"].nunique())
        return found

    monkeypatch.setattr(reading, "_rows", counted)
    again = sc.summarize(folder, resamples=300)
    assert most == 5
    for name, table in summary.tables().items():
        other = again.tables()[name].drop(columns="chance", errors="ignore")
        keys = [c for c in other if c not in ("n", "mean", "low", "high", "interval", "prompts", "failed")][:7]
        one_, two = (t[list(other)].sort_values(keys, ignore_index=True) for t in (table, other))
        pd.testing.assert_frame_equal(one_, two)


def test_studies_of_one_model_each_are_one(tmp_path: Path, summary: sc.Summary) -> None:
    """Prompts are the same where their text is, whatever their number."""
    texts = [f"prompt {i}" for i in range(8)]
    small = study(tmp_path / "a", 8, [("small", "gate")], failing=(), texts=texts)
    large = study(tmp_path / "b", 8, [("large", "gate")], failing=(), texts=texts[::-1], seed=1)
    found = sc.summarize([tmp_path / "a", tmp_path / "b"], resamples=200)
    row = one(found.overlaps, category=None, of="together", side="output")
    words = [t["words"].query("vector == 0 and position.isna()", engine="python") for t in (small, large)]
    here = [{n: set(own["word"]) for n, own in table.groupby("prompt")} for table in words]
    pairs = [(here[0][i], here[1][7 - i]) for i in range(8)]
    assert (row.n, row.mean) == (8, pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs])))
    study(tmp_path / "c", 2, [("small", "gate")], failing=(), texts=["prompt 5", "other"])
    with pytest.raises(BadArgument, match="'prompt 5' with small, gate in two studies"):
        sc.summarize([tmp_path / "a", tmp_path / "c"])


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    study(tmp_path / "few", 4, leave_out=("layers", "first_seen", "words", "conventions", "contributions"))
    found = sc.summarize(tmp_path / "few", resamples=200)
    assert found.absent == ["attribution", "conventions", "layers", "words"]
    expected = {"coverage", "failures", "summary_measures", "summary_ranks", "summary_spectra"}
    assert set(found.tables()) == expected
    found.save(tmp_path / "out")
    assert {file.stem for file in (tmp_path / "out").glob("*.parquet")} == expected
    assert set(figures.every(found)) == {"ranks_by_position", "mean_spectra"}
    found.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'id="numbers-measures"' in page
    assert 'id="plot-words"' not in page
    with pytest.raises(BadArgument, match="the analysis layers; got one without"):
        figures.emergence(found)


def test_what_is_no_study(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="got none"):
        sc.summarize([])
    with pytest.raises(BadArgument, match="one folder twice"):
        sc.summarize([folder, folder])
    with pytest.raises(BadArgument, match=r"study\.json"):
        sc.summarize(tmp_path)
    with pytest.raises(BadArgument, match="resamples = 3"):
        sc.summarize(folder, resamples=3)
    study(tmp_path / "s", 2)
    file = tmp_path / "s" / "tables" / "words.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.drop_columns(["predicted"]), file)
    with pytest.raises(DamagedFile, match=r"words\.parquet, which has changed"):
        sc.summarize(tmp_path / "s")
    write_manifest(file.parent)
    with pytest.raises(DamagedFile, match="must have a column predicted"):
        sc.summarize(tmp_path / "s")
    file.write_bytes(b"nothing")
    with pytest.raises(DamagedFile, match=r"words\.parquet"):
        sc.summarize(tmp_path / "s")
    (tmp_path / "s" / "tables" / "prompts.parquet").unlink()
    with pytest.raises(DamagedFile, match="table of its prompts"):
        sc.summarize(tmp_path / "s")
    next((tmp_path / "s" / "shards").iterdir()).rmdir()
    with pytest.raises(BadArgument, match="1 shards are missing"):
        sc.summarize(tmp_path / "s")


# ------------------------------------------------------------------------------------------- shown


def test_saved(summary: sc.Summary, tmp_path: Path) -> None:
    summary.save(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (said["seed"], said["level"], said["studies"]) == (0, 0.95, ["facts"])
    for name, table in summary.tables().items():
        assert len(pd.read_parquet(tmp_path / "out" / f"{name}.parquet")) == len(table)
    assert "prediction in U₀, all tokens" in summary._repr_html_()
    study(tmp_path / "s", 2)
    with pytest.raises(BadArgument, match="holds nothing but the study"):
        summary.save(tmp_path / "s")
    assert not (tmp_path / "s" / "summary.json").exists()
    pd.testing.assert_frame_equal(summary.to_pandas(), summary.measures)


def test_figures_are_the_tables(summary: sc.Summary) -> None:
    (panel,) = figures.emergence(summary).axes
    rows = summary.emergence.query("model == 'large' and part == 'residual' and span == 'cumulative'")
    rows = rows[rows["category"].isna()]
    line = next(line for line in panel.lines if line.get_label() == "large, gate")
    assert list(line.get_xdata()) == list(rows["depth"])
    assert list(line.get_ydata()) == list(rows["mean"])
    band = panel.collections[2].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(rows["low"].fillna(rows["mean"]).min())
    (panel,) = figures.ranks_by_position(summary, "facts").axes
    medians = [line.get_ydata()[0] for line in panel.lines if line.get_linewidth() == 1.4]
    expected = summary.ranks[(summary.ranks["category"] == "facts") & summary.ranks["position"].notna()]
    assert medians == list(expected["median"])
    one_, two = figures.ranks_by_depth(summary, part="attn").axes
    assert (one_.get_title(), two.get_title()) == ("attn, cumulative", "attn, layerwise")
    (panel,) = figures.mean_spectra(summary).axes
    assert panel.lines[0].get_ydata()[0] == 1
    with pytest.raises(BadArgument, match="'none'"):
        figures.ranks_by_depth(summary, part="none")
    with pytest.raises(BadArgument, match="counts, facts"):
        figures.emergence(summary, "none")


@pytest.mark.slow
def test_from_the_command_line(folder: Path, rows: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["summarize", str(folder), "--resamples", "100"]
    result = CliRunner().invoke(app, [*args, "--out", str(out), "--figures"])
    assert result.exit_code == 0, result.output
    assert "12, 1 failed" in result.stdout
    assert "1 failed with large, gate: Every word must be known" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert (out / "summary.html").exists()
    assert (out / "figures" / "emergence.pdf").exists()
    result = CliRunner().invoke(app, [*args, "--json"])
    assert json.loads(result.stdout)["summary_measures"][0]["n"] == 11
    result = CliRunner().invoke(app, ["summarize", str(tmp_path)])
    assert result.exit_code == 2
    assert "study.json" in result.stderr


# ------------------------------------------------------------------------------------------- the page


def test_the_page_fetches_nothing(summary: sc.Summary, tmp_path: Path) -> None:
    summary.report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    code = re.sub(r"^\s*//.*", "", text, flags=re.M).replace('"http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", code)
    assert "plotly" not in text.lower()
    about, tables = data(text)
    assert about.items() >= summary.about().items()
    assert about["positions"] == [[c, summary.common_positions(c)] for c in (None, "facts", "counts")]
    assert list(tables) == list(summary.tables())
    for name, frame in summary.tables().items():
        pd.testing.assert_frame_equal(tables[name].astype(frame.dtypes.to_dict()), frame, rtol=1e-5)


def test_as_it_is_shown(summary: sc.Summary, capsys: pytest.CaptureFixture[str]) -> None:
    """A column for each model and convention, below each other where they do not fit."""
    summary.show(100)
    wide = capsys.readouterr().out
    summary.show(60)
    narrow = capsys.readouterr().out
    for text, width in ((wide, 100), (narrow, 60)):
        assert max(map(len, text.splitlines())) <= width
        assert text.count("prediction in U₀, all tokens") == (2 if width == 100 else 3)
        assert "12, 1 failed" in text
    row = one(summary.measures, **SMALL, category=None, measure="writes_any")
    assert f"{row.mean:.0%}" in wide
    row = one(summary.overlaps, **SMALL, other="large", category=None, of="together", side="output")
    assert f"{row.mean:.3g} [{row.low:.3g}, {row.high:.3g}]" in wide
    assert "Every word must be known" in wide


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (380, "dark")])
def test_in_a_browser(theme: str, width: int, tmp_path: Path) -> None:
    """Names and categories that would run if they could; axe finds nothing; what is chosen is shown."""
    path = chromium()
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    study(tmp_path / "s", 6, [(HOSTILE, "gate"), (HOSTILE, "half")], ("<b>bold</b>", "other"), texts=[HOSTILE] * 6)
    found = sc.summarize(tmp_path / "s", resamples=100)
    found.report(tmp_path / "page.html")
    trouble: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme=theme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: trouble.append(request.url) if _outside(request.url) else None)
        tab.goto((tmp_path / "page.html").as_uri())
        for plot in tab.locator(".plot").all():
            plot.locator("svg[role=img]").wait_for()
        assert "means of only" in tab.locator("#few").inner_text()
        tab.evaluate("document.querySelectorAll('details:not(.menu)').forEach(fold => { fold.open = true })")
        meaning = tab.locator("#numbers-conventions thead th", has_text="mean").first.get_attribute("title")
        assert meaning == AVERAGES["conventions"].table["mean"].meaning
        assert tab.evaluate("window.ran") is None
        assert HOSTILE in tab.locator("#failures bdi").all_inner_texts()
        means = tab.locator("#numbers-conventions tbody tr").count()
        assert means == len(found.conventions[found.conventions["category"].isna()])
        tab.locator("#category").select_option("0")
        shown = tab.locator("#numbers-conventions tbody td:nth-child(6)").all_inner_texts()
        assert shown == ["3"] * means  # of six, three are of the category, and the one that failed is of the other
        if width < 400:
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        violations = Axe().run(tab).response["violations"]
        browser.close()
    assert trouble == []
    assert [v["id"] for v in violations] == []
