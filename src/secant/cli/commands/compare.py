"""`secant compare`"""

from __future__ import annotations

from typing import Annotated

import typer

from secant.cli.options import Conventions, MaxMemory, Models, Spectra
from secant.cli.output import Output
from secant.cli.progress import progressing
from secant.cli.schemas import printing, results
from secant.cli.verb import Help, verb


@printing(results("Comparison"))
@verb
def compare(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    models: Annotated[
        Models, Help(model="A folder, a GGUF file, a name on the Hugging Face hub, or atlas. Repeat it for each model.")
    ],
    freezing: Conventions,
    spectra: Annotated[Spectra, Help(k="Singular vectors of each block to keep.")],
    output: Output,
    max_memory: MaxMemory = None,
) -> None:
    """Compare models, or conventions of one model, at a prompt."""
    import secant as sc

    names, conventions = models.names, freezing.conventions
    if len(names) * len(conventions) < 2:
        raise sc.SecantError(
            "A comparison requires two models, or two conventions of one", "one", "Add --model or --convention."
        )
    if len(set(names)) < len(names):
        raise sc.SecantError("The models of a comparison must differ", "the same one twice", "Name each once.")
    output.reserve(sc.Comparison)
    given = freezing.prompt(prompt)
    with progressing() as progress:
        comparison = sc.compare(
            given,
            (models.load(name) for name in names),
            conventions=conventions,
            k=spectra.k,
            top=spectra.top,
            max_memory=max_memory,
            progress=progress,
            **freezing.how,
        )
    output.finish(comparison)
