"""Tables match their descriptions: files, types and the page of tables agree.

What holds for every result is in test_results.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import tables as tool
import torch
from safetensors.torch import load_file

import secant as sc
from secant.results.files import ARROW, columns, saving
from secant.results.schema import Column, Table
from secant.studies.work import SCHEMA

PROMPT = "The bridge out of Marin is the"
TABLES = [*tool.tables(), *SCHEMA.values()]


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, PROMPT)


@pytest.fixture(scope="module")
def f(run: sc.Run) -> sc.SVD:
    return sc.svd(run.operator(), 3)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_says_something(table: Table) -> None:
    assert table.row
    assert len({own.name for own in table.columns}) == len(table.columns)
    for own in table.columns:
        assert own.kind in ARROW, own.name
        assert own.meaning, own.name
        assert own.unit or own.type is not float or own.name == "strength", own.name


def test_tables_of_one_name_in_one_folder_are_one() -> None:
    """Results are saved next to each other: a file of a name has the same columns, whichever wrote it."""
    known: dict[str, Table] = {}
    for table in tool.tables():
        assert known.setdefault(table.name, table) is table


def test_columns_say_what_is_in_the_folder(run: sc.Run, f: sc.SVD, tmp_path: Path) -> None:
    run.save(tmp_path / "out")
    said = pd.read_csv(tmp_path / "out" / "columns.csv", keep_default_na=False)
    assert list(said[said["table"] == "positions"]["column"]) == list(pd.read_csv(tmp_path / "out" / "positions.csv"))
    f.save(tmp_path / "out")
    said = pd.read_csv(tmp_path / "out" / "columns.csv", keep_default_na=False)
    every = pd.concat([columns(table) for table in (*sc.Run.schema, *sc.SVD.schema)])
    pd.testing.assert_frame_equal(said, every.sort_values("table", kind="stable", ignore_index=True), check_dtype=False)


def test_what_is_missing_and_what_is_empty_keeps_its_type(tmp_path: Path) -> None:
    table = SCHEMA["prompts"]
    with saving(tmp_path / "out", [(table, table.empty)]):
        pass
    schema = pyarrow.parquet.read_schema(tmp_path / "out" / "prompts.parquet")
    assert schema.names == table.names
    assert [field.type for field in schema] == [ARROW[own.kind] for own in table.columns]
    for field, own in zip(schema, table.columns, strict=True):
        assert field.metadata == {b"unit": own.unit.encode(), b"meaning": own.meaning.encode()}


def test_a_column_that_is_not_described_is_not_written(tmp_path: Path) -> None:
    table = Table("words", "a word", (Column("word", str, "the word"),))
    for make in (table.frame, lambda frame: frame):
        with pytest.raises(KeyError, match="new"), saving(tmp_path / "o", [(table, make(pd.DataFrame({"new": [1]})))]):
            pass
    assert os.listdir(tmp_path) == []


def test_the_page_of_tables_is_as_it_would_be_written() -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/tables.py"


def test_a_decomposition_is_written(f: sc.SVD, tmp_path: Path) -> None:
    f.save(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "svd.safetensors")
    assert all(torch.equal(tensors[name], getattr(f, name)) for name in ("U", "S", "V", "residuals"))
    table = pd.read_parquet(tmp_path / "out" / "svd.parquet")
    pd.testing.assert_frame_equal(table, f.to_pandas())
    assert list(table["sigma"]) == f.S.tolist()
    assert list(table["energy"]) == f.energy.tolist()
    assert [list(rows.index) for _, rows in table.groupby("block")] == [list(block) for block in f.blocks]
    half = replace(f, U=f.U.half(), S=f.S.bfloat16(), V=f.V.half(), residuals=f.residuals.half())
    half.save(tmp_path / "half")
    assert pd.read_parquet(tmp_path / "half" / "svd.parquet")["sigma"].tolist() == half.S.double().tolist()


def test_what_was_ablated_is_said(run: sc.Run) -> None:
    assert sc.ablate(run, 2).about().items() >= {"what": "token 2", "by": "zero", "positions": [2]}.items()
    found = sc.ablations(run, kinds=["token", "head"])
    assert found.about().items() >= {"target": found.target, "by": "zero"}.items()


def test_evidence_as_tables(lm: sc.LM, run: sc.Run) -> None:
    found = sc.explain(lm, PROMPT, k=1).evidence()
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
