"""Studies: rows equal those of single prompts, and none is lost, duplicated or mixed up, whatever interrupts it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from tokenizers import normalizers
from typer.testing import CliRunner

import secant as sc
from secant.analyses import case as cases
from secant.cli import app
from secant.errors import BadArgument, DamagedFile, ModelNotFound, OutputFailed, SecantError, TooLarge
from secant.results.files import arrow
from secant.studies import local, work
from secant.studies.analyses import ANALYSES
from secant.studies.folder import Folder, read, write_manifest
from secant.studies.prompts import Item
from secant.studies.work import ROW_START, SCHEMA

WORDS = ["The", "bridge", "out", "of", "Marin", "is", "the"]
PROMPTS = [" ".join(WORDS[: 1 + i % 7]) for i in range(11)]
FEW = PROMPTS[2:5]
EVERY = list(ANALYSES)
FIRST = [column.name for column in ROW_START]


def tables(study: sc.Study) -> dict[str, pd.DataFrame]:
    return {name: study.to_pandas(name) for name in study.tables}


def assert_same(one: sc.Study, other: sc.Study) -> None:
    """The same rows, each once, to the bit."""
    mine, theirs = tables(one), tables(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        pd.testing.assert_frame_equal(mine[name], theirs[name], check_exact=True)


@pytest.fixture(scope="module")
def whole(lm: sc.LM, tmp_path_factory: pytest.TempPathFactory) -> sc.Study:
    """A study with everything, in two conventions."""
    return sc.study(
        FEW, lm, out=tmp_path_factory.mktemp("study"), analyses=EVERY, convention=["gate", "half"], shard=2, top=3,
        tensors=True, threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> sc.Study:
    """A study of a model by its folder, in float64."""
    return sc.study(PROMPTS, str(folder), out=tmp_path_factory.mktemp("plain"), shard=2, threads=1, dtype="float64")


# ------------------------------------------------------------------------------------------------ the rows


@pytest.mark.slow
def test_rows_are_those_of_single_prompts(lm: sc.LM, whole: sc.Study) -> None:
    """Against numpy's SVD of J, and the functions that look at one prompt."""
    for convention, number in (("gate", 1), ("half", 2)):
        run = sc.freeze(lm, FEW[number], convention=convention, ordinary=True)
        J = run.operator().dense().double().numpy()

        def own(name: str, number: int = number, convention: str = convention) -> pd.DataFrame:
            rows = whole.to_pandas(name)
            return rows[(rows["prompt"] == number) & (rows["convention"] == convention)].reset_index(drop=True)

        assert own("prompts")["prediction"].item() == run.prediction[0].token
        assert own("reconstructions")["ordinary"].item() == pytest.approx(run.certificate.ordinary, rel=1e-9)
        for t in (*range(J.shape[1]), None):
            matrix = J.reshape(len(J), -1) if t is None else J[:, t]
            S = np.linalg.svd(matrix, compute_uv=False)

            def at(name: str, t: int | None = t) -> pd.DataFrame:
                rows = own(name)
                return rows[rows["position"].isna() if t is None else rows["position"] == t]

            np.testing.assert_allclose(at("singular_values")["sigma"], S[:4], rtol=1e-12)
            rank = at("stable_ranks")["stable_rank"].item()
            assert rank == pytest.approx((S**2).sum() / S[0] ** 2, rel=1e-12)
            other = sc.freeze(lm, FEW[number], convention="up").operator().dense().double().numpy()
            theirs = other.reshape(len(J), -1) if t is None else other[:, t]
            rows = at("conventions").set_index("other")
            distance = np.linalg.norm(matrix - theirs) / np.linalg.norm(matrix)
            assert rows.loc["up", "distance"] == pytest.approx(distance, rel=1e-12)
            cosine = (matrix * theirs).sum() / np.linalg.norm(matrix) / np.linalg.norm(theirs)
            assert rows.loc["up", "cosine"] == pytest.approx(cosine, rel=1e-12)
        layers = sc.layers(run, 4)
        expected = layers.to_pandas()
        named = own("layers").drop(columns=FIRST)
        named["token"] = named["token"].astype(object).where(named["token"].notna(), None)  # as Parquet reads it
        pd.testing.assert_frame_equal(named, expected, check_dtype=False, rtol=1e-9)
        table = sc.attribute(run).table
        np.testing.assert_allclose(own("contributions")["contribution"], table["contribution"], rtol=1e-9, atol=1e-12)
        explained = sc.explain(lm, FEW[number], convention=convention, top=3).words()
        words = own("words").dropna(subset=["position"])
        assert words["word"].tolist() == explained["word"].tolist()
        np.testing.assert_allclose(words["z"], explained["z"], rtol=1e-9)
        assert (words["predicted"] == (words["id"] == run.prediction[0].id)).all()
        tokens = [run.ids[t] for t in words["position"]]
        assert (words["own"] == (words["id"] == tokens)).all()
        shard = f"0-{convention == 'half':d}-{number // 2:06d}"
        with safe_open(whole.folder / "shards" / shard / "tensors.safetensors", "pt") as f:
            U, S, V = (f.get_tensor(f"{number}.whole.{name}").numpy() for name in "USV")
        np.testing.assert_allclose(J.reshape(len(J), -1) @ V, U * S, atol=1e-10)


