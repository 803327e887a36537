"""Figures: artists have the result's data, text fits, fonts have all its glyphs, and files are reproducible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tiny_model
import torch
from families import model_of, prompt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from test_cli import refused
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import secant as sc
from secant import figures
from secant.analyses.attribution import Attribution
from secant.cli import app
from secant.errors import BadArgument, OutputFailed, SecantError
from secant.figures import style, system
from secant.linearize.run import tangent
from secant.operators.operator import Operator

PROMPT = "The bridge out of Marin is the"
ODD = ["$\\frac{1}{2}$", " 中文字", "🙂", "\n", "a$b$", "&<b>\\$", " \u202ex\x1b[31m", "<s>"]
"""Hostile tokens, one for each of the prompt's."""


@pytest.fixture(scope="module")
def whole(lm: sc.LM) -> sc.Explanation:
    return sc.explain(lm, PROMPT, layers=True)


@pytest.fixture(scope="module")
def deep(four_layers: sc.LM) -> sc.Explanation:
    return sc.explain(four_layers, PROMPT, layers=True)


@pytest.fixture(scope="module")
def contributions(whole: sc.Explanation) -> Attribution:
    return sc.attribute(whole.run, " Golden", " Gate", flow=True)


@pytest.fixture(scope="module")
def judged(lm: sc.LM) -> list[sc.Faithfulness]:
    return [sc.faithfulness(sc.freeze(lm, text)) for text in (PROMPT, "The bridge is the")]


@pytest.fixture(scope="module")
def ways(whole: sc.Explanation) -> list[sc.Reach]:
    return [sc.reach(whole.run, (t, " the"), steps=3, k=1) for t in (1, 4)]


def odd(e: sc.Explanation, a: Attribution | None = None) -> sc.Explanation:
    """The same with hostile tokens and words, and another attribution."""
    a = a or e.attribution
    table = a.table.copy()
    table.loc[table["kind"] == "token", "name"] = ODD

    def words(own: list[sc.Word], start: int) -> list[sc.Word]:
        return [replace(w, token=ODD[(start + n) % 8]) for n, w in enumerate(own)]

    sides = [
        [[words(own, t + i) for i, own in enumerate(vectors)] for t, vectors in enumerate(side)]
        for side in (e.outputs, e.inputs)
    ]
    a = replace(a, table=table, target=ODD[0], versus=ODD[1])
    return replace(e, run=replace(e.run, tokens=ODD), attribution=a, outputs=sides[0], inputs=sides[1])


# ------------------------------------------------------------------------------------------- what is drawn


@pytest.fixture(scope="module")
def constant() -> sc.Run:
    """Of a model with constants."""
    return sc.freeze(model_of("gpt2"), prompt(5))


