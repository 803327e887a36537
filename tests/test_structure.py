"""The package's structure: imports have one direction, only `model` imports transformers, and names do not collide."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typecheck import once

import secant as sc

SOURCE = Path(sc.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
}

ORDER = [
    "errors numeric text signals",
    "foreign memory",
    "results model",
    "operators",
    "linearize",
    "stream steering",
    "analyses",
    "report studies",
    "figures workbench",
    "cli",
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


def test_annotated_shapes_are_checked(request: pytest.FixtureRequest) -> None:
    """In every module that has any; that a wrong shape is caught is the decorator's own affair."""
    checked = request.config.getoption("jaxtyping_packages").split(",")
    annotated = {f"secant.{name}" for name, tree in MODULES.items() if "jaxtyping" in imports(tree)}
    assert set(checked) == annotated | {"typecheck.once"}


def test_shapes_of_a_function_in_a_function_are_checked_each_time() -> None:
    def transposed(x: Tensor, wrong: bool) -> Tensor:
        @jaxtyped(typechecker=once)
        def inner(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
            return x if wrong else x.T

        return inner(x)

    for x in (torch.ones(2, 3), torch.ones(3, 4)):
        assert transposed(x, wrong=False).shape == x.T.shape
        for given, wrong in ((x, True), (x[0], False)):
            with pytest.raises(TypeCheckError):
                transposed(given, wrong)


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