def test_every_row_carries_its_certificate(whole: sc.Study, lm: sc.LM) -> None:
    certificates = {
        (c, i): sc.freeze(lm, p, convention=c).certificate for c in ("gate", "half") for i, p in enumerate(FEW)
    }
    for name, rows in tables(whole).items():
        assert list(rows.columns[: len(FIRST)]) == FIRST, name
        for (convention, prompt), own in rows.groupby(["convention", "prompt"]):
            assert (own["run_reconstruction"] == certificates[convention, prompt].reconstruction).all()
            assert (own["run_affinity"] == certificates[convention, prompt].affinity).all()
            assert own["run_forward_equal"].all()


def test_every_column_is_described_where_it_is_written(whole: sc.Study) -> None:
    assert whole.tables == list(SCHEMA)
    for file in (whole.folder / "tables").glob("*.parquet"):
        schema, table = pyarrow.parquet.read_schema(file), SCHEMA[file.stem]
        assert [name for name in schema.names if "sigma_" not in name] == table.names, file.stem
        assert all(schema.field(name).metadata[b"meaning"].decode() == table[name].meaning for name in schema.names)
    about = pd.read_csv(whole.folder / "tables" / "columns.csv", keep_default_na=False)
    assert set(about["table"]) == set(SCHEMA)
    pd.testing.assert_frame_equal(whole.columns(), about)


BEFORE = {
    "prompts": "text:str tokens:int prediction:str prediction_id:int probability:float logit:float error:str "
    "reason:str",
    "reconstructions": "reconstruction:float ordinary:float bias:float",
    "singular_values": "position:int token:str vector:int block:int sigma:float normalized:float residual:float",
    "stable_ranks": "position:int token:str stable_rank:float frobenius:float spread:float",
    "layers": "layer:int part:str span:str position:int token:str stable_rank:float frobenius:float sigma_0:float "
    "sigma_1:float reconstruction:float",
    "first_seen": "part:str span:str position:int layer:int layer_count:int",
    "contributions": "kind:str name:str position:int layer:int head:int contribution:float all_paths:float",
    "words": "position:int token:str vector:int block:int sigma:float side:str rank:int word:str id:int score:float "
    "z:float predicted:bool own:bool",
    "conventions": "other:str position:int distance:float cosine:float",
}
"""The columns of each table as version 0.1.0 wrote them, after those that every row starts with."""

STARTS = (
    "model:str convention:str prompt:int category:str precision:str run_forward_equal:bool run_reconstruction:float "
    "run_affinity:float"
)


