"""`secant attribute`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secant.arguments import point_named, token_text
from secant.cli.options import Freezing, MaxMemory, Measuring, Model, Position, WithoutSinks, checked_option
from secant.cli.output import Output
from secant.cli.progress import progressing
from secant.cli.schemas import printing, results
from secant.cli.verb import verb


@printing(results("Attribution"))
@verb
def attribute(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: Model,
    freezing: Freezing,
    measuring: Measuring,
    output: Output,
    target: Annotated[
        list[str] | None,
        checked_option(
            token_text,
            "The token whose logit is explained; by default the prediction at the position. Repeatable, for the mean "
            "of several logits.",
        ),
    ] = None,
    versus: Annotated[
        str | None, checked_option(token_text, "Another token, whose logit is subtracted: explain the difference.")
    ] = None,
    position: Position = -1,
    point: Annotated[
        str | None,
        checked_option(
            point_named, "An activation inside, such as layers.3 or layers.3.mlp, whose logits are explained instead."
        ),
    ] = None,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside/--alone",
            help="Show contributions under other conventions next to these, and what deleting each token does.",
        ),
    ] = True,
    flow: Annotated[bool, typer.Option("--flow", help="Also split each part's contribution by token.")] = False,
    without_sinks: WithoutSinks = False,
    max_memory: MaxMemory = None,
) -> None:
    """Split a token's logit into exact contributions. They are those of tokens, layers, heads and constants."""
    import secant as sc
    from secant.analyses.sensitivity import beside as compared

    output.reserve(sc.Attribution)
    given = freezing.prompt(prompt)
    lm = model.loaded()
    wanted = target[0] if target and len(target) == 1 else target or None
    how: dict[str, Any] = {"position": position, "point": point, "max_memory": max_memory, **measuring.how}
    with progressing() as progress:
        progress("freezing", 0, 1)
        run = freezing.freeze(lm, given)
        progress("contributions", 0, 1)
        found = sc.attribute(run, wanted, versus, flow=flow, **how)
        if beside:
            found = compared(run, found, wanted, versus, progress=progress, **how).attribution
    output.finish(found.without(sc.sinks(run)) if without_sinks else found)
