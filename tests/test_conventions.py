"""Every function accepts labels, aliases, parts and objects as conventions, and results name them by label."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from families import model_of, prompt, shared
from typer.main import get_command
from typer.testing import CliRunner

import secant as sc
from secant.analyses.case import Case
from secant.cli import app
from secant.errors import BadArgument, ModelRefused
from secant.linearize import certificate, network
from secant.linearize.conventions import (
    ALIASES,
    ATTENTION,
    CHOICES,
    CONVENTIONS,
    GATES,
    NAMES,
    NORMS,
    REFERENCES,
    Convention,
    convention_named,
    conventions_named,
)
from secant.linearize.forms import coefficients
from secant.studies.analyses import conventions as distances

PARTS = "0.7+secant+frozen+zero"


def test_labels_are_read_back() -> None:
    for parts in product((*GATES, 0.7, 1 / 3, 1), ATTENTION, NORMS, REFERENCES):
        convention = Convention(*parts)
        assert convention_named(convention.label) == convention == convention_named(convention)
        assert str(convention) == convention.label == convention_named(convention.label).label
    assert [convention.label for convention in CONVENTIONS.values()] == list(CONVENTIONS)
    for alias, name in ALIASES.items():
        assert convention_named(alias).label == name
    assert convention_named("half+secant+frozen+zero").label == "halves"
    assert convention_named("0.7+secant").label == PARTS
    assert sc.Convention is Convention


def test_the_names_are_one_list_in_one_order() -> None:
    """In the help, in messages and in the documentation."""
    with pytest.raises(BadArgument) as caught:
        convention_named("none")
    assert f"one of {', '.join(CHOICES)};" in str(caught.value)
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for param in command.params:
            if "--convention" in param.opts:
                assert param.metavar == f"<{'|'.join(CHOICES)}>"
    docs = Path(__file__).parents[1] / "docs"
    glossary = next(
        x for x in (docs / "reference/glossary.md").read_text().splitlines() if x.startswith("| convention |")
    )
    for text, quote in ((glossary, "`"), (str(sc.freeze.__doc__), '"')):
        places = [text.index(f"{quote}{name}{quote}") for name in NAMES]
        assert places == sorted(places)
    rows = [x for x in (docs / "explanation/conventions.md").read_text().splitlines() if x.startswith("| `")]
    assert [re.findall("`(.+?)`", row)[0] for row in rows[: len(CONVENTIONS)]] == list(CONVENTIONS)


@pytest.mark.parametrize(
    "wrong", ["gates", "", "nan", "1.5", "-0.1", "half+", "half+live", f"{PARTS}+more", "half,secant", 0.7, None]
)
def test_what_is_no_convention(wrong: object) -> None:
    with pytest.raises(BadArgument, match=r"A convention is one of gate, up, half, .* like 0\.7\+secant"):
        convention_named(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"gates": "no"}, {"gates": 2}, {"gates": True}, {"attention": "live"}, {"norms": ""}, {"reference": "mean"}],
)
def test_what_no_convention_is_made_of(wrong: dict[str, object]) -> None:
    with pytest.raises(BadArgument, match=f"got {next(iter(wrong))} "):
        replace(CONVENTIONS["gate"], **wrong)  # type: ignore[arg-type]


def test_several_are_given_once_each() -> None:
    assert conventions_named("paper") == conventions_named(Convention()) == [Convention()]
    assert conventions_named(["up", Convention("half")]) == [Convention("up"), Convention("half")]
    for wrong, said in ((["gate", "paper"], "once each; got gate, gate"), ([], "got none"), (3, "got 3")):
        with pytest.raises(BadArgument, match=said):
            conventions_named(wrong)


def test_every_function_takes_them(lm: sc.LM, tmp_path: Path) -> None:
    parts = Convention(0.7, "secant")
    for given, label in (("paper", "gate"), (PARTS, PARTS), (parts, PARTS)):
        run = sc.freeze(lm, "London", convention=given)
        assert run.certificate.convention == run.operator().about["convention"] == label
        assert f"convention {label} ·" in run.certificate.lines()[1]
    assert run.next().certificate.convention == PARTS
    assert sc.explain(lm, "London", convention=parts, k=1).run.certificate.convention == PARTS
    compared = sc.compare("London", [lm], conventions=[parts, "relevance"], k=1).models
    assert compared["convention"].tolist() == [PARTS, "half"]
    sc.screen(lm, ["London"], ["Tower"], convention=parts, k=1, samples=10)
    how = {"lm": lm, "out": tmp_path, "analyses": ["reconstruction"], "threads": 1}
    study = sc.study(["London"], convention=["paper", parts], **how)
    assert json.loads((tmp_path / "study.json").read_text())["conventions"] == ["gate", PARTS]
    assert study.to_pandas()["convention"].tolist() == ["gate", PARTS]
    resumed = sc.study(["London"], convention=["gate", PARTS], **how)
    assert resumed.to_pandas().equals(study.to_pandas())


def test_every_command_takes_them(folder: Path) -> None:
    for given, label in (("relevance", "half"), ("0.7+secant", PARTS)):
        how = ["--model", str(folder), "--json", "--convention", given]
        said = json.loads(CliRunner().invoke(app, ["explain", "London", *how, "-k", "1"]).stdout)
        assert said["certificate"]["convention"] == label
        compared = CliRunner().invoke(app, ["compare", "London", *how, "--convention", "up", "-k", "1"])
        assert [row["convention"] for row in json.loads(compared.stdout)["compared"]] == [label, "up"]
    for command in ("explain", "attribute", "compare", "steer"):
        result = CliRunner().invoke(app, [command, "London", "--model", str(folder), "--convention", "nope"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("secant: A convention is one of gate, up, half")
        assert "'nope'" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_origin_of_a_command(folder: Path) -> None:
    for command, *more in (("attribute",), ("explain", "-k", "1")):
        how = ["London", "--model", str(folder), *more]
        said = json.loads(CliRunner().invoke(app, [command, *how, "--origin", "mean", "--json"]).stdout)
        assert said["origin"] == "mean"
        result = CliRunner().invoke(app, [command, *how, "--origin", "nowhere"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            "secant: An origin is one of zero, mean, reference; got 'nowhere'. Choose one of them.\n"
        )


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "mixtral"])
@pytest.mark.parametrize("parts", [(), ("secant", "frozen", "zero"), ("secant", "secant", "random")])
def test_shares_of_gates_are_made_of_one_recording(family: str, parts: tuple[str, ...]) -> None:
    """Bit for bit those of a recording of their own."""
    lm = shared(family)
    run = sc.freeze(lm, prompt(5))
    wanted = [Convention(gates, *parts).label for gates in ("up", "half", 0.7, "gate")]
    for label, found in zip(wanted, run.recorded(wanted), strict=True):
        assert found.certificate.convention == label == found.network.recording.convention
        if label == "gate":
            assert found is run
            continue
        alone = network.record(lm, run.ids, run.input, label, lm.dtype, state=run.network.recording.state)
        for own, other in zip(found.tape.steps, alone.tape.steps, strict=True):
            assert (type(own.form), own.parents, own.shape) == (type(other.form), other.parents, other.shape)
            for one, two in zip(*(coefficients(s.form) if s.form else () for s in (own, other)), strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        assert found.certificate.operations == alone.tape.operations()
        made = network.Network.of(lm, alone, run.input, lm.dtype).points["logits"]
        assert torch.equal(found.network.points["logits"], made)


def test_secants_that_are_too_steep(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of Gemma's norms from embeddings of zero. The error says what to choose instead."""
    monkeypatch.setattr(certificate, "_errors", lambda network, seed: (math.nan, 0.0, 0.0))
    with pytest.raises(ModelRefused, match="choose another reference or convention"):
        sc.freeze(lm, "London", convention="secant+secant+secant+zero")
    with pytest.raises(ModelRefused, match="Report its type"):
        sc.freeze(lm, "London")


@pytest.mark.slow
def test_a_convention_that_a_model_cannot_run(tmp_path: Path) -> None:
    """RecurrentGemma's own scan hides its derivative. `verify` says so in a row; a study has no distance from it."""
    lm = shared("recurrent_gemma")
    with pytest.raises(sc.NotExact):
        sc.freeze(lm, prompt(), convention="secant")
    model_of("recurrent_gemma").model.save_pretrained(tmp_path / "model")
    args = ["verify", str(tmp_path / "model"), "--dtype", "float64", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    rows = {row["convention"]: row for row in json.loads(result.stdout)["certificates"]}
    assert list(rows) == list(CONVENTIONS)
    assert [name for name, row in rows.items() if not row["exact"]] == ["secant"]
    assert "must be affine and reproduce the model" in rows["secant"]["why"]
    assert CliRunner().invoke(app, [*args, "--convention", "paper"]).exit_code == 0
    found = distances(Case(sc.freeze(lm, prompt()), full=True))["conventions"]
    assert set(found["other"]) == set(CONVENTIONS) - {"gate"}
    missing = found[found["distance"].isna()]
    assert missing["other"].tolist() == ["secant"]
    assert missing["position"].isna().all()