def test_what_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    """The same tables with columns of the same names and types, and the same study by its key."""
    identity = {
        "versions": {"secant": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "models": [{"label": "atlas", "name": "atlas", "dtype": None, "device": None, "attention": None,
                    "allow_remote_code": False, "allow_pickle": False}],
        "conventions": ["gate", "half"], "precision": None,
        "analyses": ["reconstruction", "spectra", "stable_rank", "layers", "attribution", "parts", "words",
                     "conventions"],
        "k": 2, "top": 3, "seed": 0, "threads": 1, "tensors": False, "prompts": 3,
        "digest": "7c37df4288797d669d14c44f78f343079d93693a07e33925c0c97ebf5ca0562f", "shard": 2,
        "fingerprints": {"atlas": "c3adf3924481d76fdfed59649542378817c62121047db2f9c71066feffcd58e1"},
    }  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(identity))
    found = read(tmp_path)
    assert found.key == "8c0de2f4b51653fa8a935e787ed8bfbb346572044fee950352401c04d68e1b3e"
    for name in found.names:
        (tmp_path / "shards" / name).mkdir(parents=True)
    (tmp_path / "tables").mkdir()
    kinds = {"str": pyarrow.large_string(), "int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_()}
    values = {"str": "a", "int": 1, "float": 0.5, "bool": True}
    for name, own in BEFORE.items():
        columns = dict(pair.split(":") for pair in f"{STARTS} {own}".split())
        schema = pyarrow.schema([(column, kinds[kind]) for column, kind in columns.items()])
        rows = [{column: values[kind] for column, kind in columns.items()}, {}]
        table = pyarrow.Table.from_pylist(rows, schema)
        pyarrow.parquet.write_table(table, tmp_path / "tables" / f"{name}.parquet")
        today = arrow(SCHEMA[name], table.to_pandas(types_mapper={pyarrow.int64(): pd.Int64Dtype()}.get)).schema
        assert [(field.name, field.type) for field in today] == [(field.name, field.type) for field in schema], name
        assert set(columns) <= set(SCHEMA[name].names) | {"sigma_0", "sigma_1"}
    write_manifest(tmp_path / "tables")
    study = sc.Study.open(tmp_path)
    assert study.tables[: len(BEFORE)] == list(BEFORE)
    for name, rows in tables(study).items():
        assert rows.iloc[0].drop(FIRST).notna().all(), name
    assert set(study.columns()["table"]) == set(BEFORE)


@pytest.mark.slow
def test_in_a_notebook(whole: sc.Study, plain: sc.Study, tmp_path: Path) -> None:
    shown = whole._repr_html_()
    worst = whole.to_pandas()["run_reconstruction"].max()
    assert all(
        part in shown for part in (f"Study of {whole.identity.labels[0]}", "half", f"{worst:.1e}", "3 in shards of 2")
    )
    assert "missing" not in shown
    shutil.copytree(plain.folder, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "tables")
    shutil.rmtree(tmp_path / "part" / "shards" / plain.identity.names[-1])
    assert "1 of 6 shards: run the study again" in sc.Study.open(tmp_path / "part")._repr_html_()


def test_each_prompt_once_in_order(whole: sc.Study) -> None:
    rows = whole.to_pandas()
    assert rows["prompt"].tolist() == [0, 1, 2] * 2
    assert rows["text"].tolist() == FEW * 2
    assert rows["convention"].tolist() == ["gate"] * 3 + ["half"] * 3


def test_several_models_and_categories(lm: sc.LM, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    items = [Item(0, PROMPTS[6], "long"), Item(1, PROMPTS[0])]
    study = sc.study(items, [str(folder), str(other)], out=tmp_path / "out", analyses=["stable_rank"], k=1)
    rows = study.to_pandas()
    assert rows["model"].tolist() == [folder.name] * 2 + ["other"] * 2
    assert rows["category"].tolist()[0] == "long"
    assert rows["category"].isna().tolist() == [False, True] * 2
    assert study.tables == ["prompts", "stable_ranks"]


# ------------------------------------------------------------------------------------------------ what fails


def test_a_prompt_that_fails_is_a_row(lm: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: cases.Case) -> dict[str, pd.DataFrame]:
        if len(case.run.ids) == 2:
            raise ValueError("of no kind\nthat is known")
        if len(case.run.ids) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return {}

    monkeypatch.setitem(ANALYSES, "stable_rank", broken)
    long = " ".join(WORDS * 300)
    prompts = ["", " ".join(WORDS[:4]), *(" ".join(WORDS[: n - 1]) for n in (2, 3)), long]  # tokens begin with <s>
    study = sc.study(prompts, lm, out=tmp_path, analyses=["spectra", "stable_rank"])
    rows = study.to_pandas().set_index("prompt")
    assert rows["error"].astype(object).where(rows["error"].notna(), None).tolist()[:4] == [
        "BadPrompt",
        None,
        "ValueError",
        "TooLarge",
    ]
    assert "at least one token" in rows.loc[0, "reason"]
    assert rows.loc[2, "reason"] == "ValueError: of no kind that is known"
    assert rows.loc[4, "error"] == "BadPrompt"
    assert study.failed["prompt"].tolist() == [0, 2, 3, 4]
    assert study.to_pandas("singular_values")["prompt"].unique().tolist() == [1]
    again = sc.study(prompts, lm, out=tmp_path, analyses=["spectra", "stable_rank"])
    assert_same(study, again)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"convention": "half"}, "conventions: ['gate'] there, ['half'] here"),
        ({"analyses": ["spectra"]}, "analyses: "),
        ({"k": 2}, "k: 4 there, 2 here"),
        ({"prompts": [*PROMPTS[:-1], "of"]}, "digest of the prompts: "),
        ({"prompts": PROMPTS[:-1]}, "prompts: 11 there, 10 here"),
        ({"dtype": "float32"}, "tiny dtype: float64 there, float32 here"),
        ({"threads": 2}, "threads: 1 there, 2 here"),
    ],
)
def test_another_study_is_refused(folder: Path, plain: sc.Study, change: dict[str, object], said: str) -> None:
    how = {"prompts": PROMPTS, "out": plain.folder, "shard": 2, "threads": 1, "dtype": "float64", **change}
    with pytest.raises(BadArgument, match="holds one study") as error:
        sc.study(lm=str(folder), **how)
    assert said in str(error.value)


