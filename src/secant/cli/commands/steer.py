"""`secant steer`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import Freezing, Model, SteeringForm, path_option
from secant.cli.output import Output
from secant.cli.progress import Progress, progressing
from secant.cli.verb import Help, verb

if TYPE_CHECKING:
    from secant.steering.sweep import Sweep


@verb
def steer(
    model: Model,
    freezing: Annotated[Freezing, Help(chat="Send the prompt as a user's chat message, the concept as it is.")],
    output: Annotated[Output, Help(out="Write a sweep's tables, and its figure, to this folder.")],
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
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try layers (all) and strengths: what is gained, and at what cost.")
    ] = False,
    prompts: Annotated[Path | None, path_option("Sweep over the prompts of this file, one a line.")] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="A word of the concept to look for in a sweep; may be given again.")
    ] = None,
) -> None:
    """Steer a continuation with a concept's operator, next to the plain one; or try many ways to (--sweep)."""
    import secant as sc
    from secant.steering.steered import side_by_side

    if not concept:
        raise sc.SecantError("Steering has a concept", "none", "Give one with --concept.")
    texts = _prompts(prompt, prompts)
    if not sweep:
        only = {"--prompts": prompts, "--word": word, "--out": output.out}
        if named := [name for name, value in only.items() if value is not None]:
            raise sc.SecantError(f"{named[0]} belongs to a sweep", "none", "Add --sweep.")
        _check_one({"--layer": layer, "--strength": strength, "--form": form or ["mixture"]})
    output.reserve(sc.Sweep, "sweep.png")
    lm = model.loaded()
    run = freezing.freeze(lm, concept)
    forms = [each.value for each in form or (SteeringForm if sweep else [SteeringForm.mixture])]
    given = [freezing.prompt(text) for text in texts]
    how: dict[str, Any] = {"tokens": tokens, "sample": sample, "seed": freezing.seed}
    if sweep:
        with progressing() as progress:
            found = sc.steering_sweep(
                lm, given, run, layers=layer, strengths=strength, forms=forms, words=word, progress=progress, **how
            )

        def draw(out: Path, _: Progress) -> str:
            return _draw(found, out / "sweep.png")

        output.finish(found, more=draw)
        return
    where: dict[str, Any] = {"layer": (layer or [0])[0], "strength": (strength or [0.0])[0], "form": forms[0]}
    output.finish(side_by_side(lm, given[0], run, **where, **how))


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or those of a file."""
    from secant.errors import BadPrompt
    from secant.results.paths import lines

    if (prompt is None) == (file is None):
        raise BadPrompt("Steering has a prompt, or a file of them", "both" if prompt else "none", "Give one of them.")
    return [prompt or ""] if file is None else lines(file, "Prompts")


def _check_one(settings: dict[str, Any]) -> None:
    """Raises SecantError where a setting has no value, or several."""
    from secant.errors import SecantError

    counts = {name: len(values or ()) for name, values in settings.items()}
    if wrong := [f"{count or 'no'} {name}" for name, count in counts.items() if count != 1]:
        raise SecantError(
            "Steering has one layer, one strength and one form", " and ".join(wrong), "Give each once, or add --sweep."
        )


def _draw(sweep: Sweep, path: Path) -> str:
    """Draw a sweep, where matplotlib is there."""
    from importlib.util import find_spec

    if find_spec("matplotlib"):
        from secant.figures import save, steering

        save(steering(sweep), path)
    return ""
