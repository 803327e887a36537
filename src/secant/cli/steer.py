"""`secant steer`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import (
    AttentionOption,
    Convention,
    ConventionOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PickleOption,
    PrecisionOption,
    RemoteOption,
    SeedOption,
    SteeringForm,
    kept,
    loaded,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from secant.linearize.run import Run
    from secant.model.lm import LM
    from secant.steering.sweep import Sweep


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
    tokens: Annotated[int, typer.Option(help="Most tokens of a continuation.")] = 20,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens rather than take the likeliest.")] = False,
    seed: SeedOption = 0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try layers (all) and strengths: what is gained, and at what cost.")
    ] = False,
    prompts: Annotated[Path | None, path_option("Sweep over the prompts of this file, one a line.")] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="A word of the concept to look for in a sweep; may be given again.")
    ] = None,
    out: Annotated[Path | None, path_option("Write a sweep's tables, and its figure, to this folder.")] = None,
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
    from secant.results.files import check_folder

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
        check_folder(out)
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
    from secant.results.paths import lines

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

            with kept(out):
                save(steering(sweep), out / "sweep.png")
    if json_:
        best = sweep.best()
        table = json.loads(sweep.table.to_json(orient="records"))
        said = {**asdict(sweep.settings), "table": table, "best": None if best is None else table[int(best.name)]}
        print_json(said)
        return
    from secant.cli.terminal import console, show_sweep

    show_sweep(console(), sweep)
    if out is not None:
        print_line(f"Tables are in {out}")


def _show_steered(lm: LM, run: Run, prompt: str, where: dict[str, Any], how: dict[str, Any], json_: bool) -> None:
    """Print the plain and the steered continuation."""
    from secant.steering.generate import continued, encoded, text_of, weighed
    from secant.steering.steer import steer as steering

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
        print_json({**about, **said})
        return
    from secant.cli.terminal import console, show_steered

    show_steered(console(), prompt, both[0], both[1], _shown(**where))


def _shown(form: str, layer: int, strength: float) -> str:
    return f"{form}, layer {layer}, strength {strength:g}"
