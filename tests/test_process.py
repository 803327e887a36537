"""The command line's process, and Python's arguments: streams, interrupts, usage errors, and wrong types."""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import heeding_signals
from test_cli import PROMPT, refused
from typer.testing import CliRunner

import secant as sc
from secant.cli import app, process
from secant.cli.border import ending
from secant.cli.output import Output
from secant.cli.printing import print_json
from secant.cli.progress import progressing
from secant.errors import BadArgument, checked, integer, number, one_of

COMMAND = [sys.executable, "-c", "from secant.cli import main; main()"]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def shell(tail: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, with redirections after it."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {tail}', "bash", *COMMAND, *map(str, args)],
        capture_output=True, text=True, timeout=300, env={**ENV, **env}, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- streams


@pytest.mark.slow
@pytest.mark.parametrize("args", [("--help",), ("--version",), ("explain", PROMPT), ("architectures", "--json")])
@pytest.mark.parametrize(("tail", "got"), [(">/dev/full", "No space left on device"), (">&-", "a closed stdout")])
def test_output_that_can_not_be_written(args: tuple[str, ...], tail: str, got: str, folder: Path) -> None:
    result = shell(tail, *args, *(("--model", folder) if args[0] == "explain" else ()))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"secant: Output must have somewhere to go; got {got}. ")


