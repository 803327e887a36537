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
from studies import study as written

import secant as sc
from secant.analyses.sensitivity import beside
from secant.errors import OutputFailed, printable
from secant.model.tokens import Tokens
from secant.results.result import Result, Viewed
from secant.results.schema import Table, records
from secant.steering.steered import side_by_side
from secant.studies.analyses import ANALYSES
from secant.text import readable, visible

PROMPT = "The bridge out of Marin is the"
SHORT = "The bridge"
HOSTILE = "<script>alert('1')</script>&\"<img src=x onerror=y>\x1b[31m\u202e\u2028\n"

MADE: dict[str, Callable[[sc.LM, sc.Run], Result]] = {
    "Run": lambda lm, run: run,
    "SVD": lambda lm, run: sc.svd(run.operator(), 3),
    "Attribution": lambda lm, run: beside(run, sc.attribute(run, flow=True)).attribution,
    "Lens": lambda lm, run: sc.lens(run, parts=True, top=3),
    "Sensitivity": lambda lm, run: sc.sensitivity(run, conventions=["gate", "up"]),
    "Null": lambda lm, run: sc.null(lm, "input", 3, samples=5),
    "Largest, columns": lambda lm, run: sc.largest(lm, run.operator().block(2), count=2, top=2),
    "Largest, rows": lambda lm, run: sc.largest(lm, run.operator(), "rows", count=2, top=2),
    "Ablation": lambda lm, run: sc.ablate(run, 2, 5),
    "Ablations": lambda lm, run: sc.ablations(run, kinds=["token", "layer"]),
    "Faithfulness": lambda lm, run: sc.faithfulness(run, methods=["secant", "random"]),
    "Reach": lambda lm, run: sc.reach(run, (2, 7), steps=3, k=2),
    "Screening": lambda lm, run: sc.screen(lm, [PROMPT, HOSTILE], ["golden", "tower", HOSTILE], samples=300, top=4),
    "Steps": lambda lm, run: sc.follow(run, 2, parts=True),
    "Sweep": lambda lm, run: sc.steering_sweep(
        lm, [PROMPT], run, layers=[0], strengths=[0.5], words=["Golden", HOSTILE], tokens=2
    ),
    "Steered": lambda lm, run: side_by_side(lm, PROMPT, run, layer=1, strength=0.5, tokens=3),
    "Layers": lambda lm, run: sc.layers(sc.freeze(lm, SHORT), 2),
    "Explanation": lambda lm, run: sc.explain(lm, SHORT, k=2, top=3, layers=True, steps=2),
    "Evidence": lambda lm, run: sc.explain(lm, SHORT, k=1, top=3).evidence(),
    "Comparison": lambda lm, run: sc.compare(SHORT, [lm], conventions=["gate", "up"], k=1, top=3),
}
"""One of each class, with all of its tables; what follows a comma tells two of a class apart."""

NAMES = [*MADE, "Summary"]
"""All results that are made: those of a run, and that of a study."""

VIEWED = [*NAMES, "Study"]
"""All that is shown."""

RECORDS = {
    "LM": "the model, not what was found of it",
    "Operator": "a linear map: it is applied, and has files of its own",
    "Certificate": "the head of a run",
    "Prediction": "a row of a run's predictions",
    "Word": "a row of what directions decode to",
    "Estimate": "a number and its standard error",
    "Convention": "how a prompt is frozen",
    "Depth": "a part of Layers",
    "Study": "a folder of tables, which are read when they are asked for; it is shown like a result",
    "SecantError": "an error",
    "NotExact": "an error",
    "NoRule": "an error",
}
"""Public classes that are no results, and why."""

COMPOSED = (sc.Explanation, sc.Evidence, sc.Sensitivity)
"""Results that have tables of other results among theirs."""


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, PROMPT)


class Shown(dict[str, Viewed]):
    """All that is shown, by name. Each is made when it is first asked for, once in a process."""

    def __init__(self, lm: sc.LM, run: sc.Run, out: Path) -> None:
        super().__init__()
        self.lm, self.run, self.out = lm, run, out

    def __missing__(self, name: str) -> Viewed:
        if name == "Study":
            how = {"convention": ["gate", "half"], "k": 1, "top": 2, "threads": 1}
            made: Viewed = sc.study([SHORT], self.lm, out=self.out, analyses=list(ANALYSES), **how)
        elif name == "Summary":
            study = self["Study"]
            assert isinstance(study, sc.Study)
            made = sc.summarize(study.folder, resamples=100)
        else:
            made = MADE[name](self.lm, self.run)
        self[name] = made
        return made


