"""Files: reading returns what was written, whatever the tokens; no partial files are left, no others are touched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.csv
import pytest
import tables as tool
from helpers import heeding_signals

import secant as sc
from secant.errors import OutputFailed, SecantError
from secant.results.files import READ, arrow, check_folder, saving
from secant.results.paths import HALF_WRITTEN, check, check_file, clear, replacing
from secant.results.schema import Column, Table
from secant.signals import Ended, raised
from secant.studies.study import Study, merge, study
from secant.studies.summarize import summarize
from secant.studies.work import SCHEMA

HOSTILE = [
    "\r", "\n", "\r\n", "a\rb", '"', '""', ",", ";", "NA", "N/A", "null", "nan", "None", "True", "1", "-1.5", "=cmd()",
    "+1", "-x", "@x", "\0", "a\0b", " ", "  ", "\t", "'", "\\", "\\n", "#", "\ufeff", "\u2028", "橋", "", None,
]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "text": HOSTILE,
    "integer": [0, -1, 2**63 - 1, -(2**63), None],
    "number": [0.1, 1 / 3, 1.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), 123456789.123456789, None],
    "truth": [True, False, None],
}
KINDS = {"integer": "Int64", "number": "float64", "text": object, "truth": "boolean"}


TABLES = [*tool.tables(), *SCHEMA.values()]
LEXICON = Table(
    "lexicon", "a word and its token", (Column("word", str, "the word"), Column("id", int, "its id", missing=True))
)


def hostile(table: Table) -> pd.DataFrame:
    """Rows of a table with every value that is hard to write; each column begins elsewhere."""
    made = {}
    for place, own in enumerate(table.columns):
        values = VALUES[own.kind]
        rows = [values[(row + place) % len(values)] for row in range(len(HOSTILE))]
        made[own.name.replace("{i}", "0")] = pd.Series(rows, dtype=KINDS[own.kind])
    return pd.DataFrame(made)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_csv_is_read_back_as_it_was(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very lines of docs/reference/tables.md."""
    frame, name = hostile(table), table.name
    with saving(tmp_path / "out", [(table, frame)]):
        pass
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"pd": pd, "pyarrow": pyarrow}
    found = []
    for code in re.findall(r"```python\n(.*?)```", tool.HEAD, re.DOTALL):
        exec(code.replace('"tokens"', repr(name)).replace("out/tokens.csv", f"out/{name}.csv"), scope)
        found.append(scope["tokens"])
    by_pandas, by_pyarrow = found
    rows = arrow(table, frame)
    assert by_pyarrow.cast(rows.schema).equals(rows)
    for key, own in zip(rows.column_names, rows.columns, strict=True):
        values = [None if value == "" else value for value in own.to_pylist()]
        assert by_pandas[key].astype(object).where(by_pandas[key].notna(), None).tolist() == values, key


def test_a_token_that_is_a_formula_is_written_as_it_is(tmp_path: Path) -> None:
    """A guard before it would be another token to every program; docs/reference/tables.md says how to read it."""
    frame = LEXICON.frame([("=cmd()", 1), ("NA", 2), ("", 3), (None, None)])
    with saving(tmp_path / "out", [(LEXICON, frame)]):
        pass
    assert (tmp_path / "out" / "lexicon.csv").read_text() == '"word","id"\n"=cmd()",1\n"NA",2\n"",3\n,\n'
    about = pd.read_csv(tmp_path / "out" / "columns.csv", keep_default_na=False)
    assert about["csv"].tolist() == [READ["text"], READ["integer"]]


# ------------------------------------------------------------------------------------------------ paths

PATHS = [None, 3, b"out", [1], "", "a\0b", "\ud800", "~nobody-at-all/x", Path("/dev/null"), "a" * 300]


