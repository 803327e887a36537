"""Checkpoints over training: several folders or revisions of one model in one study, in order and labelled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import refused
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import secant as sc
from secant.cli import app
from secant.errors import BadArgument, ModelNotFound
from secant.model.sources import expanded

PROMPT = "The bridge out of Marin is the"


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """Three checkpoints of a training run, whose head grows."""
    for step in (9, 100, 20):
        out = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(folder, out)
        held = load_file(out / "model.safetensors")
        held["lm_head.weight"] = held["lm_head.weight"] * step / 100
        save_file(held, out / "model.safetensors", metadata={"format": "pt"})
        (out / "optimizer.pt").touch()
        (out / "trainer_state.json").write_text("{}")
    (tmp_path / "run" / "checkpoint-logs").mkdir()
    return tmp_path / "run"


def test_a_study_of_checkpoints(run: Path, tmp_path: Path) -> None:
    study = sc.study([PROMPT], run / "checkpoint-*", out=tmp_path / "out", analyses=["stable_rank"])
    prompts = study.to_pandas()
    assert prompts["model"].tolist() == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert prompts["prediction"].nunique() == 1
    assert prompts["logit"].tolist() == pytest.approx(
        [prompts["logit"][2] * share for share in (0.09, 0.2, 1)], rel=1e-4
    )
    assert prompts["probability"].is_monotonic_increasing
    ranks = sc.summarize(study.folder).ranks
    assert set(ranks["model"]) == set(prompts["model"])


def test_the_command_expands_patterns(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    result = CliRunner().invoke(
        app, ["study", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "-a", "stable_rank",
              "--model", str(run / "checkpoint-*0"), "--workers", "1", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [model["label"] for model in said["models"]] == ["checkpoint-20", "checkpoint-100"]


def test_patterns(run: Path) -> None:
    assert [Path(one).name for one in expanded(str(run / "*"))] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert expanded("someone/something@step100") == ["someone/something@step100"]
    with pytest.raises(ModelNotFound, match="A pattern must match"):
        expanded(str(run / "none-*"))
    refused(ModelNotFound, "GGUF file or a name", str(run / "none-*"))


def test_a_token_stays_out_of_study_json(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="HF_TOKEN"):
        sc.study([PROMPT], str(run / "checkpoint-9"), out=tmp_path / "out", token="hf_x")


def test_revisions_have_labels() -> None:
    from secant.studies.study import _labels

    assert _labels(["a/b@step1", "a/b@step2", "/x/run/checkpoint-7"]) == ["b@step1", "b@step2", "checkpoint-7"]
