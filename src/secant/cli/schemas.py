"""What each command prints with `--json`, as a JSON Schema. `secant schema COMMAND` prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STUDY = {
    "folder": {"type": "string", "description": "The study's folder."},
    "missing": {"type": "integer", "description": "How many shards are not computed yet."},
    "failed": {"type": "integer", "description": "How many rows have a reason instead of results."},
    "tables": {"type": "array", "items": {"type": "string"}, "description": "The names of its tables."},
}
"""The fields of a study."""


def _of(result: str, **facts: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The schema of a public result, by its name, with further facts."""

    def schema(command: str) -> dict[str, Any]:
        import secant as sc
        from secant.results.json_schema import result_schema

        return result_schema(getattr(sc, result), command, **facts)

    return schema


def _steer(command: str) -> dict[str, Any]:
    """Either of the two results of `secant steer`."""
    import secant as sc
    from secant.results.json_schema import result_schema
    from secant.steering.steered import Steered

    one, swept = result_schema(Steered, command), result_schema(sc.Sweep, command)
    return {**one, "properties": {**swept["properties"], **one["properties"]}}


def _study(command: str) -> dict[str, Any]:
    """A study, whole or merged."""
    from secant.results.json_schema import object_schema

    return object_schema(command, STUDY, list(STUDY), "A study: its folder, and what is in it.")


def _verify(command: str) -> dict[str, Any]:
    """The certificates of a model, or why there is none."""
    from secant.linearize.run import Certificate
    from secant.results.json_schema import dataclass_schema, object_schema

    text = {"type": "string"}
    exact = dataclass_schema(Certificate)
    exact["properties"]["exact"] = {"const": True}
    failed = {"exact": {"const": False}, "dtype": text, "precision": text, "convention": text, "why": text}
    rows = [exact, {"type": "object", "properties": failed, "required": list(failed), "additionalProperties": False}]
    parts = {
        "model": text,
        "tokens": {"type": "array", "items": text},
        "certificates": {"type": "array", "items": {"oneOf": rows}},
    }
    return object_schema(command, parts, list(parts), "The certificates of a model, one for each type and convention.")


def _architectures(command: str) -> dict[str, Any]:
    """A row of texts for each model type."""
    from secant.results.json_schema import object_schema

    row = {"type": "object", "additionalProperties": {"type": "string"}, "required": ["type", "result"]}
    whole = object_schema(command, {}, [], "A row for each model type that was measured.")
    return {key: whole[key] for key in ("$schema", "$id", "title", "description")} | {"type": "array", "items": row}


OUTPUTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "architectures": _architectures,
    "attribute": _of("Attribution"),
    "compare": _of("Comparison"),
    "explain": _of("Explanation"),
    "merge": _study,
    "screen": _of("Screening", model={"type": "string"}),
    "steer": _steer,
    "study": _study,
    "summarize": _of("Summary"),
    "verify": _verify,
}
"""The schema of each command that has `--json`."""
