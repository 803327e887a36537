"""Fuzzing: broken configs, tokenizers, index files, studies, prompts and arguments."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import PROMPT, ended_well, fuzzed, mutations, nothing_left, same_as_plain, secant, small_model
from hypothesis import given, strategies as st

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEER = ("--concept", "In London people cross the", "--layer", 1, "--strength", 0.5, "--tokens", 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and room for a copy of it that is changed."""
    place = tmp_path_factory.mktemp("fuzz")
    small_model(place / "model")
    return place


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def changed(place: Path, name: str, raw: bytes) -> Path:
    """A copy of the model with one file changed."""
    folder = place / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (place / "model").iterdir():
        os.link(file, folder / file.name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(raw)
    return folder


EXPLAIN = ("explain", PROMPT, "--json", "-k", 1)
ATTRIBUTE = ("attribute", PROMPT, "--json", "--alone", "--convention", "gate", "--baseline", "none")


def answered(place: Path, name: str, raw: bytes, command: tuple[object, ...]) -> None:
    folder = changed(place, name, raw)
    with nothing_left(place):
        end = secant(*command, "--model", folder)
        if ended_well(end):
            same_as_plain(end, folder)


def valid(place: Path, name: str) -> bytes:
    return (place / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "examples", "command"),
    [
        ("config.json", 40, ATTRIBUTE), ("model.safetensors.index.json", 20, ATTRIBUTE),
        ("tokenizer.json", 20, EXPLAIN), ("tokenizer_config.json", 20, EXPLAIN),
    ],
)  # fmt: skip
def test_files_of_a_model(place: Path, name: str, examples: int, command: tuple[object, ...]) -> None:
    """Texts of the whole vocabulary are in an explanation; what the weights compute, also in an attribution."""

    @fuzzed(examples)
    @given(mutations(valid(place, name)))
    def check(raw: bytes) -> None:
        answered(place, name, raw, command)

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


GENERATION = {
    "bos_token_id": 0, "eos_token_id": [1], "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9,
    "repetition_penalty": 1.1, "max_length": 40, "num_beams": 1, "num_return_sequences": 1, "penalty_alpha": None,
    "stop_strings": None, "suppress_tokens": [3], "use_cache": True, "cache_implementation": None, "max_time": None,
    "prompt_lookup_num_tokens": None, "guidance_scale": None, "watermarking_config": None, "pad_token_id": 0,
    "num_assistant_tokens": 20, "bad_words_ids": [[9]], "no_repeat_ngram_size": 0, "min_new_tokens": 0,
}  # fmt: skip


def steered(place: Path, raw: bytes, sample: bool) -> None:
    """Steer under a generation config, and again where tokens are sampled."""
    folder = changed(place, "generation_config.json", raw)
    args = ["steer", PROMPT, *STEER, "--model", folder, "--json", *(["--sample"] if sample else [])]
    with nothing_left(place):
        end = secant(*args)
        if ended_well(end):
            said = json.loads(end.out)
            assert 1 <= sum(row["form"] != "unsteered" for row in said["steered_tokens"]) <= 3
            assert not sample or secant(*args).out == end.out


def test_generation_configs(place: Path) -> None:
    @fuzzed(50)
    @given(mutations(json.dumps(GENERATION).encode(), huge=True), st.booleans())
    def check(raw: bytes, sample: bool) -> None:
        steered(place, raw, sample)

    check()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_files_of_prompts(place: Path, suffix: str) -> None:
    rows = [("In London people cross the", "a"), ("From Marin they walked", "b"), ('The "bridge", out', "b")]
    texts = {
        "csv": "prompt,kind\n" + "".join('"{}",{}\n'.format(p.replace('"', '""'), kind) for p, kind in rows),
        "tsv": "prompt\tkind\n" + "".join("{}\t{}\n".format(p.replace('"', ""), kind) for p, kind in rows),
        "jsonl": "".join(json.dumps({"prompt": p, "kind": kind}) + "\n" for p, kind in rows),
        "txt": "".join(p + "\n" for p, _ in rows),
    }
    options = () if suffix == "txt" else ("--category", "kind")

    @fuzzed(12)
    @given(mutations(texts[suffix].encode()))
    def check(raw: bytes) -> None:
        (place / f"prompts.{suffix}").write_bytes(raw)
        with nothing_left(place) as out:
            args = ("--analysis", "reconstruction", "--out", out, "--model", place / "model", "--json", *options)
            end = secant("study", place / f"prompts.{suffix}", *args)
            if ended_well(end):
                said = json.loads(end.out)
                assert said["missing"] == 0
                assert said["tables"]

    check()


WORDS = [
    "", "x", "0", "1", "-1", "2", "nan", "inf", "1.5", "1" + "0" * 30, "1000000000", "é\udcff", "-", "a\0b", "None",
    "auto", "cpu", "float64", "eager", "--", "/dev/null/x", "1KiB", "#3", " the", "\x1b[31m",
]  # fmt: skip
OPTIONS = {
    "explain": ["-k", "--dtype", "--precision", "--convention", "--device", "--attention", "--layers", "--highlight",
                "--max-memory", "--chat", "--figures", "--no-image", "--seed", "--out", "--steps", "--top"],
    "attribute": ["--target", "--versus", "--flow", "--dtype", "--precision", "--device", "--seed", "--out", "--chat",
                  "--position", "--max-memory"],
    "steer": ["--concept", "--layer", "--strength", "--form", "--tokens", "--sample", "--seed", "--word", "--out",
              "--chat"],
    "verify": ["--prompt", "--dtype", "--convention", "--precision", "--device", "--attention", "--seed", "--chat"],
    "compare": ["--convention", "-k", "--top", "--max-memory", "--seed", "--out", "--model"],
    "screen": ["--lexicon", "-k", "--top", "--position", "--samples", "--level", "--seed", "--out",
               "--chat", "--precision", "--max-memory"],
    "study": ["--analysis", "--column", "--category", "--split", "--limit", "-k", "--top", "--shard", "--threads",
              "--gpus", "--part", "--max-memory", "--seed"],
    "summarize": ["--resamples", "--seed", "--figures", "--out"],
    "merge": ["--out"],
    "architectures": ["--nonsense"],
}  # fmt: skip
FLAGS = ("--layers", "--chat", "--figures", "--no-image", "--flow", "--sample", "--nonsense")


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A command with up to three options, and values that they may not take."""
    command = draw(st.sampled_from(sorted(OPTIONS)))
    given = [command]
    if command not in ("architectures", "merge", "summarize", "verify"):
        given.append(draw(st.sampled_from([PROMPT, *WORDS])))
    for _ in range(draw(st.integers(0, 3))):
        option = draw(st.sampled_from([*OPTIONS[command], "--json", "-z"]))
        given += [option] if option in (*FLAGS, "--json", "-z") else [option, draw(st.sampled_from(WORDS))]
    return given


def test_arguments(place: Path) -> None:
    @fuzzed(150)
    @given(arguments())
    def check(args: list[str]) -> None:
        command = args[0]
        with nothing_left(place) as out:
            args = [str(out) if args[i - 1 : i + 1] == ["--out", "x"] else arg for i, arg in enumerate(args)]
            more = {
                "verify": [place / "model"], "summarize": [place / "none"], "merge": [place / "none"],
                "architectures": [],
                "study": ["--out", out, "--model", place / "model"],
            }.get(command, ["--model", place / "model"])  # fmt: skip
            end = secant(*args, *more, stdin="In London people cross the\n")
            if ended_well(end, may_say_no=command in ("verify", "screen")) and "--json" in args:
                json.loads(end.out)

    check()
