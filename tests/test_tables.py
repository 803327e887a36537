"""Tables: all columns that are written are in the dictionary, and no others; files, types and page agree."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import tables as tool
import torch
from safetensors.torch import load_file
from secant.results.dictionary import TABLES
from studies import study

import secant as sc
from secant.errors import OutputFailed
from secant.results.files import ARROW, column, columns, saving
from secant.steering.sweep import Settings

PROMPT = "The bridge out of Marin is the"


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, PROMPT)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> sc.Summary:
    folder = tmp_path_factory.mktemp("studies") / "study"
    study(folder, 4)
    return sc.summarize(folder, resamples=100)


@pytest.fixture(scope="module")
def results(lm: sc.LM, run: sc.Run, summary: sc.Summary) -> dict[str, object]:
    """One result of each kind that is written, with all of its tables."""
    return {
        "explanation": sc.explain(lm, PROMPT, k=2, layers=True, steps=2),
        "attribution": sc.attribute(run, flow=True),
        "svd": sc.svd(run.operator(), 3),
        "faithfulness": sc.faithfulness(run),
        "reach": sc.reach(run, (1, " the"), steps=2, k=1),
        "screening": sc.screen(lm, [PROMPT, ""], ["golden", "nonsenseword"], samples=50, top=4),
        "sweep": sc.steering_sweep(lm, [PROMPT], "The bridge", layers=[0], strengths=[0.5], words=["Golden"], tokens=2),
        "layers": sc.layers(run, 2),
        "steps": sc.follow(run, 1),
        "ablation": sc.ablate(run, 2),
        "ablations": sc.ablations(run, kinds=["token", "head"]),
        "columns": sc.largest(lm, run.operator(), count=2),
        "rows": sc.largest(lm, run.operator(), "rows", count=2),
        "evidence": sc.explain(lm, PROMPT, k=1).evidence(),
        "summary": summary,
        "comparison": sc.compare(PROMPT, [lm], conventions=("gate", "half")),
    }


@pytest.fixture(scope="module")
def written(results: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything in one folder, where some tables have one name and the same columns."""
    folder = tmp_path_factory.mktemp("tables")
    for result in results.values():
        result.save(folder / "all")  # type: ignore[attr-defined]
    return folder / "all"


def test_the_dictionary_has_every_table_and_column_and_no_other(written: Path) -> None:
    schemas = {file.stem: pyarrow.parquet.read_schema(file) for file in written.glob("*.parquet")}
    assert set(schemas) == set(TABLES)
    for name, schema in schemas.items():
        known = TABLES[name].columns
        assert [next(key for key in known if known[key] is column(TABLES[name], key_)) for key_ in schema.names] == [
            key for key in known for _ in range(2 if "{i}" in key else 1)
        ], name
        for field in schema:
            about = column(TABLES[name], field.name)
            assert field.type == ARROW[about.type], (name, field.name)
            assert field.metadata == {b"unit": about.unit.encode(), b"meaning": about.meaning.encode()}


def test_parquet_and_csv_hold_the_same(written: Path, results: dict[str, object]) -> None:
    for file in written.glob("*.parquet"):
        one, other = pd.read_parquet(file), pd.read_csv(file.with_suffix(".csv"), keep_default_na=False, na_values=[""])
        assert list(one) == list(other)
        assert len(one) == len(other)
        numbers = [name for name in one if column(TABLES[file.stem], name).type == "number"]
        pd.testing.assert_frame_equal(one[numbers].astype(float), other[numbers].astype(float), check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(written / "reach.parquet"), results["reach"].to_pandas())  # type: ignore[attr-defined]
    assert len(pd.read_parquet(written / "refused.parquet")) == 1


def test_what_is_missing_and_what_is_empty_keeps_its_type(results: dict[str, object], tmp_path: Path) -> None:
    screening = results["screening"]
    assert isinstance(screening, sc.Screening)
    replace(screening, refused=screening.refused[:0], unknown=[]).save(tmp_path / "out")
    schema = pyarrow.parquet.read_schema(tmp_path / "out" / "refused.parquet")
    assert [str(field.type) for field in schema] == ["int64", "large_string", "large_string", "large_string"]


def test_columns_say_what_is_in_the_folder(results: dict[str, object], written: Path, tmp_path: Path) -> None:
    results["reach"].save(tmp_path / "out")  # type: ignore[attr-defined]
    said = pd.read_csv(tmp_path / "out" / "columns.csv", keep_default_na=False)
    assert list(said["column"]) == list(pd.read_csv(tmp_path / "out" / "reach.csv"))
    results["svd"].save(tmp_path / "out")  # type: ignore[attr-defined]
    assert set(pd.read_csv(tmp_path / "out" / "columns.csv")["table"]) == {"reach", "svd"}
    pd.testing.assert_frame_equal(pd.read_csv(written / "columns.csv", keep_default_na=False), columns())


