"""`secant study`"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import Conventions, MaxMemory, Models, Spectra, path_option, paths
from secant.cli.output import Printing
from secant.cli.progress import progressing
from secant.cli.verb import Help, verb

if TYPE_CHECKING:
    from secant.studies.study import Study


class Analysis(StrEnum):
    """What a study can ask of each prompt."""

    reconstruction = "reconstruction"
    spectra = "spectra"
    stable_rank = "stable_rank"
    layers = "layers"
    attribution = "attribution"
    parts = "parts"
    words = "words"
    conventions = "conventions"


class Engine(StrEnum):
    """What computes a study."""

    local = "local"
    ray = "ray"


@verb
def study(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A text file with a prompt on each line, csv, tsv, jsonl, Parquet, a folder of a Hugging Face data"
            " set, or - for standard input.",
            autocompletion=paths,
        ),
    ],
    out: Annotated[Path, path_option("The study's folder. What is finished there is not computed again.")],
    models: Models,
    freezing: Annotated[Conventions, Help(chat="Send each prompt as a user's chat message.")],
    spectra: Spectra,
    output: Printing,
    analysis: Annotated[
        list[Analysis] | None,
        typer.Option(
            "--analysis",
            "-a",
            help="What to ask; may be given again. reconstruction, spectra, stable_rank, attribution and words.",
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of the prompts, where there are several.")] = None,
    category: Annotated[str | None, typer.Option(help="The column by which summaries are grouped.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    shard: Annotated[int, typer.Option(help="Prompts that are kept, or lost, together.")] = 16,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with a model; by default as many as pay.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each worker.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of each worker of a cluster.")] = None,
    engine: Annotated[Engine, typer.Option(help="local, or ray: the workers of a cluster.")] = Engine.local,
    part: Annotated[
        str | None, typer.Option(help="Only a part, such as 2/4: secant merge puts parts together.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also keep U, S and V of every block.")] = False,
    max_memory: MaxMemory = None,
) -> None:
    """Ask the same of many prompts: rows as Parquet, each with its certificate. Ended at any moment, it resumes."""
    import secant as sc
    from secant.results.paths import check
    from secant.studies.analyses import Settings
    from secant.studies.local import paying
    from secant.studies.prompts import read

    check(out)
    items = read(prompts, column=column, category=category, chat=freezing.chat, split=split, limit=limit)
    if workers is None and engine == Engine.local:
        workers = 1 if models.device else min(paying(name, len(items)) for name in models.names)
    with progressing() as progress:
        found = sc.study(
            items, models.names, out=out, analyses=[a.value for a in analysis or ()] or Settings.analyses,
            convention=freezing.conventions, k=spectra.k, top=spectra.top, shard=shard, workers=workers,
            threads=threads, engine=engine.value, gpus=gpus, part=_part(part), tensors=tensors, max_memory=max_memory,
            progress=progress, **freezing.how, **models.how,
        )  # fmt: skip
    output.finish(found, said=said_of(found))


def said_of(study: Study) -> dict[str, Any]:
    """What a study has, or has not yet, ready for JSON."""
    failed = len(study.failed) if study.tables else 0
    return {"folder": str(study.folder), "missing": study.missing, "failed": failed, "tables": study.tables}


def _part(text: str | None) -> tuple[int, int] | None:
    """Such as 2/4. Raises BadArgument."""
    from secant.errors import BadArgument

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise BadArgument("A part is such as 2/4", repr(text), "Give which one, and of how many.")
    return int(found[1]), int(found[2])
