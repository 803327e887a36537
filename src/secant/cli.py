"""The command line: each command is one verb of the package and prints what it returns.

Nothing heavy is imported before a command runs, so that help answers at once. Errors that secant raises on purpose
are one line on stderr and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secant.model import LM
    from secant.run import Run
    from secant.tradeoff import Sweep

app = typer.Typer(
    help="A language model's forward pass at a prompt, as the exact linear system that it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Dtype(StrEnum):
    """Floating-point types by name."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Convention(StrEnum):
    """What a gated product holds."""

    gate = "gate"
    up = "up"
    half = "half"


class SteeringForm(StrEnum):
    """How a concept's operator is put into the stream."""

    mixture = "mixture"
    additive = "additive"
    activation = "activation"


ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a name on the Hugging Face hub, or atlas, which ships with secant."),
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Load the model in this type; its own by default.")]
PrecisionOption = Annotated[
    Dtype | None, typer.Option(help="Evaluate the linear system in this type, above the model's own.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps …")]
AttentionOption = Annotated[str | None, typer.Option(help="The attention implementation: eager or sdpa.")]
RemoteOption = Annotated[bool, typer.Option("--allow-remote-code", help="Run code that comes with the model.")]
PickleOption = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ConventionOption = Annotated[Convention, typer.Option(help="What a gated product holds.")]
ChatOption = Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's chat message.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the random input at which affinity is measured.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """End a command that fails with one line on stderr: exit code 2, or 1 for an error in secant itself."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        from secant.errors import SecantError

        try:
            command(*args, debug=debug, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except (SecantError, KeyboardInterrupt, Exception) as error:
            if debug:
                raise
            code, line = _explained(error)
            typer.echo(f"secant: {line}", err=True)
            raise typer.Exit(code) from None

    return run


def _explained(error: BaseException) -> tuple[int, str]:
    from secant.errors import SecantError
    from secant.resources import is_out_of_memory

    said = " ".join(str(error).split())
    if isinstance(error, SecantError):
        return 2, said
    if isinstance(error, KeyboardInterrupt):
        return 2, "A run ends when it is done; got an interrupt. Nothing half-written is left; start it again."
    if isinstance(error, OSError):
        return 2, f"Output must have somewhere to go; got {error.strerror or said}. Make room, or write elsewhere."
    if is_out_of_memory(error):
        return 2, f"A run must fit in memory; got {said[:200]}. Shorten the prompt or load a smaller dtype."
    return 1, f"An error that secant does not expect; got {type(error).__name__}: {said[:300]}. Run again with --debug."


@app.callback(invoke_without_command=True)
def secant(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """A language model's forward pass at a prompt, as the exact linear system that it is."""
    if version:
        from secant import __version__

        typer.echo(f"secant {__version__}")
        raise typer.Exit


@app.command()
@reported
def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: ModelOption = "atlas",
    out: Annotated[Path | None, typer.Option(help="Also write the tables and tensors to this folder.")] = None,
    json_: JsonOption = False,
    k: Annotated[int, typer.Option("-k", min=1, help="Singular vectors of each token's block to keep.")] = 4,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also look at every layer: what is written by each depth.")
    ] = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Follow the model's own continuation: so many tokens, each decomposed.")
    ] = 1,
    highlight: Annotated[
        list[str] | None, typer.Option(help="A word to mark in the layers' map; may be given again. The predicted one.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to work in, such as 4GiB; by default half of what is free.")
    ] = None,
    chat: ChatOption = False,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Explain the next token: what each token of the prompt contributes, exactly, and what its block decodes to."""
    import secant as sc
    from secant.errors import BadPrompt
    from secant.files import check

    if out is not None:
        check(out)
    if highlight and not layers:
        raise sc.SecantError("Words are marked in the map of layers", "--highlight without --layers", "Add --layers.")
    lm = sc.load(
        model, dtype=dtype and dtype.value, device=device, attention=attention,
        allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    for word in highlight or ():
        if not any(text.strip() == word.replace("·", " ").strip() for text in lm.texts):
            raise BadPrompt("A word to mark is a token of the vocabulary", repr(word), "Give another.")
    with _progress() as progress:
        explanation = sc.explain(
            lm,
            [{"role": "user", "content": prompt}] if chat else prompt,
            k=k,
            convention=convention.value,
            precision=precision and precision.value,
            seed=seed,
            layers=layers,
            steps=steps,
            max_memory=max_memory,
            progress=progress,
        )
    if out is not None:
        explanation.save(out)
    if json_:
        typer.echo(json.dumps(explanation.to_dict(), ensure_ascii=False))
        return
    from secant.terminal import console, show_explanation, show_layers, show_steps

    show_explanation(console(), explanation)
    if explanation.layers is not None:
        show_layers(console(), explanation.layers, highlight)
    if explanation.steps is not None:
        show_steps(console(), explanation.steps)
    if out is not None:
        typer.echo(f"Tables and tensors are in {out}", err=True)


@app.command()
@reported
def attribute(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    target: Annotated[str | None, typer.Option(help="The token to explain; by default the predicted one.")] = None,
    versus: Annotated[str | None, typer.Option(help="Another token, whose logit is taken off.")] = None,
    flow: Annotated[bool, typer.Option("--flow", help="Also what each token makes of each part.")] = False,
    model: ModelOption = "atlas",
    out: Annotated[Path | None, typer.Option(help="Also write the tables to this folder.")] = None,
    json_: JsonOption = False,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    chat: ChatOption = False,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """A token's logit as an exact sum: over tokens, over layers, heads and constants."""
    import secant as sc
    from secant.files import check

    if out is not None:
        check(out)
    lm = sc.load(
        model, dtype=dtype and dtype.value, device=device, attention=attention,
        allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    run = sc.freeze(
        lm,
        [{"role": "user", "content": prompt}] if chat else prompt,
        convention=convention.value,
        precision=precision and precision.value,
        seed=seed,
    )
    attribution = sc.attribute(run, target, versus, flow=flow)
    if out is not None:
        attribution.save(out)
    if json_:
        typer.echo(json.dumps(attribution.to_dict(), ensure_ascii=False))
        return
    from secant.terminal import console, show_attribution, show_flow

    show_attribution(console(), attribution)
    if flow:
        show_flow(console(), attribution, run.tokens)
    if out is not None:
        typer.echo(f"Tables are in {out}", err=True)


@app.command()
@reported
def screen(
    prompts: Annotated[str, typer.Argument(help="A text file with a prompt on each line, or - for standard input.")],
    lexicon: Annotated[str, typer.Option("--lexicon", "-l", help="A text file with a word on each line.")],
    model: ModelOption = "atlas",
    out: Annotated[Path | None, typer.Option(help="Also write all tests as tables to this folder.")] = None,
    json_: JsonOption = False,
    k: Annotated[int, typer.Option("-k", min=1, help="Singular vectors of each block to test.")] = 2,
    top: Annotated[int, typer.Option(min=1, help="Decoded words of each vector to look at.")] = 8,
    position: Annotated[int, typer.Option(help="The position that is read; -1 is the last.")] = -1,
    samples: Annotated[int, typer.Option(min=1, help="Random directions that vectors are compared with.")] = 10_000,
    level: Annotated[float, typer.Option(help="The share of false ones among those flagged.")] = 0.05,
    dtype: DtypeOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the random directions.")] = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Look for words of a list in what each layer writes, with chance beside it. Exit code 2 if a prompt is refused."""
    import secant as sc
    from secant.files import check, lines

    if out is not None:
        check(out)
    texts, words = lines(prompts, "Prompts"), lines(lexicon, "Words to screen for")
    lm = sc.load(
        model, dtype=dtype and dtype.value, device=device, attention=attention,
        allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    with _progress() as progress:
        screening = sc.screen(
            lm, texts, words, k=k, top=top, position=position, samples=samples, level=level,
            convention=convention.value, seed=seed, progress=progress,
        )  # fmt: skip
    if out is not None:
        screening.save(out)
    if json_:
        typer.echo(json.dumps({"model": lm.name, **screening.to_dict()}, ensure_ascii=False))
    else:
        from secant.terminal import console, show_screening

        show_screening(console(), screening)
        if out is not None:
            typer.echo(f"Tables are in {out}", err=True)
    if len(screening.refused):
        raise typer.Exit(2)


@app.command()
@reported
def verify(
    model: Annotated[str, typer.Argument(help="A folder, a name on the Hugging Face hub, or atlas.")],
    prompt: Annotated[str | None, typer.Option(help="A prompt; by default 8 random tokens.")] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Only this type; may be given again. Without it, all; of packed weights, their own."),
    ] = None,
    convention: Annotated[list[Convention] | None, typer.Option(help="Only this one; may be given again.")] = None,
    precision: Annotated[Dtype | None, typer.Option(help="Evaluate the systems of lower types in this one.")] = None,
    json_: JsonOption = False,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and of the random input.")] = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Certify a model: is its forward pass reproduced, in each dtype and convention? Exit code 2 if any is not."""
    from dataclasses import asdict

    import secant as sc
    from secant.loading import configuration

    packed = hasattr(configuration(model, allow_remote_code), "quantization_config")
    chosen: list[Any] = dtype or ([None] if packed else list(Dtype))  # packed weights have a type of their own
    held = convention or list(Convention)
    rows: list[dict[str, Any]] = []
    with _progress() as progress:
        for wanted in chosen:
            lm = sc.load(
                model, dtype=wanted and wanted.value, device=device, attention=attention,
                allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
            )  # fmt: skip
            ids = _random_tokens(lm, seed) if prompt is None else lm.encode(prompt)
            order, name = list(Dtype), Dtype(str(lm.dtype).removeprefix("torch."))
            wider = precision.value if precision and order.index(precision) < min(2, order.index(name)) else None
            for which in held:
                how: dict[str, Any] = {"convention": which.value, "precision": wider, "ordinary": True, "seed": seed}
                try:
                    rows.append({"exact": True, **asdict(sc.freeze(lm, ids, **how).certificate)})
                except sc.NotExact as error:
                    rows.append({"exact": False, "dtype": name.value, "convention": which.value, "why": str(error)})
                progress("certificates", len(rows), len(chosen) * len(held))
    if json_:
        typer.echo(json.dumps({"model": model, "tokens": [lm.text(i) for i in ids], "certificates": rows}))
    else:
        from secant.terminal import console, show_certificates

        show_certificates(console(), model, [lm.text(i) for i in ids], rows)
    if not all(row["exact"] for row in rows):
        raise typer.Exit(2)


@app.command()
@reported
def architectures(json_: JsonOption = False, debug: DebugOption = False) -> None:
    """Which model types are exact, as measured on a small model of each; which are refused, and why."""
    import csv
    from importlib.resources import files

    lines = files("secant").joinpath("architectures.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    if json_:
        typer.echo(json.dumps(rows))
        return
    from secant.terminal import console, show_architectures

    show_architectures(console(140), rows)


@app.command()
@reported
def steer(
    prompt: Annotated[str | None, typer.Argument(help="The prompt to go on from.")] = None,
    concept: Annotated[str, typer.Option(help="The text whose operator steers.")] = "",
    layer: Annotated[
        list[int] | None, typer.Option(help="Steer the stream after this layer, from 0; in a sweep may be given again.")
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="0 leaves the model as it is; in a sweep may be given again.")
    ] = None,
    form: Annotated[
        list[SteeringForm] | None,
        typer.Option(help="mixture by default, of a strength from 0 to 1; in a sweep all, and may be given again."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a continuation.")] = 20,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens rather than take the likeliest.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try layers (all) and strengths: what is gained, and at what cost.")
    ] = False,
    prompts: Annotated[Path | None, typer.Option(help="Sweep over the prompts of this file, one a line.")] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="A word of the concept to look for in a sweep; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a sweep's tables, and its figure, to this folder.")] = None,
    model: ModelOption = "atlas",
    json_: JsonOption = False,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    convention: Annotated[Convention, typer.Option(help="What a gated product holds.")] = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Steer a continuation with a concept's operator, beside the plain one; or try many ways to (--sweep)."""
    import secant as sc
    from secant.files import check

    if not concept:
        raise sc.SecantError("Steering has a concept", "none", "Give one with --concept.")
    texts = _prompts(prompt, prompts)
    if not sweep:
        only = {"--prompts": prompts, "--word": word, "--out": out}
        if given := [name for name, value in only.items() if value is not None]:
            raise sc.SecantError(f"{given[0]} belongs to a sweep", "none", "Add --sweep.")
        if [len(given or ()) for given in (layer, strength)] != [1, 1] or len(form or ()) > 1:
            raise sc.SecantError(
                "Steering has one layer, one strength and one form", f"--layer {layer}, --strength {strength}",
                "Give each once, or add --sweep.",
            )  # fmt: skip
    if out is not None:
        check(out)
    lm = sc.load(
        model, dtype=dtype and dtype.value, device=device, attention=attention,
        allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    run = sc.freeze(lm, concept, convention=convention.value, precision=precision and precision.value)
    forms = [each.value for each in form or (SteeringForm if sweep else [SteeringForm.mixture])]
    how: dict[str, Any] = {"tokens": tokens, "sample": sample, "seed": seed}
    if sweep:
        with _progress() as progress:
            found = sc.steering_sweep(
                lm, texts, run, layers=layer, strengths=strength, forms=forms, words=word, progress=progress, **how
            )
        _show_sweep(found, out, json_)
        return
    where = {"layer": (layer or [0])[0], "strength": (strength or [0.0])[0], "form": forms[0]}
    _show_steered(lm, run, texts[0], where, how, json_)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or those of a file."""
    from secant.errors import BadPrompt

    if (prompt is None) == (file is None):
        raise BadPrompt("Steering has a prompt, or a file of them", "both" if prompt else "none", "Give one of them.")
    if file is None:
        return [prompt or ""]
    try:
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or "bytes that are not UTF-8"
        raise BadPrompt(f"Prompts are read from {file}", said, "Give a text file, a prompt a line.") from None
    if not found:
        raise BadPrompt(f"Prompts are read from {file}", "none", "Give a text file, a prompt a line.")
    return found


def _show_sweep(sweep: Sweep, out: Path | None, json_: bool) -> None:
    """Write a sweep where it is to go, and print it."""
    from dataclasses import asdict
    from importlib.util import find_spec

    from secant.files import replacing

    if out is not None:
        sweep.save(out)
        if find_spec("matplotlib"):
            from secant.figures import steering_sweep_figure

            with replacing(out / "sweep.png") as new:
                steering_sweep_figure(sweep).savefig(new, dpi=150)
    if json_:
        best = sweep.best()
        table = json.loads(sweep.table.to_json(orient="records"))
        said = {**asdict(sweep.settings), "table": table, "best": None if best is None else table[int(best.name)]}
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    from secant.terminal import console, show_sweep

    show_sweep(console(), sweep)
    if out is not None:
        typer.echo(f"Tables are in {out}", err=True)


def _show_steered(lm: LM, run: Run, prompt: str, where: dict[str, Any], how: dict[str, Any], json_: bool) -> None:
    """Print the plain and the steered continuation."""
    from secant.continuations import continued, encoded, text_of, weighed
    from secant.steering import steer as steering

    rows = encoded(lm, [prompt], how["tokens"])
    plain = continued(lm, rows, **how)
    with steering(lm, run, **where):
        steered = continued(lm, rows, **how)
    both = weighed(lm, rows * 2, plain + steered)
    if json_:
        about = {"model": lm.name, "prompt": prompt, "concept": text_of(lm, run.ids), **where, **how}
        said = {
            name: {"text": c.text, "ids": c.ids, "perplexity": c.perplexity}
            for name, c in zip(("unsteered", "steered"), both, strict=True)
        }
        typer.echo(json.dumps({**about, **said}, ensure_ascii=False))
        return
    from secant.terminal import console, show_steered

    show_steered(console(), text_of(lm, rows[0]), both[0], both[1], _shown(**where))


def _shown(form: str, layer: int, strength: float) -> str:
    return f"{form}, layer {layer}, strength {strength:g}"


def _random_tokens(lm: LM, seed: int) -> list[int]:
    import torch

    length = min(8, lm.context or 8)
    return torch.randint(lm.size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, gone when they are done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done)

        yield report


def main() -> None:
    """Run the command line."""
    app()
