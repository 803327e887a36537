"""Fixtures that several tests share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

import secant as sc

os.environ["HF_HUB_OFFLINE"] = "1"
EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str) -> ModuleType:
    """An example, as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained Llama with a word-level tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    script("tiny_model").main(folder)
    return folder


@pytest.fixture(scope="session")
def lm(folder: Path) -> sc.LM:
    return sc.load(folder, dtype="float64")


@pytest.fixture(scope="session")
def explanation(lm: sc.LM) -> sc.Explanation:
    return sc.explain(lm, "The bridge out of Marin is the")
