"""The notebooks in examples/ run completely, and their outputs are small and do not reveal where they ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES
from helpers import absent
from notebooks import absent_models

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

SHAPE = """
import sys
sys.path.append({tools!r})
from pathlib import Path
import nbformat
from notebooks import executed
path = Path({path!r})
def shape(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[o for o in cell.outputs if o.output_type != "stream"] for cell in code]
    return [[(o.output_type, sorted(o.get("data", {{}}))) for o in outputs] for outputs in shown]
kept, again = shape(nbformat.read(path, as_version=4)), shape(executed(path))
assert kept == again, (kept, again)
"""


def parameters() -> list[Any]:
    """The notebooks, of which those on real models are tests on real models."""
    on_real = {path for path in NOTEBOOKS if "build/models/" in path.read_text(encoding="utf-8")}
    return [pytest.param(path, marks=pytest.mark.real if path in on_real else pytest.mark.slow) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", parameters(), ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    """In a process of its own; they show the figures and tables that they kept."""
    if missing := absent_models(path):
        absent(f"no {missing[0]}: make models")
    script = SHAPE.format(tools=str(Path(__file__).parents[1] / "tools"), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_little(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 250_000
    assert str(Path.home()) + os.sep not in text
    assert str(Path(__file__).parents[1]) not in text
    assert all(cell.outputs for cell in nbformat.read(path, as_version=4).cells[:3] if cell.cell_type == "code")


@pytest.mark.slow
def test_the_notebook_for_colab_runs(tmp_path: Path) -> None:
    """On Atlas, without its installation; it keeps no outputs."""
    notebook = nbformat.read(EXAMPLES / "colab" / "secant_on_colab.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    cells = [cell.source for cell in code if "install" not in cell.metadata.get("tags", [])]
    script = "\n".join(cells).replace("Qwen/Qwen3-0.6B", "atlas")
    assert '"atlas"' in script
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report.html").is_file()


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["attribution_and_steering", "first_look", "layers_and_spectra"]