@pytest.mark.parametrize("which", ["whole", "constant"])
def test_reconstruction(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    run = run.run if which == "whole" else run
    figure = figures.reconstruction(run)
    op = run.operator()
    y = op.output.numpy()
    slope = tangent(run.lm, run.network.recording, run.input).forward(op.input.reshape(-1, 1))[:, 0]
    _, held, ordinary = figure.axes[0].lines
    np.testing.assert_array_equal(held.get_xdata(), y)
    np.testing.assert_allclose(held.get_ydata(), y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ordinary.get_ydata(), slope.numpy(), rtol=0, atol=1e-12)
    assert np.abs(ordinary.get_ydata() - y).max() > 0.1
    counts = [sum(bar.get_height() for bar in container) for container in figure.axes[1].containers]
    label = figure.axes[1].get_legend().get_texts()[0].get_text()
    exact = int(label.split("(")[1].split()[0]) if "(" in label else 0
    assert counts == [len(y) - exact, len(y)]
    assert exact == int((held.get_ydata() == y).sum())


def test_the_image_is_j_and_says_where_colours_end(whole: sc.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    op = whole.run.operator()
    J = op.dense().flatten(1).numpy()
    figure = figures.jacobian(op, quantile=0.9)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), J, rtol=0, atol=1e-12)
    end = np.quantile(np.abs(J), 0.9)
    assert image.get_clim() == pytest.approx((-end, end))
    assert "the 0.9 quantile" in figure.axes[1].get_ylabel()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [style.shown(t) for t in whole.run.tokens]
    monkeypatch.setattr(system, "PIXELS", 50)
    rows, across = -(-J.shape[0] // 50), -(-J.shape[1] // 50)
    (image,) = figures.jacobian(op).axes[0].images
    by_hand = [
        [J[i : i + rows, j : j + across].mean() for j in range(0, J.shape[1], across)]
        for i in range(0, J.shape[0], rows)
    ]
    np.testing.assert_allclose(image.get_array(), by_hand, rtol=0, atol=1e-12)
    assert image.get_extent() == [-0.5, J.shape[1] - 0.5, J.shape[0] - 0.5, -0.5]
    zero = Operator.from_dense(op.dense() * 0, op.input)
    assert figures.jacobian(zero).axes[0].images[0].get_clim() == (-1, 1)


def test_spectra_and_their_words(whole: sc.Explanation) -> None:
    (panel,) = figures.spectra(whole, vectors=3).axes
    widths = [bar.get_width() for bar in panel.containers[0]]
    assert widths == pytest.approx([f.S[i].item() for f in whole.svds for i in range(3)])
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    writes, reads = sorted({x for x, _ in texts})
    for row, (t, i) in enumerate((t, i) for t in range(8) for i in range(3)):
        for x, side in ((writes, whole.outputs), (reads, whole.inputs)):
            first = [style.word(w.token) for w in side[t][i]]
            drawn = texts[x, row].split("  ")
            assert drawn == first[: len(drawn)]
            assert len(drawn) > 1
    (panel,) = figures.spectra(whole, vectors=1, most=2).axes
    best = sorted(sorted(range(8), key=lambda t: -whole.norms[t])[:2])
    assert [text.get_text() for text in panel.get_yticklabels()] == [style.shown(whole.run.tokens[t]) for t in best]
    assert [bar.get_width() for bar in panel.containers[0]] == pytest.approx([whole.svds[t].S[0].item() for t in best])
    assert "2 of 8 tokens" in panel.get_xlabel()


def test_the_largest_columns(lm: sc.LM, whole: sc.Explanation) -> None:
    found = sc.largest(lm, whole.run.operator(), "columns", 5)
    table = found.table
    (panel,) = figures.largest(found).axes
    first = table.drop_duplicates("rank")
    assert [bar.get_width() for bar in panel.containers[0]] == pytest.approx(list(first["norm"]))
    labels = [
        f"{style.shown(whole.run.tokens[t])}, {unit}" for t, unit in zip(first["position"], first["unit"], strict=True)
    ]
    assert [text.get_text() for text in panel.get_yticklabels()] == labels
    assert panel.texts[1].get_text().startswith(first["word"].iloc[0].strip())
    (panel,) = figures.largest(replace(found, table=table.assign(token=None))).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == [
        f"{t}, {unit}" for t, unit in zip(first["position"], first["unit"], strict=True)
    ]


def begins(drawn: str, words: Iterable[str]) -> None:
    """A line of words has as many of the first ones as fit."""
    found = drawn.split("  ")
    expected = [style.word(one) for one in words]
    assert found == expected[: len(found)] or (len(found) == 1 and found[0].endswith("…"))


def test_depths(whole: sc.Explanation) -> None:
    layers = whole.layers
    assert layers is not None
    words = layers.words(sides=["output"]).query("part == 'residual' and position.isna()")
    for panel, span in zip(figures.layer_spectra(layers).axes, ["cumulative", "layerwise"], strict=True):
        heading, *beside = (text.get_text() for text in panel.texts)
        assert heading == f"U₀, {span}"
        for i, (line, drawn) in enumerate(zip(panel.lines, beside, strict=True)):
            S = layers.depth(i, span=span).whole.S  # type: ignore[union-attr]
            np.testing.assert_allclose(line.get_xdata(), (S / S[0]).numpy())
            assert set(line.get_ydata()) == {i}
            begins(drawn, words[(words["layer"] == i) & (words["span"] == span)]["word"])
    (panel,) = figures.path(layers).axes
    table = layers.path()
    for vector, line in zip((0, 1), panel.lines[1:], strict=True):
        own = table[table["vector"] == vector]
        np.testing.assert_array_equal(line.get_xydata(), own[["x", "y"]].to_numpy())
    np.testing.assert_allclose([line.get_xydata()[-1] for line in panel.lines[1:]], np.eye(2), atol=1e-9)
    (panel,) = figures.stable_ranks(layers).axes
    drawn = {line.get_label(): line.get_ydata() for line in panel.lines}
    assert len(drawn) == 6
    for name, ranks in drawn.items():
        part, span = name.split(", ")
        wholes = [layers.depth(i, part, span).whole for i in range(len(ranks))]
        np.testing.assert_allclose(ranks, [f.stable_rank for f in wholes if f is not None])


def test_bars_add_up_to_the_logit(contributions: Attribution) -> None:
    a = contributions
    for most in (40, 3):
        for panel in figures.attribution(a, most=most).axes:
            widths = [bar.get_width() for bar in panel.containers[0]]
            assert sum(widths) == pytest.approx(a.logit)
            assert len(widths) <= most + 2
            assert (f"{len(a.of('token')) - 3} others" in [t.get_text() for t in panel.get_yticklabels()]) == (
                most == 3 and "sources" in panel.get_title()
            )
    first = figures.attribution(a).axes[0]
    assert [bar.get_width() for bar in first.containers[0]][:8] == list(a.of("token")["contribution"])
    assert [text.get_text() for text in first.texts][:2] == [style.number(c) for c in a.of("token")["contribution"][:2]]
    assert len(figures.attribution(replace(a, direct=None)).axes) == 1


def test_constants_have_a_bar_and_a_column(constant: sc.Run) -> None:
    a = sc.attribute(constant, flow=True)
    assert abs(a.constant) > 1e-3
    for panel in figures.attribution(a).axes:
        labels = [text.get_text() for text in panel.get_yticklabels()]
        assert labels[-1] == ("reference" if "sources" in panel.get_title() else "constants")
        widths = [bar.get_width() for bar in panel.containers[0]]
        assert sum(widths) == pytest.approx(a.logit)
        if len(labels) == 6:
            assert widths[-1] == pytest.approx(a.constant)
    (image,) = figures.flow(a).axes[0].images
    cells = np.asarray(image.get_array())
    assert np.abs(cells[:, -1]).max() > 1e-3
    layers = a.of("layer")["contribution"]
    np.testing.assert_allclose(cells[1 : 1 + len(layers)].sum(1), layers, atol=1e-10)
    assert cells.sum() == pytest.approx(a.logit)


def test_the_map_adds_up_to_the_logit(contributions: Attribution) -> None:
    (image,) = figures.flow(contributions).axes[0].images
    cells = np.asarray(image.get_array())
    direct = contributions.of("layer")
    np.testing.assert_allclose(cells[1 : 1 + len(direct)].sum(1), direct["contribution"], atol=1e-10)
    assert cells.sum() == pytest.approx(contributions.logit)
    (through,) = figures.flow(contributions, path="all").axes[0].images
    rows = np.asarray(through.get_array())[1 : 1 + len(direct)]
    np.testing.assert_allclose(rows.sum(1), direct["all_paths"], atol=1e-10)


def test_the_rows_of_the_lens_are_its_terms(whole: sc.Explanation) -> None:
    """In units of the largest of each layer; tokens that are left out have no column, and the others stay."""
    lens = whole.lens
    assert lens is not None
    terms = lens.contributions().to_numpy()
    np.testing.assert_allclose(terms.sum(1), lens.at()["logit"], atol=1e-4)
    expected = terms / np.abs(terms).max(1, keepdims=True)
    panel, (image,) = figures.lens(lens).axes[0], figures.lens(lens).axes[0].images
    np.testing.assert_allclose(image.get_array(), expected)
    labels = [f"{p:.0%} · {i}" for i, p in enumerate(lens.at()["probability"])]
    assert [label.get_text() for label in panel.get_yticklabels()] == labels
    for i, text in enumerate(panel.texts[1:]):
        begins(text.get_text(), lens.words[lens.words["layer"] == i]["word"])
    (image,) = figures.lens(lens.without([0, 2])).axes[0].images
    rest = np.delete(terms, [0, 2], axis=1)
    np.testing.assert_allclose(image.get_array(), rest / np.abs(rest).max(1, keepdims=True))


@pytest.mark.parametrize("path", ["direct", "all"])
def test_the_map_of_components(path: str, whole: sc.Explanation) -> None:
    """Parts and heads in units of their largest; next to a layer stand its largest head and what that head writes."""
    a, words = whole.case.attribution(parts=True, flow=True), whole.case.head_words
    column = {"direct": "contribution", "all": "all_paths"}[path]
    panel = figures.components(whole, path=path).axes[0]
    (image,) = panel.images
    parts = a.of("layer")[column].to_numpy().reshape(2, 2)
    heads = a.of("head")[column].to_numpy().reshape(2, 4)
    expected = np.hstack([parts / np.abs(parts).max(), heads / np.abs(heads).max()])
    np.testing.assert_allclose(image.get_array(), expected)
    assert [t.get_text() for t in panel.get_xticklabels()] == ["attn", "mlp", "head 0", "1", "2", "3"]
    for layer, text in enumerate(panel.texts[1:]):
        head = np.abs(heads[layer]).argmax()
        own = words.query(f"layer == {layer} and head == {head} and sign == 'promoted'")["word"]
        number, drawn = text.get_text().split(": ", 1)
        assert number == str(head)
        begins(drawn, own)
    bare = figures.components(a, path=path).axes[0]
    np.testing.assert_allclose(bare.images[0].get_array(), expected)
    assert not bare.texts


def test_components_of_a_model_without_heads() -> None:
    a = sc.attribute(sc.freeze(model_of("mamba"), prompt(5)))
    panel = figures.components(a).axes[0]
    parts = a.of("layer")["contribution"].to_numpy()
    np.testing.assert_allclose(np.asarray(panel.images[0].get_array())[:, 0], parts / np.abs(parts).max())
    assert [t.get_text() for t in panel.get_xticklabels()] == ["mixer"]


def test_tables_of_top_tokens(whole: sc.Explanation) -> None:
    layers, lens = whole.layers, whole.lens
    assert layers is not None
    assert lens is not None
    words = layers.words(top=1, sides=["output"]).dropna(subset="position")
    for span in ("cumulative", "layerwise"):
        panel = figures.layer_words(layers, span=span).axes[0]
        own = words[(words["part"] == "residual") & (words["span"] == span)]
        cells = {text.get_position(): text for text in panel.texts}
        assert {at: text.get_text() for at, text in cells.items()} == {
            (r.position, r.layer): style.word(r.word) for r in own.itertuples(index=False)
        }
        strong = {(r.position, r.layer) for r in own.itertuples(index=False) if r.id == layers.predicted}
        assert {at for at, text in cells.items() if text.get_fontweight() == "bold"} == strong
        sigma = np.array([[f.S[0].item() for f in layers.depth(i, span=span).tokens] for i in (0, 1)])
        np.testing.assert_allclose(panel.images[0].get_array(), sigma / sigma.max(1, keepdims=True))
    panel = figures.logit_lens(lens.without([0]), most=3).axes[0]
    last = lens.contributions().iloc[-1, 1:-1].abs()
    kept = sorted(last.sort_values(ascending=False).index[:3])
    assert [t.get_text() for t in panel.get_xticklabels()] == [style.shown(lens.tokens[int(t)]) for t in kept]
    rows = lens.table[lens.table["position"].isin(kept)]
    drawn = {text.get_position(): text.get_text() for text in panel.texts}
    assert drawn == {(kept.index(r.position), r.layer): style.word(r.top) for r in rows.itertuples(index=False)}
    np.testing.assert_allclose(np.asarray(panel.images[0].get_array()).ravel(), rows["top_probability"])
    assert "3 of 7 tokens" in panel.get_title(loc="left")


def test_bars_without_sinks(contributions: Attribution) -> None:
    one = figures.attribution(contributions.without([0])).axes[0].containers[0]
    rows = contributions.of("token")["contribution"]
    assert [bar.get_width() for bar in one][: len(rows) - 1] == list(rows[1:])
    (image,) = figures.flow(contributions.without([0])).axes[0].images
    (all_,) = figures.flow(contributions).axes[0].images
    np.testing.assert_array_equal(image.get_array(), np.asarray(all_.get_array())[:, 1:])


def test_curves_of_one_result_and_of_several(judged: list[sc.Faithfulness]) -> None:
    one = judged[0]
    for panel, order in zip(figures.faithfulness(one).axes, ("remove", "keep"), strict=True):
        for line in panel.lines:
            rows = one.curves.query("value == 'logit'")
            rows = rows[(rows["method"] == line.get_label()) & (rows["order"] == order)]
            np.testing.assert_array_equal(line.get_xydata(), rows[["tokens", "result"]].to_numpy(float))
    panel = figures.faithfulness(*judged, value="log-probability").axes[0]
    (line,) = (line for line in panel.lines if line.get_label() == "secant")
    at, mean = line.get_xydata().T
    each = []
    for result in judged:
        rows = result.curves.query("method == 'secant' and value == 'log-probability' and order == 'remove'")
        count = len(rows)
        each.append(np.interp(at, rows["tokens"] / count, rows["result"] - rows["result"].iloc[0]))
    np.testing.assert_allclose(mean, np.mean(each, axis=0))
    assert (at[0], mean[0]) == (0, 0)
    band = panel.collections[0].get_paths()[0].vertices
    error = np.std(each, axis=0, ddof=1) / np.sqrt(2)
    for a, m, s in zip(at, mean, error, strict=True):
        ends = band[band[:, 0] == a, 1]
        assert (ends.min(), ends.max()) == pytest.approx((m - s, m + s))


def test_errors_on_the_way(ways: list[sc.Reach]) -> None:
    (panel,) = figures.reach(ways[0]).axes
    for line, name in zip(panel.lines, ("frozen_error", "ordinary_error", "still_error"), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), ways[0].table[["alpha", name]].to_numpy())
    (panel,) = figures.reach(*ways).axes
    median = np.median([way.table["frozen_error"] for way in ways], axis=0)
    np.testing.assert_allclose(panel.lines[2].get_ydata(), median)


