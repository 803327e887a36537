"""Checks shapes in tests: every function and every dataclass of the package whose annotations have shapes.

jaxtyping's own import hook wraps all functions of a module, also those made anew in each call; that took a sixth of the
time of the tests.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, TypeVar

Node = TypeVar("Node", ast.FunctionDef, ast.ClassDef)

SHAPES = ("Bool", "Float", "Int")
"""The names of jaxtyping that the package uses."""

_CHECK = ast.parse("__import__('typecheck').shaped", mode="eval").body


def shaped(function: Callable[..., Any]) -> Any:
    """The function, or the class, with its arguments, fields and results checked."""
    from beartype import beartype
    from jaxtyping import jaxtyped

    return jaxtyped(function, typechecker=beartype)


class _Checked(ast.NodeTransformer):
    """Adds the innermost decorator, so that the package's own checks of arguments come first."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return self._decorated(node, [node.returns, *(argument.annotation for argument in arguments)])

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        return self._decorated(node, [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)])

    @staticmethod
    def _decorated(node: Node, annotations: Sequence[ast.expr | None]) -> Node:
        names = {
            each.id
            for found in annotations
            if found is not None
            for each in ast.walk(found)
            if isinstance(each, ast.Name)
        }
        if names & {*SHAPES}:
            where = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
            node.decorator_list.insert(where, _CHECK)
        return node


class Loader(SourceFileLoader):
    """Compiles modules that have shapes with their checks; they are not cached."""

    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_data(self.path)
        if b"from jaxtyping import" not in source:
            return super().get_code(fullname)
        tree = _Checked().visit(ast.parse(source, self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("secant."):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = Loader(found.loader.name, found.loader.path)
        return found


def install() -> None:
    """Checks whatever of the package is imported from now on."""
    sys.meta_path.insert(0, _Finder())