def test_another_version_or_other_weights_are_refused(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    out, changed = tmp_path / "out", tmp_path / folder.name
    shutil.copytree(plain.folder, out)
    how = {"out": out, "shard": 2, "threads": 1, "dtype": "float64"}
    shutil.copytree(folder, changed)
    lm = sc.load(folder, dtype="float64")
    with torch.no_grad():
        lm.model.lm_head.weight[3, 4] += 1e-9
    lm.model.save_pretrained(changed)
    shutil.rmtree(next((out / "shards").iterdir()))
    with pytest.raises(BadArgument, match="different weights"):
        sc.study(PROMPTS, str(changed), **how)
    spec = json.loads((out / "study.json").read_text())
    spec["versions"]["transformers"] = "4.0.0"
    (out / "study.json").write_text(json.dumps(spec))
    with pytest.raises(BadArgument, match=r"version of transformers: 4\.0\.0 there"):
        sc.study(PROMPTS, str(folder), **how)


def test_another_model_is_refused_where_nothing_is_left_to_compute(
    folder: Path, plain: sc.Study, tmp_path: Path
) -> None:
    changed = tmp_path / folder.name
    shutil.copytree(folder, changed)
    lm = sc.load(folder, dtype="float64")
    with torch.no_grad():
        lm.model.lm_head.weight[3, 4] += 1e-9
    lm.model.save_pretrained(changed)
    before = (plain.folder / "study.json").read_text()
    how = {"out": plain.folder, "shard": 2, "threads": 1, "dtype": "float64"}
    for workers in (None, 2):
        with pytest.raises(BadArgument, match="different weights"):
            sc.study(PROMPTS, str(changed), workers=workers, **how)
    assert (plain.folder / "study.json").read_text() == before
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    sc.study(PROMPTS, str(tmp_path / "elsewhere" / folder.name), **how)  # the same model in another place
    assert (plain.folder / "study.json").read_text() == before


def test_a_folder_of_something_else_is_left_as_it_is(lm: sc.LM, tmp_path: Path) -> None:
    for place in ("shards/.mine", "shards", "tables"):
        out = tmp_path / place.replace("/", "-")
        (out / place).mkdir(parents=True)
        (out / place / "words.parquet").write_text("mine")
        with pytest.raises(BadArgument, match="of something else"):
            sc.study(PROMPTS, lm, out=out)
        assert (out / place / "words.parquet").read_text() == "mine"
        assert not (out / "study.json").exists()


def test_a_shard_in_anothers_place_is_noticed(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain.folder, out)
    one, other = sorted((out / "shards").iterdir())[:2]
    shutil.rmtree(other)
    shutil.copytree(one, other)
    with pytest.raises(DamagedFile, match="from another place"):
        sc.study(PROMPTS, str(folder), out=out, shard=2, threads=1, dtype="float64")
    with pytest.raises(DamagedFile, match="from another place"):
        sc.merge([out], tmp_path / "merged")


def test_damaged_tables_are_noticed(plain: sc.Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain.folder, out)
    file = out / "tables" / "stable_ranks.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"stable_ranks\.parquet"):
        sc.Study.open(out).to_pandas("stable_ranks")
    with pytest.raises(DamagedFile, match=r"stable_ranks\.parquet"):
        sc.summarize(out)
    assert len(sc.Study.open(out).to_pandas("words"))


def test_two_runs_in_one_folder_are_refused(folder: Path, plain: sc.Study) -> None:
    with Folder.opened(plain.folder, read(plain.folder)), pytest.raises(BadArgument, match="one run at a time"):
        sc.study(PROMPTS, str(folder), out=plain.folder, shard=2, threads=1, dtype="float64")
    sc.study(PROMPTS, str(folder), out=plain.folder, shard=2, threads=1, dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "more", "manifest"])