def test_every_column_says_something() -> None:
    for name, table in TABLES.items():
        assert table.row
        assert table.of.split()[0] in sc.__all__, name
        for key, about in table.columns.items():
            assert about.type in ARROW, (name, key)
            assert about.meaning, (name, key)
            assert about.unit or about.type != "number" or key in ("strength",), (name, key)


def test_a_column_that_is_not_described_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="new"), saving(tmp_path / "out", {"reach": pd.DataFrame({"new": [1]})}):
        pass
    assert os.listdir(tmp_path) == []


def test_the_page_is_made_of_the_dictionary() -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/tables.py"


def test_a_decomposition_is_written(results: dict[str, object], tmp_path: Path) -> None:
    f = results["svd"]
    assert isinstance(f, sc.SVD)
    f.save(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "tensors.safetensors")
    assert all(torch.equal(tensors[name], getattr(f, name)) for name in ("U", "S", "V", "residuals"))
    table = pd.read_parquet(tmp_path / "out" / "svd.parquet")
    pd.testing.assert_frame_equal(table, f.to_pandas())
    assert list(table["sigma"]) == f.S.tolist()
    assert list(table["energy"]) == f.energy.tolist()
    assert [list(rows.index) for _, rows in table.groupby("block")] == [list(block) for block in f.blocks]
    half = replace(f, U=f.U.half(), S=f.S.bfloat16(), V=f.V.half(), residuals=f.residuals.half())
    half.save(tmp_path / "half")
    assert pd.read_parquet(tmp_path / "half" / "svd.parquet")["sigma"].tolist() == half.S.double().tolist()


def test_what_was_ablated_is_said(results: dict[str, object], written: Path) -> None:
    assert json.loads((written / "ablation.json").read_text("utf-8")) == {
        "what": "token 2", "by": "zero", "positions": [2]
    }  # fmt: skip
    found = results["ablations"]
    assert isinstance(found, sc.Ablations)
    assert json.loads((written / "ablations.json").read_text("utf-8")) == {"target": found.target, "by": "zero"}
    pd.testing.assert_frame_equal(pd.read_parquet(written / "ablations.parquet")[["held"]], found.table[["held"]])


def test_evidence_as_tables(results: dict[str, object], run: sc.Run) -> None:
    found = results["evidence"]
    assert isinstance(found, sc.Evidence)
    tables = found.tables()
    sums = tables["versus"].groupby("prediction")["contribution"].sum()
    assert sums.tolist() == pytest.approx([run.prediction[0].logit - p.logit for p in run.prediction[1:5]], abs=1e-4)
    rebuilt = torch.tensor(tables["rebuilt"]["rebuilt"].tolist(), dtype=torch.float64)
    torch.testing.assert_close(rebuilt, run.operator().rebuilt)
    image, J = tables["image"], run.operator().dense()
    rows, columns = sorted(set(image["unit"])), sorted(set(image["column"]))
    assert len(image) == len(rows) * len(run.ids) * len(columns)
    for own in image.sample(20, random_state=0).itertuples():
        block = J[_until(own.unit, rows, len(J)), own.position, _until(own.column, columns, J.shape[2])]
        assert own.size == pytest.approx(block.square().mean().sqrt().item(), rel=1e-4)
    chance = tables["chance"].set_index(["side", "rank"])
    assert chance.loc[("input", 2), "mean"] == found.reads.mean[2].item()
    alone = replace(found, image=None, versus=[])
    assert "image" not in alone.tables()
    assert alone.tables()["versus"].empty


def _until(first: int, every: list[int], end: int) -> slice:
    """From one beginning to the next."""
    return slice(first, [*every, end][every.index(first) + 1])


def test_a_run_as_a_table(lm: sc.LM, run: sc.Run) -> None:
    table = run.to_pandas()
    assert list(table["token"]) == run.tokens
    assert list(table["id"]) == run.ids
    last, best = table.iloc[-1], run.prediction[0]
    assert (last["predicted"], last["probability"], last["logit"]) == pytest.approx(
        (best.token, best.probability, best.logit)
    )
    logits = lm.logits(run.ids)
    assert list(table["predicted"]) == [lm.text(int(i)) for i in logits.argmax(1)]


def test_places_that_can_not_be_written(results: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for result in results.values():
        with pytest.raises(OutputFailed):
            result.save(tmp_path / "file" / "out")  # type: ignore[attr-defined]
    empty = sc.Sweep(Settings("", "", ("x",), 1, False, 0), pd.DataFrame(), pd.DataFrame())
    empty.save(tmp_path / "empty")
    assert pd.read_parquet(tmp_path / "empty" / "sweep.parquet").empty
