"""What commands print with `--json`, as JSON Schemas. Each command with that option has one, by `printing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., None])
Schema = dict[str, Any]

OUTPUTS: dict[str, Callable[[], Schema]] = {}
"""The schema of each command that has `--json`, as `printing` registered it."""

TEXT: Schema = {"type": "string"}
STUDY: dict[str, Schema] = {
    "folder": {**TEXT, "description": "The study's folder."},
    "missing": {"type": "integer", "description": "How many shards are not computed yet."},
    "failed": {"type": "integer", "description": "How many rows have a reason instead of results."},
    "tables": {"type": "array", "items": TEXT, "description": "The names of its tables."},
}
"""The fields of a study."""


def printing(make: Callable[[str], Schema]) -> Callable[[C], C]:
    """Register what a command prints with `--json`.

    Args:
        make: Returns the schema, given the command's name. It is called when the schema is requested.
    """

    def register(command: C) -> C:
        OUTPUTS[command.__name__] = lambda: make(command.__name__)
        return command

    return register


def results(*names: str, **facts: Schema) -> Callable[[str], Schema]:
    """The schema of a result, or of either of several.

    Args:
        names: The names of the results' classes in `secant`, or "module.Class" in it.
        facts: The schemas of its other fields.
    """

    def schema(command: str) -> Schema:
        from importlib import import_module

        import secant as sc
        from secant.results.json_schema import result_schema

        made = []
        for name in names:
            module, _, kind = name.rpartition(".")
            home = import_module(f"secant.{module}") if module else sc
            made.append(result_schema(getattr(home, kind), command, **facts))
        return {**made[0], "properties": {key: own for one in made for key, own in one["properties"].items()}}

    return schema


def whole(properties: dict[str, Schema], about: str) -> Callable[[str], Schema]:
    """The schema of an object that always has all of its fields.

    Args:
        properties: The schemas of its fields.
        about: A description of the object.
    """

    def schema(command: str) -> Schema:
        from secant.results.json_schema import object_schema

        return object_schema(command, properties, list(properties), about)

    return schema