def test_a_damaged_shard_is_noticed(folder: Path, plain: sc.Study, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain.folder, out)
    shard = sorted((out / "shards").iterdir())[2]
    file = shard / "words.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damage = {
        "flipped": lambda: file.write_bytes(data),
        "cut": lambda: file.write_bytes(data[:100]),
        "gone": file.unlink,
        "more": lambda: (shard / "other.parquet").write_bytes(b""),
        "manifest": lambda: (shard / "manifest.json").write_text("{"),
    }
    damage[how]()
    again = {"out": out, "shard": 2, "threads": 1, "dtype": "float64"}
    with pytest.raises(DamagedFile, match=shard.name):
        sc.study(PROMPTS, str(folder), **again)
    shutil.rmtree(shard)
    assert_same(sc.study(PROMPTS, str(folder), **again), plain)


@pytest.mark.slow
def test_a_full_disk(folder: Path, plain: sc.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = pyarrow.parquet.write_table, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 8:
            raise OSError(28, "No space left on device")
        write(*args, **kwargs)

    again = {"out": tmp_path, "shard": 2, "threads": 1, "dtype": "float64"}
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", full)
        with pytest.raises(OutputFailed, match="No space left"):
            sc.study(PROMPTS, str(folder), **again)
    there = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert there == ["0-0-000000"]
    assert sc.Study.open(tmp_path).missing == 5
    assert_same(sc.study(PROMPTS, str(folder), **again), plain)


def test_bad_arguments(lm: sc.LM, tmp_path: Path) -> None:
    for wrong in (
        {"analyses": ["nonsense"]}, {"convention": "none"}, {"convention": ["gate", "gate"]}, {"engine": "nonsense"},
        {"workers": 2}, {"engine": "ray"}, {"part": (3, 2)}, {"k": 0}, {"shard": 0}, {"seed": -1}, {"dtype": "float64"},
        {"max_memory": "much"}, {"workers": 0}, {"threads": 0}, {"threads": "2"}, {"part": ("1", "2")},
        {"part": (2, 2)}, {"device": "cpu"},
    ):  # fmt: skip
        with pytest.raises(SecantError):
            sc.study(PROMPTS, lm, out=tmp_path / "out", **wrong)
        assert not (tmp_path / "out").exists(), wrong
    with pytest.raises(BadArgument, match=r"study\.json"):
        sc.Study.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed):
        sc.study(PROMPTS, lm, out=tmp_path / "file")
    with pytest.raises(BadArgument, match="different names"):
        sc.study(PROMPTS, [lm, lm], out=tmp_path / "out")
    with pytest.raises(BadArgument, match="at least the model's own"):
        sc.study(PROMPTS, lm, out=tmp_path / "out", precision="float32")


