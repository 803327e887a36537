"""`secant merge`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from secant.cli.commands.study import said_of
from secant.cli.options import path_argument, path_option
from secant.cli.output import Printing
from secant.cli.schemas import STUDY, printing, whole
from secant.cli.verb import verb


@printing(whole(STUDY, "The merged study: its folder, and what is in it."))
@verb
def merge(
    folders: Annotated[list[Path], path_argument("The folders of the parts.")],
    out: Annotated[Path, path_option("The folder of the whole study: a new folder, or that of a part.")],
    output: Printing,
) -> None:
    """Merge the parts of a study that several machines computed."""
    import secant as sc
    from secant.results.paths import check

    check(out)
    study = sc.merge(folders, out)
    output.finish(study, said=said_of(study))
