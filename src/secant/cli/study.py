"""`secant study` and `secant merge`"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secant.cli.options import (
    AttentionOption,
    ChatOption,
    Convention,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PickleOption,
    PrecisionOption,
    RemoteOption,
    SeedOption,
    path_argument,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json

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


@reported
def study(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A text file with a prompt on each line, csv, tsv, jsonl, Parquet, a folder of a Hugging Face data"
            " set, or - for standard input."
        ),
    ],
    out: Annotated[Path, path_option("The study's folder. What is finished there is not computed again.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A folder, a name on the hub, or atlas (the default); may be given again."),
    ] = None,
    analysis: Annotated[
        list[Analysis] | None,
        typer.Option(
            "--analysis",
            "-a",
            help="What to ask; may be given again. reconstruction, spectra, stable_rank, attribution and words.",
        ),
    ] = None,
    convention: Annotated[
        list[Convention] | None, typer.Option(help="What a gated product holds (gate); may be given again.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of the prompts, where there are several.")] = None,
    category: Annotated[str | None, typer.Option(help="The column by which summaries are grouped.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    chat: ChatOption = False,
    k: Annotated[int, typer.Option("-k", help="Singular vectors of each token's block to keep.")] = 4,
    top: Annotated[int, typer.Option(help="Words of each vector.")] = 8,
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
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to work in, such as 4GiB; by default half of what is free.")
    ] = None,
    json_: JsonOption = False,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask the same of many prompts: rows as Parquet, each with its certificate. Ended at any moment, it goes on."""
    import secant as sc
    from secant.results.paths import check
    from secant.studies.analyses import Settings
    from secant.studies.local import paying
    from secant.studies.prompts import read

    check(out)
    items = read(prompts, column=column, category=category, chat=chat, split=split, limit=limit)
    names = model or ["atlas"]
    if workers is None and engine == Engine.local:
        workers = 1 if device else min(paying(name, len(items)) for name in names)
    with progressing() as progress:
        found = sc.study(
            items, names, out=out, analyses=[a.value for a in analysis or ()] or Settings.analyses,
            convention=[c.value for c in convention or [Convention.gate]], precision=precision and precision.value, k=k,
            top=top, seed=seed, shard=shard, workers=workers, threads=threads, engine=engine.value, gpus=gpus,
            part=_part(part), tensors=tensors, max_memory=max_memory, progress=progress, dtype=dtype and dtype.value,
            device=device, attention=attention, allow_remote_code=allow_remote_code, allow_pickle=allow_pickle,
        )  # fmt: skip
    _show(found, json_)


@reported
def merge(
    folders: Annotated[list[Path], path_argument("The folders of the parts.")],
    out: Annotated[Path, path_option("The folder of the whole study, new or one of the parts.")],
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put parts of one study together that several machines computed."""
    import secant as sc

    _show(sc.merge(folders, out), json_)


def _part(text: str | None) -> tuple[int, int] | None:
    """Such as 2/4. Raises BadArgument."""
    from secant.errors import BadArgument

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise BadArgument("A part is such as 2/4", repr(text), "Give which one, and of how many.")
    return int(found[1]), int(found[2])


def _show(study: Study, json_: bool) -> None:
    """Print what a study has, or has not yet."""
    if json_:
        failed = len(study.failed) if study.tables else 0
        said = {"folder": str(study.folder), "missing": study.missing, "failed": failed, "tables": study.tables}
        print_json(said)
        return
    from secant.cli.terminal import console, show_study

    show_study(console(), study)