@pytest.mark.slow
def test_tables_are_there_where_output_is_full(folder: Path, tmp_path: Path) -> None:
    result = shell(">/dev/full", "attribute", PROMPT, "--model", folder, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "out" / "contributions.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize("args", [("explain", PROMPT, "--layers"), ("architectures", "--json")])
def test_a_reader_that_goes_away(args: tuple[str, ...], folder: Path) -> None:
    result = shell("| true", *args, *(("--model", folder) if args[0] == "explain" else ()))
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
def test_streams_that_are_closed(folder: Path) -> None:
    """Each, in a command that imports little; and both, while a model runs."""
    for tail in ("<&-", "2>&-", "<&- 2>&-"):
        result = shell(tail, "--version")
        assert (result.returncode, result.stdout) == (0, f"secant {sc.__version__}\n")
    command = ("attribute", PROMPT, "--alone", "--model", folder)
    plain, closed = shell("", *command), shell("<&- 2>&-", *command)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert (closed.returncode, closed.stdout) == (0, plain.stdout)
    result = shell("<&-", "screen", "-", "--lexicon", "-")
    assert result.returncode == 2
    assert "standard input, which is empty" in result.stderr
    assert shell("2>&-", "explain", "").returncode == 2
    assert shell("2>/dev/full", "explain", "").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_in_ascii(env: dict[str, str]) -> None:
    result = shell("", "attribute", PROMPT, "--convention", "gate", "--alone", "--flow", **env)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert r"\xb7Golden" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_in_what_stdout_can_encode(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, said = io.BytesIO(), {"target": "\N{MIDDLE DOT}Golden \N{SNOWMAN}"}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    print_json(said)
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == said
    assert raw.getvalue().isascii() == (encoding != "utf-8")


def test_help_is_in_ascii() -> None:
    for name in ("", *app_commands()):
        result = CliRunner().invoke(app, [name, "--help"] if name else ["--help"])
        assert result.exit_code == 0
        assert result.stdout.isascii(), name


def app_commands() -> list[str]:
    return [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.nan, 1.5, (math.inf,)], "é": "\x1b\udcff"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [None, 1.5, [None]], "é": "\x1b\udcff"}
    assert "\x1b" not in out


# ------------------------------------------------------------------------------------------- interrupts


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.005, 0.02, 0.1, 0.2, 0.4, 0.8, 1.6, 2.4])
def test_an_interrupt_at_any_time(after: float, tmp_path: Path) -> None:
    """While Python's own modules, typer's, torch's or ours are imported, and while the command works."""
    code = "import os; from secant.cli import main; os.write(1, b'.'); main()"
    args = [sys.executable, "-c", code, "explain", "The " * 30, "--layers", "--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(args, **pipes, env=ENV, preexec_fn=heeding_signals) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().decode().splitlines()
        assert process.wait(60) == 2, lines
    assert lines == [
        "secant: A command must run to its end; got an interrupt. No partial files are left: start it again."
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_is_raised_after_an_interrupt_is_its_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(ImportError("cannot load module more than once"))[0] == 1
    monkeypatch.setattr("secant.cli.border.INTERRUPTS", [signal.SIGINT])
    code, line = ending(ImportError("cannot load module more than once"))
    assert (code, "got an interrupt" in line) == (2, True)


def test_an_interrupt_that_other_code_caught_is_heeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As around an import: the command ends where it reports progress next, and writes nothing."""
    seen: list[int] = []
    monkeypatch.setattr(process, "INTERRUPTS", seen)
    with progressing() as progress:
        progress("rows", 1, 2)
        seen.append(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress("rows", 2, 2)
    with pytest.raises(KeyboardInterrupt):
        Output(out=tmp_path / "out").finish(None)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["explain"], "missing argument"),
        (["explain", "x", "y"], "unexpected extra argument"),
        (["explain", "x", "--nope"], "no such option: --nope"),
        (["explain", "x", "--mod", "y"], "no such option: --mod"),
        (["explain", "x", "--model"], "--model"),
        (["explain", "x", "--dtype", "int4"], "'int4' is not one of"),
        (["explain", "x", "-k", "1.5"], "-k"),
        (["explain", "x", "-k", "x" * 10_000], "-k"),
        (["explain", "x", "--seed", "1", "--seed", "2"], "--seed 2 times; it is given once"),
        (["explain", "x", "--image", "--no-image"], "--image 2 times; it is given once"),
        (["explain", "x", "--json=3"], "--json"),
        (["nonsense"], "no such command 'nonsense'"),
        (["--nope"], "no such option: --nope"),
        (["steer", "x", "--strength", "y"], "--strength"),
        (["summarize"], "missing argument"),
    ],
)
def test_usage_is_one_line(args: list[str], said: str) -> None:
    line = refused(*args)
    assert line.startswith("secant: A command accepts the options and arguments that its help lists; got ")
    assert said in line
    assert line.endswith(f"See secant {args[0]} --help." if args[0] in app_commands() else "See secant --help.")
    assert len(line) < 600


def test_without_a_command_there_is_help() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: secant")


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1" + "0" * 40])
def test_a_seed_has_one_rule(seed: str) -> None:
    for name in sorted(set(app_commands()) - {"architectures", "docs", "mcp", "merge", "schema", "serve"}):
        more = {"steer": ["--concept", "x"], "screen": ["x", "-l", "x"], "study": ["x", "--out", "x"]}
        line = refused(name, *more.get(name, []), *([] if name == "screen" else ["x"]), "--seed", seed)
        assert f"A seed is a whole number that is not negative; got seed = {seed}." in line


@pytest.mark.parametrize("count", ["0", "-1", str(10**30)])
@pytest.mark.parametrize(
    "args",
    [
        ("explain", PROMPT, "-k"), ("explain", PROMPT, "--steps"), ("compare", PROMPT, "--convention", "up", "-k"),
        ("compare", PROMPT, "--convention", "up", "--convention", "gate", "--top"), ("screen", "-", "-l", "-", "-k"),
        ("screen", "{file}", "-l", "{file}", "--samples"), ("screen", "{file}", "-l", "{file}", "--top"),
        ("steer", PROMPT, "--concept", "The bridge", "--layer", 1, "--strength", 0.5, "--tokens"),
        ("study", "{file}", "--out", "{out}", "--shard"), ("study", "{file}", "--out", "{out}", "-k"),
        ("study", "{file}", "--out", "{out}", "--top"), ("study", "{file}", "--out", "{out}", "--threads"),
        ("study", "{file}", "--out", "{out}", "--limit"), ("summarize", "{out}", "--resamples"),
        ("study", "{file}", "--out", "{out}", "--workers"), ("explain", PROMPT, "--top"),
    ],
)  # fmt: skip
def test_counts_have_bounds(args: tuple[object, ...], count: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("The bridge out of Marin is the\n")
    places = {"{file}": tmp_path / "file", "{out}": tmp_path / "out"}
    given = [places.get(str(arg), arg) for arg in args]
    refused(*given, count, *([] if args[0] == "summarize" else ["--model", folder]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_more_words_than_there_are_are_all_of_them(folder: Path) -> None:
    both = ("--convention", "gate", "--convention", "up", "--json", "-k", "1", "--model", str(folder))
    first, second = (CliRunner().invoke(app, ["compare", "London", *both, "--top", n]) for n in ("60", "1000000000"))
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout


# ------------------------------------------------------------------------------------------- arguments in Python


POOL: list[Any] = [
    None, "", "x", b"x", -1, 10**30, 1.5, math.nan, math.inf, [], [None], {}, {"a": 1}, object(), iter([1]), [[]],
    np.array([1.5, 2.5]), torch.ones(2), torch.tensor(math.nan), 1j, Path("x"), "\ud800", slice(0, 2), len,
    lambda x: x, int, torch.ones(40), {"a": object()}, [torch.ones(2)], torch.nn.Linear(1, 1), torch.float16,
]  # fmt: skip
"""What may be given in place of anything."""

INSIDES = re.compile(
    r"\n| at 0x|<(function|class|built-in|object|bound|lambda)|tensor\(|array\(|secant\.[a-z]+\.|jaxtyping"
)
"""What a message may not say about a value: addresses, its elements, private names."""

Cases = dict[str, tuple[Callable[..., Any], dict[str, Any]]]


def made(lm: sc.LM) -> Cases:
    """Public functions with arguments that they take."""
    run = sc.freeze(lm, "In London people")
    op = run.operator()
    f = sc.svd(op, k=2)

    def steered(**how: Any) -> None:
        with sc.steer(**how):
            pass

    return {
        "freeze": (sc.freeze, {"lm": lm, "prompt": "London", "convention": "gate", "precision": None, "ordinary": False,
                               "tolerance": 1e-6, "top": 3, "seed": 0}),
        "explain": (sc.explain, {"lm": lm, "prompt": "London", "k": 1, "top": 2, "layers": False, "steps": 1,
                                 "versus": None}),
        "attribute": (sc.attribute, {"run": run, "target": None, "versus": None, "position": -1, "parts": False,
                                     "flow": False, "max_memory": "1GiB"}),
        "svd": (sc.svd, {"op": op, "k": 2, "per_token": False, "solver": "auto", "tol": None, "seed": 0,
                         "start": None, "max_memory": "1GiB"}),
        "stable_rank": (sc.stable_rank, {"op": op, "per_token": False}),
        "missed": (sc.missed, {"op": op, "f": f}),
        "frobenius": (sc.frobenius, {"op": op, "per_token": False, "samples": 8, "seed": 0}),
        "decode": (sc.decode, {"lm": lm, "directions": f.U, "side": "output", "top": 2, "metric": None,
                               "centered": False, "keep": None, "null": None}),
        "null": (sc.null, {"lm": lm, "side": "output", "top": 2, "centered": False, "samples": 8, "seed": 0}),
        "largest": (sc.largest, {"lm": lm, "op": op, "of": "columns", "count": 2, "top": 2}),
        "follow": (sc.follow, {"run": run, "steps": 1, "parts": False}),
        "ablate": (sc.ablate, {"run": run, "what": 0, "by": "zero", "reference": ()}),
        "ablations": (sc.ablations, {"run": run, "by": "zero", "kinds": ("token",), "target": None, "reference": ()}),
        "sinks": (sc.sinks, {"run": run}),
        "lens": (sc.lens, {"run": run, "target": None, "position": -1, "parts": False, "top": 2,
                           "baseline": "vocabulary", "origin": "zero", "max_memory": None, "progress": None}),
        "sensitivity": (sc.sensitivity, {"run": run, "target": None, "versus": None, "position": -1,
                                         "baseline": "vocabulary", "origin": "zero", "convention": None,
                                         "conventions": ["up"], "deletion": None, "max_memory": None, "point": None,
                                         "progress": None}),
        "faithfulness": (sc.faithfulness, {"run": run, "target": None, "versus": None, "methods": ("secant",),
                                           "replace": "delete", "keep": None, "scores": None,
                                           "baseline": "vocabulary", "seed": 0}),
        "layers": (sc.layers, {"run": run, "k": 1, "position": -1, "readout": "norm", "spans": ("cumulative",),
                               "method": "auto", "all_tokens": False}),
        "reach": (sc.reach, {"run": run, "other": "In Sydney people", "steps": 2, "k": 1}),
        "screen": (sc.screen, {"lm": lm, "prompts": ["London"], "lexicon": ["Tower"], "k": 1, "top": 2, "position": -1,
                               "samples": 10, "level": 0.05, "convention": "gate", "precision": None, "seed": 0,
                               "max_memory": "1GiB"}),
        "steer": (steered, {"lm": lm, "concept": run, "layer": 1, "strength": 0.5, "form": "mixture"}),
        "steering_sweep": (sc.steering_sweep, {"lm": lm, "prompts": ["London"], "concept": run, "layers": [1],
                                               "strengths": [0.5], "forms": ("mixture",), "words": ["x"], "tokens": 1,
                                               "sample": False, "seed": 0}),
        "compare": (sc.compare, {"prompt": "London", "lms": [lm], "conventions": ("gate", "up"), "k": 1, "top": 2}),
        "Run.operator": (run.operator, {"source": "embed", "target": "norm", "position": -1, "readout": None,
                                        "tokens": None}),
        "Run.next": (run.next, {"token": None}),
        "Operator.block": (op.block, {"t": 0}),
        "Operator.dense": (op.dense, {"chunk": None}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def cases(lm: sc.LM) -> Cases:
    return made(lm)


NAMES = [
    "freeze", "explain", "attribute", "svd", "stable_rank", "missed", "frobenius", "decode", "null", "largest",
    "follow", "ablate", "ablations", "faithfulness", "layers", "lens", "sensitivity", "sinks", "reach", "screen",
    "steer", "steering_sweep", "compare",
    "Run.operator", "Run.next", "Operator.block", "Operator.dense",
]  # fmt: skip


def test_every_public_function_is_checked(cases: dict[str, Any]) -> None:
    functions = {name for name in sc.__all__ if inspect.isfunction(getattr(sc, name))}
    assert all(hasattr(getattr(sc, name), "__wrapped__") for name in functions)
    assert functions - {"load", "study", "merge", "summarize"} <= set(cases) == set(NAMES)  # which files have tests of


def try_all(folder: str) -> None:
    """Print what is raised that is no SecantError, where every function is given whatever there is."""
    lm = sc.load(folder, dtype="float64")
    every, op = made(lm), sc.freeze(lm, "From London").operator()
    for name, (function, good) in every.items():
        function(**good)
        for argument in good:
            for value in (*POOL, op, good.get("run"), lm):
                if argument in ("keep", "progress") and callable(value):  # a user's function may fail as it likes
                    continue
                try:
                    function(**{**good, argument: value})
                except sc.SecantError as error:
                    if INSIDES.search(str(error)):
                        print(name, argument, type(value), str(error)[:200])
                except Exception as error:
                    print(name, argument, type(value), type(error).__name__, str(error)[:200])
    run = sc.freeze(lm, "London", top=np.int64(3), seed=np.int32(1), ordinary=np.bool_(False))
    assert len(run.prediction) == 3
    assert len(sc.svd(run.operator(position=np.int64(-1)), np.int8(2)).S) == 2
    with sc.steer(lm, run, layer=np.int64(1), strength=np.float32(0.5)):
        pass
    ids = [lm.token(" Tower"), lm.token(" London")]
    for tokens in (np.array(ids), torch.tensor(ids), pd.Series([" Tower", " London"])):
        assert run.operator(target="logits", tokens=tokens).shape[0] == 2
    assert run.operator(position=np.array([0, -1])).shape == run.operator(position=[0, -1]).shape
    texts, words, how = ["London", "In London people"], ["London", "Tower"], {"k": 1, "top": 2, "samples": 10}
    table = sc.screen(lm, texts, words, **how, level=0.5).table
    for some, kind in ((np.array, pd.Series), (pd.Series, set), (iter, tuple)):
        given = sc.screen(lm, some(texts), kind(words), **how, level=np.float32(0.5))
        pd.testing.assert_frame_equal(given.table, table)
    assert len(sc.svd(run.operator(), 2, tol=np.float32(1e-4)).S) == 2
    assert sc.freeze(sc.load(folder, device=torch.device("cpu")), "London").prediction


@pytest.mark.slow
def test_arguments_of_any_kind_are_taken_or_refused(folder: Path) -> None:
    """In a process of its own, where nothing checks types but secant."""
    code = f"import test_process; test_process.try_all({str(folder)!r})"
    env = {**ENV, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_true_or_false(cases: dict[str, Any], name: str) -> None:
    """A text would be true, whatever it says."""
    function, good = cases[name]
    for argument in (key for key, value in good.items() if value is False):
        for value in ("False", "no", 1, None, [0]):
            with pytest.raises(BadArgument, match=f"takes True or False as {argument}; got "):
                function(**{**good, argument: value})


@checked
def _takes(run: sc.Run | None, names: list[str] | None = None, token: str | int | None = None) -> None:
    pass


def test_what_a_function_takes_is_said() -> None:
    for value, said in ((3, "takes a Run or None as run; got 3, an int. Make one with sc.freeze"), ("x" * 99, "a str")):
        with pytest.raises(BadArgument, match=said):
            _takes(value)
    with pytest.raises(BadArgument, match=r"takes a text or a whole number or None as token; got 1\.5, a float"):
        _takes(None, token=1.5)
    _takes(None, token=np.int64(3))


@checked
def _goes_through(names: Sequence[str] = (), places: int | Sequence[int] | None = None, folder: str | Path = "") -> Any:
    return names, places


@pytest.mark.parametrize(
    "given",
    [
        ("b", "a"), (name for name in "ba"), {"b": 1, "a": 2}.keys(), np.array(["b", "a"]), pd.Series(["b", "a"]),
        pd.Index(["b", "a"]),
    ],
)  # fmt: skip
def test_a_list_is_what_gives_its_elements_one_by_one(given: Any) -> None:
    assert list(_goes_through(given)[0]) == ["b", "a"]


def test_a_list_is_of_what_it_says() -> None:
    assert _goes_through({"b", "c", "a"})[0] == ["a", "b", "c"]  # in the same order whenever it is called
    for places in (np.array([2, 0]), torch.tensor([2, 0]), pd.Series([2, 0]), (place for place in (2, 0))):
        assert _goes_through(places=places)[1] == [2, 0]
    for place in (np.int64(2), torch.tensor(2)):
        assert _goes_through(places=place)[1] is place
    for names in ("ab", b"ab", {"a": 1}, 3, np.array([1, 2]), np.array([["a"]]), pd.DataFrame({"a": ["b"]}), None):
        with pytest.raises(BadArgument, match=r"_goes_through takes a list, each a text as names; got "):
            _goes_through(names)
    _goes_through(folder=PurePosixPath("a"))


def test_helpers() -> None:
    assert number(np.float32(0.5), 0, 1, "rule") == 0.5
    assert integer(np.int64(3), 0, 9, "rule") == 3
    assert one_of("a", ["a", "b"], "A letter") == "a"
    for value in (math.nan, math.inf, "0.5", True, None, 2, [0.5], 10**400):
        with pytest.raises(BadArgument, match="rule; got "):
            number(value, 0, 1, "rule")
    for value in ("c", None, ["a"], 3):
        with pytest.raises(BadArgument, match="A letter is one of a, b; got "):
            one_of(value, ["a", "b"], "A letter")
