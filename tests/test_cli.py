"""The command line, in a separate process: what it prints, writes and refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args

import pytest
import typer
from helpers import real
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner, Result

from secant.cli import app, progress, verb as verbs
from secant.cli.commands import study as study_command
from secant.cli.output import Output
from secant.cli.verb import Default, Group, Help, verb
from secant.errors import BadArgument
from secant.linearize.conventions import CONVENTIONS, NAMES
from secant.results import terminal
from secant.results.view import View
from secant.studies.analyses import ANALYSES, Settings

PROMPT = "The bridge out of Marin is the"
HEAVY = ("torch", "transformers", "pandas", "numpy", "scipy", "pyarrow", "safetensors", "jaxtyping")


def secant(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own. Lines that say how far it is, on a busy machine, are left out."""
    result = subprocess.run(
        [sys.executable, "-m", "secant", *map(str, args)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1", **env}, check=False,
    )  # fmt: skip
    result.stderr = re.sub(r"(?m)^.+: (\d+ s so far|[\d,]+ of [\d,]+(, .*)?)\n", "", result.stderr)
    return result


@pytest.fixture(scope="module")
def explained(folder: Path) -> subprocess.CompletedProcess[str]:
    """A prompt explained in a process of its own."""
    return secant("explain", PROMPT, "--model", folder)


def here(*args: object) -> Result:
    """Run a command in this process; it must succeed."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result


def refused(*args: object) -> str:
    """Run a command that must fail: exit code 2, nothing on stdout, one clear line on stderr."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("secant: ")
    assert "; got " in line
    return line


@pytest.mark.slow
def test_explain(explained: subprocess.CompletedProcess[str]) -> None:
    result = explained
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in result.stdout
    assert not any(line.endswith(" ") for line in lines)
    assert "next token   Golden" in result.stdout
    assert "forward bit-equal · reconstruction" in result.stdout
    marin = next(line for line in lines if line.split()[:2] == ["5", "Marin"])
    assert "Golden" in marin
    assert any("reference" in line for line in lines)
    assert "the lens: Golden by layer" in result.stdout
    assert "the 4 largest columns of J" in lines
    assert "the 4 largest rows of J" in lines


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 160])
def test_explain_at_other_widths(folder: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--layers"])
    assert result.exit_code == 0, result.output
    assert "Marin" in result.stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert max(map(cell_len, plain.splitlines())) <= width
    for heading in ("what each token contributes", "the lens", "σ₀", "R alone", "R attn", "R mlp", "writes by now"):
        assert heading in plain


@pytest.mark.slow
def test_explain_as_json(folder: Path) -> None:
    result = here("explain", PROMPT, "--model", folder, "--json", "-k", 2, "--dtype", "float64", "--convention", "half")
    said = json.loads(result.stdout)
    assert said["prediction"][0]["token"] == "Golden"
    assert said["certificate"]["reconstruction"] <= 1e-13
    assert said["certificate"]["convention"] == "half"
    assert said["certificate"]["dtype"] == "float64"
    assert len(said["tokens"]) == 8
    assert sum(row["position"] == 0 for row in said["singular_values"]) == 2
    assert sum(t["contribution"] for t in said["tokens"]) + said["constant"]["contribution"] == pytest.approx(
        said["logit"]
    )


@pytest.mark.slow
def test_explain_with_out(folder: Path, tmp_path: Path) -> None:
    result = here("explain", PROMPT, "--model", folder, "--out", tmp_path / "out", "--precision", "float64")
    assert "Tables and tensors are in" in result.stderr
    assert (tmp_path / "out" / "explanation.safetensors").exists()


def test_memory_to_work_in(folder: Path) -> None:
    line = refused("explain", PROMPT, "-m", folder, "--max-memory", "10KiB")
    assert "must fit in the allowed memory; got" in line
    assert "of 10.0 KiB" in line
    line = refused("explain", PROMPT, "-m", folder, "--max-memory", "plenty")
    assert "Memory is a number of bytes, or a size; got 'plenty'. Write it like 4GiB or 500MB." in line
    result = CliRunner().invoke(app, ["explain", PROMPT, "-m", str(folder), "--max-memory", "1GiB"])
    assert result.exit_code == 0


def test_words_to_mark_are_words(folder: Path) -> None:
    line = refused("explain", PROMPT, "-m", folder, "--layers", "--highlight", "zzqq")
    assert "A highlighted word must be a token of the vocabulary; got 'zzqq'" in line
    assert "Add --layers" in refused("explain", PROMPT, "-m", folder, "--highlight", "Golden")
    assert "singular triplets; got k = 5000" in refused("explain", PROMPT, "-m", folder, "-k", 5000)


@pytest.mark.slow
def test_explain_every_layer(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = here("explain", PROMPT, "--model", folder, "--layers", "--highlight", "Golden", "--out", out, "-k", 2)
    assert "writes by now (U₀)" in result.stdout
    assert "▸Golden" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    written = {path.name for path in out.iterdir()}
    for name in ("layers", "spectra", "layer_words", "first_seen", "path", "coupling"):
        assert {f"{name}.parquet", f"{name}.csv"} <= written
    said = json.loads((out / "explanation.json").read_text())
    assert {row["part"] for row in said["layers"]} == {"attn", "mlp", "residual"}
    assert max(row["reconstruction"] for row in said["layers"]) <= 1e-5


@pytest.mark.slow
def test_the_same_command_gives_the_same_answer_twice(
    folder: Path, explained: subprocess.CompletedProcess[str]
) -> None:
    assert secant("explain", PROMPT, "--model", folder).stdout == explained.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompt", "word"),
    [("craftgpt", "[inst] do you like music? [/inst]", "soothing"), ("stories260K", "Once upon a time there was", "a")],
)
def test_explain_on_real_models(name: str, prompt: str, word: str) -> None:
    assert word in here("explain", prompt, "--model", real(name), "--dtype", "float64").stdout


@pytest.mark.slow
def test_verify_in_every_dtype_and_convention(folder: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    found = {(c["dtype"], c["convention"]) for c in said["certificates"]}
    assert len(found) == 4 * len(CONVENTIONS)
    assert all(c["exact"] and c["forward_equal"] for c in said["certificates"])
    assert max(c["reconstruction"] for c in said["certificates"] if c["dtype"] == "float64") <= 1e-13


def test_verify(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["verify", str(folder), "--prompt", PROMPT, "--dtype", "float64"])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.count("float64") == printed.stdout.count("equal") == len(CONVENTIONS)
    assert "Marin" in printed.stdout


def test_verify_only_what_is_asked_for(folder: Path) -> None:
    args = ["verify", str(folder), "--json", "--dtype", "bfloat16", "--convention", "up", "--precision", "float32"]
    (certificate,) = json.loads(CliRunner().invoke(app, args).stdout)["certificates"]
    assert (certificate["precision"], certificate["convention"]) == ("float32", "up")
    assert certificate["affinity"] < 1e-5


def test_verify_says_what_is_not_exact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("secant.linearize.run.TOLERANCE", dict.fromkeys((torch.float64, torch.float32), 1e-30))
    conventions = ["--convention", "gate", "--convention", "half"]
    result = CliRunner().invoke(app, ["verify", str(folder), "--dtype", "float32", *conventions])
    assert result.exit_code == 2
    assert result.stdout.count("not exact") == 2
    assert "got reconstruction" in " ".join(result.stdout.split())


# ------------------------------------------------------------------------------------------- bad input


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    assert "GGUF file or a name" in refused("explain", PROMPT, "--model", tmp_path / "none")
    assert "the hub may not be asked" in refused("explain", PROMPT, "--model", "some/model")
    assert "at least one token" in refused("explain", "", "--model", folder)
    assert "context of 64" in refused("explain", "the " * 70, "--model", folder)
    assert "'Golem'" in refused("explain", "In Golem", "--model", folder)
    assert "chat template" in refused("explain", PROMPT, "--model", folder, "--chat")
    assert "device" in refused("explain", PROMPT, "--model", folder, "--device", "quantum")
    assert "config.json" in refused("verify", tmp_path)
    assert "Unicode" in refused("explain", "bad \udcff", "--model", folder)
    assert "like eager and sdpa" in refused("explain", PROMPT, "--model", folder, "--attention", "flash_attention_2")


def test_a_place_that_can_not_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Results are written to" in refused("explain", PROMPT, "--model", folder, "--out", tmp_path / "file" / "out")
    assert "Results are written to" in refused("explain", PROMPT, "--model", folder, "--out", tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_an_unknown_operation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: torch.lgamma(x))
    line = refused("explain", PROMPT, "--model", folder)
    assert "torch.lgamma in model.layers.0.mlp" in line


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = secant("explain", PROMPT, "--model", tmp_path / "none", "--debug")
    assert "Traceback" in result.stderr
    assert "ModelNotFound" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 2, "got an interrupt"),
        (MemoryError(), 2, "must fit in memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "must fit in memory"),
        (ZeroDivisionError("division by zero"), 1, "unexpected error; got ZeroDivisionError"),
    ],
)
def test_whatever_else_happens_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("secant.load", load)
    result = CliRunner().invoke(app, ["explain", PROMPT, "--model", "x"])
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_wrong_options_are_refused() -> None:
    assert secant("explain", PROMPT, "--model", "x", "--dtype", "int4").returncode == 2
    assert secant("explain").returncode == 2


