"""The command line: each command is one verb of the package and prints what it returns.

Nothing heavy is imported before a command runs, so that help answers at once. Errors that secant raises on purpose
are one line on stderr and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.options import (
    AttentionOption,
    ChatOption,
    Convention,
    ConventionOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelOption,
    PickleOption,
    PrecisionOption,
    RemoteOption,
    SeedOption,
    SteeringForm,
    loaded,
    progressing,
    reported,
)

if TYPE_CHECKING:
    from secant.explanation import Explanation
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
    out: Annotated[
        Path | None, typer.Option(help="Also write the tables, the tensors and a page, report.html, to this folder.")
    ] = None,
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
    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw: PNG and PDF, in its folder figures.")
    ] = False,
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
    if figures:
        _check_figures(out)
    if highlight and not layers:
        raise sc.SecantError("Words are marked in the map of layers", "--highlight without --layers", "Add --layers.")
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    for word in highlight or ():
        if not any(text.strip() == word.replace("·", " ").strip() for text in lm.texts):
            raise BadPrompt("A word to mark is a token of the vocabulary", repr(word), "Give another.")
    with progressing() as progress:
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
            page = _reported(explanation, out, max_memory, progress)
            if figures:
                _draw(explanation, out / "figures")
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
        typer.echo(f"Tables and tensors are in {out}{page}", err=True)


def _reported(
    explanation: Explanation, out: Path, max_memory: str | None, progress: Callable[[str, int, int], None]
) -> str:
    """Write the page too, and say where it is, or on stderr why there is none."""
    if find_spec("plotly") is None:
        typer.echo("There is no page: it needs plotly. pip install 'secant[report]'", err=True)
        return ""
    explanation.report(out / "report.html", max_memory=max_memory, progress=progress)
    return f"; the page is {out / 'report.html'}"


def _check_figures(out: Path | None) -> None:
    """Raises SecantError where figures have no place, or nothing to draw them."""
    from secant.errors import SecantError
    from secant.figures.style import drawing

    if out is None:
        raise SecantError("Figures are written to a folder", "--figures without --out", "Add --out.")
    with drawing():
        pass


def _draw(explanation: Explanation, folder: Path) -> None:
    """Every figure of an explanation, as PNG and as PDF."""
    from secant.figures import explained, save

    for name, figure in explained(explanation).items():
        for suffix in ("png", "pdf"):
            save(figure, folder / f"{name}.{suffix}")


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
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
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
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    with progressing() as progress:
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
    with progressing() as progress:
        for wanted in chosen:
            lm = loaded(model, wanted, device, attention, allow_remote_code, allow_pickle)
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
    convention: ConventionOption = Convention.gate,
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
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    run = sc.freeze(lm, concept, convention=convention.value, precision=precision and precision.value)
    forms = [each.value for each in form or (SteeringForm if sweep else [SteeringForm.mixture])]
    how: dict[str, Any] = {"tokens": tokens, "sample": sample, "seed": seed}
    if sweep:
        with progressing() as progress:
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
    from secant.files import lines

    if (prompt is None) == (file is None):
        raise BadPrompt("Steering has a prompt, or a file of them", "both" if prompt else "none", "Give one of them.")
    return [prompt or ""] if file is None else lines(file, "Prompts")


def _show_sweep(sweep: Sweep, out: Path | None, json_: bool) -> None:
    """Write a sweep where it is to go, and print it."""
    from dataclasses import asdict
    from importlib.util import find_spec

    if out is not None:
        sweep.save(out)
        if find_spec("matplotlib"):
            from secant.figures import save, steering

            save(steering(sweep), out / "sweep.png")
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

    show_steered(console(), prompt, both[0], both[1], _shown(**where))


def _shown(form: str, layer: int, strength: float) -> str:
    return f"{form}, layer {layer}, strength {strength:g}"


def _random_tokens(lm: LM, seed: int) -> list[int]:
    import torch

    length = min(8, lm.context or 8)
    return torch.randint(lm.size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def main() -> None:
    """Run the command line."""
    app()
