"""`secant summarize`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secant.cli.options import Seed, count_option, path_argument
from secant.cli.output import Illustrated
from secant.cli.progress import progressing
from secant.cli.schemas import printing, results
from secant.cli.verb import Help, verb

if TYPE_CHECKING:
    from secant.memory import Progress


@printing(results("Summary"))
@verb
def summarize(
    folders: Annotated[list[Path], path_argument("The folder of a study; several are summarized together.")],
    output: Annotated[Illustrated, Help(out="Also write the tables and a page, summary.html, to this folder.")],
    resamples: Annotated[int, count_option("resamples", "How many resamples each bootstrap interval uses.")] = 2000,
    seed: Seed = 0,
) -> None:
    """Average a study's results over its prompts. Averages have intervals, by model, convention and category."""
    import secant as sc
    from secant.studies.folder import refuse_study

    if output.out is not None:
        refuse_study(output.out)
    output.reserve(sc.Summary, "summary.html")
    with progressing() as progress:
        summary = sc.summarize(folders, resamples=resamples, seed=seed, progress=progress)

    def illustrate(out: Path, _: Progress) -> str:
        return output.illustrate(summary, out / "summary.html", summary.report)

    output.finish(summary, more=illustrate)