@pytest.mark.parametrize("wrong", PATHS, ids=repr)
def test_what_is_no_place_for_results_is_refused(wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By everything that writes, with one line, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SecantError, match=r"; got "):
        check(wrong)
    for write in (replacing, lambda path: saving(path, [])):
        with pytest.raises(SecantError, match=r"; got "), write(wrong):
            pass
    with pytest.raises(SecantError, match=r"; got "):
        check_file(wrong)
    with pytest.raises(SecantError, match=r"; got "):
        study(["a"], "atlas", out=wrong)
    for read in (summarize, Study.open, lambda path: merge(path, tmp_path / "merged")):
        with pytest.raises(SecantError, match=r"; got "):
            read(wrong)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a b", "new\nline", "-x", "橋", ".hidden", "a" * 250])
def test_odd_names_are_names(name: str, tmp_path: Path) -> None:
    check(tmp_path / name / name)
    with saving(tmp_path / name / name, [(LEXICON, LEXICON.frame([("a", 1)]))]):
        pass
    assert (tmp_path / name / name / "lexicon.csv").exists()
    with replacing(tmp_path / name / "file") as new:
        new.write_text("a")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--out=~/x is not expanded by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with replacing("~/out") as new:
        new.mkdir()
    assert (tmp_path / "out").is_dir()