# ------------------------------------------------------------------------------------------- text


def texts_of(figure: Figure) -> list[Text]:
    """What is printed; a new figure is laid out."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    every = {id(label) for axis in axes for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
    drawn = {id(label) for axis in axes for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [text for text in texts if id(text) not in every - drawn]


def odd_lens(lens: sc.Lens) -> sc.Lens:
    """The same with hostile tokens and words."""
    table = lens.table.assign(top=[ODD[i % 8] for i in range(len(lens.table))])
    words = lens.words.assign(word=[ODD[i % 8] for i in range(len(lens.words))])
    return replace(lens, tokens=ODD, target=ODD[0], table=table, words=words)


def drawings(
    e: sc.Explanation, a: Attribution, judged: list[sc.Faithfulness], ways: list[sc.Reach], lens: sc.Lens
) -> dict[str, Callable[[int], Figure]]:
    """Every figure, one or two columns wide."""
    assert e.layers is not None
    layers = e.layers
    return {
        "reconstruction": lambda n: figures.reconstruction(e.run, columns=n),
        "jacobian": lambda n: figures.jacobian(e.run.operator(), columns=n),
        "spectra": lambda n: figures.spectra(e, columns=n),
        "lens": lambda n: figures.lens(lens, columns=n),
        "logit_lens": lambda n: figures.logit_lens(lens, columns=n),
        "layer_words": lambda n: figures.layer_words(layers, columns=n),
        "components": lambda n: figures.components(e, columns=n),
        "layer_spectra": lambda n: figures.layer_spectra(layers, columns=n),
        "path": lambda n: figures.path(layers, columns=n),
        "stable_ranks": lambda n: figures.stable_ranks(layers, columns=n),
        "attribution": lambda n: figures.attribution(a, columns=n),
        "flow": lambda n: figures.flow(a, columns=n),
        "faithfulness": lambda n: figures.faithfulness(*judged, columns=n),
        "reach": lambda n: figures.reach(*ways, columns=n),
    }


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("hostile", [False, True])
def test_text_is_inside_and_every_character_is_in_a_font(
    columns: int, hostile: bool, deep: sc.Explanation, judged: list[sc.Faithfulness], ways: list[sc.Reach]
) -> None:
    e, a = deep, sc.attribute(deep.run, " Golden", " Gate", flow=True)
    if hostile:
        flow = a.flow.copy()  # type: ignore[union-attr]
        flow.loc[flow["position"].notna(), "token"] = [ODD[t] for t in flow["position"].dropna()]
        e = odd(deep, replace(a, flow=flow))
        a = e.attribution
    known = {c for name in style.fonts() for c in FT2Font(findfont(FontProperties(family=[name]))).get_charmap()}
    assert deep.lens is not None
    lens = odd_lens(deep.lens) if hostile else deep.lens
    for name, draw in drawings(e, a, judged, ways, lens).items():
        figure = draw(columns)
        assert figure.get_figwidth() == style.WIDTH[columns]
        inside = figure.bbox.padded(2)
        for text in texts_of(figure):
            box = text.get_window_extent()
            where = f"{name}: {text.get_text()!r} at {box}"
            assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, where
            assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, where
            assert {ord(c) for c in text.get_text()} <= known | {ord("\n")}, where
            assert text.get_fontsize() >= style.SMALL, where


def test_labels_are_not_over_each_other(whole: sc.Explanation) -> None:
    e = odd(whole)
    for columns in (1, 2):
        for figure in (figures.spectra(e, columns=columns), figures.attribution(e.attribution, columns=columns)):
            assert not over_each_other(figure)


def over_each_other(figure: Figure) -> list[tuple[str, str]]:
    """Texts that cover one another by more than the blank above and below their letters."""
    texts = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    pairs = [(one, two) for i, one in enumerate(texts) for two in texts[:i]]
    return [
        (one, two)
        for (one, a), (two, b) in pairs
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.35 * min(a.height, b.height)
    ]


def test_numbers_of_a_path_are_over_nothing() -> None:
    """Thirty layers that leave the centre in two directions: no number is over another one, nor over a line."""
    rng = np.random.default_rng(0)
    layer = np.arange(30)
    out, noise = (layer / 29) ** 3, layer < 29
    along, across = out + 0.03 * noise * rng.normal(size=(2, 30)), 0.04 * noise * rng.normal(size=(2, 30))
    ways = [(along[0], across[0]), (across[1], along[1])]
    table = pd.concat(pd.DataFrame({"layer": layer, "vector": v, "x": x, "y": y}) for v, (x, y) in enumerate(ways))
    for columns in (1, 2):
        figure = figures.path(SimpleNamespace(path=lambda: table), columns=columns)
        assert not over_each_other(figure)
        panel = figure.axes[0]
        boxes = [text.get_window_extent() for text in panel.texts]
        assert len(boxes) > 10
        assert [text.get_text() for text in panel.texts if text.get_fontweight() == "bold"] == ["29", "29"]
        for line in panel.lines[1:]:
            (x, y), t = line.get_data(), np.linspace(0, 29, 2000)
            points = panel.transData.transform(np.stack([np.interp(t, layer, x), np.interp(t, layer, y)], axis=1))
            for box in boxes:
                inner = box.padded(-1)
                assert not any(inner.contains(*point) for point in points)


@pytest.mark.slow
def test_thirty_layers_and_forty_tokens() -> None:
    """No label is over another one, in one column or in two."""
    tokenizer = tiny_model.tokenizer_of(tiny_model.sentences())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=30, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64,
    )  # fmt: skip
    lm = sc.LM(LlamaForCausalLM(config).double().eval(), tokenizer)
    words = " ".join(tiny_model.sentences()).split()[:39]
    run = sc.freeze(lm, " ".join(words))
    assert len(run.tokens) == 40
    lens, layers = sc.lens(run), sc.layers(run, 2, spans=["cumulative"])
    drawn = {
        "lens": lens, "logit_lens": lens, "components": sc.attribute(run), "layer_words": layers,
        "layer_spectra": layers,
    }  # fmt: skip
    for columns in (1, 2):
        for name, own in drawn.items():
            assert not over_each_other(figures.style.FIGURES[name](own, columns=columns)), (name, columns)


def test_tokens_are_drawn_as_they_are(whole: sc.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "fonts", lambda: ("DejaVu Sans",))
    style.glyphs.cache_clear()
    assert [style.shown(token) for token in ODD] == [
        "$\\frac{1}{2}$", "·U+4E2D U+6587 U+5B57", "U+1F642", "⏎", "a$b$", "&<b>\\$", "·‹RLO›x\\x1b[31m", "<s>",
    ]  # fmt: skip
    e = odd(whole)
    figure = figures.attribution(e.attribution)
    labels = figure.axes[0].get_yticklabels()
    assert [text.get_text() for text in labels][:3] == ["$\\frac{1}{2}$", "·U+4E2D U+6587 …", "U+1F642"]
    dollars = [t for f in (figure, figures.spectra(e), figures.jacobian(e.run.operator())) for t in texts_of(f)]
    dollars = [text for text in dollars if "$" in text.get_text()]
    assert len(dollars) > 20
    assert not any(text.get_parse_math() for text in dollars)
    style.glyphs.cache_clear()


def test_what_reads_from_right_to_left_stays_in_its_place() -> None:
    """Marks that print nothing are around it: or else the next word, or a number, would be drawn to its left."""
    with style.drawing():
        mark = "\N{LEFT-TO-RIGHT MARK}"
        assert style.shown(" שלום") == f"{mark}·שלום{mark}"
        assert style.shown("plain") == "plain"
        assert style.clipped(style.shown("שלום"), 4) == f"{mark}שלום{mark}"
        assert style.clipped(style.shown("שלום"), 3) == f"{mark}של…{mark}"
        long = "שלום" * 4
        assert style.fitting([style.shown(long)], style.width_of(long, 8) / 2, 8).endswith(f"…{mark}")
        assert style.width_of(mark, 8) == 0
        assert ord(mark) in style.glyphs()


def test_a_font_that_was_installed_since_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Matplotlib's own list is of the day when it first ran; a file that is no font is passed over."""
    (tmp_path / "none.ttf").write_bytes(b"none")
    (tmp_path / "own.ttf").write_bytes(Path(findfont("DejaVu Sans Mono")).read_bytes())
    found = [str(tmp_path / name) for name in ("none.ttf", "own.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if f.name != "DejaVu Sans Mono"])
    monkeypatch.setattr(style, "FONTS", ("DejaVu Sans", "DejaVu Sans Mono"))
    style.fonts.cache_clear()
    assert style.fonts() == ("DejaVu Sans", "DejaVu Sans Mono")
    monkeypatch.undo()
    style.fonts.cache_clear()


def test_words_fit() -> None:
    with style.drawing():
        words = ["one", "two", "three"]
        width = style.width_of("one  two", 8)
        assert style.fitting(words, width + 0.1, 8) == "one  two"
        assert style.fitting(words, width - 0.1, 8) == "one"
        assert style.fitting(["something long"], width, 8).endswith("…")
        assert style.width_of(style.fitting(["something long"], width, 8), 8) <= width
        assert style.fitting([], width, 8) == ""


# ------------------------------------------------------------------------------------------- files, axes, refusals


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(suffix: str, whole: sc.Explanation, tmp_path: Path) -> None:
    for name, vectors in (("one", 1), ("again", 1), ("other", 2)):
        figure = figures.spectra(whole, vectors=vectors, columns=1)
        figures.save(figure, tmp_path / f"{name}.{suffix}", dpi=80)
    one, again, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other
    figures.save(figure, tmp_path / f"twice.{suffix}", dpi=80)
    assert (tmp_path / f"twice.{suffix}").read_bytes() == other
    assert not any(mark in one for mark in (b"CreationDate", b"dc:date", b"tEXtSoftware"))


def test_what_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"\.png, \.pdf, \.svg; got '\.jpg'"):
        figures.save(Figure(), tmp_path / "x.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed):
        figures.save(Figure(), tmp_path / "file" / "x.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_axes_that_are_given_and_nothing_is_left_behind(whole: sc.Explanation, contributions: Attribution) -> None:
    matplotlib.get_backend()  # which is found out when it is first asked for, whoever asks
    before = matplotlib.rcParams.copy()
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert figures.attribution(contributions, axes) is figure
    assert all(panel.containers for panel in axes)
    assert figures.spectra(whole, figure.add_subplot()) is figure
    assert matplotlib.rcParams == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_wrong_arguments(whole: sc.Explanation, contributions: Attribution, judged: list[sc.Faithfulness]) -> None:
    ax = Figure().subplots()
    layers = whole.layers
    assert layers is not None
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: figures.attribution(contributions, ax), "requires 2 of matplotlib's axes; got 1"),
        (lambda: figures.lens(whole.lens, part="mlp"), "parts of this lens are residual"),
        (lambda: figures.layer_words(layers, part="none"), "attn, layerwise; mlp, layerwise; residual, layerwise; got"),
        (lambda: figures.logit_lens(whole.lens, most=0), "at least one token"),
        (lambda: figures.components(whole.attribution), "parts=True"),
        (lambda: figures.components(whole, path="back"), "direct or all"),
        (lambda: figures.path(layers, 7), "one of matplotlib's axes"),
        (lambda: figures.path(layers, columns=3), "one or two columns"),
        (lambda: figures.spectra(whole, vectors=5), "4 singular vectors"),
        (lambda: figures.jacobian(whole.run.operator(), quantile=0), "quantile must be above 0"),
        (lambda: figures.flow(replace(contributions, flow=None)), "flow=True"),
        (lambda: figures.flow(contributions, path="back"), "direct or all"),
        (lambda: figures.attribution(contributions, most=0), "at least one bar"),
        (lambda: figures.faithfulness(), "Give one or more"),
        (lambda: figures.faithfulness(*judged, value="logits"), "log-probability, logit"),
        (lambda: figures.reach(), "Give one or more"),
        (lambda: figures.stable_ranks(sc.layers(whole.run, 1, all_tokens=False)), "all_tokens=True"),
    ]
    for call, said in wrong:
        with pytest.raises(BadArgument, match=said):
            call()


@pytest.mark.slow
def test_the_command_line_draws(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--out", str(out), "--figures", "-k", "1"])
    assert result.exit_code == 0, result.output
    names = ("attribution", "components", "jacobian", "lens", "logit_lens", "reconstruction", "spectra")
    assert sorted(f.name for f in (out / "figures").iterdir()) == [f"{n}.{s}" for n in names for s in ("pdf", "png")]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--out", str(out), "--figures"])
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "secant: Drawing figures requires matplotlib; got an installation without matplotlib."
        " Install it: pip install 'secant[plot]'."
    )
    with pytest.raises(SecantError, match=r"secant\[plot\]"):
        figures.spectra(None)  # type: ignore[arg-type]


def test_figures_need_a_folder(folder: Path) -> None:
    assert "--figures without --out" in refused("explain", PROMPT, "-m", folder, "--figures")
