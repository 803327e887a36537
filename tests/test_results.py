"""Every public result: its schema describes its tables; files, JSON, the terminal and notebooks follow from it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.csv
import pytest
import torch
from helpers import Parsed
from rich.cells import cell_len
from safetensors import safe_open
from safetensors.torch import load_file

import secant as sc
from secant.errors import OutputFailed
from secant.model.tokens import Tokens
from secant.results.result import Result
from secant.results.schema import Table, records
from secant.steering.steered import side_by_side
from secant.text import readable, visible

PROMPT = "The bridge out of Marin is the"
HOSTILE = "<script>alert('1')</script>&\"<img src=x onerror=y>\x1b[31m\u202e\u2028\n"

MADE: dict[str, Callable[[sc.LM, sc.Run], Result]] = {
    "Run": lambda lm, run: run,
    "SVD": lambda lm, run: sc.svd(run.operator(), 3),
    "Attribution": lambda lm, run: sc.attribute(run, flow=True),
    "Null": lambda lm, run: sc.null(lm, "input", 3, samples=5),
    "Largest, columns": lambda lm, run: sc.largest(lm, run.operator().block(2), count=2, top=2),
    "Largest, rows": lambda lm, run: sc.largest(lm, run.operator(), "rows", count=2, top=2),
    "Ablation": lambda lm, run: sc.ablate(run, 2, 5),
    "Ablations": lambda lm, run: sc.ablations(run, kinds=["token", "layer"]),
    "Faithfulness": lambda lm, run: sc.faithfulness(run, methods=["secant", "random"]),
    "Reach": lambda lm, run: sc.reach(run, (5, 7), steps=3, k=2),
    "Screening": lambda lm, run: sc.screen(lm, [PROMPT, HOSTILE], ["golden", "tower", HOSTILE], samples=300, top=4),
    "Steps": lambda lm, run: sc.follow(run, 2, parts=True),
    "Sweep": lambda lm, run: sc.steering_sweep(
        lm, [PROMPT], run, layers=[0], strengths=[0.5], words=["Golden", HOSTILE], tokens=2
    ),
    "Steered": lambda lm, run: side_by_side(lm, PROMPT, run, layer=1, strength=0.5, tokens=3),
}
"""One of each class, with all of its tables; what follows a comma tells two of a class apart."""

RECORDS = {
    "LM": "the model, not what was found of it",
    "Operator": "a linear map: it is applied, and has files of its own",
    "Certificate": "the head of a run",
    "Prediction": "a row of a run's predictions",
    "Word": "a row of what directions decode to",
    "Estimate": "a number and its standard error",
    "Depth": "a part of Layers",
    "SecantError": "an error",
    "NotExact": "an error",
    "NoRule": "an error",
}
"""Public classes that are no results, and why."""

LATER = {"Comparison", "Evidence", "Explanation", "Layers", "Study", "Summary"}
"""Results that are not among those made here yet."""


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, PROMPT)


@pytest.fixture(scope="module")
def results(lm: sc.LM, run: sc.Run) -> dict[str, Result]:
    return {name: make(lm, run) for name, make in MADE.items()}


@pytest.fixture(params=MADE)
def result(request: pytest.FixtureRequest, results: dict[str, Result]) -> Result:
    return results[request.param]


@pytest.fixture(scope="module")
def hostile(lm: sc.LM) -> dict[str, Result]:
    """The same of a model whose name and tokens would command a terminal or a page."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Tokens.texts  # of the whole vocabulary, as they are: the words of the screening are found by them
        patch.setattr(
            Tokens, "texts",
            lambda self, ids: whole(self, ids) if isinstance(ids, range) else [f"{HOSTILE}{i}" for i in ids],
        )  # fmt: skip
        odd = replace(lm, name=HOSTILE)
        run = sc.freeze(odd, PROMPT)
        made = {name: make(odd, run) for name, make in MADE.items()}
    sweep, steered = made["Sweep"], made["Steered"]
    assert isinstance(sweep, sc.Sweep)
    texts = sweep.texts.assign(text=HOSTILE, continuation=HOSTILE)
    made["Sweep"] = replace(sweep, settings=replace(sweep.settings, concept=HOSTILE), texts=texts)
    odd_one = replace(steered.steered, text=HOSTILE)  # type: ignore[attr-defined]
    made["Steered"] = replace(steered, prompt=HOSTILE, concept=HOSTILE, unsteered=odd_one, steered=odd_one)  # type: ignore[type-var]
    return made


@pytest.fixture(params=MADE)
def odd(request: pytest.FixtureRequest, hostile: dict[str, Result]) -> Result:
    return hostile[request.param]