# ------------------------------------------------------------------------------------------------ writing


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is a device of its own, as a mount point is: renaming into it or out of it is refused."""
    mount, rename = tmp_path / "mount", os.replace
    mount.mkdir()

    def replace(old: Path, new: Path) -> None:
        inside = [(path.parent.resolve() / path.name).is_relative_to(mount) for path in (old, new)]
        if inside[0] != inside[1] or new == mount:
            raise OSError(18, "Invalid cross-device link")
        rename(old, new)

    monkeypatch.setattr(os, "replace", replace)
    return mount


@pytest.mark.parametrize("where", ["mount", "mount/a/b", "link", "link/a", "linked"])
def test_a_mount_point_or_a_link_to_another_device(devices: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(devices)
    (devices / "inner").mkdir()
    (tmp_path / "linked").symlink_to(devices / "inner")
    check(tmp_path / where)
    for _ in range(2):
        with saving(tmp_path / where, [(LEXICON, LEXICON.frame([("a", 1)]))]):
            pass
        with replacing(tmp_path / where / "page.html") as new:
            new.write_text("page")
    assert sorted(os.listdir(tmp_path / where)) == sorted(
        ["columns.csv", "lexicon.csv", "lexicon.parquet", "page.html"] + ["inner"] * (where in ("mount", "link"))
    )


def test_a_link_to_a_file_on_another_device(devices: Path, tmp_path: Path) -> None:
    (devices / "page.html").write_text("old")
    (tmp_path / "page.html").symlink_to(devices / "page.html")
    with replacing(tmp_path / "page.html") as new:
        new.write_text("new")
    assert (devices / "page.html").read_text() == "new"
    assert (tmp_path / "page.html").is_symlink()


def test_a_folder_in_the_way_of_a_file_is_seen_before_and_nothing_is_moved(tmp_path: Path) -> None:
    (tmp_path / "out" / "lexicon.parquet").mkdir(parents=True)
    with pytest.raises(OutputFailed, match=r"a folder lexicon\.parquet, which is in the way"):
        check_folder(tmp_path / "out", [LEXICON])
    frame = LEXICON.frame([("a", 1)])
    with pytest.raises(OutputFailed, match="in the way"), saving(tmp_path / "out", [(LEXICON, frame)]):
        pass
    assert os.listdir(tmp_path / "out") == ["lexicon.parquet"]
    for place in ("out", "fifo"):
        if place == "fifo":
            os.mkfifo(tmp_path / place)
        with pytest.raises(OutputFailed):
            check_file(tmp_path / place)
        with pytest.raises(OutputFailed), replacing(tmp_path / place) as new:
            new.write_text("a file")
    assert (tmp_path / "fifo").is_fifo()


def test_every_file_that_is_written_is_looked_for_before(lm: sc.LM, tmp_path: Path) -> None:
    """A folder that is in the way of any of them."""
    run = sc.freeze(lm, "The bridge out of Marin is the")
    for result in (run, sc.attribute(run, flow=True), sc.svd(run.operator(), 1)):
        own = tmp_path / type(result).file()
        result.save(own)
        assert (own / f"{own.name}.safetensors").exists() == bool(result.tensors())
        for name in os.listdir(own):
            (tmp_path / f"{own.name}-{name}" / name).mkdir(parents=True)
            with pytest.raises(OutputFailed, match=rf"a folder {re.escape(name)}, which is in the way"):
                type(result).check_folder(tmp_path / f"{own.name}-{name}")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("other")])
def test_nothing_half_written_is_left(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.csv").write_text("whole")

    def half(path: Path) -> None:
        with replacing(path) as new:
            new.mkdir()
            (new / "a.csv").write_text("ha")
            raise error

    for place in ("new/and/newer", "old", "new/page.html"):
        with pytest.raises((OutputFailed, type(error))):
            half(tmp_path / place)
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["old", "old/a.csv"]
    assert (tmp_path / "old" / "a.csv").read_text() == "whole"


def test_only_what_secant_left_is_cleared(tmp_path: Path) -> None:
    kept = [".tables.old", f"{HALF_WRITTEN}mine-of-2024", "x" + HALF_WRITTEN + "abcdefgh", ".secant", "tables"]
    for name in (*kept, f"{HALF_WRITTEN}abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    (tmp_path / f"{HALF_WRITTEN}12345678").symlink_to(tmp_path / "tables")
    clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, f"{HALF_WRITTEN}12345678"])
    assert (tmp_path / "tables" / "file").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ signals


def test_a_signal_is_an_error_once_and_handlers_are_given_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]  # under nohup, one is ignored
    cleaned = []

    def work(number: int) -> None:
        with raised():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # while it is cleaned up
                cleaned.append(number)

    try:
        for number in numbers:
            with pytest.raises(Ended) as ended:
                work(number)
            assert cleaned.pop() == number
            assert ended.value.code == 128 + number
            assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_change_to_files_is_not_interrupted_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def replace(old: Path, new: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        rename(old, new)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "replace", replace)

    def work() -> None:
        with raised(), replacing(tmp_path / "out") as new:
            new.mkdir()
            for name in "abc":
                (new / name).write_text("whole")

    with pytest.raises(Ended):
        work()
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "c"]


COMMAND = "from secant.cli import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 2), ("SIGHUP", 1)])
def test_a_command_that_is_ended_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, name: str, workers: int
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The bridge out of Marin is the\n" * 4000)
    out = tmp_path / "out"
    command = ["study", prompts, "-m", folder, "--out", out, "--shard", "1", "--workers", workers, "--threads", "1"]
    args = [sys.executable, "-c", COMMAND, *map(str, command)]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_signals)
    end = time.monotonic() + 120
    while not any(out.glob("shards/0-*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    line = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 128 + getattr(signal, name)
    assert line.startswith("secant: ")
    assert f"got {name}" in line
    assert list(out.rglob(f"{HALF_WRITTEN}*")) == []
    assert len(Study.open(out).to_pandas()) == 4000 - Study.open(out).missing


@pytest.mark.slow
def test_a_disk_that_is_full_before_the_page(folder: Path, tmp_path: Path) -> None:
    """No file may be larger than 100 kB from when the page is made: the tables are whole, and the line says so."""
    limited = (
        "import resource; from secant.results import page; own = page.html; "
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "page.html = lambda *of: (limit(), own(*of))[1]; "
    )
    out = tmp_path / "out"
    command = ["explain", "The bridge out of Marin is the", "-m", folder, "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", limited + COMMAND, *map(str, command)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "report.html; got File too large" in line
    assert f"The files of this run in {out} are complete." in line
    assert {"tokens.csv", "chance.parquet", "explanation.safetensors"} <= {*os.listdir(out)}
    assert not [name for name in os.listdir(out) if name.startswith(".") or name == "report.html"]
    assert len(pd.read_parquet(out / "tokens.parquet")) == 8