# ------------------------------------------------------------------------------------------- help


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("explain", "attribute", "steer", "screen", "study", "verify", "compare")),
        ["summarize", "--help"],
    ],
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom secant.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n"
        f"    assert not end.code, end.code\nprint([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stderr.strip() == "[]"
    assert result.stdout


def test_a_study_has_the_analyses_that_its_help_names() -> None:
    """Help reads them from the source, in which an import would find the same."""
    assert list(ANALYSES) == study_command.ANALYSES
    assert Settings.analyses == tuple(study_command.DEFAULTS)
    assert f"(default: {', '.join(Settings.analyses)})" in " ".join(secant("study", "--help").stdout.split())


# ------------------------------------------------------------------------------------------- options


def commands() -> dict[str, Any]:
    """The commands as they are run, by name."""
    return get_command(app).commands  # type: ignore[attr-defined]


ALL = {
    "architectures", "attribute", "compare", "explain", "merge", "screen", "serve", "steer", "study", "summarize",
    "verify",
}  # fmt: skip
OTHER = {"docs", "mcp", "schema"}  # they print no result
MODELS = {"attribute", "compare", "explain", "screen", "steer", "study", "verify"}
LOADED = MODELS | {"mcp"}
DECOMPOSED = {"compare", "explain", "screen", "study"}
SHARED = {
    "--model": LOADED - {"verify"} | {"serve"},  # it is verify's argument
    **dict.fromkeys(
        ("--dtype", "--device", "--attention", "--allow-remote-code", "--allow-pickle"), LOADED | {"serve"}
    ),
    **dict.fromkeys(("--convention", "--precision", "--chat"), MODELS),  # in the workbench they are in its page
    "--seed": MODELS | {"summarize"},
    **dict.fromkeys(("-k", "--top"), DECOMPOSED | {"serve"}),
    "--max-memory": DECOMPOSED | {"attribute", "serve"},
    "--origin": {"attribute", "explain"},
    "--position": {"attribute", "screen"},  # the others explain, or go on from, the end of a prompt
    "--out": ALL - {"architectures", "verify", "serve"} | {"docs"},
    "--figures": {"explain", "summarize"},  # those of a page
    "--json": ALL - {"serve"},
    "--debug": ALL | OTHER,
}
"""The commands that have each option of a group: all of those in which it makes sense."""


