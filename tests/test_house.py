"""The house in order: arrows point one way, one file knows transformers, names do not collide, examples run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES

import secant as sc

SOURCE = Path(sc.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
}

# what each module, or package of modules, may import of secant; one not named here may import all but cli and terminal
ALLOWED = {
    "errors": set(),
    "resources": {"errors"},
    "foreign": {"errors", "resources"},
    "signals": set(),
    "files": {"errors", "foreign", "signals"},
    "readable": set(),
    "dictionary": set(),
    "tables": {"dictionary", "files"},
    "notebook": {"readable"},
    "forms": set(),
    "weights": {"errors", "forms", "hooks"},
    "untouched": {"forms", "hooks", "rules"},
    "rules": {"errors", "forms", "hooks", "weights"},
    "tape": {"errors", "forms", "rules"},
    "precision": {"forms", "rules"},
    "replay": {"errors", "forms", "rules", "tape"},
    "attribution": {
        "errors",
        "files",
        "network",
        "stacks",
        "notebook",
        "operator",
        "points",
        "replay",
        "run",
        "tables",
    },
    "operator": {"errors", "files", "foreign", "notebook", "resources"},
    "hooks": set(),
    "tokens": {"errors", "foreign"},
    "encoding": {"errors", "foreign", "tokens"},
    "model": {"encoding", "errors", "foreign", "hooks", "tokens", "weights"},
    "folders": {"errors", "foreign"},
    "checkpoint": {"errors", "foreign", "resources"},
    "sources": {"checkpoint", "errors", "folders", "foreign"},
    "loading": {"checkpoint", "errors", "folders", "foreign", "model", "resources", "sources", "weights"},
    "stacks": {"errors", "operator"},
    "solvers": {"errors", "operator", "stacks"},
    "costs": {"operator", "resources", "solvers"},
    "spectra": {"costs", "errors", "files", "notebook", "operator", "resources", "solvers", "stacks", "tables"},
    "decoding": {"errors", "model", "notebook", "operator", "tables"},
    "network": {
        "errors",
        "foreign",
        "forms",
        "hooks",
        "model",
        "operator",
        "precision",
        "replay",
        "resources",
        "rules",
        "sites",
        "tape",
        "untouched",
    },
    "forecast": {"errors", "network", "resources", "rules", "tape"},
    "sites": {"rules", "tape"},
    "tail": {"forms", "hooks", "network", "operator", "replay", "sites", "tape"},
    "points": {"errors", "network", "operator", "replay", "sites", "tail", "tape"},
    "run": {
        "errors",
        "forecast",
        "foreign",
        "model",
        "network",
        "notebook",
        "operator",
        "points",
        "resources",
        "rules",
        "tape",
        "untouched",
        "weights",
    },
    "passes": {"errors", "hooks"},
    "steering": {"errors", "forms", "hooks", "model", "passes", "run", "tail"},
    "sweep": {"errors", "operator", "points", "resources"},
    "depths": {
        "costs",
        "decoding",
        "errors",
        "operator",
        "points",
        "resources",
        "run",
        "spectra",
        "sweep",
        "tables",
        "tail",
    },
    "neighbourhood": {"errors", "model", "network", "operator", "resources", "run", "spectra", "tables"},
    "screening": {
        "decoding",
        "depths",
        "encoding",
        "errors",
        "model",
        "rules",
        "run",
        "spectra",
        "sweep",
        "tables",
        "tokens",
    },
    "continuations": {"errors", "foreign", "model", "operator", "untouched"},
    "tradeoff": {"continuations", "errors", "files", "model", "run", "steering", "tables"},
    "figures": {
        "attribution",
        "decoding",
        "depths",
        "errors",
        "explanation",
        "files",
        "neighbourhood",
        "operator",
        "readable",
        "removal",
        "run",
        "studies",
        "sweep",
        "tradeoff",
    },
    "evidence": {"attribution", "costs", "decoding", "operator", "resources", "run", "tables"},
    "report": {
        "attribution",
        "decoding",
        "depths",
        "errors",
        "evidence",
        "explanation",
        "generation",
        "readable",
        "spectra",
        "studies",
    },
    "comparison": {
        "decoding",
        "depths",
        "errors",
        "explanation",
        "files",
        "model",
        "notebook",
        "readable",
        "resources",
        "rules",
        "spectra",
        "sweep",
        "tables",
    },
    "ablation": {"errors", "files", "network", "notebook", "operator", "points", "run", "tables"},
    "removal": {"attribution", "errors", "files", "network", "operator", "run", "tables"},
    "generation": {"attribution", "continuations", "errors", "run", "tables"},
    "studies": {
        "attribution",
        "comparison",
        "costs",
        "decoding",
        "depths",
        "dictionary",
        "errors",
        "files",
        "foreign",
        "loading",
        "model",
        "notebook",
        "operator",
        "report",
        "resources",
        "rules",
        "run",
        "solvers",
        "sources",
        "spectra",
        "tables",
        "weights",
    },
    "terminal": {
        "attribution",
        "comparison",
        "continuations",
        "decoding",
        "depths",
        "explanation",
        "generation",
        "readable",
        "run",
        "screening",
        "studies",
        "tradeoff",
    },
}


def imports(tree: ast.Module) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_annotated_shapes_are_checked(request: pytest.FixtureRequest) -> None:
    """In every module that has any; that a wrong shape is caught is the decorator's own affair."""
    checked = request.config.getoption("jaxtyping_packages").split(",")
    annotated = {f"secant.{name}" for name, tree in MODULES.items() if "jaxtyping" in imports(tree)}
    assert set(checked) == annotated | {"beartype.beartype"}


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_one_way(name: str) -> None:
    package = name.split(".")[0]
    own = {m.split(".")[1] for m in imports(MODULES[name]) if m.startswith("secant.")} & set(MODULES) - {package}
    assert own <= ALLOWED.get(package, set(MODULES) - {"cli", "terminal"} if package != "cli" else set(MODULES))


@pytest.mark.parametrize("name", MODULES)
def test_only_loading_knows_transformers(name: str) -> None:
    assert name == "loading" or not any(m.split(".")[0] == "transformers" for m in imports(MODULES[name]))


def test_public_names_are_there_and_none_is_a_module() -> None:
    """A module of a public name would take its place as soon as anything imports it."""
    for name in sc.__all__:
        assert getattr(sc, name).__doc__, name
        assert name not in MODULES
    assert set(sc.__all__) == {name for names in sc._WHERE.values() for name in names}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sc.nonsense


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, env=dict(os.environ), check=False
    )
    assert result.returncode == 0, result.stderr
