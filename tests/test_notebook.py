"""Results in a notebook: well-formed HTML without scripts, every text escaped, the numbers of the result in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import Parsed

import secant as sc
from secant.results.formats import number
from secant.results.html import MOST
from secant.text import visible

PROMPT = "The bridge out of Marin is the"
HOSTILE = "<script>alert('1')</script>&\"<img src=x onerror=y>\x1b[31m\u202e\u2028"


@pytest.fixture(scope="module")
def shown(lm: sc.LM, explanation: sc.Explanation) -> list[object]:
    """One of each, with hostile texts."""
    run = explanation.run
    odd = replace(
        run, tokens=[HOSTILE] * len(run.tokens), prediction=[replace(p, token=HOSTILE) for p in run.prediction],
        lm=replace(lm, name=HOSTILE),
    )  # fmt: skip
    a = sc.attribute(run)
    table = a.table.copy()
    table["name"] = HOSTILE
    a = replace(a, table=table, target=HOSTILE, versus=HOSTILE)
    words = [[[replace(w, token=HOSTILE) for w in own] for own in vectors] for vectors in explanation.outputs]
    op = replace(run.operator(), about={**run.operator().about, "tokens": odd.tokens, "model": HOSTILE})
    e = replace(explanation, run=odd, attribution=a, outputs=words, inputs=words)
    changes = sc.ablations(run, kinds=["token"])
    changes = replace(changes, target=HOSTILE, table=changes.table.assign(name=HOSTILE))
    largest = sc.largest(run.lm, run.operator(), count=2, top=2)
    largest = replace(largest, table=largest.table.assign(token=HOSTILE, word=HOSTILE))
    return [odd, op, explanation.svds[0], a, e, changes, largest]


def test_no_script_and_every_text_is_escaped(shown: list[object]) -> None:
    for result in shown:
        text = result._repr_html_()  # type: ignore[attr-defined]
        parsed = Parsed(text)
        assert {tag for tag, _ in parsed.tags} <= {"div", "strong", "small", "table", "tr", "th", "td", "span"}
        assert {name for _, attributes in parsed.tags for name in attributes} <= {"style", "class"}
        assert not {"\x1b", "\u202e", "\u2028"} & set(text)
        if not isinstance(result, sc.SVD):
            assert any(visible(HOSTILE) in said for said in parsed.texts)
        assert "mathjax_ignore" in text
        assert len(text) < 50_000


def test_it_takes_the_notebooks_own_colours(shown: list[object]) -> None:
    for result in shown:
        for tag, attributes in Parsed(result._repr_html_()).tags:  # type: ignore[attr-defined]
            style = dict(part.split(":") for part in (attributes.get("style") or "").split(";") if part)
            assert style.get("color") == ("inherit" if tag == "table" else None)
            assert ("background" in style) == ("inline-block" in style.get("display", ""))


def test_the_numbers_are_those_of_the_result(explanation: sc.Explanation) -> None:
    rows = Parsed(explanation._repr_html_()).rows
    table = explanation.to_pandas()
    T = len(table)
    assert rows[0][:4] == ["", "token", "logit", ""]
    assert [row[1] for row in rows[1 : T + 2]] == [*map(visible, explanation.run.tokens), "reference"]
    assert [row[2] for row in rows[1 : T + 1]] == [f"{c:z.3f}" for c in table["contribution"]]
    start = next(i for i, row in enumerate(rows) if "σ₀" in row) + 1
    assert [row[3] for row in rows[start : start + T]] == [number(sigma) for sigma in table["sigma"]]
    a = sc.attribute(explanation.run)
    rows = Parsed(a._repr_html_()).rows[1 : 1 + len(a.of("token"))]
    assert [row[2] for row in rows] == [f"{c:z.3f}" for c in a.of("token")["contribution"]]
    f = explanation.svds[0]
    assert [row[1] for row in Parsed(f._repr_html_()).rows[1:]] == [number(s) for s in f.S.tolist()]
    changes = sc.ablations(explanation.run, kinds=["token"])
    assert [row[2:4] for row in Parsed(changes._repr_html_()).rows[1:]] == [
        [f"{frozen:z.3f}", f"{real:z.3f}"] for frozen, real in changes.table[["frozen", "real"]].to_numpy()
    ]
    columns = sc.largest(explanation.run.lm, explanation.run.operator().block(2), count=3, top=2)
    first = columns.table.drop_duplicates("rank")
    rows = Parsed(columns._repr_html_()).rows
    assert [row[3] for row in rows[1:]] == [number(norm) for norm in first["norm"]]
    assert {row[1] for row in rows[1:]} == {visible(explanation.run.tokens[2])}
    rows = Parsed(explanation.run._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [visible(p.token) for p in explanation.run.prediction]
    texts = "".join(Parsed(explanation.run.operator()._repr_html_()).texts)
    assert "embed" in texts
    assert "norm" in texts


def test_bars_are_as_long_as_what_they_show(explanation: sc.Explanation) -> None:
    spans = [attributes["style"] for tag, attributes in Parsed(explanation._repr_html_()).tags if tag == "span"]
    widths = [float(style.split("width:")[1].split("em")[0]) for style in spans if style]
    sizes = np.abs([*explanation.to_pandas()["contribution"], explanation.attribution.constant])
    assert widths[: len(sizes)] == pytest.approx(list(8 * sizes / sizes.max()), abs=0.01)


def test_what_is_left_out_is_said(explanation: sc.Explanation) -> None:
    a = explanation.attribution
    table = pd.concat([a.of("token")] * 20, ignore_index=True)
    parsed = Parsed(replace(a, table=table)._repr_html_())
    assert len(parsed.rows) == MOST + 1
    assert f"and {len(table) - MOST} more rows" in parsed.texts[-1]