def test_options_are_shared_by_all_commands_in_which_they_make_sense() -> None:
    found = {name: {opt for param in command.params for opt in param.opts} for name, command in commands().items()}
    assert set(found) == ALL | OTHER
    for option, wanted in SHARED.items():
        assert {name for name, options in found.items() if option in options} == wanted, option


def test_an_option_means_the_same_everywhere() -> None:
    """Its names, and its default: but for screen's -k, which is 2, and what may be given again, which has none."""
    for option, names in SHARED.items():
        params = {n: p for n in names for p in commands()[n].params if option in p.opts}
        defaults = {str(p.default) for n, p in params.items() if (option, n) != ("-k", "screen") and not p.multiple}
        required = option == "--out"  # of study and merge, which write nothing else
        assert defaults == {"None"} if required else len(defaults) == 1, option
        assert len({tuple(p.opts) for p in params.values()}) == 1, option


def test_every_command_is_a_file_of_its_own() -> None:
    """A file is found by itself: nothing names the commands."""
    from secant.cli.commands import __path__ as folder

    assert {file.stem for file in Path(folder[0]).glob("[!_]*.py")} == set(commands())


@dataclass(frozen=True, kw_only=True)
class Length(Group):
    """A group of options."""

    length: Annotated[int, typer.Option("--length", "-n", help="How long.")] = 3

    def check(self) -> None:
        if self.length < 0:
            raise BadArgument("A length is not negative", str(self.length), "Give another.")