# ------------------------------------------------------------------------------------------------ killed, and in parts

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
import secant as sc
if __name__ == "__main__":
    prompts, model, out, workers = eval(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
    sc.study(prompts, model, out=out, shard=2, threads=1, dtype="float64", workers=workers)
"""


Start = Callable[[Path, int], subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[Start]:
    """Start a study in a process of its own, which ends with the test."""
    script, processes = tmp_path / "script.py", list[subprocess.Popen[bytes]]()
    script.write_text(SCRIPT)

    def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
        args = [sys.executable, str(script), repr(PROMPTS), str(folder), str(out), str(workers)]
        processes.append(subprocess.Popen(args))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def until(happened: object, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that compute a study's shards."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def seen(folder: Path, pattern: str) -> list[Path]:
    """What a folder has; a folder in it may be gone while it is looked at."""
    try:
        return [*folder.glob(pattern)]
    except FileNotFoundError:
        return []


@pytest.mark.slow
def test_killed_at_any_moment(folder: Path, plain: sc.Study, tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    shards = out / "shards"
    moments = [
        lambda done: (out / "study.json").exists(),
        lambda done: any(seen(shards, ".*/*/*.parquet")),  # a shard is being written
        lambda done: len(seen(shards, "0-*")) > done,
    ]
    for moment, workers in zip(moments, (1, 1, 2), strict=True):
        done = len(seen(shards, "0-*"))
        process = start(out, workers)
        until(lambda: moment(done) or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, "it ended before the moment came"
        workers_of_it = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert psutil.wait_procs(workers_of_it, timeout=30)[1] == []  # none stays behind
        assert sc.Study.open(out).missing > 0, "all of it was done before the signal came"
    assert len(seen(shards, "0-*")) > 0
    study = sc.study(PROMPTS, str(folder), out=out, shard=2, threads=1, dtype="float64")
    assert_same(study, plain)
    assert not [*out.glob("**/.*/*")]


@pytest.mark.slow
def test_workers_give_the_same_rows_also_when_one_is_killed(plain: sc.Study, tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    process = start(out, 2)
    until(lambda: seen(out, "shards/0-*") or process.poll() is not None)
    first = workers_of(process)
    assert len(first) == 2
    os.kill(first[0].pid, signal.SIGKILL)
    until(lambda: len({*workers_of(process)} - {*first}) == 2 or process.poll() is not None)
    assert process.poll() is None, "it ended without starting others"
    assert process.wait(timeout=180) == 0
    assert_same(sc.Study.open(out), plain)


@pytest.mark.slow
def test_a_model_that_does_not_load_in_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFound):
        sc.study(PROMPTS, str(tmp_path / "nowhere"), out=tmp_path / "out", workers=2)
    assert capfd.readouterr().err == ""


def test_processes_that_are_always_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(*args: object) -> None:
        raise local.BrokenProcessPool

    monkeypatch.setattr(local, "_pooled", pooled)
    with pytest.raises(TooLarge, match="prompts from number 0"):
        sc.study(PROMPTS, str(folder), out=tmp_path, workers=2)


@pytest.mark.slow
def test_parts_merge(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    how = {"shard": 2, "threads": 1, "dtype": "float64"}
    del how["threads"]  # of parts one, whatever the machine
    parts = [sc.study(PROMPTS, str(folder), out=tmp_path / f"{i}", part=(i, 3), **how) for i in (1, 2, 3)]
    how["threads"] = 1
    assert [part.missing for part in parts] == [4, 4, 4]
    assert parts[1].to_pandas()["prompt"].tolist() == [2, 3, 8, 9]
    some = sc.merge([parts[0].folder, parts[2].folder], tmp_path / "merged")
    assert some.missing == 2
    assert_same(sc.merge([parts[1].folder, parts[0].folder], some.folder), plain)
    other = sc.study(PROMPTS, str(folder), out=tmp_path / "other", k=2, **how)
    with pytest.raises(BadArgument, match="k: 4 there, 2 here"):
        sc.merge([other.folder], some.folder)
    with pytest.raises(BadArgument, match="belongs to a different one"):
        sc.merge([parts[0].folder, other.folder], tmp_path / "new")


def test_parts_that_differ_do_not_merge(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain.folder, out)
    manifest = next((out / "shards").iterdir()) / "manifest.json"
    file = manifest.parent / "words.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(1), file)
    said = json.loads(manifest.read_text())
    said["files"]["words.parquet"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(said, indent=1))
    with pytest.raises(BadArgument, match="same rows in every part"):
        sc.merge([out, plain.folder], tmp_path / "merged")


@pytest.mark.slow
def test_studies_are_read_as_one_only_where_they_asked_the_same(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    """Of models of one name, or of one asked in two ways, nothing is averaged."""
    changed = tmp_path / folder.name
    shutil.copytree(folder, changed)
    lm = sc.load(folder, dtype="float64")
    with torch.no_grad():
        lm.model.lm_head.weight[3, 4] += 1e-9
    lm.model.save_pretrained(changed)
    other = sc.study(["In Marin"], str(changed), out=tmp_path / "other", threads=1, dtype="float64")
    more = sc.study(["In Marin"], str(folder), out=tmp_path / "more", threads=1, dtype="float64", top=3)
    same = sc.study(["In Marin"], str(folder), out=tmp_path / "same", threads=1, dtype="float64")
    for study, said in ((other, "weights or tokenizer of tiny"), (more, "top: 8 there, 3 here")):
        with pytest.raises(BadArgument, match=said):
            sc.summarize([plain.folder, study.folder])
    assert sc.summarize([plain.folder, same.folder]).coverage["prompts"].tolist() == [12]


# ------------------------------------------------------------------------------------------------ weights, progress


def test_fingerprints(folder: Path, lm: sc.LM) -> None:
    own = work.fingerprint(lm.model)
    assert own == work.fingerprint(sc.load(folder, dtype="float64").model)
    assert own != work.fingerprint(sc.load(folder, dtype="float32").model)
    for place in ((0, 0), (31, 5)):
        other = sc.load(folder, dtype="float64")
        with torch.no_grad():
            other.model.model.layers[0].mlp.up_proj.weight[place] += 1e-14
        assert own != work.fingerprint(other.model)
    swapped = sc.load(folder, dtype="float64")
    with torch.no_grad():
        weight = swapped.model.model.layers[0].mlp.up_proj.weight
        weight.copy_(weight.flip(0))
    assert own != work.fingerprint(swapped.model)
    same, other = (work.identified(sc.load(folder, dtype="float64")) for _ in range(2))
    assert same == other
    told = sc.load(folder, dtype="float64")
    told.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert work.identified(told) != same


@pytest.mark.slow
def test_progress_and_what_is_left_is_announced(lm: sc.LM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, int, int]] = []
    ticks = iter(range(0, 10**6, 50))
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # its own: others ask for the time, too
        patch.setattr(import_module("secant.studies.study"), "time", clock)
        sc.study(PROMPTS, lm, out=tmp_path, shard=2, analyses=["spectra"], progress=lambda *said: seen.append(said))
    assert seen == [("prompts", done, 11) for done in (2, 4, 6, 8, 10, 11)]
    assert [message.split(",")[0] for message in caplog.messages] == ["7 more prompts: about 3 min"]
    sc.study(PROMPTS, lm, out=tmp_path, shard=2, analyses=["spectra"], progress=lambda *said: seen.append(said))
    assert seen[6:] == [("prompts", 11, 11)]


def test_how_many_processes_pay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert local.default_workers(str(folder), 1000) == 4
    assert local.default_workers(str(folder), 200) == 3
    assert local.default_workers(str(folder), 10) == 1
    monkeypatch.setattr(local, "free", lambda device: 5 * 2.0**30)
    assert local.default_workers(str(folder), 1000) == 2
    monkeypatch.setattr(local, "SMALL", 10)
    assert local.default_workers(str(folder), 1000) == 1


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.slow
def test_the_commands(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS[:5]))
    run = CliRunner().invoke
    how = ["-m", str(folder), "--shard", "2", "--threads", "1", "-a", "stable_rank", "-a", "words"]
    first = run(app, ["study", str(file), *how, "--out", str(tmp_path / "1"), "--part", "1/2"])
    assert first.exit_code == 0, first.output
    assert "1 of 3 shards: run the study again" in first.output
    second = run(app, ["study", str(file), *how, "--out", str(tmp_path / "2"), "--part", "2/2", "--json"])
    assert json.loads(second.stdout)["missing"] == 2
    merged = run(app, ["merge", str(tmp_path / "1"), str(tmp_path / "2"), "--out", str(tmp_path / "3")])
    assert merged.exit_code == 0
    assert "All rows are in" in merged.output
    other = run(app, ["study", str(file), *how, "--out", str(tmp_path / "3"), "--convention", "up"])
    assert other.exit_code == 2
    assert "conventions: ['gate'] there, ['up'] here" in other.output
    assert len(other.output.splitlines()) == 1
    for wrong in (["--part", "2"], ["--part", "0/2"], ["--max-memory", "much"], ["-m", str(tmp_path / "none")]):
        refused = run(app, ["study", str(file), "--out", str(tmp_path / "new"), *how, *wrong])
        assert refused.exit_code == 2, refused.output
        assert len(refused.output.splitlines()) == 1


# ------------------------------------------------------------------------------------------------ folders of others


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard": 0}, "shard = 0"),
        ({"shard": -1}, "shard = -1"),
        ({"prompts": 10**12}, "500000000000 shards"),
        ({"prompts": 10**40}, "prompts = 1000"),
        ({"prompts": 0}, "prompts = 0"),
        ({"prompts": "11"}, "prompts = '11'"),
        ({"prompts": True}, "prompts = True"),
        ({"shard": 2.0}, r"shard = 2\.0"),
        ({"k": None}, "k = None"),
        ({"seed": -1}, "seed = -1"),
        ({"models": []}, r"models = \[\]"),
        ({"models": [{}]}, r"models = \[\{\}\]"),
        ({"models": [{"label": "a"}, {"label": "a"}]}, "models = "),
        ({"models": [{"label": "a", "device": 3}]}, "models = "),
        ({"models": "tiny"}, "models = 'tiny'"),
        ({"conventions": ["gate"] * 10**5}, "conventions = "),
        ({"conventions": [["gate"]]}, "conventions = "),
        ({"analyses": {}}, "analyses = "),
        ({"versions": {"torch": 2}}, "versions = "),
        ({"fingerprints": []}, "fingerprints = "),
        ({"tensors": "no"}, "tensors = 'no'"),
        ({"precision": 32}, "precision = 32"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
        ("[" * 100_000, "RecursionError"),
        ("[]", "must be a mapping"),
        ("3", "must be a mapping"),
        ('{"models": 1}', "missing 12 required"),
        ("\x00", "JSONDecodeError"),
        (" " * 2**25, "bytes, of 16,777,216 at most"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_study_that_says_nonsense_is_refused_at_once(
    plain: sc.Study, tmp_path: Path, change: dict[str, object] | str, said: str
) -> None:
    """By all that read it, in one line."""
    spec = json.loads((plain.folder / "study.json").read_text())
    raw = change if isinstance(change, str) else json.dumps({**spec, **change})
    (tmp_path / "study.json").write_text(raw)
    (tmp_path / "shards" / "0-0-000000").mkdir(parents=True)
    for reads in (
        sc.Study.open,
        sc.summarize,
        lambda path: sc.merge([path], tmp_path / "merged"),
        lambda path: sc.study(PROMPTS, "atlas", out=path),
    ):
        start = time.monotonic()
        with pytest.raises(DamagedFile, match=rf"study\.json must describe a study; got .*{said}"):
            reads(tmp_path)
        assert time.monotonic() - start < 5
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "files",
    [{"../../secret": "0"}, {"/etc/passwd": "0"}, {"..": "0"}, {"": "0"}, {"a\\b": "0"}, {"a.b": 3}, [1], "x", None],
    ids=repr,
)
def test_a_manifest_that_says_nonsense_is_refused(plain: sc.Study, tmp_path: Path, files: object) -> None:
    (tmp_path / "secret").write_text("of somebody")
    part = tmp_path / "part"
    shutil.copytree(plain.folder, part)
    for folder in (next((part / "shards").iterdir()), part / "tables"):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    reads = (
        lambda path: sc.merge([path], tmp_path / "merged"),
        lambda path: sc.Study.open(path).to_pandas(),
        sc.summarize,
    )
    for read_it in reads:
        with pytest.raises(DamagedFile, match=r"manifest\.json; got"):
            read_it(part)


@pytest.mark.parametrize("what", ["link", "manifest", "fifo", "folder", "shard", "broken"])
def test_nothing_but_plain_files_is_merged(plain: sc.Study, tmp_path: Path, what: str) -> None:
    part = tmp_path / "part"
    shutil.copytree(plain.folder, part)
    shard = sorted((part / "shards").iterdir())[1]
    file = shard / ("manifest.json" if what == "manifest" else "words.parquet")
    if what == "shard":
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    else:
        file.rename(tmp_path / file.name)
        make = {"fifo": lambda: os.mkfifo(file), "folder": file.mkdir, "broken": lambda: file.symlink_to("nowhere")}
        make.get(what, lambda: file.symlink_to(tmp_path / file.name))()
    with pytest.raises(
        DamagedFile, match=rf"A shard must be a folder of plain files without links; got .*{shard.name}"
    ):
        sc.merge([part], tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged" / "shards").iterdir()] == ["0-0-000000"]


def test_what_others_left_in_a_folder_stays(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    """Only what secant left half-written is removed."""
    out = tmp_path / "out"
    shutil.copytree(plain.folder, out)
    half = ".secant-half-written-abcd1234"
    for name in (".tables.old", ".study.json.backup", "shards/.0-0-mine", half, f"shards/{half}", f"tables/{half}"):
        (out / name).mkdir()
        (out / name / "file").write_text("mine")
    sc.study(PROMPTS, str(folder), out=out, shard=2, threads=1, dtype="float64")
    left = sorted(str(path.parent.relative_to(out)) for path in out.glob("**/.*/file"))
    assert left == [".study.json.backup", ".tables.old", "shards/.0-0-mine"]


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"device": "nonsense"}, {"lm": "no such model"}, {"k": 10**9}])
@pytest.mark.parametrize("there", [False, True])
def test_a_study_that_computed_nothing_leaves_nothing(
    folder: Path, tmp_path: Path, wrong: dict[str, object], there: bool
) -> None:
    out = tmp_path / "a" / "out"
    if there:
        out.mkdir(parents=True)
    with pytest.raises(SecantError):
        sc.study(["Marin"], **{"lm": str(folder), "out": out, **wrong})
    assert [*tmp_path.rglob("*")] == ([out.parent, out] if there else [])


def test_a_folder_in_which_nothing_was_computed_is_free(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    """As of a run that was killed before its first shard was done."""
    (tmp_path / "shards" / ".secant-half-written-abcd1234").mkdir(parents=True)
    shutil.copy(plain.folder / "study.json", tmp_path)
    assert sc.study(["Marin"], str(folder), out=tmp_path, analyses=["stable_rank"]).missing == 0


def test_torchs_own_names_are_names(folder: Path, plain: sc.Study, tmp_path: Path) -> None:
    shutil.copytree(plain.folder, tmp_path / "out")
    how = {"dtype": torch.float64, "device": torch.device("cpu")}
    assert_same(sc.study(PROMPTS, str(folder), out=tmp_path / "out", shard=2, threads=1, **how), plain)
    for wrong in ({"precision": [1]}, {"analyses": 3}, {"convention": None}, {"dtype": {}}, {"engine": [1]}):
        with pytest.raises(BadArgument):
            sc.study(PROMPTS, str(folder), out=tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
