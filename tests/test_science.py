"""The measurements of the paper's claims are balanced, resumable, and condensed to the numbers that claims require."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fuzz import small_model
from tiny_model import sentences

import secant as sc
from secant.stream.layers import layers
from secant.studies.analyses import ANALYSES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "science")]

import chosen  # noqa: E402
import claims  # noqa: E402
import defects  # noqa: E402
import measure  # noqa: E402
import mechanism  # noqa: E402
import rates  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
from prompts import written  # noqa: E402

KINDS = 9


def texts() -> list[str]:
    """Sentences that the small model reads."""
    return list(sentences())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that reads sentences, in a folder."""
    return small_model(tmp_path_factory.mktemp("science") / "small")


@pytest.fixture
def measuring(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """The arguments that measure the small model on three prompts."""
    monkeypatch.setitem(measure.OWN_PROMPTS, folder.name, "sentences")
    monkeypatch.setitem(measure.SETS, "sentences", lambda count: texts()[:count])
    monkeypatch.setattr(measure, "SPACING", 4)
    every = tuple(measure.Part(p.name, (0, 1, 2), p.analyses, p.conventions, p.dtypes, 2, p.tensors)
                  for p in (measure.PARTS[1], measure.PARTS[2], measure.PARTS[4]))  # fmt: skip
    monkeypatch.setattr(measure, "PARTS", every)
    out, work = tmp_path / "claims.parquet", tmp_path / "work"
    return Namespace(models=[str(folder)], prompts=3, threads=1, out=out, work=work, forecast=False)


def test_any_first_part_of_the_prompts_has_all_kinds_and_no_prompt_comes_twice() -> None:
    every = written()
    assert len(every) >= 1000
    assert len({text for _, text in every}) == len(every)
    for count in (KINDS, 90, 501, len(every)):
        sizes = Counter(kind for kind, _ in every[:count])
        assert len(sizes) == KINDS
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_the_parts_have_each_prompt_once_under_gate_and_all_kinds() -> None:
    prompts = [measure.Prompt(kind, text, text) for kind, text in written()]
    batches = list(measure.batches(prompts))
    spectra = [p.text for part, own in batches if part.name in ("spectra", "conventions") for p in own]
    assert sorted(spectra) == sorted(p.text for p in prompts)
    for name in ("conventions", "precision", "depth"):
        kinds = Counter(p.kind for part, own in batches if part.name == name for p in own)
        assert len(kinds) == KINDS, name
        assert max(kinds.values()) - min(kinds.values()) <= 2, name


@pytest.mark.slow
def test_rows_are_what_the_analyses_return(measuring: Namespace, folder: Path) -> None:
    measure.every_model(Namespace(**{**vars(measuring), "prompts": 2}))
    found = rows.read(measuring.out)
    lm, text = sc.load(folder), texts()[1]
    run = sc.freeze(lm, text, ordinary=True)
    own = found[(found["text"] == text) & (found["convention"] == "gate") & (found["precision"] == "float32")]

    def value(measure_: str, at: str = "", layer: int | None = None) -> float:
        here = own[(own["measure"] == measure_) & (own["at"] == at)]
        here = here if layer is None else here[here["layer"] == layer]
        return here["value"].iloc[0]

    assert value("ordinary") == pytest.approx(run.certificate.ordinary, rel=1e-3)
    J = run.operator().dense()
    for t in range(len(run.ids)):
        assert value("stable_rank", str(t)) == pytest.approx(_rank(J[:, t]), rel=1e-3)
    assert value("stable_rank", "together") == pytest.approx(_rank(J.flatten(1)), rel=1e-3)
    deep = layers(run, 2).to_pandas()
    deep = deep[(deep["part"] == "residual") & (deep["span"] == "layerwise") & (deep["layer"] == 1)]
    later = deep[deep["position"] > 0]["stable_rank"].mean()
    assert value("layerwise", "later", 1) == pytest.approx(later, rel=1e-3)
    assert set(found["precision"]) == {"float32", "float64", "bfloat16"}
    U = sc.svd(run.operator(), 2, per_token=True)[-1].U[:, :1]
    top = {word.id for word in sc.decode(lm, U, "output", 8, metric="dot", centered=False)[0]}
    assert value("logit_last") == (run.prediction[0].id in top)
    half = sc.freeze(lm, text, convention="half").operator()
    cosines = torch.linalg.svdvals(sc.svd(run.operator(), 2).U.T @ sc.svd(half, 2).U)
    angle = torch.rad2deg(torch.acos(cosines.clamp(max=1))).max().item()
    turned = found[(found["text"] == text) & (found["measure"] == "angle_U") & (found["at"] == "largest")]
    assert turned.set_index("convention")["value"]["half"] == pytest.approx(angle, abs=0.5)


def _rank(J: torch.Tensor) -> float:
    return (J.square().sum() / torch.linalg.matrix_norm(J, 2) ** 2).item()


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(
    measuring: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure.every_model(Namespace(**{**vars(measuring), "prompts": 1}))
    before, asked = rows.read(measuring.out), []
    original = sc.study

    def counted(items: Any, *args: Any, **kwargs: Any) -> sc.Study:
        asked.append(len(items))
        return original(items, *args, **kwargs)

    monkeypatch.setattr(measure.sc, "study", counted)
    two = Namespace(**{**vars(measuring), "prompts": 2})
    measure.every_model(two)
    assert asked == [1, 1, 1, 1]  # conventions, depth, and two precisions
    measure.every_model(two)
    assert len(asked) == 4
    assert "all 6 measurements are in" in capsys.readouterr().out
    after = rows.read(measuring.out)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert after.groupby("part")["text"].nunique().tolist() == [2, 2, 2]


@pytest.mark.slow
def test_of_an_interrupted_batch_the_finished_prompts_are_kept(
    measuring: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PARTS", [measure.Part("depth", (0, 1, 2), ("layers",), k=2)])
    original = ANALYSES["layers"]
    seen: list[str] = []  # one for each prompt

    def interrupted(case: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append("")
        return original(case)

    monkeypatch.setitem(ANALYSES, "layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure.every_model(measuring)
    assert rows.read(measuring.out)["text"].nunique() == 2
    monkeypatch.setitem(ANALYSES, "layers", original)
    measure.every_model(measuring)
    found = rows.read(measuring.out)
    assert set(found["text"]) == set(texts()[:3])
    assert not found.duplicated(["text", "measure", "at", "layer"]).any()


def test_a_forecast_measures_nothing(measuring: Namespace, capsys: Any) -> None:
    measure.every_model(Namespace(**{**vars(measuring), "forecast": True}))
    assert "9 of 9 measurements are left, about 0.0 h" in capsys.readouterr().out
    assert not measuring.out.exists()


@pytest.mark.slow
def test_a_prompt_that_fails_is_counted(measuring: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PARTS", measure.PARTS[:1])
    monkeypatch.setitem(measure.SETS, "sentences", lambda count: [texts()[0], "zzz §"])
    measure.every_model(measuring)
    found = rows.read(measuring.out)
    assert set(found[found["measure"] == rows.FAILED]["text"]) == {"zzz §"}
    assert "| 1 |" in report.counts(found.assign(model="atlas"))


def test_verdicts_follow_the_interval() -> None:
    rank = next(c for c in claims.CLAIMS if c.name == "R of the first token")
    near, far = np.linspace(1.0, 1.02, 30), np.linspace(2, 3, 30)
    assert claims.verdict(rank, pd.Series(near)) == "yes"
    assert claims.verdict(rank, pd.Series(far)) == "no"
    assert claims.verdict(rank, pd.Series(np.linspace(0.9, 1.3, 30))) == "open"
    assert claims.verdict(rank, pd.Series(near[:3])) == ""
    exact = claims.CLAIMS[0]
    assert claims.verdict(exact, pd.Series([1e-15, 1e-15, 1e-9])) == "no"
    assert claims.said(pd.Series([1e-15, 1e-9, 1e-15]), "error") == "1.0e-15, at most 1.0e-09 (n = 3)"


def test_the_ranks_of_depth_are_read_off_their_curve() -> None:
    curve = {"cumulative": [9.0, 5.0, 6.0, 2.0], "layerwise": [3.0, 4.0, 9.0, 8.0]}
    made = pd.DataFrame(
        [(f"p{p}", span, "together", layer, value + p) for p in range(9) for span, values in curve.items()
         for layer, value in enumerate(values)],
        columns=["text", "measure", "at", "layer", "value"],
    ).assign(convention="gate", precision="float32")  # fmt: skip
    means = {c.name: c.values(made).mean() for c in claims.CLAIMS if c.group == claims.DEPTH and "U₀" not in c.name
             and "first is" not in c.name}  # fmt: skip
    assert means["cumulative R after the first layer"] == 13
    assert means["cumulative R after the last layer"] == 6
    assert means["cumulative R falls from the first layer to the last"] == 1
    assert means["cumulative R falls at every layer"] == 0
    assert means["depth of that peak (1: the last layer)"] == 0.75
    assert means["layerwise R peaks in the last quarter of the layers"] == 0


def test_what_exactness_decides_is_in_every_exact_system(folder: Path) -> None:
    lm, prompt = sc.load(folder), measure.Prompt("", texts()[0], texts()[0])
    J, forced, rest = mechanism.system(lm, prompt, "up")
    x = sc.freeze(lm, prompt.given).operator().input.flatten().double()
    assert (rest @ x).norm() < 1e-4 * (J @ x).norm()
    assert torch.linalg.matrix_rank(forced) == 1
    found = mechanism.measured(lm, prompt).set_index(["convention", "measure"])["value"]
    share = (forced.square().sum() / J.square().sum()).item()
    assert found["up", "forced"] == pytest.approx(share)
    assert found["gate", "forced"] < 1
    assert -1 <= found["half", "cosine"] <= 1


def test_a_layers_gain_lies_below_its_largest_singular_value(folder: Path) -> None:
    found = defects.measured(sc.load(folder), measure.Prompt("", texts()[0], texts()[0]))
    values = found.pivot_table(index=["at", "layer"], columns="measure", values="value")
    assert (values.loc["first", "gain"] <= values.loc["first", "sigma"] * 1.001).all()  # it sees itself alone
    peak = values.loc["first", "norm"].idxmax()
    assert values.loc[("first", peak), "own"] == pytest.approx(1, abs=1e-5)
    assert values.drop(columns=["norm", "gain", "sigma"]).max().max() <= 1 + 1e-5


def test_steering_is_chosen_on_one_half_and_measured_on_the_other(tmp_path: Path) -> None:
    rows_of = [("unsteered", 0, 0.0, half, prompt, 0.0, 1.0) for half in ("choose", "measure") for prompt in range(4)]
    for layer, strength, found, loss in ((1, 1.0, 1.0, 1.5), (2, 2.0, 1.0, 9.0), (2, 1.0, 0.0, 1.0)):
        rows_of += [("activation", layer, strength, "choose", p, found, loss) for p in range(4)]
        rows_of += [("activation", layer, strength, "measure", p, float(p == 0), loss) for p in range(4)]
    frame = pd.DataFrame(rows_of, columns=["form", "layer", "strength", "half", "prompt", "found", "loss"])
    frame = frame.assign(model="atlas", concept="japan", tokens=5)
    best = {(form, most): table for form, most, table in chosen.measured(frame)}
    own = best["activation", 2.0].iloc[0]
    assert (own["layer"], own["strength"], own["rate"]) == (1, 1.0, 0.25)
    assert own["times"] == pytest.approx(np.exp(0.5))
    assert best["mixture", 2.0].empty


def test_layers_are_steered_in_an_order_that_halves_gaps() -> None:
    assert rates.halving(8) == [4, 2, 6, 1, 3, 5, 7, 0]
    for count in (1, 2, 7, 18, 30):
        assert sorted(rates.halving(count)) == list(range(count))


def test_strengths_that_are_there_are_not_tried_again() -> None:
    form, (first, *others) = next(iter(rates.STRENGTHS.items()))
    there = pd.DataFrame({"concept": ["cat"], "layer": [3], "form": [form], "strength": np.float32([first])})
    assert rates.missing(there, "cat", 3)[form] == others
    assert rates.missing(there, "cat", 4) == {name: list(own) for name, own in rates.STRENGTHS.items()}
    every = [("cat", 3, name, s) for name, own in rates.STRENGTHS.items() for s in own]
    whole = pd.DataFrame(every, columns=["concept", "layer", "form", "strength"])
    assert not rates.missing(whole, "cat", 3)


def test_tables_replace_what_is_between_their_marks_only() -> None:
    page = "a\n<!-- counts -->\nold\n<!-- end counts -->\nb <!-- kinds -->\nkept\n<!-- end kinds -->\n"
    assert report.replaced(page, {"counts": "new \\1"}) == page.replace("old", "new \\1")


def test_the_page_has_the_tables_of_the_rows_in_the_repository() -> None:
    page = report.PAGE.read_text("utf-8")
    for name in (name for tables in report.TABLES.values() for name in tables):
        assert f"<!-- {name} -->\n" in page
        assert f"<!-- end {name} -->" in page
    rows_of = rows.read(report.RESULTS / "claims.parquet")
    if len(rows_of):
        assert report.replaced(page, {"counts": report.counts(rows_of)}) == page, "report.py --write"
