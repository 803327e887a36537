"""`secant summarize`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from secant.cli.options import DebugOption, JsonOption, check_figures, drawn, progressing, reported
from secant.cli.printing import print_json, print_line


@reported
def summarize(
    folders: Annotated[list[Path], typer.Argument(help="The folder of a study; several are read as one.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write the tables and a page, summary.html, to this folder.")
    ] = None,
    json_: JsonOption = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw: PNG and PDF, in its folder figures.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of each bootstrap interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    debug: DebugOption = False,
) -> None:
    """Average what a study found over its prompts, with intervals, by model, convention and category."""
    import secant as sc
    from secant.files import check
    from secant.studies.folder import apart

    if out is not None:
        apart(out)
        check(out)
    if figures:
        check_figures(out)
    with progressing() as progress:
        summary = sc.summarize(folders, resamples=resamples, seed=seed, progress=progress)
    page = ""
    if out is not None:
        summary.save(out)
        if find_spec("plotly") is None:
            typer.echo("There is no page: it needs plotly. pip install 'secant[report]'", err=True)
        else:
            summary.report(out / "summary.html")
            page = f"; the page is {out / 'summary.html'}"
        if figures:
            from secant.figures import summarized

            drawn(summarized(summary), out / "figures")
    if json_:
        print_json(summary.to_dict())
        return
    from secant.terminal import console, show_summary

    show_summary(console(), summary)
    if out is not None:
        print_line(f"Tables are in {out}{page}")
