"""Fixtures that several tests share.

Heavy modules are imported only when they are needed, so that the process that distributes the tests starts sooner.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typecheck

if TYPE_CHECKING:
    import secant as sc

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and a test runs on each core

os.environ.pop("COLUMNS", None)  # 80 in the workers of pytest-xdist; output has its usual width

typecheck.install()

QUICK = {"llama", "gpt2", "gemma3_text", "qwen3", "mixtral", "mamba"}
"""Model types that the quick tests are run with; those with any other are slow."""

EXAMPLES = Path(__file__).parents[1] / "examples"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-architectures", action="store_true", help="run every model type, not a sample")


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run, and why."""
    reasons: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        test = report.nodeid.partition("[")[0] or "a whole file"
        reasons.setdefault(reason.removeprefix("Skipped: "), Counter())[test] += 1
    if reasons:
        terminalreporter.section("not run here")
    for reason, tests in sorted(reasons.items()):
        terminalreporter.write_line(reason)
        for test, count in sorted(tests.items()):
            terminalreporter.write_line(f"    {test}" + (f" ({count})" if count > 1 else ""))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that open a page in a browser are slow, and so are those of a model type beyond QUICK."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.set_num_threads(1)
    for item in items:
        given = getattr(item, "callspec", None)
        types = (
            {str(value) for value in given.params.values()} & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if given else set()
        )
        if "browser" in getattr(item, "fixturenames", ()) or types - QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def one_reference() -> None:
    """Average contributions over one random reference: what is tested does not depend on how many there are."""
    import secant.analyses.attribution

    secant.analyses.attribution.REFERENCES = 1


@pytest.fixture(autouse=True, scope="session")
def no_progress() -> None:
    """What a command prints does not depend on how busy the machine is."""
    import secant.cli.progress

    secant.cli.progress.FIRST = 1e9


@pytest.fixture(autouse=True)
def nothing_was_announced() -> None:
    """Announcements come once in a process, and each test is about its own."""
    from secant.memory import LAST_ANNOUNCED

    LAST_ANNOUNCED.clear()


@pytest.fixture(autouse=True, scope="module")
def shared_models_are_left_alone() -> Iterator[None]:
    """No test changes a model that others share."""
    import families

    yield
    families.assert_unchanged()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium."""
    from helpers import chromium
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # a busy machine answers late, and nothing here is about time
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained Llama with a word-level tokenizer, as a Hugging Face folder."""
    import tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.main(folder)
    return folder


@pytest.fixture(scope="session")
def lm(folder: Path) -> sc.LM:
    import secant as sc

    return sc.load(folder, dtype="float64")


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> sc.LM:
    """The same with four layers, for what shows little of two."""
    import tiny_model

    import secant as sc

    folder = tmp_path_factory.mktemp("four") / "tiny"
    tiny_model.main(folder, layers=4)
    return sc.load(folder, dtype="float64")


@pytest.fixture(scope="session")
def explanation(lm: sc.LM) -> sc.Explanation:
    import secant as sc

    return sc.explain(lm, "The bridge out of Marin is the")
