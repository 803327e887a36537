"""`secant study`"""

from __future__ import annotations

import ast
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import Conventions, MaxMemory, Models, Spectra, count_option, path_option, paths
from secant.cli.output import Printing
from secant.cli.progress import progressing
from secant.cli.schemas import STUDY, printing, whole
from secant.cli.verb import Help, verb

if TYPE_CHECKING:
    from secant.studies.study import Study


SOURCE = ast.parse((Path(__file__).parents[2] / "studies" / "analyses.py").read_text(encoding="utf-8")).body
"""The module of all analyses, parsed: importing it would import torch, for which `secant --help` should not wait."""

ANALYSES = [
    node.name
    for node in SOURCE
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(d).startswith("analysis(") for d in node.decorator_list)
]
"""The names of all analyses: those of the functions under `@analysis`."""

DEFAULTS = [
    name
    for node in SOURCE
    if isinstance(node, ast.ClassDef) and node.name == "Settings"
    for field in node.body
    if isinstance(field, ast.AnnAssign) and field.value and ast.unparse(field.target) == "analyses"
    for name in ast.literal_eval(field.value)
]
"""The analyses that a study runs by default: those of `secant.studies.analyses.Settings`."""

if TYPE_CHECKING:
    Analysis = str
else:
    Analysis = StrEnum("Analysis", ANALYSES)


class Engine(StrEnum):
    """What computes the shards of a study."""

    local = "local"
    ray = "ray"


@printing(whole(STUDY, "A study: its folder, and what is in it."))
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
    out: Annotated[Path, path_option("The study's folder. Finished shards in it are not computed again.")],
    models: Models,
    freezing: Annotated[Conventions, Help(chat="Send each prompt as a user's chat message.")],
    spectra: Spectra,
    output: Printing,
    analysis: Annotated[
        list[Analysis] | None,
        typer.Option(
            "--analysis", "-a", help=f"What to compute for each prompt (default: {', '.join(DEFAULTS)}). Repeatable."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column that holds the prompts, if the file has several.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="The column that holds the prompts' categories, by which summaries are grouped.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    limit: Annotated[int | None, count_option("limit", "Use only this many prompts, from the first on.")] = None,
    shard: Annotated[int, count_option("shard", "How many prompts are computed and saved together.")] = 16,
    workers: Annotated[
        int | None,
        count_option("workers", "Processes, each with its own copy of the model; by default as many as save time."),
    ] = None,
    threads: Annotated[int | None, count_option("threads", "CPU threads of each worker.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of each worker on a cluster.")] = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the workers: this machine (local) or a Ray cluster (ray).")
    ] = Engine.local,
    part: Annotated[
        str | None,
        typer.Option(help="Compute only this part of the study, such as 2/4. secant merge merges the parts."),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also save U, S and V of every block.")] = False,
    max_memory: MaxMemory = None,
) -> None:
    """Analyse many prompts and save certified rows as Parquet. The same command resumes an interrupted study."""
    import secant as sc
    from secant.results.paths import check
    from secant.studies.analyses import Settings
    from secant.studies.local import default_workers
    from secant.studies.prompts import read

    check(out)
    items = read(prompts, column=column, category=category, chat=freezing.chat, split=split, limit=limit)
    names = models.names
    if workers is None and engine == Engine.local:
        workers = 1 if models.device else min(default_workers(name, len(items)) for name in names)
    with progressing() as progress:
        found = sc.study(
            items, names, out=out, analyses=[str(name) for name in analysis or Settings.analyses],
            convention=freezing.conventions, k=spectra.k, top=spectra.top, shard=shard, workers=workers,
            threads=threads, engine=engine.value, gpus=gpus, part=_part(part), tensors=tensors, max_memory=max_memory,
            progress=progress, **freezing.how, **models.how,
        )  # fmt: skip
    output.finish(found, said=said_of(found))


def said_of(study: Study) -> dict[str, Any]:
    """What `--json` prints about a study.

    Args:
        study: The study, finished or not.

    Returns:
        Its folder and tables, and how many shards are missing and rows failed.
    """
    failed = len(study.failed) if study.tables else 0
    return {"folder": str(study.folder), "missing": study.missing, "failed": failed, "tables": study.tables}


def _part(text: str | None) -> tuple[int, int] | None:
    """The numbers of a part such as 2/4. Raises BadArgument."""
    from secant.errors import BadArgument

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise BadArgument("A part is written as 2/4", repr(text), "Give its number and how many parts there are.")
    return int(found[1]), int(found[2])
