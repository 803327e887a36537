"""`secant explain`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secant.arguments import token_text
from secant.cli.options import (
    Freezing,
    MaxMemory,
    Measuring,
    Model,
    Spectra,
    WithoutSinks,
    checked_option,
    count_option,
)
from secant.cli.output import Illustrated
from secant.cli.progress import progressing
from secant.cli.schemas import printing, results
from secant.cli.verb import Help, verb

if TYPE_CHECKING:
    from secant.memory import Progress
    from secant.model.lm import LM


@printing(results("Explanation"))
@verb
def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: Model,
    freezing: Freezing,
    spectra: Spectra,
    measuring: Measuring,
    output: Annotated[
        Illustrated, Help(out="Also write the tables, the tensors and a page, report.html, to this folder.")
    ],
    target: Annotated[
        str | None,
        checked_option(
            token_text, "The token whose logit is explained, by text or id like #12 (default: the predicted one)."
        ),
    ] = None,
    versus: Annotated[
        str | None, checked_option(token_text, "Another token, whose logit is subtracted: explain the difference.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also decompose every layer: what the residual stream holds at each depth.")
    ] = False,
    highlight: Annotated[
        list[str] | None,
        checked_option(token_text, "A token to mark in the map of layers (default: the predicted one). Repeatable."),
    ] = None,
    steps: Annotated[
        int, count_option("steps", "How many tokens of the model's own continuation to explain, one after the other.")
    ] = 1,
    image: Annotated[
        bool,
        typer.Option("--image/--no-image", help="With --out, also draw J as an image, which requires every row of J."),
    ] = True,
    without_sinks: WithoutSinks = False,
    max_memory: MaxMemory = None,
) -> None:
    """Explain the next token of a prompt. Shows exact contributions, top tokens, the lens by layer and spectra."""
    import secant as sc

    if highlight and not layers:
        raise sc.SecantError("--highlight marks tokens in the map of layers", "no --layers", "Add --layers.")
    output.reserve(sc.Explanation, "report.html")
    output.reserve(sc.Evidence)
    given = freezing.prompt(prompt)
    lm = model.loaded()
    marked = _marked(lm, highlight or ())
    with progressing() as progress:
        explanation = sc.explain(
            lm,
            given,
            target=target,
            versus=versus,
            k=spectra.k,
            top=spectra.top,
            layers=layers,
            steps=steps,
            max_memory=max_memory,
            progress=progress,
            **measuring.how,
            **freezing.how,
        )

    if without_sinks:
        explanation = explanation.without_sinks()
    if explanation.layers is not None:
        explanation = replace(explanation, layers=replace(explanation.layers, highlight=tuple(marked)))

    def illustrate(out: Path, progress: Progress) -> str:
        progress("evidence", 0, 1)
        evidence = explanation.evidence(image=image, max_memory=max_memory, progress=progress)
        evidence.save(out)
        return output.illustrate(explanation, out / "report.html", partial(explanation.report, evidence=evidence))

    output.finish(explanation, files="Tables and tensors", more=illustrate)


def _marked(lm: LM, words: Sequence[str]) -> list[int]:
    """The ids of the tokens to mark. Raises BadPrompt for a word that is not a token."""
    from secant.errors import BadPrompt

    try:
        return [i for word in words for i in lm.spelled(word)]
    except BadPrompt as error:
        raise BadPrompt(
            "A highlighted word must be a token of the vocabulary", error.got, "Choose another word."
        ) from error
