"""`secant steer`"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import Freezing, Model, SteeringForm, count_option, path_option
from secant.cli.output import Output
from secant.cli.progress import progressing, stage
from secant.cli.schemas import printing, results
from secant.cli.verb import Help, verb
from secant.steering.forms import FORMS, strength_of

if TYPE_CHECKING:
    from secant.memory import Progress
    from secant.steering.sweep import Sweep


@printing(results("steering.steered.Steered", "Sweep"))
@verb
def steer(
    model: Model,
    freezing: Annotated[Freezing, Help(chat="Send the prompt as a user's chat message, the concept as it is.")],
    output: Annotated[Output, Help(out="Write a sweep's tables, and its figure, to this folder.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt to continue.")] = None,
    concept: Annotated[str, typer.Option(help="The text to steer towards.")] = "",
    layer: Annotated[
        list[int] | None,
        count_option("layer", "Steer the residual stream after this layer, from 0. Repeatable in a sweep."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="How much to steer; 0 changes nothing. Repeatable in a sweep.")
    ] = None,
    form: Annotated[
        list[SteeringForm] | None,
        typer.Option(
            help="How to steer (default: mixture, of strength 0 to 1; in a sweep all). Repeatable in a sweep."
        ),
    ] = None,
    tokens: Annotated[int, count_option("tokens", "The maximum length of a continuation.")] = 20,
    sample: Annotated[bool, typer.Option("--sample", help="Sample tokens instead of taking the likeliest.")] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Try all layers, or those given, at several strengths; report success and cost."),
    ] = False,
    prompts: Annotated[Path | None, path_option("With --sweep, a file of prompts, one on each line.")] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="With --sweep, a word that counts as the concept's. Repeatable.")
    ] = None,
) -> None:
    """Continue a prompt while steering towards a concept. Also continues it unsteered; --sweep tries many settings."""
    import secant as sc
    from secant.steering.steered import side_by_side

    if not concept:
        raise sc.SecantError("Steering requires a concept", "none", "Give one with --concept.")
    texts = _prompts(prompt, prompts)
    if not sweep:
        only = {"--prompts": prompts, "--word": word, "--out": output.out}
        if named := [name for name, value in only.items() if value is not None]:
            raise sc.SecantError(f"{named[0]} applies to sweeps only", "no --sweep", "Add --sweep.")
        _check_one({"--layer": layer, "--strength": strength, "--form": form or ["mixture"]})
    forms = [str(each) for each in form or (FORMS if sweep else ["mixture"])]
    for each, amount in product(forms, strength or ()):
        strength_of(each, amount)
    output.reserve(sc.Sweep, "sweep.png")
    given = [freezing.prompt(text) for text in texts]
    lm = model.loaded()
    with stage("freezing"):
        run = freezing.freeze(lm, concept)
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
    with stage("continuations"):
        both = side_by_side(lm, given[0], run, **where, **how)
    output.finish(both)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or the prompts of a file."""
    from secant.errors import BadPrompt
    from secant.results.paths import lines

    if (prompt is None) == (file is None):
        raise BadPrompt(
            "Steering requires one prompt, or a file of prompts", "both" if prompt else "none", "Give one of them."
        )
    return [prompt or ""] if file is None else lines(file, "Prompts")


def _check_one(settings: dict[str, Any]) -> None:
    """Raises SecantError unless each setting has exactly one value."""
    from secant.errors import SecantError

    counts = {name: len(values or ()) for name, values in settings.items()}
    if wrong := [f"{count or 'no'} {name}" for name, count in counts.items() if count != 1]:
        raise SecantError(
            "Steering requires one layer, one strength and one form",
            " and ".join(wrong),
            "Give each once, or add --sweep.",
        )


def _draw(sweep: Sweep, path: Path) -> str:
    """Draw a sweep, if matplotlib is installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib"):
        from secant.figures import save, steering

        save(steering(sweep), path)
    return ""