# ------------------------------------------------------------------------------------------- which there are


def test_every_public_class_is_a_result_or_a_record() -> None:
    classes = {name for name in sc.__all__ if name[0].isupper()}
    made = {name.partition(",")[0] for name in MADE}
    assert classes <= made | set(RECORDS) | LATER
    assert not LATER & made
    for name in set(RECORDS) & classes:
        assert not issubclass(getattr(sc, name), Result), f"{name} is a result: make one of it here"


def test_one_of_each_class_is_made(results: dict[str, Result]) -> None:
    for name, result in results.items():
        assert type(result).__name__ == name.partition(",")[0]
        if name.partition(",")[0] in sc.__all__:
            assert type(result) is getattr(sc, name.partition(",")[0])


# ------------------------------------------------------------------------------------------- tables


def kept(table: Table, frame: pd.DataFrame) -> list[str]:
    """The names that a frame of a table must have, where some stand for several."""
    several = {c.name.removesuffix("{i}") for c in table.columns if "{i}" in c.name}
    return [
        name
        for column in table.columns
        for name in (
            [n for n in frame if n.rstrip("0123456789") == column.name.removesuffix("{i}")]
            if column.name.removesuffix("{i}") in several
            else [column.name]
        )
    ]


def test_the_schema_describes_the_tables(result: Result) -> None:
    tables = result.tables()
    assert tables
    for name, frame in tables.items():
        table = result.described(name)
        assert list(frame) == kept(table, frame), name
        assert [str(dtype) for dtype in frame.dtypes] == [table[key].dtype for key in frame], name
        assert list(frame.index) == list(range(len(frame)))
        for key, values in frame.items():
            column = table[str(key)]
            assert column.missing or column.type is float or not values.isna().any(), (name, key)
            assert column.type is not str or all(isinstance(value, str) for value in values.dropna()), (name, key)


def test_the_schema_has_no_other_tables(results: dict[str, Result]) -> None:
    for kind in {type(result) for result in results.values()}:
        seen = {name for result in results.values() if type(result) is kind for name in result.tables()}
        assert seen == {table.name for table in kind.schema}


def test_every_column_says_something(result: Result) -> None:
    for table in result.schema:
        assert table.row
        for column in table.columns:
            assert column.meaning, (table.name, column.name)
            assert column.unit or column.type is not float or column.name == "strength", (table.name, column.name)


def test_names_of_tables_are_of_one_class(results: dict[str, Result]) -> None:
    """Results of several classes can be in one folder."""
    kinds = {type(result) for result in results.values()}
    names = [table.name for kind in kinds for table in kind.schema]
    assert len(names) == len(set(names))


def test_to_pandas_is_the_first_table_and_a_copy(result: Result) -> None:
    first = next(iter(result.tables().values()))
    own = result.to_pandas()
    pd.testing.assert_frame_equal(own, first)
    own[own.columns[0]] = own[own.columns[0]].iloc[0]
    own["new"] = 1
    pd.testing.assert_frame_equal(result.to_pandas(), first)


# ------------------------------------------------------------------------------------------- JSON and files


def test_to_dict_is_json_with_all_tables(result: Result) -> None:
    said = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(said) == {*result.about(), *result.tables()}
    for name, frame in result.tables().items():
        assert said[name] == records(frame)
    assert json.loads(json.dumps(result.about(), allow_nan=False)) == {key: said[key] for key in result.about()}
    assert not set(result.about()) & set(result.tables())


def of_csv(file: Path, about: pd.DataFrame) -> pd.DataFrame:
    """A table read back as docs/tables.md says."""
    kinds = {"integer": "int64", "number": "float64", "text": "large_string", "truth": "bool"}
    types = about[about["table"] == file.stem].set_index("column")["type"].map(kinds)
    names = pd.read_csv(file, nrows=0).columns
    how = pyarrow.csv.ConvertOptions(
        column_types={n: pyarrow.type_for_alias(types.get(n, "float64")) for n in names},
        null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
    )  # fmt: skip
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(file, parse_options=lines, convert_options=how).to_pandas(types_mapper=nullable)


def nullable(kind: pyarrow.DataType) -> object:
    """Integers and truth with missing values, as they are."""
    return {pyarrow.int64(): pd.Int64Dtype(), pyarrow.bool_(): pd.BooleanDtype()}.get(kind)


