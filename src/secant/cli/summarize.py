"""`secant summarize`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secant.cli.options import (
    DebugOption,
    JsonOption,
    SeedOption,
    check_figures,
    drawn,
    kept,
    path_argument,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from secant.studies.summary import Summary


@reported
def summarize(
    folders: Annotated[list[Path], path_argument("The folder of a study; several are read as one.")],
    out: Annotated[Path | None, path_option("Also write the tables and a page, summary.html, to this folder.")] = None,
    json_: JsonOption = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw: PNG and PDF, in its folder figures.")
    ] = False,
    resamples: Annotated[int, typer.Option(help="Resamples of each bootstrap interval.")] = 2000,
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Average what a study found over its prompts, with intervals, by model, convention and category."""
    import secant as sc
    from secant.results.files import check_folder
    from secant.studies.folder import apart

    if out is not None:
        apart(out)
        check_folder(out)
    if figures:
        check_figures(out)
    with progressing() as progress:
        summary = sc.summarize(folders, resamples=resamples, seed=seed, progress=progress)
    page = ""
    if out is not None:
        summary.save(out)
        with kept(out):
            page = _drawn(summary, out, figures)
    if json_:
        print_json(summary.to_dict())
        return
    from secant.cli.terminal import console, show_summary

    show_summary(console(), summary)
    if out is not None:
        print_line(f"Tables are in {out}{page}")


def _drawn(summary: Summary, out: Path, figures: bool) -> str:
    """Write the page, and figures if they are asked for; say where the page is, or on stderr why there is none."""
    page = ""
    if find_spec("plotly") is None:
        print_line("There is no page: it needs plotly. pip install 'secant[report]'")
    else:
        summary.report(out / "summary.html")
        page = f"; the page is {out / 'summary.html'}"
    if figures:
        from secant.figures import every

        drawn(every(summary), out / "figures")
    return page
