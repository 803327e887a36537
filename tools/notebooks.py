"""Run the notebooks of examples/ and save their outputs: python tools/notebooks.py [NOTEBOOK ...]

An executed notebook is kept in build/notebooks until it, or secant, changes. The tests and the documentation share it,
so that each notebook runs once. A notebook that loads a real model which is not here is not run: the documentation
shows the outputs that it was saved with.
"""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
KEPT = ROOT / "build" / "notebooks"
REAL = re.compile(r'"([^"]*build/models/[^"]+)"')
"""How a notebook names the file of a real model, relative to its own folder."""


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, without stderr. Raises CellExecutionError."""
    return nbformat.read(executed_file(path), as_version=4)


def executed_file(path: Path) -> Path:
    """The file of the executed notebook. The notebook is run if there is no such file and its models are here.

    Raises:
        CellExecutionError: A cell raised an error.
    """
    if absent_models(path):
        return path
    kept = KEPT / f"{path.stem}-{_digest(path)}.ipynb"
    if not kept.is_file():
        notebook = _run(nbformat.read(path, as_version=4))
        KEPT.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    return kept


def absent_models(path: Path) -> list[str]:
    """The files of real models that a notebook loads and that are not here."""
    every = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    return [name for source in every for name in REAL.findall(source) if not (EXAMPLES / name).is_file()]


def _run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    here = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, record_timing=False, coalesce_streams=True, resources=here
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def _digest(path: Path) -> str:
    """A digest of everything that determines the outputs: the notebook's code, secant, and numerical libraries."""
    found = hashlib.sha256(" ".join(map(version, ("torch", "transformers", "matplotlib"))).encode())
    for cell in nbformat.read(path, as_version=4).cells:
        found.update(f"{cell.cell_type}\n{cell.source}\n".encode())
    for file in sorted((ROOT / "src" / "secant").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".zip":  # the packed documentation
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


def main(notebooks: Annotated[list[Path] | None, typer.Argument(help="By default all.")] = None) -> None:
    """Run notebooks and write them with their outputs."""
    for path in notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        if absent := absent_models(path):
            raise SystemExit(f"{path.name} needs {absent[0]}: make models")
        nbformat.write(executed(path), path)
        typer.echo(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
