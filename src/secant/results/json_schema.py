"""JSON Schemas of results, made from the descriptions of their tables.

A schema's `$id` has `VERSION`, which is raised when a field is removed or changes its meaning. New facts may appear
without a new version, because schemas allow facts that they do not name. They do not allow columns that the table's
description lacks.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from secant.results.result import Result
from secant.results.schema import Column, Table

VERSION = 1
"""The version of all schemas."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

TYPES: dict[type, str] = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object"}
"""The JSON type of each Python type."""


def result_schema(kind: type[Result], name: str, **facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a result's `to_dict()`.

    Args:
        kind: The class of the result.
        name: The name of the schema.
        facts: The schemas of its other fields.
    """
    tables = {table.name: table_schema(table) for table in kind.schema}
    about = (kind.__doc__ or "").split("\n\n")[0]
    return object_schema(name, {**facts, **tables}, list(facts), " ".join(about.split()), more=True)


def object_schema(
    name: str, properties: Mapping[str, Any], required: list[str], about: str, *, more: bool = False
) -> dict[str, Any]:
    """Returns the schema of a whole output.

    Args:
        name: Its name.
        properties: The schemas of its fields.
        required: The names of fields that are always there.
        about: A description of the output.
        more: Whether it may have other fields.
    """
    return {
        "$schema": DIALECT, "$id": f"urn:secant:schema:{VERSION}:{name}", "title": name, "description": about,
        "type": "object", "properties": dict(properties), "required": required, "additionalProperties": more,
    }  # fmt: skip


def table_schema(table: Table) -> dict[str, Any]:
    """Returns the schema of a table's rows.

    Args:
        table: The table. A column whose name has `{i}` stands for any number of fields.
    """
    several = {column.name: column_schema(column) for column in table.columns if "{i}" in column.name}
    row: dict[str, Any] = {
        "type": "object",
        "properties": {column.name: column_schema(column) for column in table.columns if column.name not in several},
        "required": table.names,
        "additionalProperties": False,
    }
    if several:
        row["patternProperties"] = {f"^{name.replace('{i}', '[0-9]+')}$": own for name, own in several.items()}
    return {"type": "array", "description": f"A row is {table.row}.", "items": row}


def column_schema(column: Column) -> dict[str, Any]:
    """Returns the schema of a column's values.

    Args:
        column: The column. NaN and missing texts are null.
    """
    empty = column.missing or column.type in (float, str)
    kind = TYPES[column.type]
    unit = f" Unit: {column.unit}." if column.unit else ""
    return {"type": [kind, "null"] if empty else kind, "description": f"{column.meaning}.{unit}"}


def dataclass_schema(kind: type) -> dict[str, Any]:
    """Returns the schema of a dataclass with fields of plain types, as `dataclasses.asdict` returns it.

    Args:
        kind: The dataclass.
    """
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    properties = {own.name: _hint_schema(hints[own.name]) for own in fields(kind)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _hint_schema(hint: Any) -> dict[str, Any]:
    """The schema of an annotated type."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [TYPES[one] for one in get_args(hint) if one is not type(None)]
        return {"type": [*kinds, "null"]}
    kind = get_origin(hint) or hint
    if kind is list:
        return {"type": "array", "items": _hint_schema(get_args(hint)[0])}
    own = {"type": TYPES[kind]}
    return {"type": [own["type"], "null"]} if kind is float else own
