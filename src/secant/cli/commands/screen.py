"""`secant screen`"""

from __future__ import annotations

from typing import Annotated

import typer

from secant.arguments import level_of
from secant.cli.options import Freezing, MaxMemory, Model, Position, Spectra, checked_option, count_option, paths
from secant.cli.output import Output
from secant.cli.progress import progressing
from secant.cli.schemas import TEXT, printing, results
from secant.cli.verb import Default, Help, verb


@printing(results("Screening", model=TEXT))
@verb
def screen(
    prompts: Annotated[
        str,
        typer.Argument(help="A text file with a prompt on each line, or - for standard input.", autocompletion=paths),
    ],
    lexicon: Annotated[
        str, typer.Option("--lexicon", "-l", help="A text file with a word on each line.", autocompletion=paths)
    ],
    model: Model,
    freezing: Annotated[Freezing, Help(chat="Send each prompt as a user's chat message.")],
    spectra: Annotated[
        Spectra,
        Default(k=2),
        Help(k="How many singular vectors of each block to test.", top="How many top tokens of each vector to search."),
    ],
    output: Annotated[Output, Help(out="Also write all tests as tables to this folder.")],
    position: Position = -1,
    samples: Annotated[
        int, count_option("samples", "How many random directions the vectors are compared with.")
    ] = 10_000,
    level: Annotated[
        float,
        checked_option(level_of, "The false discovery rate: the accepted share of false positives among the flags."),
    ] = 0.05,
    max_memory: MaxMemory = None,
) -> None:
    """Search each layer's top tokens for the words of a list. Compares with chance; exit code 2 if a prompt fails."""
    import secant as sc
    from secant.results.paths import lines

    output.reserve(sc.Screening)
    texts, words = lines(prompts, "Prompts"), lines(lexicon, "Words to screen for")
    given = [freezing.prompt(line) for line in texts]
    lm = model.loaded()
    with progressing() as progress:
        screening = sc.screen(
            lm,
            given,
            words,
            k=spectra.k,
            top=spectra.top,
            position=position,
            samples=samples,
            level=level,
            max_memory=max_memory,
            progress=progress,
            **freezing.how,
        )
    output.finish(screening, said={"model": lm.name, **screening.to_dict()})
    if len(screening.refused):
        raise typer.Exit(2)
