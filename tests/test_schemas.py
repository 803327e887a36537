"""The output of commands with --json is valid under the schemas that ship."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secant.cli import app
from secant.cli.schemas import OUTPUTS
from secant.cli.verb import VERBS
from secant.results.json_schema import column_schema, table_schema
from secant.results.schema import Column, Table

jsonschema = pytest.importorskip("jsonschema")
PROMPT = "The bridge out of Marin is the"

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def printed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What a command prints with --json."""
    there = tmp_path_factory.mktemp("schemas")
    (there / "prompts.txt").write_text(f"{PROMPT}\nIn London people cross the\n")
    (there / "words.txt").write_text("Golden\nTower\n")

    def run(*arguments: str) -> Any:
        told = [argument.replace("DIR", str(there)).replace("MODEL", str(folder)) for argument in arguments]
        result = CliRunner().invoke(app, [*told, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def schema_of(command: str) -> dict[str, Any]:
    """The schema that `secant schema` prints."""
    result = CliRunner().invoke(app, ["schema", command])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


MODEL = ["--model", "MODEL"]
CONCEPT = ["--concept", "In London", *MODEL]
COMMANDS = {
    "architectures": [],
    "attribute": [PROMPT, "--flow", *MODEL],
    "compare": ["The bridge", *MODEL, "--convention", "gate", "--convention", "half"],
    "explain": ["The bridge", "--layers", "--steps", "2", *MODEL],
    "screen": ["DIR/prompts.txt", "--lexicon", "DIR/words.txt", *MODEL],
    "steer": ["The bridge", *CONCEPT, "--layer", "1", "--strength", "1", "--tokens", "2"],
    "verify": ["MODEL", "--dtype", "float32", "--convention", "gate"],
}
SWEEP = ["steer", "The bridge", *CONCEPT, "--sweep", "--layer", "1", "--strength", "1", "--form", "additive"]
STUDY = ["study", "DIR/prompts.txt", "--out", "DIR/study", "--analysis", "reconstruction", "--workers", "1", *MODEL]


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_as_its_schema_says(command: str, printed: Run) -> None:
    jsonschema.Draft202012Validator(schema_of(command)).validate(printed(command, *COMMANDS[command]))


def test_a_sweep_and_a_study_are_as_their_schemas_say(printed: Run) -> None:
    jsonschema.validate(printed(*SWEEP, "--tokens", "2"), schema_of("steer"))
    jsonschema.validate(printed(*STUDY), schema_of("study"))
    jsonschema.validate(printed("summarize", "DIR/study"), schema_of("summarize"))
    jsonschema.validate(printed("merge", "DIR/study", "--out", "DIR/merged"), schema_of("merge"))


def test_every_command_with_json_has_a_schema() -> None:
    with_json = {verb.__name__ for verb in VERBS if "as_json" in inspect.signature(verb).parameters}
    assert with_json == OUTPUTS.keys()


@pytest.mark.parametrize("command", OUTPUTS)
def test_schemas_are_valid_and_have_a_version(command: str) -> None:
    schema = OUTPUTS[command]()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:secant:schema:1:{command}"


def test_what_a_schema_refuses(printed: Run) -> None:
    schema, good = schema_of("attribute"), printed("attribute", PROMPT, *MODEL)
    for change in ({"contribution": "much"}, {"new": 1}, {"position": 0.5}):
        bad = {**good, "contributions": [{**good["contributions"][0], **change}]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_columns_that_stand_for_several() -> None:
    table = Table("t", "a row", (Column("sigma_{i}", float, "σ", "norm"), Column("n", int, "how many")))
    schema = table_schema(table)
    jsonschema.validate([{"n": 1, "sigma_0": 2.5, "sigma_11": None}], schema)
    for bad in ({"sigma_0": 1.0}, {"n": None}, {"n": 1, "sigma_x": 1.0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([bad], schema)
    assert column_schema(table.columns[0])["description"] == "σ. Unit: norm."


def test_schema_of_nothing() -> None:
    result = CliRunner().invoke(app, ["schema", "demo"])
    assert (result.exit_code, "A command with --json is one of architectures" in result.output) == (2, True)


def test_no_path_of_this_machine() -> None:
    text = json.dumps({name: make() for name, make in OUTPUTS.items()})
    assert str(Path.home()) not in text