@dataclass(frozen=True, kw_only=True)
class Measure(Length):
    """A group that adds to another."""

    unit: Annotated[str, typer.Option(help="Of what.")] = "m"


def test_a_group_becomes_options_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "VERBS", [])
    seen: list[object] = []

    @verb
    def measured(
        what: Annotated[str, typer.Argument()],
        size: Annotated[Measure, Default(length=5), Help(unit="Of which unit.")],
        often: Annotated[int, typer.Option()] = 1,
    ) -> None:
        seen.append((what, size, often))

    own = typer.Typer(rich_markup_mode=None)
    own.command()(verbs.VERBS[0])
    ran = CliRunner()
    assert ran.invoke(own, ["table", "-n", "7", "--often", "2"]).exit_code == 0
    assert ran.invoke(own, ["table"]).exit_code == 0
    assert seen == [("table", Measure(length=7), 2), ("table", Measure(length=5), 1)]
    said = ran.invoke(own, ["--help"]).stdout
    assert said.index("--often") < said.index("--unit") < said.index("--length") < said.index("--debug")
    assert "Of which unit." in said
    refusal = ran.invoke(own, ["table", "--length", "-1"])
    assert (refusal.exit_code, len(seen)) == (2, 2)
    assert refusal.stderr == "secant: A length is not negative; got -1. Give another.\n"
    with pytest.raises(ValueError, match="duplicate parameter name"):

        @verb
        def twice(size: Measure, unit: Annotated[str, typer.Option()] = "m") -> None: ...


# ------------------------------------------------------------------------------------------- the ending


