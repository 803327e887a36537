"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and a test runs on each core

import pytest
import tiny_model
import torch

import secant as sc

torch.set_num_threads(1)
EXAMPLES = Path(__file__).parents[1] / "examples"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-architectures", action="store_true", help="run every model type, not a sample")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that open a page in a browser are slow."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained Llama with a word-level tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.main(folder)
    return folder


@pytest.fixture(scope="session")
def lm(folder: Path) -> sc.LM:
    return sc.load(folder, dtype="float64")


@pytest.fixture(scope="session")
def explanation(lm: sc.LM) -> sc.Explanation:
    return sc.explain(lm, "The bridge out of Marin is the")