@pytest.mark.parametrize("texts", ["plain", "hostile"])
@pytest.mark.parametrize("name", MADE)
def test_files_read_back_equal(request: pytest.FixtureRequest, name: str, texts: str, tmp_path: Path) -> None:
    result = request.getfixturevalue("results" if texts == "plain" else "hostile")[name]
    folder, tables, tensors = tmp_path / "out", result.tables(), result.tensors()
    result.save(folder)
    written = {f"{table}.{ending}" for table in tables for ending in ("parquet", "csv")}
    written |= {"columns.csv", f"{type(result).__name__.lower()}.json"} | (
        {"tensors.safetensors"} if tensors else set()
    )
    assert {file.name for file in folder.iterdir()} == written
    about = pd.read_csv(folder / "columns.csv", dtype=str, keep_default_na=False)
    columns = [(table, c.name, c.kind, c.unit, c.meaning) for table in tables for c in result.described(table).columns]
    assert sorted(zip(*(about[key] for key in ("table", "column", "type", "unit", "meaning")), strict=True)) == sorted(
        columns
    )
    for table, frame in tables.items():
        stored = pyarrow.parquet.read_table(folder / f"{table}.parquet")
        for field in stored.schema:
            column = result.described(table)[field.name]
            assert field.metadata == {b"unit": column.unit.encode(), b"meaning": column.meaning.encode()}
        assert records(stored.to_pandas(types_mapper=nullable)) == records(frame)
        assert records(of_csv(folder / f"{table}.csv", about)) == records(frame)
    said = json.loads((folder / f"{type(result).__name__.lower()}.json").read_text("utf-8"))
    assert said == json.loads(json.dumps(result.to_dict()))
    if tensors:
        stored_tensors = load_file(folder / "tensors.safetensors")
        assert set(stored_tensors) == set(tensors)
        with safe_open(folder / "tensors.safetensors", "pt") as file:
            metadata = file.metadata()
        for key, (meaning, tensor) in tensors.items():
            assert torch.equal(stored_tensors[key], tensor.detach().cpu())
            assert metadata[key] == meaning


def test_a_folder_with_two_results_describes_both(results: dict[str, Result], tmp_path: Path) -> None:
    one, other = results["Reach"], results["Faithfulness"]
    for each in (one, other, one):
        each.save(tmp_path / "out")
    about = pd.read_csv(tmp_path / "out" / "columns.csv", dtype=str, keep_default_na=False)
    tables = {**one.tables(), **other.tables()}
    for name, frame in tables.items():
        assert list(about[about["table"] == name]["column"]) == list(frame)
    assert set(about["table"]) == set(tables)
    assert {"reach.json", "faithfulness.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_places_that_can_not_be_written(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed):
        result.save(tmp_path / "file" / "out")
    with pytest.raises(OutputFailed):
        result.check_folder(tmp_path / "file" / "out")


# ------------------------------------------------------------------------------------------- shown


def printed(result: Result, width: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What it prints, which must fit, and command nothing."""
    capsys.readouterr()
    result.show(width)
    out, err = capsys.readouterr()
    assert not err
    for line in out.splitlines():
        assert cell_len(line) <= width, line
        assert line == line.rstrip(" ")
    assert {unicodedata.category(c) for c in out if c not in " \n"}.isdisjoint(
        {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    return out


@pytest.mark.parametrize("width", [60, 100])
def test_it_prints_within_the_width(result: Result, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(printed(result, width, capsys).splitlines()) > 3


@pytest.mark.parametrize("width", [60, 100])
def test_hostile_tokens_command_no_terminal(odd: Result, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(odd, width, capsys)
    if not isinstance(odd, sc.SVD):
        assert visible(HOSTILE)[:6] in said


def test_the_page_is_well_formed_and_every_text_is_escaped(odd: Result) -> None:
    text = odd._repr_html_()
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.tags} <= {"div", "strong", "small", "table", "tr", "th", "td", "span"}
    assert {name for _, attributes in parsed.tags for name in attributes} <= {"style", "class"}
    assert not {"\x1b", "\u202e", "\u2028", "\n"} & set(text)
    if not isinstance(odd, sc.SVD):
        assert any(spelled(HOSTILE.strip()) in said for said in parsed.texts for spelled in (visible, readable))
    assert "mathjax_ignore" in text
    assert len(text) < 100_000


def test_a_notebook_keeps_its_own_colours(result: Result) -> None:
    """But for bars, and for what is marked."""
    for tag, attributes in Parsed(result._repr_html_()).tags:
        style = dict(part.split(":") for part in (attributes.get("style") or "").split(";") if part)
        assert style.get("color") == ("inherit" if tag == "table" else None)
        assert ("background" in style) == (tag == "span")