@pytest.fixture(scope="module")
def material(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Arguments with which each command succeeds, all of them but how it ends."""
    place = tmp_path_factory.mktemp("endings")
    file, words, study = (str(place / name) for name in ("prompts.txt", "words.txt", "study"))
    Path(file).write_text(f"{PROMPT}\n")
    Path(words).write_text("golden\n")
    model = ["-m", str(folder)]
    return {
        "architectures": [],
        "attribute": [PROMPT, *model, "--position", "3"],
        "compare": [PROMPT, *model, "--convention", "gate", "--convention", "up", "-k", "1"],
        "explain": [PROMPT, *model, "-k", "1", "--top", "2"],
        "screen": [file, "-l", words, *model, "--samples", "50", "-k", "1"],
        "steer": [PROMPT, *model, "--concept", PROMPT, "--layer", "1", "--strength", "0.5", "--tokens", "2"],
        "study": [file, *model, "--out", study, "--workers", "1", "-a", "reconstruction"],
        "merge": [study, "--out", str(place / "whole")],
        "summarize": [study, "--resamples", "100"],
        "verify": [str(folder), "--dtype", "float32", "--convention", "gate"],
    }


@pytest.mark.slow
def test_every_command_ends_in_one_line_of_json_or_in_the_terminal(material: dict[str, list[str]]) -> None:
    assert set(material) == set(commands()) - OTHER - {"serve"}
    for name, args in material.items():
        result = CliRunner().invoke(app, [name, *args, "--json"])
        assert (result.exit_code, result.stderr) == (0, ""), (name, result.output)
        (line,) = result.stdout.splitlines()
        assert json.loads(line), name
        shown = CliRunner().invoke(app, [name, *args])
        assert (shown.exit_code, shown.stderr) == (0, ""), name
        assert len(shown.stdout.splitlines()) > 1, name


def test_top_tokens_are_counted(material: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("explain", "compare", "screen", "study"):
        seen: dict[str, Any] = {}

        def called(*args: object, seen: dict[str, Any] = seen, **how: Any) -> None:
            seen |= how
            raise BadArgument("Enough is seen", "it", "Stop.")

        monkeypatch.setattr(f"secant.{name}", called)
        assert "Enough is seen" in refused(name, *[a for a in material[name] if a not in ("--top", "2")], "--top", 7)
        assert seen["top"] == 7, name


def test_chat_is_sent_as_a_message(
    material: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whatever freezes a prompt: this model has no chat template, and says so."""
    for name in sorted(SHARED["--chat"] - {"study"}):
        args = material[name] if name != "verify" else [*material[name], "--prompt", PROMPT]
        assert "chat template" in refused(name, *args, "--chat"), name
    assert "Add --prompt" in refused("verify", *material["verify"], "--chat")


def test_a_bad_folder_is_refused_before_any_work(
    material: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*args: object, **kwargs: object) -> None:
        raise AssertionError("it worked")

    (tmp_path / "file").write_text("")
    for name in ("load", "study", "merge", "summarize"):
        monkeypatch.setattr(f"secant.{name}", worked)
    for name in sorted(SHARED["--out"]):
        args = material.get(name, [])  # docs takes nothing
        if "--out" in args:
            args = args[: args.index("--out")] + args[args.index("--out") + 2 :]
        more = ["--sweep"] if name == "steer" else []
        for out in (tmp_path / "file", tmp_path / "file" / "out"):
            assert "Results are written to" in refused(name, *args, *more, "--out", out), name
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WRONG = {
    "int": "-" + "9" * 30, "float": "nan", "--target": "", "--versus": "", "--highlight": "", "--point": "layer.3",
    "--max-memory": "much", "--part": "5", "--convention": "none", "--baseline": "mean", "--origin": "elsewhere",
    "--dtype": "float8", "--precision": "float8", "--form": "none", "--engine": "none", "--analysis": "none",
    "--device": "none", "--attention": "none",
}  # fmt: skip
"""A wrong value of each option, or of each option of a type, that can be refused without a model."""

RIGHT = {
    "--position",  # whether a prompt is as long, only its tokens say
    "--gpus",  # and this, a cluster
}


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads a model fails."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("_model", "_of_gguf"):
        monkeypatch.setattr(f"secant.model.loading.{name}", read)


def test_wrong_options_are_refused_before_a_model_is_loaded(material: dict[str, list[str]], unloaded: None) -> None:
    tried = set()
    kinds = {run.__name__: {n: str(get_args(a)[0]) for n, a in run.__annotations__.items()} for run in verbs.VERBS}
    for name in sorted(LOADED | {"serve"}):
        args = {"serve": ["--model", "atlas"], "mcp": ["--model", "atlas"]}.get(name) or material[name]
        for param in commands()[name].params:
            of = next((each for each in ("int", "float") if each in kinds[name][param.name]), "")
            kind = next((opt for opt in param.opts if opt in WRONG), of)
            if not param.opts[0].startswith("-") or kind not in WRONG or {*param.opts} & RIGHT:
                continue
            if name == "mcp" and kind in ("--device", "--attention"):  # it loads its model when a tool is called
                continue
            given = list(args)
            if not param.multiple and (place := next((o for o in param.opts if o in given), None)):
                del given[given.index(place) : given.index(place) + 2]
            more = ["--layers"] if kind == "--highlight" else []
            line = refused(name, *given, *more, max(param.opts, key=len), WRONG[kind])
            assert "a model was loaded" not in line, (name, param.opts)
            tried.add(kind)
    assert tried == set(WRONG)


def test_empty_prompts_and_wrong_paths_are_refused_before_a_model_is_loaded(
    material: dict[str, list[str]], unloaded: None
) -> None:
    for name in ("attribute", "compare", "explain", "steer"):
        assert "at least one token; got an empty one" in refused(name, "", *material[name][1:]), name
    assert "at least one token; got an empty one" in refused("verify", *material["verify"], "--prompt", "")
    for name in ("compare", "study", "serve"):
        said = refused(name, *material.get(name, []), "--model", "atlas", "--model", "./nowhere")
        assert "'./nowhere'. Check the path" in said, name
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "a free port" in refused("serve", "--port", taken.getsockname()[1])


def test_figures_are_refused_before_any_work(material: dict[str, list[str]]) -> None:
    for name in sorted(SHARED["--figures"]):
        assert "--figures without --out" in refused(name, *material[name], "--figures")


def test_every_command_has_help() -> None:
    for name, command in commands().items():
        result = CliRunner().invoke(app, [name, "--help"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert " ".join(command.help.split())[:60] in " ".join(result.stdout.split())
        assert all(param.help for param in command.params), name


def test_what_a_refusal_shows(folder: Path) -> None:
    assert "got no --layer and no --strength" in refused("steer", PROMPT, "--concept", "x")
    line = refused("steer", PROMPT, "--concept", "x", "--layer", 1, "--layer", 2, "--strength", 1)
    assert "got 2 --layer. " in line
    assert "got 'https://huggingface.co/gpt2'" in refused("explain", PROMPT, "-m", "https://huggingface.co/gpt2")


# ------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_completion(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    result = CliRunner().invoke(app, ["--show-completion"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_SECANT_COMPLETE=complete_{shell}" in result.stdout
    asked = CliRunner().invoke(app, [], env={"_SECANT_COMPLETE": f"source_{shell}"})
    assert asked.exit_code == 0
    assert f"_SECANT_COMPLETE=complete_{shell}" in asked.stdout


def test_a_shell_without_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    import shellingham

    def none(*_: object) -> None:
        raise shellingham.ShellDetectionFailure

    for detected, said in ((none, "one that could not be detected"), (lambda *_: ("tcsh", "/bin/tcsh"), "tcsh")):
        monkeypatch.setattr("shellingham.detect_shell", detected)
        for option in ("--show-completion", "--install-completion"):
            assert f"Completion supports bash, zsh, fish, powershell, pwsh; got {said}." in refused(option)


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("secant ex", ["explain"]),
        ("secant s", ["schema", "screen", "serve", "steer", "study", "summarize"]),
        ("secant explain --conv", ["--convention"]),
        ("secant explain --convention ", [*NAMES]),
        ("secant attribute --origin ", ["zero", "mean", "reference"]),
        ("secant verify atlas --dtype fl", ["float64", "float32", "float16"]),
        ("secant explain --attention ", ["eager", "sdpa"]),
        ("secant steer --form a", ["additive", "activation"]),
        ("secant study --analysis sp", ["spectra"]),
        ("secant explain --model a", ["atlas", "all/"]),
        ("secant explain --model all/", ["all/one/", "all/two/"]),
        ("secant explain --model at", ["atlas"]),
        ("secant explain --model nothing/", []),
        ("secant explain --model ~nobody/", []),
    ],
)
def test_values_are_completed(
    words: str, found: list[str], shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("all/one", "all/two", "all/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "all" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    given = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    given |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    result = CliRunner().invoke(app, [], env={**given, "_SECANT_COMPLETE": f"complete_{shell}"})
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines() if line] == found


def test_one_folder_is_left_to_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which puts no space after it; fish has no paths of its own here."""
    (tmp_path / "models").mkdir()
    (tmp_path / "mine.txt").write_text("")
    for shell, words, found in (
        ("bash", "secant explain --model mo", []), ("fish", "secant explain --model mo", ["models/"]),
        ("bash", "secant merge m", []), ("fish", "secant merge m", ["mine.txt", "models/"]),
        ("fish", "secant explain x --out m", ["mine.txt", "models/"]),
    ):  # fmt: skip
        monkeypatch.chdir(tmp_path)
        given = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_SECANT_COMPLETE": f"complete_{shell}"}
        given |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        assert CliRunner().invoke(app, [], env=given).stdout.split() == found, (shell, words)


@pytest.mark.slow
def test_bash_completes(tmp_path: Path) -> None:
    """Bash itself, with the script that is installed."""
    called = tmp_path / "secant"
    called.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from secant.cli import main; main()' \"$@\"\n")
    called.chmod(0o755)
    script = (
        f'eval "$(_SECANT_COMPLETE=source_bash {called})"; COMP_WORDS=(secant verify atlas --dtype b); COMP_CWORD=4; '
        f'_secant_completion {called}; echo "${{COMPREPLY[@]}}"'
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=env, check=False)
    assert (result.stdout, result.stderr) == ("bfloat16\n", "")


# ------------------------------------------------------------------------------------------- single commands


def test_attribute(folder: Path, tmp_path: Path) -> None:
    command = ["attribute", PROMPT, "--model", str(folder)]
    arguments = [*command, "--target", "Golden", "--versus", "Tower"]
    result = CliRunner().invoke(app, [*arguments, "--flow", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "logit Golden over Tower" in " ".join(result.stdout.split())
    assert any(line.split()[:2] == ["5", "Marin"] for line in lines)
    for part in (
        "layers.1.mlp",
        "layers.1.attn.heads.",
        "straight to the logit",
        "outside",
        "what each token contributes through each part",
    ):
        assert part in result.stdout
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    tables = [f"{name}.{kind}" for name in ("contributions", "flow") for kind in ("csv", "parquet")]
    beside = [f"{name}.{kind}" for name in ("by_convention", "deletion") for kind in ("csv", "parquet")]
    assert found == sorted(["attribution.json", "columns.csv", *tables, *beside])
    alone = CliRunner().invoke(app, [*arguments, "--alone"]).stdout
    assert ("deleted" in alone, "deleted" in result.stdout) == (False, True)
    assert ("half" in alone, "secant compared with gate, up, half" in " ".join(result.stdout.split())) == (False, True)
    without = CliRunner().invoke(app, [*arguments, "--alone", "--without-sinks"]).stdout
    assert "Left out: <s> at 0" in " ".join(without.split())
    assert not any(line.split()[:2] == ["0", "<s>"] for line in without.splitlines())
    said = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert said["total"] == pytest.approx(said["logit"], rel=1e-4)
    assert {row["kind"] for row in said["contributions"]} == {"token", "constant", "embed", "layer", "head", "outside"}
    several = ["--target", "Golden", "--target", "Tower", "--point", "layers.0", "--baseline", "none", "--json"]
    mean = json.loads(CliRunner().invoke(app, [*command, *several]).stdout)
    assert (mean["target"], mean["point"], mean["baseline"]) == ("Golden, Tower", "layers.0", "none")
    assert mean["total"] == pytest.approx(mean["logit"], rel=1e-4)
    assert "vocabulary" in refused(*command, "--target", "Xyzzy")


@pytest.mark.slow
def test_explain_steps() -> None:
    result = CliRunner().invoke(app, ["explain", "The capital of France is", "--steps", "5"])
    assert result.exit_code == 0, result.output
    assert "generated" in result.stdout
    assert "The continuation ended at the end of text." in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that become rarer, with the rate since this stage began and the time left; nothing of what is quick."""
    clock = iter([0.0, 6.0, 9.0, 11.0, 31.0, 70.0, 72.0, 131.0, 133.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "FIRST", 10.0)
    lines = progress.Lines()
    lines("loading", 0, 1)
    lines("", 0, 1)
    lines("freezing", 0, 1)
    for done in (100, 120, 159, 161, 220, 222):
        lines("prompts", done, 1222)
    assert capsys.readouterr().err.splitlines() == [
        "prompts: 100 of 1,222", "prompts: 120 of 1,222, 1/s, about 18 min left",
        "prompts: 161 of 1,222, 1/s, about 18 min left", "prompts: 222 of 1,222, 1/s, about 17 min left",
    ]  # fmt: skip


def test_progress_of_what_does_not_report_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.05)
    with progress.in_lines(), progress.stage("loading a model"):
        time.sleep(1.3)
    time.sleep(1.1)
    assert capsys.readouterr().err == "loading a model: 1 s so far\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.in_lines(), progress.stage("loading a model"):  # a terminal has bars
        time.sleep(1.3)
    assert capsys.readouterr().err == ""


HOSTILE = "x\x1b[31m\x9b2J\u202e[b]:smile:"


@pytest.mark.slow
def test_names_command_no_terminal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model's folder and of the folder that is written: escapes, markup and names of emoji are only characters."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, HOSTILE)
    model, out = f"./{HOSTILE}", f"out{HOSTILE}"
    commands: list[list[object]] = [
        ["explain", PROMPT, "-m", model, "--out", out, "--no-image"], ["attribute", PROMPT, "-m", model, "--out", out],
        ["compare", PROMPT, "-m", model, "-m", "atlas", "--out", out], ["verify", model, "--dtype", "float32"],
        ["study", "prompts.txt", "-m", model, "--out", f"study{HOSTILE}", "--workers", 1],
        ["summarize", f"study{HOSTILE}", "--out", out],
    ]  # fmt: skip
    (tmp_path / "prompts.txt").write_text(PROMPT)
    for command in commands:
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
        said = result.stdout + result.stderr
        assert not set("\x1b\x9b\u202e") & set(said), command
        assert "[b]:smile:" in said, command
        assert not re.search("202e:|\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}", said), command
    result = CliRunner().invoke(
        app, ["steer", PROMPT, "-m", str(model), "--concept", PROMPT, "--layer", "1", "--strength", "0.5", "--json"]
    )
    assert "\x9b" not in result.stdout
    assert json.loads(result.stdout)["model"] == str(model)
    assert "\x1b" not in refused("verify", f"{model}none")


def test_a_pipe_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    view = View("", {"words": " ".join(["word"] * 100)})
    for said, usual, wide in (("200", 100, 200), ("50", 140, 50), ("", 100, 100), ("0", 140, 140), ("many", 100, 100)):
        monkeypatch.setenv("COLUMNS", said)
        terminal.show(view, usual=usual)
        longest = max(map(len, capsys.readouterr().out.splitlines()))
        assert wide - 5 < longest <= wide, said


def test_who_watches_sees_the_answer_before_further_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe gets it last: its reader may go away, and the files should be there then."""
    done: list[str] = []
    result = SimpleNamespace(
        save=lambda out: done.append("saved"), show=lambda: done.append("shown"), to_dict=lambda: done.append("as JSON")
    )

    def more(out: Path, progress: Any) -> str:
        done.append("more")
        return ""

    for watched, as_json, order in (
        (True, False, "saved shown more"), (False, False, "saved more shown"), (True, True, "saved more as JSON"),
    ):  # fmt: skip
        monkeypatch.setattr(sys.stdout, "isatty", lambda watched=watched: watched)
        done.clear()
        Output(out=tmp_path, as_json=as_json).finish(result, more=more)
        assert " ".join(done) == order
