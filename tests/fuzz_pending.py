"""Fuzzing that finds faults still: pytest collects this file only by its name. It belongs into test_fuzz.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fuzz import PROMPT, ended_well, fuzzed, mutations, nothing_left, same_as_plain, secant
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import GENERATION, changed, place, quiet, steered

__all__ = ["place", "quiet"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def explained(place: Path, name: str, raw: bytes) -> None:
    folder = changed(place, name, raw)
    with nothing_left(place):
        end = secant("explain", PROMPT, "--model", folder, "--json", "-k", 1)
        if ended_well(end):
            same_as_plain(end, folder)


def valid(place: Path, name: str) -> bytes:
    return (place / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "examples"),
    [("config.json", 60), ("model.safetensors.index.json", 40), ("tokenizer.json", 40), ("tokenizer_config.json", 40)],
)
def test_files_of_a_model(place: Path, name: str, examples: int) -> None:
    @fuzzed(examples)
    @given(mutations(valid(place, name)))
    def check(raw: bytes) -> None:
        explained(place, name, raw)

    check()


def test_files_of_a_study(place: Path) -> None:
    prompts, study = place / "three.txt", place / "study"
    prompts.write_text("In London people cross the\nFrom Marin they walked over\nThe bridge out of Marin\n")
    args = ("study", prompts, "--analysis", "reconstruction", "--model", place / "model")
    assert secant(*args, "--out", study).code == 0
    whole = secant("summarize", study, "--json", "--resamples", 100)
    assert whole.code == 0
    there = [path for path in study.rglob("*") if path.is_file() and path.stat().st_size]
    files = sorted(path.relative_to(study).as_posix() for path in there)

    @fuzzed(40)
    @given(st.sampled_from(files).flatmap(lambda n: st.tuples(st.just(n), mutations((study / n).read_bytes()))))
    def check(case: tuple[str, bytes]) -> None:
        name, raw = case
        with nothing_left(place) as out:
            shutil.copytree(study, out)
            (out / name).write_bytes(raw)
            ended_well(secant("summarize", out, "--json", "--resamples", 100))
            ended_well(secant(*args, "--out", out, "--json"))

    check()


def test_generation_configs(place: Path) -> None:
    @fuzzed(60)
    @given(mutations(json.dumps({**GENERATION, "eos_token_id": [1]}).encode(), huge=True), st.booleans())
    def check(raw: bytes, sample: bool) -> None:
        steered(place, raw, sample)

    check()
