"""Steering sweeps: continuations, rates and perplexities computed a second way; tables, figure and command line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import model_of, prompt
from test_cli import refused
from typer.testing import CliRunner

import secant as sc
from secant import figures
from secant.cli import app
from secant.errors import BadArgument, BadPrompt, NoPoint, SecantError
from secant.steering.forms import FORMS as STEERING_FORMS
from secant.steering.generate import batches, continued, weighed
from secant.steering.steered import side_by_side
from secant.steering.sweep import PLAIN, SWEEP, TEXTS, Settings

PROMPTS = ["The bridge out of Prague is the", "The bridge in Prague is called the", "The opposite of hot is"]
CONCEPT = "The bridge out of Marin is the"
FORMS = ("mixture", "activation")
WORDS = ("Marin", "golden", "Gate")


@pytest.fixture(scope="module")
def lm() -> sc.LM:
    return sc.load("atlas")


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, CONCEPT)


@pytest.fixture(scope="module")
def sweep(lm: sc.LM, run: sc.Run) -> sc.Sweep:
    return sc.steering_sweep(
        lm, PROMPTS, run, layers=[1, 6], strengths=[0.0, 0.5, 1.0], forms=FORMS, words=WORDS, tokens=6
    )


# ------------------------------------------------------------------------------------------- continuations


def test_continuations_are_those_of_each_prompt_alone(lm: sc.LM) -> None:
    prompts = ["The capital of France is", "The bridge out of Marin is the", "The opposite of hot is"]
    rows = [lm.encode(p) for p in prompts]
    assert len(batches(lm, rows)) == 1
    together = continued(lm, rows, 8)
    assert together == [continued(lm, [row], 8)[0] for row in rows]
    assert together == continued(lm, rows, 8, groups=[[2], [0, 1]])
    assert all(ids[-1] == lm.tokenizer.eos_token_id for ids in together)
    texts = [c.text for c in weighed(lm, rows, together)]
    assert texts == [" Paris.", " Golden Gate Bridge.", " cold."]


def test_without_a_token_to_pad_with_lengths_go_apart() -> None:
    lm, rows = model_of("llama"), [prompt(5), prompt(3), prompt(5, seed=2)]
    assert batches(lm, rows) == [[1], [0, 2]]
    assert len(batches(lm, rows[:1] * 70)) == 2


def test_surprise_is_that_of_the_tokens_one_by_one() -> None:
    lm = model_of("llama")
    rows, new = [prompt(5), prompt(3, seed=2)], [[7, 8, 9], [11]]
    for row, ids, c in zip(rows, new, weighed(lm, rows, new), strict=True):
        total = 0.0
        for i, token in enumerate(ids):
            total -= torch.log_softmax(lm.logits(row + ids[:i])[-1], -1)[token].item()
        assert c.surprise == pytest.approx(total, abs=1e-5)
        assert c.perplexity == pytest.approx(np.exp(total / len(ids)), rel=1e-5)
        assert c.text.split() == list(map(str, ids))


def test_samples_have_a_seed_and_leave_the_generator_alone() -> None:
    lm, rows = model_of("gpt2"), [prompt(4), prompt(4, seed=3)]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, again, other = (continued(lm, rows, 8, sample=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == again != other


# ------------------------------------------------------------------------------------------- the sweep


def test_a_row_is_what_steering_gives_by_hand(lm: sc.LM, run: sc.Run, sweep: sc.Sweep) -> None:
    assert sweep.settings == Settings(lm.name, " " + CONCEPT, ("marin", "golden", "gate"), 6, False, 0)
    assert len(sweep.table) == 1 + 2 * 2 * 2
    assert sweep.plain["form"] == PLAIN
    row = sweep.table[(sweep.table["form"] == "activation") & (sweep.table["layer"] == 6)].iloc[-1]
    assert row["strength"] == 1.0
    rows, surprise, count, hits = [lm.encode(p) for p in PROMPTS], 0.0, 0, []
    with sc.steer(lm, run, layer=6, strength=1.0, form="activation"):
        ids = [lm.model.generate(torch.tensor([r]), max_new_tokens=6, pad_token_id=0)[0, len(r) :] for r in rows]
    for r, new in zip(rows, ids, strict=True):
        of = torch.log_softmax(lm.logits([*r, *new.tolist()])[len(r) - 1 : -1], -1)
        surprise, count = surprise - of.gather(1, new[:, None]).sum().item(), count + len(new)
        hits.append(bool({"marin", "golden", "gate"} & set(re.findall("[a-z]+", lm.tokenizer.decode(new).lower()))))
    assert row["rate"] == pytest.approx(np.mean(hits))
    assert row["perplexity"] == pytest.approx(np.exp(surprise / count), rel=1e-6)


def test_the_unsteered_row_is_the_model_itself(lm: sc.LM, sweep: sc.Sweep) -> None:
    said = sweep.texts[sweep.texts["form"] == PLAIN]
    for text, continuation in zip(said["text"], said["continuation"], strict=True):
        ids = lm.model.generate(torch.tensor([lm.encode(text)]), max_new_tokens=6, pad_token_id=0)[0]
        assert lm.tokenizer.decode(ids, skip_special_tokens=True) == " " + text + continuation


def test_the_table_and_the_texts_agree(sweep: sc.Sweep) -> None:
    assert list(sweep.to_pandas()) == [
        "form", "layer", "strength", "rate", "low", "high", "perplexity", "prompts",
    ]  # fmt: skip
    own = sweep.texts.groupby(["form", "layer", "strength"], dropna=False)["found"].mean()
    for row in sweep.table.iloc[1:].itertuples():
        assert row.rate == own.loc[row.form, row.layer, row.strength]
        assert row.low <= row.rate <= row.high
    assert set(sweep.table["rate"]) - {0.0}, "no word ever comes, and nothing is tested"


def test_the_same_sweep_twice_and_drawn(lm: sc.LM, run: sc.Run) -> None:
    steps: list[tuple[int, int]] = []

    def drawn(seed: int) -> sc.Sweep:
        how = {"layers": [2], "strengths": [0.4], "words": WORDS, "sample": True, "tokens": 8}
        return sc.steering_sweep(
            lm, PROMPTS * 4, run, seed=seed, progress=lambda what, *n: steps.append((n[0], n[1])), **how
        )

    one, again, other = drawn(3), drawn(3), drawn(4)
    pd.testing.assert_frame_equal(one.table, again.table)
    pd.testing.assert_frame_equal(one.texts, again.texts)
    assert not one.texts.equals(other.texts)
    assert steps == [(1, 2), (2, 2)] * 3


def table_of(*rows: tuple[float, float]) -> sc.Sweep:
    """A sweep of these rates and perplexities, the first of them unsteered."""
    table = SWEEP.frame(
        [("mixture" if i else PLAIN, i, 0.1 * i, rate, rate, rate, cost, 10) for i, (rate, cost) in enumerate(rows)]
    )
    return sc.Sweep(Settings("", "", ("x",), 1, False, 0), table, TEXTS.empty)


def test_the_best_trade_off() -> None:
    found = table_of((0.2, 3.0), (0.9, 6.1), (0.5, 5.0), (0.5, 4.0), (0.2, 1.0))
    best = found.best()
    assert best is not None
    assert best["layer"] == 3
    assert found.best(3)["layer"] == 1  # type: ignore[index]
    assert found.best(1) is None
    assert found.about()["best"]["layer"] == 3
    none = table_of((0.2, 3.0), (0.2, 3.0), (0.1, 1.0))
    assert none.best(100) is None
    assert none.about()["best"] is None
    assert "no setting produces the words more often" in none.view().facts["best"]


def test_a_perplexity_beyond_all_numbers_is_none_in_json() -> None:
    said = json.loads(json.dumps(table_of((0.2, 3.0), (0.9, np.inf)).to_dict(), allow_nan=False))
    assert [row["perplexity"] for row in said["sweep"]] == [3.0, None]


@pytest.mark.slow
def test_a_sweep_of_every_layer_has_its_own_words_and_strengths(lm: sc.LM) -> None:
    found = sc.steering_sweep(lm, PROMPTS[:1], CONCEPT, words=[" Tower ", "tower"], tokens=2)
    assert found.settings.words == ("tower",)
    assert sorted(set(found.table["layer"].dropna())) == list(range(7))
    assert set(found.table["strength"]) == {0, *STEERING_FORMS["mixture"].grid}


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"prompts": []}, BadArgument, "Prompts are a non-empty list"),
        ({"prompts": "one"}, BadArgument, "Prompts are a non-empty list"),
        ({"prompts": [""]}, BadPrompt, "at least one token"),
        ({"words": None, "prompts": [CONCEPT]}, BadArgument, "requires a word"),
        ({"words": []}, BadArgument, "requires a word"),
        ({"words": ["  "]}, BadArgument, "requires a word"),
        ({"layers": []}, BadArgument, "a layer, a form and a strength"),
        ({"layers": [7]}, BadArgument, "layers of this model are 0 to 6"),
        ({"strengths": [0]}, BadArgument, "a layer, a form and a strength"),
        ({"strengths": [2.0]}, BadArgument, "strength of a mixture is from 0 to 1"),
        ({"forms": ["sum"]}, BadArgument, "got 'sum'"),
        ({"forms": []}, BadArgument, "a layer, a form and a strength"),
        ({"tokens": 0}, BadArgument, "got tokens = 0"),
        ({"tokens": 250}, BadPrompt, "context of 256 tokens; got 7 and 250"),
    ],
)
def test_wrong_arguments(lm: sc.LM, run: sc.Run, how: dict[str, object], kind: type[SecantError], said: str) -> None:
    given: dict[str, object] = {"lm": lm, "prompts": PROMPTS, "concept": run, "words": WORDS, "tokens": 2, **how}
    with pytest.raises(kind, match=said):
        sc.steering_sweep(**given)


def test_a_model_without_layers_is_refused(lm: sc.LM, run: sc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(run.network.recording), "layers", [])
    with pytest.raises(NoPoint, match="module list"):
        sc.steering_sweep(lm, PROMPTS, run, words=WORDS)


# ------------------------------------------------------------------------------------------- written and drawn


def test_a_sweep_is_written(sweep: sc.Sweep, tmp_path: Path) -> None:
    sweep.save(tmp_path / "out")
    names = ["columns.csv", "sweep.csv", "sweep.json", "sweep.parquet", "texts.csv", "texts.parquet"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    for name, frame in (("sweep", sweep.table), ("texts", sweep.texts)):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / f"{name}.parquet"), frame, check_dtype=False)
    assert len(pd.read_csv(tmp_path / "out" / "texts.csv")) == 3 * len(sweep.table)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))["words"] == ["marin", "golden", "gate"]


def test_the_figure_shows_the_table(sweep: sc.Sweep) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = figures.steering(sweep)
    assert [panel.get_title() for panel in figure.axes] == list(FORMS)
    line = figure.axes[1].lines[1]
    own = sweep.table[(sweep.table["form"] == "activation") & (sweep.table["layer"] == 6)]
    np.testing.assert_allclose(line.get_xdata(), own["perplexity"] / sweep.plain["perplexity"])
    np.testing.assert_allclose(line.get_ydata(), own["rate"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.5", "1"] * 2
    ax = Figure().subplots()
    assert figures.steering(sweep, ax) is ax.figure
    assert len(ax.lines) == 6


def test_without_matplotlib_it_is_said(sweep: sc.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SecantError, match=r"pip install 'secant\[plot\]'"):
        figures.steering(sweep)


# ------------------------------------------------------------------------------------------- the command line


def ran(*args: object) -> str:
    result = CliRunner().invoke(app, ["steer", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_side_by_side_is_what_each_gives_alone(lm: sc.LM, run: sc.Run) -> None:
    how = {"layer": 6, "strength": 2, "form": "activation"}
    both = side_by_side(lm, PROMPTS[0], run, tokens=6, **how)
    rows = [lm.encode(PROMPTS[0])]
    assert [list(both.unsteered.ids)] == continued(lm, rows, 6)
    with sc.steer(lm, run, **how):
        assert [list(both.steered.ids)] == continued(lm, rows, 6)
    assert both.unsteered != both.steered
    assert both.unsteered.perplexity < both.steered.perplexity
    table, tokens = both.to_pandas(), both.tables()["steered_tokens"]
    assert table["form"].tolist() == [PLAIN, "activation"]
    assert table["perplexity"].tolist() == [both.unsteered.perplexity, both.steered.perplexity]
    assert tokens[tokens["form"] == "activation"]["id"].tolist() == list(both.steered.ids)
    zero = side_by_side(lm, PROMPTS[0], CONCEPT, layer=6, strength=0, tokens=6)
    assert zero.unsteered == zero.steered


def test_a_long_continuation_is_printed_whole(lm: sc.LM, run: sc.Run, capsys: pytest.CaptureFixture[str]) -> None:
    both = side_by_side(lm, PROMPTS[0], run, layer=6, strength=2, form="activation", tokens=40)
    both.show(60)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    start = next(i for i, line in enumerate(lines) if "strength 2" in line) + 1
    left = lines[start - 1].index("strength 2")
    column = " ".join(line[left:].strip() for line in lines[start:] if not line.startswith("perplexity"))
    assert "".join(both.steered.text.split()) in "".join(column.split())


def test_steer() -> None:
    how = ("--concept", CONCEPT, "--layer", 6, "--strength", 2, "--form", "activation", "--tokens", 6)
    printed = ran(PROMPTS[0], *how)
    assert max(map(len, printed.splitlines())) <= 100
    assert "unsteered" in printed
    assert "activation, layer 6, strength 2" in printed
    said = json.loads(ran(PROMPTS[0], *how, "--json"))
    plain, steered = said["steered"]
    assert plain["continuation"] != steered["continuation"]
    assert plain["perplexity"] < steered["perplexity"]
    assert plain["continuation"].strip() == "Vltava."
    assert plain["continuation"].strip() in printed
    assert json.loads(ran(PROMPTS[0], *how, "--json")) == said
    zero = json.loads(ran(PROMPTS[0], *how[:5], 0, "--json"))
    plain, steered = zero["steered"]
    assert plain["continuation"] == steered["continuation"]


@pytest.mark.slow
def test_steer_sweeps(tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("\n\n".join(PROMPTS) + "\n")
    how = ["--prompts", file, "--concept", CONCEPT, "--sweep", "--tokens", 4, "--layer", 6, "--seed", 1]
    printed = ran(*how, "--form", "activation", "--form", "mixture", "--out", out, "--word", "Gate")
    assert "times the perplexity" in printed or "no setting produces the words more often" in printed
    assert re.search("^words +gate$", printed, re.MULTILINE)
    written = {"sweep.json", "sweep.csv", "sweep.parquet", "texts.csv", "texts.parquet", "sweep.png", "columns.csv"}
    assert set(os.listdir(out)) == written
    said = json.loads(ran(*how, "--strength", 0.5, "--form", "activation", "--json", "--word", "Vltava"))
    assert [row["strength"] for row in said["sweep"]] == [0, 0.5]
    assert said["words"] == ["vltava"]
    assert said["best"] is None
    assert said["sweep"][0]["rate"] == pytest.approx(2 / 3)


def test_steer_refuses(tmp_path: Path) -> None:
    how = ("--concept", CONCEPT)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    assert "one strength and one form" in refused("steer", PROMPTS[0], *how, "--layer", 1)
    assert "--out applies to sweeps only" in refused("steer", PROMPTS[0], *how, "--out", tmp_path)
    assert "Steering requires a concept" in refused("steer", PROMPTS[0])
    assert "or a file of prompts; got none" in refused("steer", *how, "--sweep")
    assert "or a file of prompts; got both" in refused("steer", "x", *how, "--sweep", "--prompts", tmp_path / "empty")
    for name in ("empty", "bytes", "absent"):
        assert "Prompts are the lines of a text file" in refused("steer", *how, "--sweep", "--prompts", tmp_path / name)
    assert "layers of this model are 0 to 6" in refused("steer", PROMPTS[0], *how, "--layer", 9, "--strength", 1)
    assert "from 0 to 1; got 3.0" in refused("steer", PROMPTS[0], *how, "--layer", 1, "--strength", 3)
