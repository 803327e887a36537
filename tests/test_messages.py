"""Messages that appear only once, and messages that have the same wording everywhere."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secant as sc
from secant import memory
from secant.errors import BadArgument
from secant.foreign import required

SOURCES = sorted((Path(__file__).parents[1] / "src" / "secant").rglob("*.py"))
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------- packages of extras


def test_a_package_that_is_there_is_returned() -> None:
    assert required("A test", "json", "json", "ast") is sys.modules["json"]


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(BadArgument) as found:
        required("secant serve", "workbench", "json", "starlette", error=BadArgument)
    assert str(found.value) == (
        "secant serve requires json and starlette; got an installation without starlette."
        " Install them: pip install 'secant[workbench]'."
    )


def test_a_package_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import numpy.nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(sc.SecantError, match=r"got a half_installed that fails, ModuleNotFoundError: "):
        required("A test", "plot", "half_installed")


def test_one_function_says_what_is_not_installed() -> None:
    """Only `required` names an extra, but for what transformers itself asks for."""
    naming = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and "pip install 'secant" in ast.unparse(node).replace("\\", "")
    }
    assert naming == {"foreign.py"}


# ------------------------------------------------------------------------------------------- announcements


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[..., int]:
    """Announces work, and returns how many announcements were logged so far."""

    def announced(what: str, seconds: float, size: float = 0.0) -> int:
        with caplog.at_level(logging.WARNING, "secant"):
            memory.announce(what, seconds, size, CPU)
        return len(caplog.records)

    return announced


def test_an_announcement_comes_once(said: Callable[..., int]) -> None:
    assert said("Freezing 300 tokens", 59.0) == 0
    assert said("Freezing 300 tokens", 100.0) == 1
    assert said("Freezing 1,320 tokens", 150.0) == 1
    assert said("SVD of 384 x 4224", 100.0) == 2


def test_an_announcement_comes_again_if_work_costs_much_more(
    said: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("Freezing 300 tokens", 100.0) == 1
    assert said("Freezing 600 tokens", 250.0) == 2
    assert said("Freezing 700 tokens", 300.0) == 2
    monkeypatch.setattr(memory, "free", lambda device: 1e6)
    assert said("Freezing 700 tokens", 300.0, 6e5) == 3
    assert said("Freezing 700 tokens", 300.0, 7e5) == 3


def test_watchers_learn_of_all_work() -> None:
    watched: list[str] = []
    with memory.watched(lambda what, seconds, size: watched.append(what)):
        for _ in range(3):
            memory.announce("Freezing 300 tokens", 100.0, 0.0, CPU)
    assert len(watched) == 3
