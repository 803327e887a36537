"""Run the notebooks of examples/ and save their outputs: python tools/notebooks.py [NOTEBOOK ...]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, without those on stderr. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", timeout=300, record_timing=False, coalesce_streams=True).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def main(notebooks: Annotated[list[Path] | None, typer.Argument(help="By default all.")] = None) -> None:
    """Run notebooks and write them with their outputs."""
    for path in notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        typer.echo(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