@pytest.fixture(scope="module")
def shown(lm: sc.LM, run: sc.Run, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(lm, run, tmp_path_factory.mktemp("studies") / "study")


@pytest.fixture(scope="module")
def results(shown: Shown) -> dict[str, Result]:
    return {name: result for name in NAMES if isinstance(result := shown[name], Result)}


@pytest.fixture(params=NAMES)
def result(request: pytest.FixtureRequest, shown: Shown) -> Result:
    made = shown[request.param]
    assert isinstance(made, Result)
    return made


@pytest.fixture(scope="module")
def hostile(lm: sc.LM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Viewed]:
    """The same of a model whose name and tokens would command a terminal or a page."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Tokens.texts  # of the whole vocabulary, as they are: the words of the screening are found by them
        patch.setattr(
            Tokens, "texts",
            lambda self, ids: whole(self, ids) if isinstance(ids, range) else [f"{HOSTILE}{i}" for i in ids],
        )  # fmt: skip
        odd = replace(lm, name=HOSTILE)
        run = sc.freeze(odd, SHORT)
        found: dict[str, Viewed] = {name: make(odd, run) for name, make in MADE.items()}
    out = tmp_path_factory.mktemp("hostile") / "study"
    written(out, 4, [(HOSTILE, "gate"), (HOSTILE, "half")], [HOSTILE], texts=[f"{HOSTILE}{i}" for i in range(4)])
    found |= {"Summary": sc.summarize(out, resamples=100), "Study": sc.Study.open(out)}
    sweep, steered = found["Sweep"], found["Steered"]
    assert isinstance(sweep, sc.Sweep)
    texts = sweep.texts.assign(text=HOSTILE, continuation=HOSTILE)
    found["Sweep"] = replace(sweep, settings=replace(sweep.settings, concept=HOSTILE), texts=texts)
    odd_one = replace(steered.steered, text=HOSTILE)  # type: ignore[attr-defined]
    found["Steered"] = replace(steered, prompt=HOSTILE, concept=HOSTILE, unsteered=odd_one, steered=odd_one)  # type: ignore[type-var]
    return found


@pytest.fixture(params=VIEWED)
def plain(request: pytest.FixtureRequest, shown: Shown) -> Viewed:
    return shown[request.param]


@pytest.fixture(params=VIEWED)
def odd(request: pytest.FixtureRequest, hostile: dict[str, Viewed]) -> Viewed:
    return hostile[request.param]


# ------------------------------------------------------------------------------------------- which there are


def test_every_public_class_is_a_result_or_a_record() -> None:
    classes = {name for name in sc.__all__ if name[0].isupper()}
    assert classes <= {name.partition(",")[0] for name in NAMES} | set(RECORDS)
    for name in set(RECORDS) & classes:
        assert not issubclass(getattr(sc, name), Result), f"{name} is a result: make one of it here"


def test_what_a_result_is_in_a_line(plain: Viewed) -> None:
    """Its class, and a few words each about it: no arrays, tables or nested objects."""
    assert type(plain).__repr__ is Viewed.__repr__, "give its dataclass repr=False"
    said = repr(plain)
    assert said.startswith(f"{type(plain).__name__}(")
    assert len(said) - len(type(plain).__name__) > 20
    assert len(said) < 320
    for inside in ("\n", "tensor(", "object at", "DataFrame", "=["):
        assert inside not in said


def test_what_is_no_result_in_a_line(lm: sc.LM, run: sc.Run) -> None:
    op = run.operator()
    assert repr(lm) == f"LM({lm.name}, {type(lm.model).__name__}, {lm.size:,} tokens, {lm.dtype}, cpu)"
    assert repr(op) == f"Operator(embed to norm, position {len(run.ids) - 1}, {op.shape[0]} x {len(run.ids)} * " + (
        f"{op.input.shape[1]}, {op.bias.dtype})"
    )
    assert f"of {len(run.ids)} tokens, predicts {run.prediction[0].token.strip()} " in repr(run)
    assert f"reconstruction {run.certificate.reconstruction:.1e})" in repr(run)
    for one in (run.certificate, run.prediction[0], sc.Convention(), sc.stable_rank(op)):
        assert len(repr(one)) < 320


@pytest.mark.slow  # all are made
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


@pytest.mark.slow  # all are made
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


@pytest.mark.slow  # all are made
def test_names_of_tables_are_of_one_class(results: dict[str, Result]) -> None:
    """Results of several classes can be in one folder."""
    kinds = {type(result) for result in results.values()}
    names = [table.name for kind in kinds for table in kind.schema if not issubclass(kind, COMPOSED)]
    assert len(names) == len(set(names))
    every = {table for kind in kinds for table in kind.schema}
    assert len(every) == len({table.name for table in every}), "a name of one table alone"


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
    """A table read back as docs/reference/tables.md says."""
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


@pytest.mark.parametrize("texts", ["plain", pytest.param("hostile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_files_read_back_equal(request: pytest.FixtureRequest, name: str, texts: str, tmp_path: Path) -> None:
    result = request.getfixturevalue("shown" if texts == "plain" else "hostile")[name]
    folder, tables, tensors = tmp_path / "out", result.tables(), result.tensors()
    result.save(folder)
    written = {f"{table}.{ending}" for table in tables for ending in ("parquet", "csv")}
    written |= {"columns.csv", f"{type(result).__name__.lower()}.json"}
    kept_tensors = folder / f"{type(result).__name__.lower()}.safetensors"
    written |= {kept_tensors.name} if tensors else set()
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
        stored_tensors = load_file(kept_tensors)
        assert set(stored_tensors) == set(tensors)
        with safe_open(kept_tensors, "pt") as file:
            metadata = file.metadata()
        for key, (meaning, tensor) in tensors.items():
            assert torch.equal(stored_tensors[key], tensor.detach().cpu())
            assert metadata[key] == meaning


def test_a_folder_with_two_results_describes_both(shown: Shown, tmp_path: Path) -> None:
    one, other = shown["Reach"], shown["Faithfulness"]
    for each in (one, other, one):
        each.save(tmp_path / "out")
    about = pd.read_csv(tmp_path / "out" / "columns.csv", dtype=str, keep_default_na=False)
    tables = {**one.tables(), **other.tables()}
    for name, frame in tables.items():
        assert list(about[about["table"] == name]["column"]) == list(frame)
    assert set(about["table"]) == set(tables)
    assert {"reach.json", "faithfulness.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


@pytest.mark.slow  # all are made
def test_results_of_two_classes_keep_their_tensors_in_one_folder(results: dict[str, Result], tmp_path: Path) -> None:
    several = [result for result in results.values() if result.tensors()]
    assert len({type(result) for result in several}) == len(several) > 1
    for result in several:
        result.save(tmp_path / "out")
    for result in several:
        kept = load_file(tmp_path / "out" / f"{type(result).__name__.lower()}.safetensors")
        assert set(kept) == set(result.tensors())
        assert all(torch.equal(kept[name], tensor.detach()) for name, (_, tensor) in result.tensors().items())


def test_places_that_can_not_be_written(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed):
        result.save(tmp_path / "file" / "out")
    with pytest.raises(OutputFailed):
        result.check_folder(tmp_path / "file" / "out")


# ------------------------------------------------------------------------------------------- shown


def printed(result: Viewed, width: int, capsys: pytest.CaptureFixture[str]) -> str:
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
def test_it_prints_within_the_width(plain: Viewed, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(printed(plain, width, capsys).splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 100])
def test_hostile_tokens_command_no_terminal(odd: Viewed, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(repr(odd)) == repr(odd)
    said = printed(odd, width, capsys)
    if not isinstance(odd, sc.SVD):
        assert visible(HOSTILE)[:6] in said


@pytest.mark.slow  # all are made a second time, as for the two above
def test_the_html_is_well_formed_and_every_text_is_escaped(odd: Viewed) -> None:
    text = odd._repr_html_()
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.tags} <= {"div", "strong", "small", "table", "tr", "th", "td", "span"}
    assert {name for _, attributes in parsed.tags for name in attributes} <= {"style", "class"}
    assert not {"\x1b", "\u202e", "\u2028", "\n"} & set(text)
    if not isinstance(odd, sc.SVD):
        assert any(spelled(HOSTILE.strip()) in said for said in parsed.texts for spelled in (visible, readable))
    assert "mathjax_ignore" in text
    assert len(text) < 100_000


def test_a_notebook_keeps_its_own_colours(plain: Viewed) -> None:
    """But for bars, and for what is marked."""
    for tag, attributes in Parsed(plain._repr_html_()).tags:
        style = dict(part.split(":") for part in (attributes.get("style") or "").split(";") if part)
        assert style.get("color") == ("inherit" if tag == "table" else None)
        assert ("background" in style) == (tag == "span")
