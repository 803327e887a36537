"""The package's structure: imports have one direction, only `model` imports transformers, and names do not collide."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import typecheck
from conftest import EXAMPLES
from jaxtyping import TypeCheckError

import secant as sc
from secant.operators.decomposition import leading

SOURCE = Path(sc.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
}

ORDER = [
    "errors numeric text signals",
    "arguments",
    "foreign memory",
    "results model",
    "operators",
    "linearize",
    "stream steering",
    "analyses",
    "report studies",
    "figures workbench",
    "cli",
    "__main__",
]
"""What each folder, or module of the package's root, may import: what stands before it, in the order of the floors."""

FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names.split()}


def imports(tree: ast.Module) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_annotated_shapes_are_checked(tmp_path: Path) -> None:
    """Of arguments, results and fields."""
    path = tmp_path / "shaped.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom jaxtyping import Float\nfrom torch import Tensor\n"
        "def transposed(x: Float[Tensor, 'a b'], wrong: bool) -> Float[Tensor, 'b a']:\n"
        "    return x if wrong else x.T\n"
        "@dataclass\nclass Pair:\n    left: Float[Tensor, 'a b']\n    right: Float[Tensor, 'b a']\n"
        "    def sized(self, x: Float[Tensor, 'a']) -> int:\n        return len(x)\n"
    )
    spec = spec_from_file_location("shaped", path, loader=typecheck.Loader("shaped", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.ones(2, 3)
    assert module.transposed(x, wrong=False).shape == (3, 2)
    assert module.Pair(x, x.T).sized(x[0]) == 3
    for call in (
        lambda: module.transposed(x, wrong=True),
        lambda: module.transposed(x[0], wrong=False),
        lambda: module.Pair(x, x),
        lambda: module.Pair(x, x.T).sized(x),
    ):
        with pytest.raises(TypeCheckError):
            call()


def test_shapes_of_the_package_are_checked() -> None:
    """Of every module that has any: jaxtyping stands between a function and its callers."""
    shaped = [name for name, tree in MODULES.items() if "jaxtyping" in imports(tree)]
    assert len(shaped) > 20
    for name in shaped:
        assert {*typecheck.SHAPES} >= {
            each.removeprefix("jaxtyping.") for each in imports(MODULES[name]) if each.startswith("jaxtyping.")
        }
        module = importlib.import_module(f"secant.{name}")
        assert isinstance(module.__spec__ and module.__spec__.loader, typecheck.Loader), name
    with pytest.raises(TypeCheckError):
        leading(torch.ones(1, 2, 3), torch.ones(3), 1)  # y has d_out elements, not d_in


def arrows() -> dict[str, set[str]]:
    """The modules of secant that each of them imports, wherever in it."""
    known = {f"secant.{name}": name for name in MODULES}
    return {
        name: {known[found] for found in imports(tree) if found in known} - {name, name.split(".")[0]}
        for name, tree in MODULES.items()
    }


def test_folders_import_what_stands_before_them() -> None:
    wrong = {
        f"{name} imports {other}"
        for name, found in arrows().items()
        for own, other in {(name.split(".")[0], other.split(".")[0]) for other in found}
        if own != other and FLOOR[other] >= FLOOR[own]
    }
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    """Inside folders too; an import inside a function counts."""
    TopologicalSorter(arrows()).prepare()  # raises CycleError, which names the circle


def test_only_loading_knows_transformers() -> None:
    knowing = [name for name, tree in MODULES.items() if any(m.split(".")[0] == "transformers" for m in imports(tree))]
    assert knowing == ["model.converter", "model.loading"]


def test_public_names_are_there_and_none_is_a_module() -> None:
    """A module of a public name would take its place as soon as anything imports it."""
    for name in sc.__all__:
        assert getattr(sc, name).__doc__, name
        assert name not in MODULES
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sc.nonsense


def test_public_names_complete_with_a_summary() -> None:
    """One line that is a sentence, as editors show it next to a name."""
    assert set(dir(sc)) == {*sc.__all__, "__version__"}
    for name in sc.__all__:
        first, *rest = inspect.getdoc(getattr(sc, name)).splitlines()
        assert first.endswith("."), (name, first)
        assert not rest or not rest[0], (name, rest[0])


def test_type_checkers_see_the_public_names() -> None:
    """Each from the module that it is imported from when it is used."""
    seen = [
        (node.module, alias.name, alias.asname)
        for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("secant.")
        for alias in node.names
    ]
    assert sorted(seen) == sorted(
        (f"secant.{module}", name, name) for module, names in sc._WHERE.items() for name in names
    )


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, env=dict(os.environ), check=False
    )
    assert result.returncode == 0, result.stderr
