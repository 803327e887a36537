"""Every benchmark says how it is run, and most of them run to their end on next to nothing."""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import prompts
import pytest
import torch
from fuzz import small_model
from processes import increase, separately
from studies import study
from tiny_model import sentences

import secant as sc
from secant.memory import peak

from corpus import read_questions

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [path for path in sorted(BENCHMARKS.rglob("*.py")) if "__main__" in path.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_says_how_it_is_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can import what it uses, and its help is its docstring."""
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {path.name} ")
    assert f"python {path.relative_to(BENCHMARKS.parent)}" in said


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences that the small model reads; `seed` is for those who draw them at random."""
    return sentences()[:count]


def items(count: int) -> list[Any]:
    """One prompt of a study, however many are requested."""
    return prompts.items([("bridges", sentences()[0])])


def here(work: Callable[..., Any], *args: object) -> Any:
    """Instead of a new process, which would import torch again."""
    return work(*args)


def none(*args: object) -> dict[str, Any]:
    """Replaces nothing."""
    return {}


Patch = Callable[[Any, Path], dict[str, Any]]
"""From a benchmark's module and a folder, the names to replace in it, so that a run takes no time."""

RUNS: dict[str, tuple[str, str, Patch]] = {
    "convention_costs": ("--models {small} --turns 1", "  counted", none),
    "conventions": ("--models {small} --prompts 2", "gate, secant", none),
    "deletion": ("--model {small} --prompts sentences --count 2", "attention rollout", none),
    "dense": ("1", "functional.jacobian / op.dense()", lambda *_: {"D": 64, "FF": 64, "LAYERS": 1, "T": 2}),
    "exactness": ("", "bit-equal", lambda *_: {"PAPER": ["llama"]}),
    "faithfulness": ("--models {small} --prompts 2", "chosen: ", lambda *_: {"MEANS": 2, "INTEGRATION_STEPS": 2}),
    "gpu": ("3b --small", "its matrix products alone", none),
    "layers": ("1", "one by one / sc.layers", lambda *_: {"D": 64, "FF": 64, "K": 2, "CASES": ((1, 2, 3.0),)}),
    "long": ("8 16", "(claim: at most 2.3", lambda *_: {"separately": here}),
    "reach": ("--model {small} --prompts 2", "ordinary beats frozen",
              lambda *_: {"RESAMPLES": 10, "prompts_of": lambda lm: sentences()}),
    "real": ("--models {small} --rounds 1", "largest residual", none),
    "scale": ("--calibrate", "ratio of the measured time", lambda own, _: {"SMALL": [own.Shape("s", 32, 64, 1, 2, 1)]}),
    "steering": ("--model {small}", "perplexity at most",
                 lambda *_: {"task": lambda model: (texts(4), "The bridge in London is called the", ["London"], 2)}),
    "study": ("8", "memory at its peak",
              lambda _, small: {"MODEL": str(small), "questions": items, "separately": here,
                                "default_workers": lambda *_: 1, "find_spec": lambda _: None}),
    "svd": ("whole", "auto / dense: memory",
            lambda own, _: {"separately": here, "CASES": {"whole": partial(own.case, "whole", 64, 1, 2, False, 5)}}),
    "science/defects": ("--models {small} --prompts 1 --threads 1 --out {out}", "small: 1 of 1 prompts", none),
    "science/mechanism": ("--models {small} --prompts 1 --threads 1 --out {out}", "small: 1 of 1 prompts", none),
    "science/rates": (
        "--models {small} --layers 1 --prompts 2 --threads 1 --out {out}", "london after layer 1",
        lambda own, small: {
            "OWN_CONCEPTS": {small.name: {"london": own.Concept(texts(9)[8], ("London",))}}, "SETS": {"facts": texts},
            "TOKENS": 2,
        },
    ),
}  # fmt: skip
"""The arguments of each benchmark that can be run in a moment, what it must print, and what is replaced.

Others require a browser (page) or llama.cpp (next_tokens), take seconds (screening), or have tests of their own.
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model, with sentences that it reads."""
    folder = small_model(tmp_path_factory.mktemp("benchmarks") / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(prompts.OWN_PROMPTS, folder.name, "sentences")
        patch.setitem(prompts.SETS, "sentences", texts)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_to_its_end(
    name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = BENCHMARKS / f"{name}.py"
    monkeypatch.syspath_prepend(path.parent)
    module, (arguments, printed, patch) = import_module(path.stem), RUNS[name]
    for attribute, value in patch(module, small).items():
        monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments.format(small=small, out=tmp_path / "rows").split()])
    module.main()
    assert printed in capsys.readouterr().out


def study_of(folder: Path, subjects: Sequence[tuple[str, str]]) -> Callable[..., sc.Study]:
    """Instead of `sc.study`: a synthetic study of six held-out questions."""
    study(folder, 6, subjects, failing=(), texts=[question.prompt for question in read_questions()[:6]])
    return lambda *args, **kwargs: sc.Study.open(folder)


@pytest.mark.slow
def test_the_first_study_is_summarised_by_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sc, "study", study_of(tmp_path / "study", [("small", "gate"), ("small", "half")]))
    monkeypatch.setattr(sys, "argv", ["first_study.py", str(tmp_path)])
    import_module("first_study").main()
    lines = capsys.readouterr().out.splitlines()
    assert "| R of the first token | 1 | 1 |" in lines
    assert sum(line.startswith("| cumulative R after layer ") for line in lines) == 3


@pytest.mark.slow
def test_training_has_a_row_for_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sc, "study", study_of(tmp_path / "study", [("small", "gate"), ("large", "gate")]))
    monkeypatch.setattr(sys, "argv", ["training.py", str(tmp_path), str(tmp_path / "out"), "--markdown"])
    import_module("training").main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    head, small, large = rows[0], *rows[2:]
    first, coupling = head.index("R, first token"), head.index("coupling")
    assert [row[first] for row in (small, large)] == ["1.0", "1.0"]
    assert [(row[0], row[coupling]) for row in (small, large)] == [("small", "0.50"), ("large", "0.50")]


@pytest.mark.slow
def test_the_peak_is_that_of_the_process_itself() -> None:
    """Not, as the system's own count has it, at least that of the process that started it."""
    cpu = torch.device("cpu")
    with increase() as more:
        taken = torch.ones(2**26)
        time.sleep(0.05)
    assert more() == pytest.approx(taken.nbytes, rel=0.2)
    ours, its = peak(cpu), separately(peak, cpu)
    assert ours is not None
    assert its is not None
    assert its < ours - taken.nbytes / 2
